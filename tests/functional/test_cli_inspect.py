"""`ipcsrv list`, `logs`, `scale` and `ping` as a user runs them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import support
from conftest import ServerFactory


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs of background servers and the registry are the test's own."""
    monkeypatch.setenv(support.HOME_OF_LOGS, str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    tmp_path.chmod(0o700)


@pytest.fixture
def daemon(sock_path: str) -> Iterator[str]:
    """The path of a background server with one worker; it is stopped at the end."""
    done = support.run_command("start", sock_path, "handlers_for_tests:echo", "-w1")
    assert (done.returncode, done.stderr) == (0, b"")
    yield sock_path
    support.run_command("stop", sock_path, "--now")


def listed(sock_dir: str) -> list[dict[str, Any]]:
    """What `list` says of the servers of this test."""
    done = support.run_command("list", "--json")
    assert (done.returncode, done.stderr) == (0, b"")
    return [entry for entry in json.loads(done.stdout) if entry["path"].startswith(sock_dir)]


def registry(tmp_path: Path) -> list[str]:
    folder = tmp_path / "ipcsrv" / "servers"
    return os.listdir(folder) if folder.exists() else []


# -- list --------------------------------------------------------------------------------------------------------------


def test_list_has_every_running_server(server: ServerFactory, sock_dir: str, tmp_path: Path) -> None:
    one = server("handlers_for_tests:echo", "-w2", path=f"{sock_dir}/1")
    two = server("handlers_for_tests:upper", "-w1", "--name", "two", path=f"{sock_dir}/2")
    support.wait_until(lambda: len(listed(sock_dir)) == 2, "both are registered")
    facts = listed(sock_dir)
    assert [(entry["path"], entry["handler"], entry["name"], entry["pid"], entry["workers"], entry["busy"])
            for entry in facts] == [
        (one.path, "handlers_for_tests:echo", "handlers_for_tests:echo", one.pid, 2, 0),
        (two.path, "handlers_for_tests:upper", "two", two.pid, 1, 0)]  # fmt: skip
    table = support.run_command("list").stdout.decode().splitlines()
    assert table[0].split() == ["PATH", "HANDLER", "PID", "SINCE", "WORKERS", "BUSY"]
    assert any(line.split()[:3] == [two.path, "handlers_for_tests:upper", str(two.pid)] for line in table)


def test_registry_is_empty_after_a_stop(daemon: str, sock_dir: str, tmp_path: Path) -> None:
    assert [entry["path"] for entry in listed(sock_dir)] == [daemon]
    support.run_command("stop", daemon)
    assert registry(tmp_path) == []


def test_killed_server_leaves_the_list(server: ServerFactory, sock_dir: str, tmp_path: Path) -> None:
    running = server("handlers_for_tests:echo", "-w1")
    support.wait_until(lambda: any(name.endswith(".json") for name in registry(tmp_path)), "it is registered")
    running.kill()
    assert len(registry(tmp_path)) == 1
    for name, age in (("1-0.json.new", 3600), ("2-0.json.new", 0)):  # of a killed process, and one just being written
        file = tmp_path / "ipcsrv" / "servers" / name
        file.touch()
        os.utime(file, (time.time() - age,) * 2)
    assert listed(sock_dir) == []
    assert registry(tmp_path) == ["2-0.json.new"]
    file.unlink()
    assert registry(tmp_path) == []


def test_server_runs_without_a_registry(server: ServerFactory, tmp_path: Path) -> None:
    (tmp_path / "ipcsrv").write_text("not a folder")
    assert server("handlers_for_tests:echo", "-w1").call(b"x") == b"x"


# -- logs --------------------------------------------------------------------------------------------------------------


def test_logs_prints_the_last_lines(daemon: str) -> None:
    support.run_command("reload", daemon)
    whole = support.run_command("logs", daemon, "-n", "1000").stdout.splitlines()
    assert b"listening on" in whole[0]
    assert support.run_command("logs", daemon, "-n", "1").stdout.splitlines() == whole[-1:]
    assert support.run_command("logs", daemon, "-n0").stdout == b""


def test_logs_of_a_stopped_server_are_found(daemon: str) -> None:
    support.run_command("stop", daemon)
    done = support.run_command("logs", daemon)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.splitlines()[-1].endswith(b"stopped")


def test_logs_follows_a_rotated_log(server: ServerFactory, tmp_path: Path) -> None:
    log = tmp_path / "log"
    running = server("handlers_for_tests:raise_error", "-w1", "--log-file", str(log))
    command = [sys.executable, "-m", "ipcsrv", "logs", "-f", "-n0", running.path]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, env=support.environment()) as process:
        output = support.Output(process)
        support.wait_until(lambda: str(log) in support.descriptors(process.pid).values(), "the log is open")
        for word in (b"first", b"second"):
            assert support.run_command("call", running.path, word.decode()).returncode == 1
            output.wait_for(f"ValueError: {word.decode()}")
            log.rename(tmp_path / "log.1")  # as logrotate does; the server makes a new one
        process.send_signal(signal.SIGINT)
        assert process.wait(support.TIMEOUT) == 130
        assert process.stderr is not None
        assert process.stderr.read() == b""


# -- scale, ping -------------------------------------------------------------------------------------------------------


def test_scale_changes_the_number_of_workers(daemon: str) -> None:
    done = support.run_command("scale", daemon, "3")
    assert (done.returncode, done.stdout) == (0, f"{daemon}: scaled to 3 workers\n".encode())
    facts = json.loads(support.run_command("status", daemon, "--json").stdout)
    assert facts["workers_wanted"] == 3


def test_ping_of_a_worker_needs_an_idle_one(server: ServerFactory, tmp_path: Path) -> None:
    running = server("handlers_for_tests:hold", "-w1")
    held = tmp_path / "held"
    command = [sys.executable, "-m", "ipcsrv", "call", running.path, str(held)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=support.environment()) as call:
        support.wait_until(held.exists, "the worker is busy")
        done = support.run_command("ping", running.path)
        late = support.run_command("ping", running.path, "--worker", "-t", "0.2")
        held.unlink()
        call.communicate()
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert (late.returncode, late.stdout) == (4, b"")
    done = support.run_command("ping", running.path, "--worker", "-v")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"answer from a worker in " in done.stdout


# -- unusual paths -----------------------------------------------------------------------------------------------------


def test_every_command_takes_an_odd_path_in_an_ascii_locale(sock_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that begins with a dash stands after `--`; what the locale cannot show is escaped."""
    monkeypatch.chdir(sock_dir)
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    path = "-é.sock"

    def run(command: str, *options: str, operands: tuple[str, ...] = ()) -> bytes:
        done = support.run_command(command, *options, "--", path, *operands, **locale)
        assert (command, done.returncode, done.stderr) == (command, 0, b"")
        return done.stdout

    run("start", "-w1", operands=("handlers_for_tests:echo",))
    try:
        assert run("call", operands=("-x",)) == b"-x"
        run("is-active")
        assert b"answer from the master" in run("ping", "-v")
        assert b"running" in run("status")
        assert b"scaled to 2 workers" in run("scale", operands=("2",))
        assert b"generation 2 serves" in run("reload")
        assert b"listening on" in run("logs", "-n", "99")
        assert b"0 failed" in run("bench", "-d", "0.1")
        assert b"no problems found" in run("doctor") or b"warning" in run("doctor")
        done = support.run_command("list", **locale)
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"listening" in run("restart")
    finally:
        support.run_command("stop", "--now", "--", path, **locale)
    done = support.run_command("call", "--", path, **locale)
    assert (done.returncode, done.stderr.count(b"\n")) == (3, 1)
    assert os.listdir(sock_dir) == []


@pytest.mark.skipif(os.name == "nt", reason="pipes of Windows are blocking")
@pytest.mark.parametrize(("words", "stream"), [(["--help"], "stdout"), (["no-such-command"], "stderr")])
def test_all_is_printed_to_a_full_pipe_that_is_non_blocking(words: list[str], stream: str) -> None:
    expected = getattr(support.run_command(*words), stream)
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    filled = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            filled += os.write(writes, b"y" * 1024)
    command = [sys.executable, "-m", "ipcsrv", *words]
    with subprocess.Popen(command, env=support.environment(), **{stream: writes}) as process:
        os.close(writes)
        until = time.monotonic() + 0.5
        support.wait_until(lambda: time.monotonic() > until or process.poll() is not None)
        with open(reads, "rb") as output:
            assert output.read()[filled:] == expected
