"""A server as its user and its system see it: signals, processes, descriptors, and what is left when it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import support
from conftest import ServerFactory
from git_peer import Client, packets

import ipcsrv

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="speaks to Unix sockets")

METHODS = ["fork", "forkserver", "spawn"]


def worker_pids(running: support.RunningServer) -> set[int]:
    """The pids of a server's workers, as it says itself."""
    return {worker["pid"] for worker in running.status()["workers"]}  # type: ignore[attr-defined]


# -- signals ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("leaves_nothing")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_sigterm_and_sigint_drain(server: ServerFactory, name: str, tmp_path: Path) -> None:
    draining = server("handlers_for_tests:hold", "--workers", "2")
    held = [tmp_path / "busy", tmp_path / "too", tmp_path / "queued"]
    with Client(draining.path) as busy, Client(draining.path) as too, Client(draining.path) as queued:
        for client, path in zip((busy, too, queued), held):
            client.send(packets(bytes(path)))
        support.wait_until(lambda: len(os.listdir(tmp_path)) == 2, "both workers are busy")
        draining.signal(getattr(signal, name))
        draining.output.wait_for("draining")
        for _ in held:
            support.wait_until(lambda: os.listdir(tmp_path), "one is in a handler")
            next(tmp_path.iterdir()).unlink()
        assert [client.response() for client in (busy, too, queued)] == [bytes(path) for path in held]
    assert draining.wait() == 0


@pytest.mark.usefixtures("leaves_nothing")
@pytest.mark.parametrize(
    "numbers", [(signal.SIGQUIT,), (signal.SIGINT, signal.SIGINT)], ids=["SIGQUIT", "SIGINT twice"]
)
def test_sigquit_and_a_second_sigint_stop_now(server: ServerFactory, numbers: tuple[int, ...]) -> None:
    stopping = server("handlers_for_tests:hang", "--workers", "1")
    with Client(stopping.path) as hanging:
        hanging.send(packets(b""))
        support.wait_until(lambda: stopping.status()["workers"][0]["busy_seconds"])  # type: ignore[index]
        stopping.signal(numbers[0])
        if len(numbers) > 1:
            stopping.output.wait_for("draining")  # or the kernel would make one signal of two
            stopping.signal(numbers[1])
        assert stopping.wait() == 0
        assert b"0000" not in hanging.rest()


def test_ctrl_c_of_a_terminal_drains(server: ServerFactory, tmp_path: Path) -> None:
    draining = server("handlers_for_tests:hold", "--workers", "1")
    held = tmp_path / "held"
    with Client(draining.path) as busy:
        busy.send(packets(bytes(held)))
        support.wait_until(held.exists, "the worker is in its handler")
        os.killpg(draining.pid, signal.SIGINT)
        draining.output.wait_for("draining")
        held.unlink()
        assert busy.response() == bytes(held)
    assert draining.wait() == 0


def test_sighup_reloads_without_failing_a_request(server: ServerFactory) -> None:
    reloading = server("handlers_for_tests:pid", "--workers", "2")
    before = worker_pids(reloading)
    stop, answers = threading.Event(), []

    def ask() -> None:
        while not stop.is_set():
            answers.append(int(reloading.call(b"")))

    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(ask) for _ in range(2)]
        reloading.signal(signal.SIGHUP)
        support.wait_until(lambda: set(answers) - before, "a new worker answers")
        stop.set()
        for asked in asking:
            asked.result()
    support.wait_until(lambda: worker_pids(reloading).isdisjoint(before), "the old workers have left")
    assert reloading.process.poll() is None


def test_sigttin_and_sigttou_add_and_take_away_a_worker(server: ServerFactory) -> None:
    scaled = server("handlers_for_tests:pid", "--workers", "1")
    scaled.signal(signal.SIGTTIN)
    support.wait_until(lambda: len(worker_pids(scaled)) == 2)
    scaled.signal(signal.SIGTTOU)
    support.wait_until(lambda: len(worker_pids(scaled)) == 1)
    assert int(scaled.call(b"")) in worker_pids(scaled)


def test_sigterm_before_it_listens_ends_it_cleanly(server: ServerFactory, sock_path: str) -> None:
    starting = server("handlers_that_import_slowly:handle", listening=False)
    support.wait_until(lambda: os.path.exists(sock_path + ".ipcsrv.lock"))
    starting.signal(signal.SIGTERM)
    starting.wait()
    assert "Traceback" not in starting.output.rest()
    assert os.listdir(os.path.dirname(sock_path)) == []


# -- the end ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("leaves_nothing")
@pytest.mark.parametrize("method", METHODS)
def test_workers_are_replaced_and_a_stop_leaves_nothing(server: ServerFactory, method: str) -> None:
    running = server("handlers_for_tests:crash_if_asked", "--workers", "2", "--start-method", method)
    assert running.call(b"x") == b"x"
    before = worker_pids(running)
    with pytest.raises(ipcsrv.HandlerCrashed):
        running.call(b"crash")
    assert running.call(b"y") == b"y"
    support.wait_until(lambda: len(worker_pids(running)) == 2 and len(worker_pids(running) - before) == 1)
    processes = running.processes()
    assert running.stop() == 0
    assert not support.wait_gone(processes, timeout=2)  # multiprocessing's resource tracker sees the end of its parent
    assert "Warning" not in running.output.rest() and "Traceback" not in str(running.output)


def test_silent_connections_do_not_delay_a_stop(server: ServerFactory) -> None:
    stopping = server()
    with Client(stopping.path) as silent, Client(stopping.path) as kept:
        kept.send(packets(b"x"))
        assert kept.response() == b"x"
        assert stopping.stop() == 0
        for client in (silent, kept):
            told = client.rest()  # that nothing was done, so that it may ask elsewhere
            assert told == b"" or told[4:].startswith(b"ERR stopping ")


# -- workers ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not support.have_proc, reason="reads descriptors from /proc")
@pytest.mark.parametrize("method", METHODS)
def test_a_worker_has_no_descriptors_but_its_own(server: ServerFactory, method: str) -> None:
    serving = server("handlers_by_name:dispatch", "--workers", "3", "--start-method", method)
    serving.call(b"nothing ")
    found = json.loads(serving.call(b"open_files "))
    files = [where for where in found.values() if where.startswith("/") and "memfd" not in where]
    assert all(where == "/dev/null" or "/dev/pts" in where for where in files), found  # no lock, no code, no folder
    # standard streams, queue, channel, poller, scoreboard, client, pipes
    assert len(found) <= 18, found


@pytest.mark.skipif(not support.have_proc, reason="reads descriptors from /proc")
def test_no_child_holds_the_lock(server: ServerFactory) -> None:
    running = server("handlers_for_tests:echo", "--workers", "2")
    lock = running.path + ".ipcsrv.lock"
    assert lock in support.descriptors(running.pid).values()
    for child in running.workers():
        assert lock not in support.descriptors(child).values()


def test_a_descriptor_of_the_caller_s_does_not_reach_the_workers(sock_path: str) -> None:
    ours, theirs = os.pipe()
    os.set_inheritable(theirs, True)
    try:
        with ipcsrv.Server(sock_path, "handlers_by_name:dispatch", workers=1):
            os.close(theirs)
            os.set_blocking(ours, False)
            assert os.read(ours, 1) == b""  # the end: no other process holds the other one
    finally:
        os.close(ours)


def test_folder_and_environment_are_those_of_the_starter(server: ServerFactory) -> None:
    facts = json.loads(server("handlers_for_tests:environment", env={"MY_VARIABLE": "1"}).call())
    assert facts["cwd"] == os.getcwd() and "MY_VARIABLE" in facts["variables"]
    assert facts["threads"] == 1


@pytest.mark.skipif(not support.have_proc, reason="reads from /proc that a process is stopped")
def test_two_clients_in_a_loop_use_two_workers(server: ServerFactory) -> None:
    running = server("handlers_for_tests:pid", "--workers", "2")
    stopped, other = worker_pids(running)
    os.kill(stopped, signal.SIGSTOP)
    stat = Path(f"/proc/{stopped}/stat")
    support.wait_until(lambda: stat.read_text().rpartition(") ")[2][0] == "T", "it no longer waits for clients")

    def asked_together() -> set[bytes]:
        for client in clients:
            client.send(packets(b""))
        return {client.response() for client in clients}

    with Client(running.path) as one, Client(running.path) as two:
        clients = (one, two)
        for _ in range(100):  # until they are known to be in a loop
            assert asked_together() == {b"%d" % other}
        os.kill(stopped, signal.SIGCONT)
        until = time.monotonic() + support.TIMEOUT
        while len(asked_together()) < 2:  # without a pause, after which any worker might take either
            assert time.monotonic() < until, "one worker serves both"
