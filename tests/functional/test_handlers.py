"""What a handler may do, what it is given and what becomes of its mistakes: seen from a client of a real server."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import support
from conftest import ServerFactory
from git_peer import Client, packets
from shared_server import shared

import ipcsrv
from ipcsrv.pytest_plugin import ServerFactory as PluginFactory

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="speaks to Unix sockets")


@pytest.fixture(scope="module")
def one_worker() -> Iterator[support.RunningServer]:
    """A server whose only worker every test meets: what one test breaks, the next one finds broken."""
    with shared("handlers_by_name:dispatch", "--workers", "1", "--request-timeout", "20") as running:
        yield running


@pytest.mark.parametrize(
    ("handler", "told"),
    [
        (b"raise_error no such thing", "ValueError: no such thing"),
        (b"raise_system_exit leave", "SystemExit: leave"),
        (b"raise_system_exit ", "SystemExit"),
        (b"raise_base ", "KeyboardInterrupt: not the user's"),
        (b"stream_then_raise ", "RuntimeError: half way"),
        (b"no_such_handler ", "AttributeError"),
    ],
)
def test_handler_exception_reaches_the_client_and_worker_goes_on(
    one_worker: support.RunningServer, handler: bytes, told: str
) -> None:
    pid = one_worker.call(b"pid ")
    with pytest.raises(ipcsrv.HandlerError) as caught:
        one_worker.call(handler)
    assert told in caught.value.message and caught.value.code == "handler"
    assert "Traceback" not in caught.value.message
    assert one_worker.call(b"pid ") == pid


def test_the_traceback_is_in_the_log_and_begins_with_the_handler(server: ServerFactory) -> None:
    failing = server("handlers_for_tests:raise_error", "--workers", "1")
    with pytest.raises(ipcsrv.HandlerError):
        failing.call(b"look in the log")
    failing.output.wait_for("ValueError: look in the log")
    text = str(failing.output)
    assert "Traceback (most recent call last)" in text and "handlers_for_tests.py" in text
    assert "worker.py" not in text


@pytest.mark.parametrize("target", ["Namespace.echo", "an_object"])
def test_a_handler_may_be_any_callable_that_a_name_leads_to(ipcsrv_server: PluginFactory, target: str) -> None:
    assert ipcsrv_server(f"handlers_for_tests:{target}", workers=1).call(b"x").endswith(b"x")


def test_a_function_of_the_standard_library_is_a_handler(ipcsrv_server: PluginFactory) -> None:
    import zlib

    assert zlib.decompress(ipcsrv_server("zlib:compress", workers=1).call(b"x" * 100_000)) == b"x" * 100_000


# -- what a request tells ---------------------------------------------------------------------------------------------


def test_the_peer_is_the_process_that_connected(one_worker: support.RunningServer) -> None:
    assert json.loads(one_worker.call(b"peer ")) == [os.getpid(), os.getuid(), os.getgid()]
    code = "import ipcsrv, os, sys; print(os.getpid(), ipcsrv.call(sys.argv[1], b'peer ').decode())"
    pid, _, peer = support.run_python(code, one_worker.path).partition(" ")
    assert json.loads(peer)[0] == int(pid)


def test_deadline_is_request_timeout_after_the_request_was_read(one_worker: support.RunningServer) -> None:
    assert 15 < json.loads(one_worker.call(b"deadline ")) <= 20


def test_without_request_timeout_there_is_no_deadline(module_server: support.RunningServer) -> None:
    assert json.loads(module_server.call(b"deadline ")) is None


def test_a_request_is_cancelled_once_its_client_is_gone(module_server: support.RunningServer, tmp_path: Path) -> None:
    note = tmp_path / "note"
    with Client(module_server.path) as client:
        client.send(packets(b"wait_for_cancel " + bytes(note)))
        support.wait_until(note.with_suffix(".begun").exists)
    support.wait_until(note.with_suffix(".cancelled").exists, "the handler saw that its client had gone")


def test_a_half_closed_client_is_not_gone(module_server: support.RunningServer, tmp_path: Path) -> None:
    note = tmp_path / "note"
    with Client(module_server.path) as client:
        client.send(packets(b"wait_for_cancel " + bytes(note)))
        client.finish_writing()
        support.wait_until(note.with_suffix(".begun").exists)
        time.sleep(0.1)  # many of the looks that the handler takes every 5 ms
        assert not note.with_suffix(".cancelled").exists()
    support.wait_until(note.with_suffix(".cancelled").exists)


def test_a_stream_ends_when_its_client_is_gone(module_server: support.RunningServer, tmp_path: Path) -> None:
    note = tmp_path / "closed"
    with Client(module_server.path) as client:
        client.send(packets(b"stream_for_ever " + bytes(note)))
        client.read(5000)
    support.wait_until(note.exists, "the handler's generator was closed")


def test_stream_waits_in_its_worker_for_its_client(module_server: support.RunningServer) -> None:
    with contextlib.ExitStack() as stack:
        stalled = [stack.enter_context(Client(module_server.path)) for _ in range(6)]  # thrice as many as workers
        for client in stalled:
            client.send(packets(b"big 10000000"))
        assert module_server.call(b"echo served all the same") == b"served all the same"
        for client in stalled:
            assert len(client.response()) == 10_000_000


# -- hooks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_hooks_run_before_and_after_the_service(sock_path: str, tmp_path: Path, method: str,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    import handlers_for_tests

    notes = tmp_path / "notes"
    monkeypatch.setenv(handlers_for_tests.NOTES, str(notes))
    hooks = {name: f"handlers_for_tests:{name}" for name in ("on_worker_start", "on_worker_stop")}
    with ipcsrv.Server(sock_path, "handlers_for_tests:pid", workers=2, start_method=method, **hooks) as server:
        pids = {worker["pid"] for worker in server.status()["workers"]}
        assert set(notes.read_text().splitlines()) == {f"start {pid}" for pid in pids}
    assert {f"stop {pid}" for pid in pids} <= set(notes.read_text().splitlines())


def test_start_hook_that_raises_is_the_reason_of_failure(sock_path: str) -> None:
    hook = "handlers_for_tests:on_worker_start_raises"
    with pytest.raises(ipcsrv.StartError, match="no database today") as caught:
        ipcsrv.Server(sock_path, "handlers_for_tests:echo", workers=1, on_worker_start=hook).start()
    assert "on_worker_start_raises" in (caught.value.traceback_text or "")
    assert not os.path.lexists(sock_path)


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_start_hook_that_raises_is_logged_once(sock_path: str, method: str) -> None:
    hook = "handlers_for_tests:on_worker_start_raises"
    done = support.run_command("run", sock_path, "handlers_for_tests:echo", "--workers", "1", "--start-method", method,
                               "--chdir", os.path.dirname(__file__) + "/..", "--on-worker-start", hook)  # fmt: skip
    assert done.returncode == 1
    reason = f"on_worker_start {hook}: RuntimeError: no database today"
    assert done.stderr.decode().count(f"a worker died at its start: {reason}") == 1
    assert done.stderr.decode().splitlines()[-1] == f"ipcsrv: the server did not start: {reason}"


# -- its surroundings -------------------------------------------------------------------------------------------------


def test_output_of_a_handler_goes_to_the_servers_output(server: ServerFactory) -> None:
    saying = server("handlers_for_tests:say", "--workers", "1")
    assert saying.call(b"hello from within") == b"said"
    saying.output.wait_for("hello from within")


def test_a_handler_s_subprocess_holds_nothing_of_the_server_s(ipcsrv_server: PluginFactory) -> None:
    found = json.loads(ipcsrv_server("handlers_of_subprocess:open_files_of_child", workers=1).call())
    assert set(found) <= {"0", "1", "2"}, found


def test_requests_run_in_parallel_in_as_many_workers(sock_path: str) -> None:
    answers: list[bytes] = []

    def ask() -> None:
        answers.append(ipcsrv.call(sock_path, b"400", timeout=support.TIMEOUT))

    with ipcsrv.Server(sock_path, "handlers_for_tests:slow_pid", workers=3):
        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(set(answers)) == 3


def test_busy_worker_holds_no_idle_connection_back(sock_path: str) -> None:
    with ipcsrv.Server(sock_path, "handlers_for_tests:slow", workers=2), ipcsrv.connect(sock_path) as kept:
        for _ in range(4):  # each worker learns that they do
            kept.call(b"20")
            ipcsrv.call(sock_path, b"20")
        with Client(sock_path) as busy:
            busy.send(packets(b"1500"))
            began = time.monotonic()
            for _ in range(5):
                kept.call(b"20", timeout=support.TIMEOUT)
            assert time.monotonic() - began < 1.4  # not behind the other request
