"""`workers = 0`: the handler in the server's own process, under a person's debugger."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import support
from conftest import ServerFactory

import ipcsrv
from ipcsrv.client import control


@pytest.mark.usefixtures("leaves_nothing")
def test_the_handler_runs_in_the_servers_own_process(server: ServerFactory) -> None:
    running = server("handlers_for_tests:pid", "--workers", "0")
    assert running.call() == b"%d" % running.pid
    assert running.processes() == {running.pid}
    status = running.status()
    assert status["settings"]["workers"] == 0  # type: ignore[index]
    assert [worker["pid"] for worker in status["workers"]] == [running.pid]  # type: ignore[attr-defined]
    assert running.stop() == 0


def test_it_serves_as_workers_do(server: ServerFactory) -> None:
    running = server("handlers_for_tests:stream", "--workers", "0", "--access-log")
    with ipcsrv.connect(running.path, timeout=support.TIMEOUT) as connection:
        for count in (3, 100, 3000):
            assert connection.call(b"%d" % count).count(b"chunk") == count
    for _ in range(50):
        assert running.call(b"1") == b"chunk 0\n"
    with pytest.raises(ipcsrv.HandlerError):
        running.call(b"no number")
    running.output.wait_for("access handler")
    assert running.stop() == 0


def test_the_master_answers_while_the_handler_runs(server: ServerFactory, tmp_path: Path) -> None:
    running = server("handlers_for_tests:hold", "--workers", "0", "--request-timeout", "0.1")
    held, answers = tmp_path / "held", []
    asking = threading.Thread(target=lambda: answers.append(running.call(bytes(held))))
    asking.start()
    support.wait_until(
        lambda: running.status()["workers"][0]["busy_seconds"] > 0.4, "four times request_timeout"  # type: ignore[index]
    )
    held.unlink()
    asking.join(support.TIMEOUT)
    assert answers == [bytes(held)]  # and was not timed out: a person at a prompt takes his time
    assert running.call(b"1") == b"1"
    assert running.stop() == 0


@pytest.mark.usefixtures("leaves_nothing")
def test_second_ctrl_c_reaches_a_handler_that_does_not_end(server: ServerFactory) -> None:
    support.needs_signal(signal.SIGINT)
    running = server("handlers_for_tests:hang_if_asked", "--workers", "0")
    running.signal(signal.SIGINT)
    assert running.wait() == 0
    assert "Traceback" not in running.output.rest()

    stuck = server("handlers_for_tests:hang_if_asked", "--workers", "0")
    with pytest.raises(ipcsrv.HandlerError, match="KeyboardInterrupt"), ipcsrv.connect(stuck.path) as connection:
        def interrupt() -> None:
            support.wait_until(lambda: stuck.status()["workers"][0]["busy_seconds"], "the request")  # type: ignore[index]
            stuck.signal(signal.SIGINT)
            stuck.output.wait_for("draining")
            stuck.signal(signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        connection.call(b"hang")
    thread.join(support.TIMEOUT)
    assert stuck.wait() == 0


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="signals of Unix")
@pytest.mark.usefixtures("leaves_nothing")
def test_signals_mean_what_they_mean_with_workers(server: ServerFactory, tmp_path: Path) -> None:
    log = tmp_path / "log"
    running = server("handlers_for_tests:hang_if_asked", "--workers", "0", "--log-file", str(log))
    for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGTTIN", "SIGTTOU"):
        running.signal(getattr(signal, name))
        support.wait_until(lambda name=name: f"received {name}" in log.read_text(), name)
    log.rename(tmp_path / "rotated")
    running.signal(signal.SIGUSR1)
    support.wait_until(log.exists, "the log is made anew")
    assert running.call(b"x") == b"x"

    def hang() -> None:
        with pytest.raises(ipcsrv.IpcError):
            running.call(b"hang")

    hung = threading.Thread(target=hang)
    hung.start()
    support.wait_until(lambda: running.status()["workers"][0]["state"] == "busy", "it hangs")  # type: ignore[index]
    running.signal(signal.SIGQUIT)
    assert running.wait() == 0
    hung.join(support.TIMEOUT)


@pytest.mark.parametrize("where", ["import", "hook", "handler"])
@pytest.mark.usefixtures("leaves_nothing")
def test_any_exception_ends_it_cleanly(sock_path: str, tmp_path: Path, where: str) -> None:
    (tmp_path / "raises.py").write_text(
        "import asyncio, os\n"
        "def fail(): raise asyncio.CancelledError('no Exception')\n"
        "def handle(request): return fail()\n"
        "if os.environ['WHERE'] == 'import': fail()\n"
    )
    hook = ["--on-worker-start", "raises:fail"] if where == "hook" else []
    env = {"WHERE": where, "PYTHONPATH": os.pathsep.join([str(tmp_path), support.environment()["PYTHONPATH"]])}
    running = support.RunningServer(sock_path, "raises:handle", "--workers", "0", *hook, env=env)
    if where == "handler":
        running.wait_until_listening()
        with pytest.raises(ipcsrv.HandlerError, match="CancelledError: no Exception"):
            running.call()
        assert running.stop() == 0
    else:
        assert running.wait() in (1, 2)
        running.output.wait_for("CancelledError: no Exception")


def test_reload_and_scale_say_why_not(server: ServerFactory) -> None:
    running = server("handlers_for_tests:echo", "--workers", "0")
    for command in ({"command": "reload"}, {"command": "scale", "workers": 2}):
        with pytest.raises(ipcsrv.IpcError, match="workers is 0"):
            control.request(running.path, **command)  # type: ignore[arg-type]
    assert running.call(b"still") == b"still"


def test_what_keeps_it_from_starting_is_told_as_ever(sock_path: str) -> None:
    done = support.run_command("run", sock_path, "handlers_for_tests:no_such_name", "--workers", "0")
    assert done.returncode == 2
    assert b"no_such_name" in done.stderr
    assert os.listdir(os.path.dirname(sock_path)) == []


# -- a debugger --------------------------------------------------------------------------------------------------------

BREAKING = """
def handle(request):
    answer = request.upper()
    breakpoint()
    return answer
"""


@pytest.fixture
def terminal(tmp_path: Path, sock_path: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """`ipcsrv run --workers 0` with a terminal of its own, whose other end is ours."""
    pty = pytest.importorskip("pty")
    (tmp_path / "breaking.py").write_text(BREAKING)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "ipcsrv", "run", sock_path, "breaking:handle", "--workers", "0"],
        stdin=theirs, stdout=theirs, stderr=theirs, cwd=tmp_path, env=support.environment(TERM="dumb"),
        start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    yield process, ours
    process.kill()
    process.wait()
    os.close(ours)


def read_until(descriptor: int, wanted: bytes) -> bytes:
    seen = b""
    while wanted not in seen:
        seen += os.read(descriptor, 4096)
    return seen


def test_a_breakpoint_in_the_handler_has_the_terminal(
    terminal: tuple[subprocess.Popen[bytes], int], sock_path: str
) -> None:
    process, screen = terminal
    read_until(screen, b"stop ")
    answers: list[bytes] = []
    asking = threading.Thread(target=lambda: answers.append(ipcsrv.call(sock_path, b"hello", timeout=support.TIMEOUT)))
    asking.start()
    read_until(screen, b"(Pdb) ")
    os.write(screen, b"p answer\n")
    read_until(screen, b"b'HELLO'")
    os.write(screen, b"answer = b'mine'\nc\n")
    asking.join(support.TIMEOUT)
    assert answers == [b"mine"]
    process.send_signal(signal.SIGINT)
    assert process.wait(support.TIMEOUT) == 0
