"""Nothing accepted is lost by a stop; no client holds a stop up; and it leaves nothing."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import support
from conftest import ServerFactory
from faults import load

import ipcsrv

Background = Callable[[Callable[[], object]], load.Future]


def busy(running: support.RunningServer, count: int = 1) -> None:
    """Wait until so many workers are at a request."""
    load.wait_until(
        lambda: sum(worker["state"] == "busy" for worker in load.workers_of(running)) >= count, f"{count} are busy"
    )


@pytest.mark.usefixtures("leaves_nothing")
def test_stop_answers_two_hundred_waiting_clients(server: ServerFactory, sock_path: str) -> None:
    running = server("handlers_for_tests:slow", "--workers", "2")
    clients = [load.raw(sock_path, load.message(b"5")) for _ in range(200)]
    running.signal(signal.SIGTERM)
    assert [client.recv(9) for client in clients] == [load.message(b"5")] * 200
    assert running.wait() == 0
    for client in clients:
        client.close()
    assert server("handlers_for_tests:echo").call(b"next") == b"next"


@pytest.mark.usefixtures("leaves_nothing")
def test_under_load_no_request_that_was_taken_is_lost_by_a_stop(server: ServerFactory) -> None:
    running = server("handlers_for_tests:echo", "--workers", "2")
    with load.Load(running.path) as clients:
        running.signal(signal.SIGTERM)
        assert running.wait() == 0
        clients.stop_asking()
    assert not clients.failures and not clients.wrong, clients.report()
    stopped = [error for error, _ in clients.refusals if isinstance(error, ipcsrv.ServerStopping)]
    assert not stopped or not support.halves, clients.report()


def test_client_connected_just_before_a_stop_is_served(server: ServerFactory) -> None:
    running = server("handlers_for_tests:echo", "--workers", "2")
    clients = [load.raw(running.path) for _ in range(support.rounds(20))]
    running.signal(signal.SIGTERM)
    running.output.wait_for("draining")
    late = load.message(b"late")
    for client in clients:
        client.sendall(late)
    assert [client.recv(len(late)) for client in clients] == [late] * len(clients)  # ERR stopping may follow
    assert running.wait() == 0
    for client in clients:
        client.close()


def test_silent_clients_do_not_hold_up_a_stop(server: ServerFactory) -> None:
    running = server("handlers_for_tests:echo", "--workers", "2")
    silent = [load.raw(running.path) for _ in range(50)]
    kept = load.raw(running.path, load.message(b"once"))
    assert kept.recv(100) == load.message(b"once")
    began = time.monotonic()
    assert running.stop() == 0
    assert time.monotonic() - began < 3.0
    last = load.rest_of(kept)  # between two requests, the end says it all, where there can be no question on its way
    assert last == b"" or (b"ERR stopping" in last and not support.halves)
    for client in [*silent, kept]:
        client.close()


def test_a_streamed_response_is_sent_to_its_end_by_a_stop(server: ServerFactory) -> None:
    running = server("handlers_for_tests:stream_slowly", "--workers", "1")
    with ipcsrv.connect(running.path) as connection:
        pieces = connection.stream(b"50")
        first = next(pieces)
        running.signal(signal.SIGTERM)
        rest = b"".join(pieces)
    assert first + rest == b"".join(b"chunk %d\n" % number for number in range(5))
    assert running.wait() == 0


@pytest.mark.parametrize(
    ("target", "request_", "told"),
    [("hang", b"", ipcsrv.ServerStopping), ("hang_in_c", b"", ipcsrv.ServerStopping)],
    ids=["where the interpreter runs", "in C code"],
)
@pytest.mark.usefixtures("leaves_nothing")
def test_hung_worker_is_ended_at_drain_timeout(
    server: ServerFactory, in_background: Background, target: str, request_: bytes, told: type[Exception]
) -> None:
    running = server(f"handlers_for_tests:{target}", "--workers", "1", "--drain-timeout", "0.5")
    served = in_background(lambda: running.call(request_))
    busy(running)
    waits = in_background(lambda: running.call(b"never taken"))
    load.wait_until(lambda: running.status()["queue"]["depth"], "one waits")  # type: ignore[index]
    began = time.monotonic()
    assert running.stop() == 0
    assert 0.4 < time.monotonic() - began < 3.0
    assert isinstance(served.error(), told)
    assert isinstance(waits.error(), ipcsrv.ServerStopping)


@pytest.mark.usefixtures("leaves_nothing")
def test_a_worker_that_is_stopped_does_not_hold_up_a_stop(server: ServerFactory) -> None:
    running = server("handlers_for_tests:echo", "--workers", "2", "--drain-timeout", "0.5")
    os.kill(min(load.worker_pids(running)), signal.SIGSTOP)
    assert running.stop(timeout=5.0) == 0


@pytest.mark.usefixtures("leaves_nothing")
def test_a_second_ctrl_c_does_not_wait(server: ServerFactory, in_background: Background) -> None:
    support.needs_signal(signal.SIGINT)
    running = server("handlers_for_tests:hang", "--workers", "2")
    call = in_background(running.call)
    busy(running)
    running.signal(signal.SIGINT)
    running.output.wait_for("draining")
    assert running.process.poll() is None
    began = time.monotonic()
    running.signal(signal.SIGINT)
    assert running.wait(3.0) == 0
    assert time.monotonic() - began < 2.0
    assert isinstance(call.error(), ipcsrv.IpcError)


@pytest.mark.usefixtures("leaves_nothing")
def test_a_stop_during_the_start_is_obeyed_at_once(server: ServerFactory, tmp_path: Path) -> None:
    version = tmp_path / "version"
    version.write_text("hang")
    running = server("handlers_for_faults:versioned", listening=False, env={"VERSION_FILE": os.fspath(version)})
    load.wait_until((tmp_path / "version.hangs").exists, "it imports")
    running.signal(signal.SIGTERM)
    assert running.wait(3.0) == 0


@pytest.mark.usefixtures("leaves_nothing")
def test_a_stop_during_a_reload_is_obeyed_at_once(server: ServerFactory, tmp_path: Path) -> None:
    version = tmp_path / "version"
    version.write_text("one")
    running = server("handlers_for_faults:versioned", "--workers", "2", env={"VERSION_FILE": os.fspath(version)})
    version.write_text("hang")
    running.ask_to("reload")
    load.wait_until((tmp_path / "version.hangs").exists, "the new code is being imported")
    assert running.call(b"x") == b"one x"
    running.signal(signal.SIGTERM)
    assert running.wait(3.0) == 0


@pytest.mark.usefixtures("leaves_nothing")
def test_stop_now_kills_what_runs(server: ServerFactory, in_background: Background, sock_path: str) -> None:
    running = server("handlers_for_tests:hang", "--workers", "1")
    call = in_background(running.call)
    busy(running)
    assert support.run_command("stop", "--now", sock_path).returncode == 0
    assert running.wait() == 0
    assert isinstance(call.error(), ipcsrv.IpcError)


@pytest.mark.usefixtures("leaves_nothing")
def test_idle_exit_ends_a_server_unless_it_has_a_client(server: ServerFactory) -> None:
    running = server("handlers_for_tests:slow", "--workers", "1", "--idle-exit", "0.3")
    silent = load.raw(running.path)
    running.call(b"600")  # longer than idle_exit, at a request
    load.wait_until(lambda: running.status()["idle"], "one is silent")
    silent.sendall(load.message(b"1"))
    assert silent.recv(100) == load.message(b"1")
    silent.close()
    began = time.monotonic()
    assert running.wait() == 0
    assert 0.2 < time.monotonic() - began < 1.5


# -- the socket taken away --------------------------------------------------------------------------------------------


def test_removed_socket_is_noticed_within_five_seconds(server: ServerFactory, sock_dir: str) -> None:
    """One whose socket alone is gone, and one that another server has displaced: waited for together."""
    alone = server("handlers_for_tests:slow", "--workers", "1", path=os.path.join(sock_dir, "alone"))
    first = server("handlers_for_tests:echo", "--workers", "1")
    if not os.path.exists(alone.path):
        pytest.skip("there is nothing at the path itself that could be taken away")
    with ipcsrv.connect(alone.path) as connection:
        os.unlink(alone.path)
        for name in [name for name in os.listdir(sock_dir) if not name.startswith("alone")]:
            os.unlink(os.path.join(sock_dir, name))  # as a cleaner of temporary files does
        began = time.monotonic()
        second = server("handlers_for_tests:upper", "--workers", "1")
        files = inodes(sock_dir)
        assert connection.call(b"10") == b"10"
        assert (alone.wait(7.0), first.wait(7.0)) == (8, 8)
    assert time.monotonic() - began < 6.0
    alone.output.wait_for("removed or replaced")
    assert inodes(sock_dir) == files  # the other server's are left alone
    assert second.call(b"still here") == b"STILL HERE"
    assert second.stop() == 0
    assert os.listdir(sock_dir) == []


def inodes(folder: str) -> dict[str, int]:
    """What lies in a folder, but for what `alone` has there."""
    return {name: os.stat(os.path.join(folder, name)).st_ino
            for name in os.listdir(folder) if not name.startswith("alone")}
