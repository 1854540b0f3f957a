"""Servers in environments that programs are seldom tried in: no /proc, a full disk, an ASCII locale."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import support

import ipcsrv

ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}  # the latter two: else Python chooses UTF-8

WITHOUT_PROC = """
mount -t tmpfs none /proc || exit 99
[ -e /proc/self ] && exit 98
python=$1 path=$2 method=$3
"$python" -m ipcsrv start "$path" zlib:compress --workers 2 --start-method "$method" || exit 1
echo hello | "$python" -m ipcsrv call "$path" > /dev/null || exit 2
"$python" -m ipcsrv reload "$path" || exit 3
"$python" -m ipcsrv status "$path" || exit 4
"$python" -m ipcsrv doctor "$path" || exit 5
"$python" -m ipcsrv stop "$path" || exit 6
"""

ON_A_FULL_DISK = """
python=$1 folder=$2 free=$3
mount -t tmpfs -o size=64k none "$folder" || exit 99
cd "$folder"
dd if=/dev/zero of=fill bs=1k 2>/dev/null
truncate -s "-$free" fill
start() { "$python" -m ipcsrv start ./s zlib:compress --workers 1 --log-file /dev/null > /dev/null; }
start
echo $? *
rm fill
[ "$(echo *)" != "*" ] || start || exit
"$python" -m ipcsrv stop ./s
"""

needs_mounts = pytest.mark.skipif(
    shutil.which("unshare") is None or not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can mount"
)


@needs_mounts
@pytest.mark.parametrize("start_method", ["fork", "spawn"])
@pytest.mark.usefixtures("leaves_nothing")
def test_server_works_without_proc(start_method: str, sock_path: str) -> None:
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", WITHOUT_PROC, "sh", sys.executable, sock_path, start_method],
        capture_output=True, text=True, env=support.environment(), timeout=support.TIMEOUT,
    )  # fmt: skip
    if done.returncode == 99:
        pytest.skip("a file system cannot be mounted here")
    assert (done.returncode, done.stderr) == (0, "")


@needs_mounts
@pytest.mark.parametrize(("free", "names"), [(0, "7 fill"), (4096, "0 fill s s.control s.ipcsrv.lock")])  # bytes
def test_start_on_a_full_disk_leaves_nothing_in_the_way(free: int, names: str, sock_dir: str) -> None:
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", ON_A_FULL_DISK, "sh", sys.executable, sock_dir, str(free)],
        capture_output=True, text=True, env=support.environment(), timeout=support.TIMEOUT,
    )  # fmt: skip
    if done.returncode == 99:
        pytest.skip("a file system cannot be mounted here")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == names
    if names.startswith("7"):
        assert f"{sock_dir}/s.ipcsrv.lock cannot be written: No space left on device" in done.stderr
    assert len(done.stderr.splitlines()) == (names.startswith("7"))


@pytest.mark.skipif(os.name == "nt", reason="locales of Unix")
@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_server_works_in_an_ascii_locale(start_method: str, sock_dir: str) -> None:
    folder = Path(sock_dir, "é")
    folder.mkdir(mode=0o700)
    path, log = str(folder / "s"), folder / "log"
    options = ("--workers", "1", "--start-method", start_method, "--log-file", str(log))
    done = support.run_command("start", path, "handlers_for_tests:raise_error", *options, **ASCII)
    assert done.returncode == 0, done.stderr
    with pytest.raises(ipcsrv.HandlerError, match="ü"):
        ipcsrv.call(path, "ü\udcff".encode("utf-8", "surrogateescape"), timeout=10)
    for command in ("status", "doctor", "reload", "stop"):
        done = support.run_command(command, path, **ASCII)
        assert (command, done.returncode, done.stderr) == (command, 0, b"")
    text = log.read_text("utf-8")
    assert "ValueError: ü" in text
    assert text.rstrip().endswith("stopped")
    assert os.listdir(folder) == ["log"]


@pytest.mark.skipif(os.name == "nt", reason="locales of Unix")
def test_foreground_server_works_in_an_ascii_locale(sock_dir: str) -> None:
    folder = Path(sock_dir, "é")
    folder.mkdir(mode=0o700)
    running = support.RunningServer(str(folder / "s"), "zlib:compress", "--workers", "1", env=ASCII)
    try:
        running.wait_until_listening()
        assert zlib.decompress(running.call(b"x")) == b"x"
        assert running.stop() == 0
        assert "Traceback" not in running.output.rest()
    finally:
        running.clean_up()
