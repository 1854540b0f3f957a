"""`ipcsrv doctor` as a user runs it, on paths with each kind of problem, and its findings about file systems."""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import support
from conftest import ServerFactory
from sample_status import STATUS
from strangers import NOBODY, needs_other_users, run_as, running_as

if sys.platform == "win32":
    pytest.skip("what is asserted is what Unix says of paths", allow_module_level=True)

from ipcsrv.cli import doctor, main
from ipcsrv.platform import inspection
from ipcsrv.platform.findings import Finding, Level, failure, ok
from ipcsrv.platform.unix import inspection as posix_inspection
from ipcsrv.platform.unix.inspection import Mount

LINE = re.compile(r"(OK|warning|failure) +(\S+(?: \S+)*?) {2,}(.*)")


class Report:
    """What doctor printed: by subject, the level and the whole text, advice included."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.lines = text.splitlines()
        self.found: dict[str, tuple[str, str]] = {}
        self._read()

    def _read(self) -> None:
        subject = ""
        for line in self.lines[:-2]:
            match = LINE.match(line)
            if match:
                subject = match[2]
                self.found[subject] = match[1], match[3]
            else:
                level, said = self.found[subject]
                self.found[subject] = level, f"{said} {line.strip()}"

    def levels(self, level: str) -> set[str]:
        return {subject for subject, (found, _) in self.found.items() if found == level}

    def said(self, subject: str) -> str:
        return self.found[subject][1]


def examined(path: str, capsys: pytest.CaptureFixture[str], status: int = 0) -> Report:
    assert main(["doctor", path]) == status
    report = Report(capsys.readouterr().out)
    assert max(map(len, report.lines)) <= 80
    return report


@pytest.fixture
def folder(sock_dir: str) -> Iterator[str]:
    """A private folder, whose modes a test may change."""
    yield sock_dir
    os.chmod(sock_dir, 0o700)


def test_free_path_has_no_problems(sock_path: str, capsys: pytest.CaptureFixture[str]) -> None:
    report = examined(sock_path, capsys)
    assert report.levels("OK") == {"path length", "file system", "folder", "socket", "listens", "lock", "version",
                                   "descriptors"}  # fmt: skip
    assert report.lines[-1] == "no problems found"
    assert "no server" in report.said("listens")
    assert "free" in report.said("lock")
    assert os.listdir(os.path.dirname(sock_path)) == []


def test_running_server_is_described(
    server: ServerFactory, sock_path: str
) -> None:
    running = server("handlers_for_tests:echo", "--workers", "2")
    done = support.run_command("doctor", sock_path)
    assert (done.returncode, done.stderr) == (0, b"")
    report = Report(done.stdout.decode())
    assert set(report.found) == report.levels("OK")
    assert f"pid {running.pid} of " in report.said("listens")
    assert "handlers_for_tests:echo" in report.said("listens")
    assert f"held by pid {running.pid}, serving handlers_for_tests:echo" in report.said("lock")
    assert "mode 0600" in report.said("socket")
    assert "2 workers, 0 busy" in report.said("control")
    assert "the server has the same version" in report.said("version")
    assert report.text.count("may open") == 2
    assert running.call(b"and it serves on") == b"and it serves on"


def test_remains_of_a_killed_server_are_no_failure(
    server: ServerFactory, sock_path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server("handlers_for_tests:echo", "--workers", "1").kill()
    report = examined(sock_path, capsys)
    assert report.levels("failure") == set()
    assert "no server; a killed one left its files (s, s.control, s.ipcsrv.lock)" in report.said("listens")
    assert main(["stop", sock_path]) == 3
    assert "its files were removed (s, s.control, s.ipcsrv.lock)" in capsys.readouterr().err
    assert os.listdir(os.path.dirname(sock_path)) == []


def test_missing_folder_is_a_failure(sock_dir: str, capsys: pytest.CaptureFixture[str]) -> None:
    report = examined(os.path.join(sock_dir, "missing", "s"), capsys, 1)
    assert report.levels("failure") == {"folder"}
    assert "-> make it" in report.said("folder")
    assert report.lines[-1] == "1 failure, 0 warnings"


def test_folder_writable_by_others_is_a_failure(
    folder: str, sock_path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    os.chmod(folder, 0o777)
    report = examined(sock_path, capsys, 1)
    assert report.levels("failure") == {"folder"}
    assert "mode 0777" in report.said("folder")
    assert "--insecure-dir" in report.said("folder")


def test_sticky_folder_is_a_warning(folder: str, sock_path: str, capsys: pytest.CaptureFixture[str]) -> None:
    os.chmod(folder, 0o1777)
    report = examined(sock_path, capsys)
    assert report.levels("warning") == {"folder"}
    assert report.lines[-1] == "no failure, 1 warning"


def test_writable_folder_above_is_a_warning(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkdir(os.path.join(folder, "in"), 0o700)
    os.chmod(folder, 0o777)
    assert examined(os.path.join(folder, "in", "s"), capsys).levels("warning") == {"folder above"}


@needs_other_users
def test_folder_and_socket_of_another_user_are_failures(
    folder: str, sock_path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = """
listener = socket.socket(socket.AF_UNIX)
listener.bind(arguments[0])
listener.listen()
print("ready", flush=True)
sys.stdin.read()
"""
    os.chown(folder, NOBODY, NOBODY)
    with running_as(source, sock_path) as stranger:
        report = examined(sock_path, capsys, 1)
    assert report.levels("failure") == {"folder", "socket", "listens"}
    assert f"pid {stranger.pid} of nobody" in report.said("listens")
    assert "clients do not trust it" in report.said("listens")


@needs_other_users
def test_lock_file_of_another_user_is_not_believed(
    folder: str, sock_path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = """
with open(arguments[0], "w") as file:
    file.write(json.dumps({"pid": 1, "handler": "believe:me", "version": "9"}))
    file.flush()
    fcntl.flock(file, fcntl.LOCK_EX)
    print("ready", flush=True)
    sys.stdin.read()
"""
    os.chmod(folder, 0o1777)
    with running_as(source, sock_path + ".ipcsrv.lock") as stranger:
        report = examined(sock_path, capsys, 1)
    assert report.levels("failure") == {"lock file"}
    assert f"held by pid {stranger.pid}" in report.said("lock")
    assert "believe" not in report.text


@needs_other_users
def test_read_only_folder_is_a_warning() -> None:
    source = """
print([finding.level.value for finding in place(arguments[0]) if finding.subject == "folder"])
"""
    imports = "ipcsrv.platform.inspection, pwd\nfrom ipcsrv.platform.unix.inspection import place"
    assert run_as(source, "/usr/s", imports=imports) == "['warning']\n"


@pytest.mark.parametrize(("kind", "subjects"), [("file", {"socket", "listens"}), ("folder", {"socket", "listens"}),
                                                ("link", {"socket"})])  # fmt: skip
def test_something_else_at_the_path_is_a_failure(
    kind: str, subjects: set[str], sock_path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make = {"file": Path.touch, "folder": Path.mkdir, "link": lambda path: path.symlink_to("nowhere")}[kind]
    make(Path(sock_path))
    report = examined(sock_path, capsys, 1)
    assert report.levels("failure") == subjects
    assert f"a {kind}" in report.said("socket").replace("symbolic ", "")


def test_files_in_the_way_are_named(
    sock_path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(sock_path + ".ipcsrv.lock").symlink_to("nowhere")
    Path(sock_path + ".control").touch()
    Path(sock_path + ".lock").touch()
    report = examined(sock_path, capsys, 1)
    assert report.levels("failure") == {"lock file"}
    assert report.levels("warning") == {"control", "Git's lock"}


def test_lock_held_without_a_socket_is_a_warning(sock_path: str, capsys: pytest.CaptureFixture[str]) -> None:
    with open(sock_path + ".ipcsrv.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        json.dump({"pid": 1, "handler": "a:b"}, file)
        file.flush()
        report = examined(sock_path, capsys)
    assert report.levels("warning") == {"listens", "lock"}
    assert f"held by pid {os.getpid()}, but its file names pid 1" in report.said("lock")


def test_server_of_another_version_is_a_warning(
    sock_path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with open(sock_path + ".ipcsrv.lock", "w") as file, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sock_path)
        listener.listen()
        fcntl.flock(file, fcntl.LOCK_EX)
        json.dump({"pid": os.getpid(), "handler": "a:b", "version": "0.0.1"}, file)
        file.flush()
        report = examined(sock_path, capsys)
    assert report.levels("warning") == {"control", "version"}
    assert "ipcsrv restart" in report.said("version")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a long path is a failure")
def test_long_path_is_a_warning_and_long_name_a_failure(
    sock_dir: str, capsys: pytest.CaptureFixture[str]
) -> None:
    deep = os.path.join(sock_dir, "d" * 90)
    os.mkdir(deep)
    assert examined(os.path.join(deep, "s" * 20), capsys).levels("warning") == {"path length"}
    assert examined(os.path.join(deep, "s" * 100), capsys, 1).levels("failure") == {"path length"}


# -- file systems -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "level"),
    [
        *[(kind, Level.WARNING) for kind in ("nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "fuse.s3fs", "fuse.x")],
        *[(kind, Level.FAILURE) for kind in ("vfat", "exfat", "ntfs", "squashfs")],
        *[(kind, Level.OK) for kind in ("ext4", "xfs", "btrfs", "tmpfs", "overlay", "apfs", "zfs")],
    ],
)
def test_unsuitable_file_system_is_named(
    kind: str, level: Level, sock_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(posix_inspection, "_mounts", lambda: [Mount(kind, "/", read_only=False)])
    found = {finding.subject: finding for finding in inspection.place(sock_path)}["file system"]
    assert found.level is level
    assert kind in found.text
    assert bool(found.advice) == (level is not Level.OK)


def test_read_only_file_system_is_a_failure(sock_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posix_inspection, "_mounts", lambda: [Mount("ext4", "/", read_only=True)])
    found = {finding.subject: finding for finding in inspection.place(sock_path)}["file system"]
    assert found.level is Level.FAILURE
    assert "read-only" in found.text


def test_innermost_and_latest_mount_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    places = {"ext4": "/", "nfs": "/usr", "xfs": "/usr", "tmpfs": "/us"}
    mounts = [Mount(kind, point, False) for kind, point in places.items()]
    monkeypatch.setattr(posix_inspection, "_mounts", lambda: mounts)
    assert posix_inspection.mount_of("/usr") == Mount("xfs", "/usr", False)
    assert posix_inspection.mount_of("/var") == Mount("ext4", "/", False)


def test_mounts_are_read_as_the_system_writes_them() -> None:
    line = r"36 35 98:0 /mnt1 /with\040spaceé ro,noatime master:1 - nfs4 server:/x rw,errors=continue"
    assert posix_inspection._mount_of_line(line) == Mount("nfs4", "/with spaceé", True)


def test_mount_command_is_used_without_proc(monkeypatch: pytest.MonkeyPatch, sock_dir: str) -> None:
    program = Path(sock_dir, "mount")
    lines = "/dev/disk1s1 on / (apfs, local, read-only)", "/dev/sd0a on /home type ffs (local)"
    program.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))
    program.chmod(0o755)
    monkeypatch.setattr(posix_inspection, "MOUNT", str(program))
    assert posix_inspection._mounts_by_command() == [Mount("apfs", "/", True), Mount("ffs", "/home", False)]


# -- the form ---------------------------------------------------------------------------------------------------------


def test_every_line_fits_80_columns() -> None:
    text = doctor.described(failure("file system", "/a" * 100 + "\n\x1b[31m " + "word " * 30, "do " * 60))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in text
    assert all(line.startswith(" " * doctor._INDENT) or line[:7] in ("failure", " " * 7) for line in lines)
    assert doctor.described(ok("lock", "free")) == "OK       lock          free\n"


def test_missing_worker_is_a_failure() -> None:
    found = doctor._control({**STATUS, "workers": STATUS["workers"][:1]})
    assert found.level is Level.FAILURE
    assert "the server is running, 1 worker, 1 busy, 1 of 2 missing" in found.text
    assert "ipcsrv logs" in found.advice
    assert doctor._control(STATUS).level is Level.OK


def test_few_descriptors_are_a_warning_with_advice() -> None:
    found = doctor._descriptor_limit("this shell", 256, 4096)
    assert found == Finding(Level.WARNING, "descriptors", found.text, found.advice)
    assert "ulimit -n 4096" in found.advice
