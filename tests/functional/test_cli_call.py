"""`ipcsrv call` and `ipcsrv is-active` as a user runs them: the real command against a real server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import support
from conftest import ServerFactory

HEAVY = {"argparse", "logging", "multiprocessing", "asyncio", "filelock", "dataclasses", "typing", "re", "socket"}


@pytest.fixture(autouse=True)
def _own_state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where background servers keep their logs: not in the user's own folder."""
    monkeypatch.setenv(support.HOME_OF_LOGS, str(tmp_path))


@contextmanager
def calling(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """`ipcsrv call ARGUMENTS` in its own session, with pipes to it; killed at the end if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ipcsrv", "call", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=support.environment(),
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("data", [b"", bytes(range(256)) * 40_000])  # other input: tests/contract/test_clients.py
def test_standard_input_comes_back_unchanged(echo_path: str, data: bytes) -> None:
    done = support.run_command("call", echo_path, input=data)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == data


@pytest.mark.parametrize("word", ["x", "", "grüße", "-1", "--timeout"])
def test_operand_comes_back_unchanged(echo_path: str, word: str) -> None:
    done = support.run_command("call", echo_path, "--", word)
    assert (done.returncode, done.stdout, done.stderr) == (0, word.encode(), b"")


def test_operand_that_is_not_text_comes_back(echo_path: str) -> None:
    try:
        operand = os.fsdecode(b"\xff\xfe")
    except UnicodeDecodeError:
        pytest.skip("every operand is text here")
    done = support.run_command("call", echo_path, operand)
    assert (done.returncode, done.stdout) == (0, b"\xff\xfe")


def test_dash_is_standard_input(echo_path: str) -> None:
    assert support.run_command("call", echo_path, "-", input=b"typed").stdout == b"typed"


def test_response_is_printed_as_it_comes(module_server: support.RunningServer) -> None:
    with calling(module_server.path, "stream_for_ever ") as call:
        assert call.stdout is not None
        assert call.stdout.read(5000) == b"x" * 5000  # of a response that never ends


def test_ctrl_c_is_quiet_and_exits_130(module_server: support.RunningServer) -> None:
    with calling(module_server.path, "stream_for_ever ") as call:
        assert call.stdout is not None
        call.stdout.read(1)
        call.send_signal(signal.SIGINT)
        _, said = call.communicate(timeout=support.TIMEOUT)
        assert (call.returncode, said) == (130, b"")


def test_call_ends_quietly_when_its_reader_has_gone(module_server: support.RunningServer) -> None:
    with calling(module_server.path, "stream_for_ever ") as call:
        assert call.stdout is not None
        assert call.stderr is not None
        call.stdout.read(1)
        call.stdout.close()
        assert call.wait(support.TIMEOUT) == 141
        assert call.stderr.read() == b""
        call.stdout = None


@pytest.mark.skipif(not support.have_proc, reason="reads a process's memory from /proc")
def test_memory_of_a_call_is_bounded(server: ServerFactory, tmp_path: Path) -> None:
    running = server("handlers_for_tests:echo", "--workers", "1")
    size = 64 << 20
    (tmp_path / "input").write_bytes(bytes(size))
    command = [sys.executable, "-m", "ipcsrv", "call", running.path]
    with (
        open(tmp_path / "input", "rb") as stdin,
        subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, env=support.environment()) as call,
    ):
        assert call.stdout is not None
        received = sum(len(call.stdout.read(1 << 20)) for _ in range((size >> 20) - 1))
        peak = next(line for line in Path(f"/proc/{call.pid}/status").read_text().splitlines() if "VmHWM" in line)
        received += len(call.stdout.read())
    assert (call.returncode, received) == (0, size)
    assert int(peak.split()[1]) < 32 << 10  # KiB


def test_call_that_takes_too_long_exits_4(server: ServerFactory) -> None:
    running = server("handlers_for_tests:slow")
    done = support.run_command("call", running.path, "600", "--timeout", "0.2")
    assert (done.returncode, done.stdout) == (4, b"")
    assert b"timed out after 0.2 s" in done.stderr


def test_input_that_is_late_exits_4(echo_path: str) -> None:
    with calling(echo_path, "--timeout", "0.2") as call:
        assert call.wait(support.TIMEOUT) == 4
        assert call.stderr is not None
        assert b"timed out" in call.stderr.read()


def test_handler_that_raises_exits_1(module_server: support.RunningServer) -> None:
    done = support.run_command("call", module_server.path, "raise_error boom")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"ValueError: boom" in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_crashed_handler_exits_1(server: ServerFactory) -> None:
    running = server("handlers_for_tests:crash", "--workers", "1")
    for request, how in (("SEGV", b"SIGSEGV" if support.sigterm_asks else b"status 11"), ("7", b"status 7")):
        done = support.run_command("call", running.path, request)
        assert (done.returncode, done.stdout) == (1, b"")
        assert b"the handler's process died: " in done.stderr
        assert how in done.stderr
        assert done.stderr.rstrip().endswith(b"; the request may have been executed")


def test_broken_response_is_printed_and_exits_1(module_server: support.RunningServer) -> None:
    done = support.run_command("call", module_server.path, "stream_then_raise oops")
    assert (done.returncode, done.stdout) == (1, b"begun\n")
    assert b"RuntimeError: oops" in done.stderr


def test_is_active_is_0_while_a_server_listens(echo_server: support.RunningServer) -> None:
    done = support.run_command("is-active", echo_server.path)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert echo_server.stop() == 0
    assert support.run_command("is-active", echo_server.path).returncode == 3


def test_autostart_starts_a_server_once(sock_path: str) -> None:
    call = ("call", sock_path, "--autostart", "handlers_for_tests:pid")
    try:
        first, second = support.run_command(*call, "x"), support.run_command(*call, input=b"y")
        assert (first.returncode, first.stderr) == (0, b"")
        assert (second.returncode, second.stderr) == (0, b"")
        assert first.stdout.isdigit()
    finally:
        stopped = support.run_command("stop", sock_path, "--timeout", "10", "--now")
    assert stopped.returncode == 0


def test_autostart_ends_at_the_timeout_of_the_call(sock_path: str, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(600)\n")
    path = os.pathsep.join([str(tmp_path), support.environment()["PYTHONPATH"]])
    before = time.monotonic()
    done = support.run_command("call", sock_path, "x", "--autostart", "slow:f", "--timeout", "1.5", PYTHONPATH=path)
    taken = time.monotonic() - before
    try:
        assert done.returncode == 4
        assert b"it did not listen within" in done.stderr
        assert b"and is still starting" in done.stderr
        assert taken < 4
    finally:  # the start may not have taken the lock yet
        support.wait_until(lambda: support.run_command("stop", sock_path, "--now").returncode == 0)


def test_autostart_of_a_bad_handler_exits_2(sock_path: str) -> None:
    done = support.run_command("call", sock_path, "x", "--autostart", "no_such_module:handle")
    assert done.returncode == 2
    assert b"no_such_module" in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_plain_call_imports_little(echo_path: str) -> None:
    command = [sys.executable, "-S", "-X", "importtime", "-c"]
    source = "import sys; from ipcsrv.cli import main; sys.exit(main())"
    done = subprocess.run(
        [*command, source, "call", echo_path, "x", "--timeout", "10"],
        capture_output=True,
        text=True,
        env=support.environment(),
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "import time:" in line}
    assert (done.returncode, done.stdout) == (0, "x")
    assert imported & HEAVY == set()
    unwanted = ("ipcsrv.server", "ipcsrv.config.settings", "ipcsrv.cli._p")
    assert not {name for name in imported if name.startswith(unwanted)}
