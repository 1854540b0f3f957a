"""A handler's process behaves as a plain Python program, and a handler's mistake is the handler's alone."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import support
from conftest import ServerFactory
from faults import load

import ipcsrv

if sys.platform == "win32":
    pytest.skip("forks, signals and descriptors of Unix", allow_module_level=True)

from faults.handlers_of_processes import HOSTILE, MISTAKES, ODDITIES

HERE = "handlers_of_processes"
Background = Callable[[Callable[[], object]], load.Future]


# -- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("handler", "pure"), [("mistake", False), ("mistake", True), ("mistake_async", False)])
def test_handler_mistakes_are_handler_errors(server: ServerFactory, handler: str, pure: bool) -> None:
    running = server(f"{HERE}:{handler}", "--workers", "1", env={"IPCSRV_PURE_PYTHON": "1"} if pure else {})
    pids = load.worker_pids(running)
    for name in MISTAKES:
        with pytest.raises(ipcsrv.HandlerError) as caught:
            running.call(name.encode())
        assert type(caught.value) is ipcsrv.HandlerError, name
    for name, (_, response) in ODDITIES.items():
        assert running.call(name.encode()) == response, name
    with ipcsrv.connect(running.path) as kept:  # the same beside the fast path: requests in one write
        for name, (_, response) in ODDITIES.items():
            assert kept.call(name.encode()) == response, name
    assert load.worker_pids(running) == pids


def test_hostile_exceptions_of_an_async_stream_are_handler_errors(server: ServerFactory) -> None:
    running = server(f"{HERE}:mistake_in_async_stream", "--workers", "1")
    pids = load.worker_pids(running)
    for name in (name for name in MISTAKES if name.startswith("exception")):
        with pytest.raises(ipcsrv.HandlerError) as caught:
            running.call(name.encode())
        assert type(caught.value) is ipcsrv.HandlerError, name
    assert load.worker_pids(running) == pids


def test_hostile_exceptions_of_hooks_do_not_end_the_worker(server: ServerFactory) -> None:
    hook = f"{HERE}:mistake_of_hook"
    running = server(f"{HERE}:mistake", "--workers", "1", "--on-request-start", hook, "--on-request-end", hook)
    pids = load.worker_pids(running)
    for name in HOSTILE:
        with pytest.raises(ipcsrv.HandlerError):
            running.call(f"start: {name}".encode())
        assert running.call(f"end: {name}".encode()) == f"end: {name}".encode()
        running.output.wait_for("on_request_end failed")
    assert load.worker_pids(running) == pids


def test_client_that_hangs_up_ends_an_endless_stream(server: ServerFactory, tmp_path: Path) -> None:
    running = server(f"{HERE}:endless_empty_chunks", "--workers", "1")
    closed = tmp_path / "closed"
    client = load.raw(running.path, load.message(os.fsencode(closed)))
    load.wait_until(lambda: load.workers_of(running)[0]["state"] == "busy", "the stream runs")
    client.close()
    load.wait_until(closed.exists, "the iterator is closed")


# -- forks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("request_", "error"), [(b"raise", ipcsrv.HandlerError), (b"die", ipcsrv.HandlerCrashed)])
def test_forked_child_does_not_keep_the_client(server: ServerFactory, request_: bytes, error: type[Exception]) -> None:
    running = server(f"{HERE}:forks_a_sleeper", "--workers", "1")
    began = time.monotonic()
    with pytest.raises(error):
        running.call(request_)
    with load.raw(running.path, load.message(request_)) as client:
        load.rest_of(client)  # to the end of file, which the child's copy does not hold back
    assert running.stop() == 0
    assert time.monotonic() - began < 5
    for pid in running.processes():
        support.kill(pid)  # or the test would end only with the children


def test_forked_child_ends_on_sigterm(server: ServerFactory) -> None:
    running = server(f"{HERE}:terminates_a_child", "--workers", "1")
    assert float(running.call()) < 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_right_after_fork_reaches_the_child(server: ServerFactory, number: int) -> None:
    running = server(f"{HERE}:terminates_children_at_once", "--workers", "1")
    began = time.monotonic()
    ends = running.call(b"%d" % number)
    assert time.monotonic() - began < 15
    assert int(number) != signal.SIGINT or ends in (b"[-2]", b"[-2, 1]", b"[1]")  # by the signal, or KeyboardInterrupt


@pytest.mark.parametrize(("name", "status"), [("SystemExit", b"3"), ("ValueError", b"1")])
def test_forked_child_that_raises_answers_no_client(server: ServerFactory, name: str, status: bytes) -> None:
    running = server(f"{HERE}:forks_one_that_exits", "--workers", "1")
    assert running.call(name.encode()) == status
    with ipcsrv.connect(running.path) as kept:
        assert [kept.call(name.encode()) for _ in range(2)] == [status] * 2


def test_subprocess_ignores_no_signal_of_the_server(server: ServerFactory) -> None:
    running = server(f"{HERE}:subprocess_ignores", "--workers", "1")
    ignored = int(running.call(), 16)
    lines = Path("/proc/self/status").read_text().splitlines()
    mine = next(line.split()[1] for line in lines if line.startswith("SigIgn"))
    standard = (1 << 31) - 1  # the next two are glibc's own: its posix_spawn ignores them
    assert ignored & standard & ~int(mine, 16) & ~(1 << signal.SIGPIPE - 1) & ~(1 << signal.SIGXFSZ - 1) == 0


def test_no_signal_interrupts_a_handler(server: ServerFactory, in_background: Background) -> None:
    running = server(f"{HERE}:interrupted_calls", "--workers", "1")
    waiting = in_background(lambda: running.call(b"beside"))
    assert running.call() == waiting.result() == b"0"


# -- threads ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("leaves_nothing")
def test_worker_that_cannot_exit_is_replaced(server: ServerFactory) -> None:
    running = server(f"{HERE}:leaves_a_thread", "--workers", "2", "--max-requests", "1", "--drain-timeout", "1")
    for number in range(150):  # more than there are slots
        assert running.call(b"%d" % number) == b"%d" % number
    states = [worker["state"] for worker in load.workers_of(running)]
    assert "leaving" in states
    assert all(worker["leaving_seconds"] < 20 for worker in load.workers_of(running) if worker["state"] == "leaving")
    running.output.wait_for("stacks of worker")
    assert running.stop(timeout=5.0) == 0


def test_threads_of_the_module_are_named_in_a_warning(server: ServerFactory) -> None:
    running = server(f"{HERE}:hang_or_echo", env={"THREAD_AT_IMPORT": "1"})
    running.stop()
    said = running.output.rest()
    assert "a-thread-of-the-module" in said and "--no-preload" in said


@pytest.mark.parametrize("pure", [True, False], ids=["python", "compiled"])
def test_forked_child_that_returns_answers_no_client(server: ServerFactory, pure: bool) -> None:
    running = server(f"{HERE}:forks_one_that_returns", "--workers", "1",
                     env={"IPCSRV_PURE_PYTHON": "1"} if pure else {})
    [worker] = load.worker_pids(running)
    for _ in range(5):
        with ipcsrv.connect(running.path) as connection:
            assert connection.call(b"short", timeout=5.0) == b"parent"
            assert connection.call(b"short large", timeout=5.0) == b"parent" * 100_000
            assert connection.call(b"short " + b"x" * 100_000, timeout=5.0) == b"parent" * 100_000
            assert connection.call(b"stream", timeout=5.0) == b"parent parent"
    assert load.worker_pids(running) == {worker}
    load.wait_until(lambda: all(map(support.is_zombie, support.children(worker))), "no child goes on")
    assert running.stop() == 0


# -- process-wide state -----------------------------------------------------------------------------------------------


def test_default_socket_timeout_changes_nothing(server: ServerFactory) -> None:
    running = server(f"{HERE}:hang_or_echo", "--workers", "1", env={"DEFAULT_TIMEOUT": "0.2"})
    stalled = load.raw(running.path, b"0010half")
    with ipcsrv.connect(running.path) as kept:
        for pause in (0.0, 0.5):
            time.sleep(pause)  # longer than the default timeout: a silent connection is not affected by it
            assert kept.call(b"x" * 200_000, timeout=5.0) == b"x" * 200_000
    stalled.close()
    assert load.is_whole(running)
    assert running.stop() == 0


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_blocked_signals_and_other_modules_change_nothing(server: ServerFactory, method: str) -> None:
    running = server(f"{HERE}:hang_or_echo", "--workers", "1", "--start-method", method, "--request-timeout", "1",
                     env={"SELFISH_IMPORT": "1"})
    with pytest.raises(ipcsrv.HandlerTimeout):
        running.call(b"hang")
    running.output.wait_for("in hang_or_echo")  # its stack
    running.output.wait_for("was killed")
    assert running.call(b"next") == b"next"
    assert running.stop() == 0
    assert "unknown status" not in running.output.rest()


def test_worker_without_descriptors_is_replaced(server: ServerFactory) -> None:
    running = server(f"{HERE}:lowers_its_limit", "--workers", "1")
    first = running.call(b"lower")
    assert running.call(b"again", timeout=10.0) != first


# -- crashes ----------------------------------------------------------------------------------------------------------


def test_segmentation_fault_leaves_a_stack_in_the_log(server: ServerFactory) -> None:
    running = server(f"{HERE}:crashes", "--workers", "1")
    with pytest.raises(ipcsrv.HandlerCrashed, match="SIGSEGV"):
        running.call()
    running.output.wait_for("Segmentation fault")
    running.output.wait_for("in crashes")
    died = re.compile(r"killed by SIGSEGV, \d+\.\d s after the request began")
    running.output.wait_for(lambda line: died.search(line) is not None)


def test_worker_that_writes_garbage_is_killed_and_replaced(server: ServerFactory) -> None:
    running = server(f"{HERE}:writes_to_descriptors", "--workers", "2")
    for _ in range(5):
        with load.raw(running.path, load.message(b"garbage")) as client, contextlib.suppress(ConnectionError):
            client.recv(1000)  # whatever it is
    load.wait_until(lambda: load.is_whole(running), "the pool is whole")
    assert running.status()["state"] == "running"
    assert running.stop(timeout=5.0) == 0


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
@pytest.mark.parametrize("how", [b"read", b"both", b"descriptors"])
def test_worker_that_misuses_its_sockets_harms_no_other_client(server: ServerFactory, method: str, how: bytes) -> None:
    running = server(f"{HERE}:misuses_sockets", "--workers", "2", "--start-method", method)
    with load.raw(running.path, load.message(how)) as client, contextlib.suppress(ConnectionError):
        client.recv(1000)  # whatever it is
    if how == b"descriptors":
        running.output.wait_for("broke the message format")  # a request that it takes until then is told of the kill
    for number in range(20):
        assert running.call(b"%d" % number, timeout=10.0) == b"%d" % number
    load.wait_until(lambda: load.is_whole(running), "the pool is whole")
    assert running.stop(timeout=5.0) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="finds the memory in /proc")
@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("how", [b"zeros", b"ones"])
def test_overwritten_scoreboard_keeps_nobody_waiting(server: ServerFactory, method: str, how: bytes) -> None:
    running = server(f"{HERE}:overwrites_shared_memory", "--workers", "2", "--start-method", method)
    for _ in range(2):
        for number in range(30):  # more than may be in the queue at once
            assert running.call(b"%d" % number, timeout=10.0) == b"%d" % number
        with load.raw(running.path, load.message(how)) as client, contextlib.suppress(ConnectionError):
            client.recv(1000)  # whatever it is
    assert running.stop(timeout=10.0) == 0  # far less than drain_timeout
