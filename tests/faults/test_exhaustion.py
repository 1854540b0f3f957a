"""Out of descriptors or processes is a state, not a death; and whatever a client sends is its own problem."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import support
from conftest import ServerFactory
from faults import load

import ipcsrv
from ipcsrv.protocol import pktline

SEED = 20_240_901


# -- descriptors ------------------------------------------------------------------------------------------------------


FEW_DESCRIPTORS = 'ulimit -n 64; exec "$@"'


def short_of_descriptors(running: support.RunningServer) -> int:
    """How often the server has said that it is."""
    return sum("cannot take connections for now" in line for line in str(running.output).splitlines())


def test_with_64_descriptors_250_clients_are_served_in_turn(server: ServerFactory) -> None:
    with load.started_by(FEW_DESCRIPTORS):
        running = server("handlers_for_tests:slow", "--workers", "2")
    clients = []
    for _ in range(250):
        clients.append(load.raw(running.path))
    for client in clients:
        client.sendall(load.message(b"1"))
    assert [client.recv(9) for client in clients] == [load.message(b"1")] * 250  # and all of them stay
    for client in clients:
        client.close()
    assert running.call(b"1") == b"1"
    load.wait_until(lambda: load.is_whole(running), "the pool is whole")
    assert running.stop() == 0
    running.output.rest()
    assert short_of_descriptors(running) == 1


@pytest.mark.parametrize("silent", [20, 30])
def test_with_64_descriptors_silent_clients_lose_nothing(server: ServerFactory, silent: int) -> None:
    with load.started_by(FEW_DESCRIPTORS):
        running = server("handlers_for_tests:echo", "--workers", "2")
    waiting = [load.raw(running.path) for _ in range(silent)]
    load.wait_until(lambda: running.status()["idle"] >= 10, "they are parked")  # type: ignore[operator]
    for number, client in enumerate(waiting):
        client.sendall(load.message(b"%d" % number))
        assert client.recv(100) == load.message(b"%d" % number)
        client.close()
    assert running.call(b"next") == b"next"
    load.wait_until(lambda: load.is_whole(running), "the pool is whole")


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_silent_clients_beyond_the_limit_give_way_to_new_ones(server: ServerFactory, method: str) -> None:
    with load.started_by('ulimit -n 200; exec "$@"'):
        running = server("handlers_for_tests:echo", "--workers", "2", "--start-method", method)
    silent = [load.raw(running.path) for _ in range(400)]
    for _ in range(3):
        assert running.call(b"new", timeout=support.TIMEOUT) == b"new"
        assert running.status()["state"] == "running"
        ipcsrv.reload(running.path)  # takes the descriptors of a second generation for a moment
    for client in silent:
        client.close()


@pytest.mark.skipif(sys.platform != "linux", reason="counts the descriptors of Linux")
@pytest.mark.parametrize(("method", "limit"), [("fork", 30), ("spawn", 42)])
def test_start_that_gets_no_workers_ends_after_its_time(sock_path: str, method: str, limit: int) -> None:
    command = ["sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh", sys.executable, "-m", "ipcsrv", "run", sock_path,
               "zlib:compress", "--workers", "4", "--start-method", method, "--startup-timeout", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=support.TIMEOUT)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ipcsrv: the server did not start: workers cannot be started:")
    assert os.listdir(os.path.dirname(sock_path)) == []


def test_without_a_descriptor_the_server_waits_and_does_not_spin(server: ServerFactory) -> None:
    with load.started_by(FEW_DESCRIPTORS):
        running = server("handlers_for_tests:echo", "--workers", "1")
    silent = []
    for _ in range(150):
        silent.append(load.raw(running.path))
    control = [load.raw(running.path + ".control") for _ in range(40)]
    time.sleep(0.5)  # for what is going on to settle
    before = cpu_seconds(running)
    seconds = 1.0
    time.sleep(seconds)
    assert cpu_seconds(running) - before < 0.2 * seconds
    for client in silent + control:
        client.close()
    assert running.call(b"next", timeout=5.0) == b"next"


def cpu_seconds(running: support.RunningServer) -> float:
    """Processor time that all of a server's processes have used."""
    return sum(map(load.cpu_seconds, running.processes()))


def test_with_64_descriptors_stalled_requests_are_whole_or_refused(server: ServerFactory) -> None:
    """The state of each is in a file, for which there is no descriptor in the end."""
    with load.started_by(FEW_DESCRIPTORS):
        running = server("handlers_for_tests:echo", "--workers", "2")
    begin, rest, expected = load.packet(b"x" * 65000) * 3, load.message(b"y"), b"x" * 195_000 + b"y"
    clients = [load.raw(running.path, begin) for _ in range(30)]
    running.output.wait_for("cannot take connections for now")
    answers = []
    for client in clients:
        with client:
            with contextlib.suppress(OSError):  # refused and closed meanwhile
                client.sendall(rest)
                client.shutdown(socket.SHUT_WR)
            answers.append(load.rest_of(client))
    refused = [answer for answer in answers if b"ERR busy" in answer or not answer]
    whole = [answer for answer in answers if answer not in refused]
    assert whole == [b"".join(pktline.encode(expected))] * len(whole) and len(whole) > 5
    assert running.call(b"next") == b"next"


def test_with_64_descriptors_unread_responses_end_no_server(server: ServerFactory) -> None:
    with load.started_by(FEW_DESCRIPTORS):
        running = server("handlers_for_faults:answers_with_much", "--workers", "2")
    clients = [load.raw(running.path, load.message(b"1024")) for _ in range(30)]
    running.output.wait_for("cannot take connections for now")
    sizes = []
    for client in clients:
        with client:
            client.shutdown(socket.SHUT_WR)
            sizes.append(load.rest_of(client).count(b"r"))
    assert sizes.count(1 << 20) > 5
    assert running.call(b"1") == b"r" * 1024


def test_stalled_request_survives_a_worker_without_descriptors(server: ServerFactory) -> None:
    with load.started_by(FEW_DESCRIPTORS):
        running = server("handlers_for_faults:takes_all_descriptors", "--workers", "1")
    with load.raw(running.path, load.packet(b"x" * 65000) * 3) as client:
        load.wait_until(lambda: running.status()["stalled"], "its state is in a file of the master's")
        assert running.call(b"fill") == b"fill"  # one is free again when its connection has ended
        client.sendall(load.message(b"y"))
        client.shutdown(socket.SHUT_WR)
        response = load.rest_of(client)
    assert response == b"".join(pktline.encode(b"x" * 195_000 + b"y"))


def test_request_that_stalls_without_a_descriptor_is_refused(server: ServerFactory) -> None:
    with load.started_by(FEW_DESCRIPTORS):
        running = server("handlers_for_faults:takes_all_descriptors", "--workers", "1")
    worker = load.worker_pids(running)
    assert running.call(b"fill") == b"fill"
    with load.raw(running.path, load.packet(b"x" * 65000) * 3) as client:
        assert b"ERR busy" in load.rest_of(client)
    load.wait_until(lambda: load.is_whole(running) and load.worker_pids(running) != worker, "a new worker serves")
    assert running.call(b"next") == b"next"
    assert running.stop() == 0
    running.output.rest()
    assert "the worker failed" not in str(running.output)


# -- processes --------------------------------------------------------------------------------------------------------

AS_NOBODY = (
    "exec setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all,+dac_override "
    "--ambient-caps=-all,+dac_override --bounding-set=-all,+dac_override prlimit --nproc=60"
)


@pytest.mark.skipif(
    getattr(os, "geteuid", os.getpid)() != 0 or not shutil.which("setpriv") or not shutil.which("prlimit"),
    reason="needs root, to start a server as another user with a limit of its own",
)
def test_server_serves_on_when_no_process_can_be_started(server: ServerFactory, sock_dir: str) -> None:
    os.chown(sock_dir, 65534, 65534)
    with load.started_by(f'{AS_NOBODY} "$@"'):
        running = server("handlers_for_tests:pid", "--workers", "2", "--allow", "uid:0")
    template = next(iter(support.children(running.pid)))
    before = len(support.descriptors(template))
    others, command = [], [*AS_NOBODY.split()[1:], "sleep", "60"]
    while (other := subprocess.Popen(command, stderr=subprocess.DEVNULL)).poll() is None:
        others.append(other)  # one more process of the same user, until there can be none
        if len(others) >= 70 or not _has_come_up(other):
            break
    running.signal(signal.SIGTTIN)
    running.output.wait_for("workers cannot be started")
    for _ in range(20):
        assert int(ipcsrv.call(running.path, trust=65534, timeout=5.0)) in running.workers()
    for other in others:
        other.kill()
        other.wait()
    running.output.wait_for("workers can be started again")
    load.wait_until(lambda: len(support.children(template)) == 3, "three workers")
    assert len(support.descriptors(template)) <= before + 2  # of multiprocessing's, for the new child
    assert str(running.output).count("workers cannot be started") == 1


def _has_come_up(process: subprocess.Popen[bytes]) -> bool:
    """Whether it has become `sleep`; False if there was no process for it."""
    load.wait_until(lambda: process.poll() is not None or _name(process.pid) == "sleep", "it begins")
    return process.poll() is None


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


# -- floods -----------------------------------------------------------------------------------------------------------


def test_a_burst_of_connections_is_answered_to_the_last(server: ServerFactory) -> None:
    running = server("handlers_for_tests:slow", "--workers", "2", "--backlog", "2000")
    clients = [load.raw(running.path, load.message(b"2")) for _ in range(1000)]
    assert [client.recv(9) for client in clients] == [load.message(b"2")] * 1000
    for client in clients:
        client.close()


def test_too_large_request_is_refused_soon_after_the_limit(server: ServerFactory) -> None:
    running = server("handlers_for_tests:echo", "--workers", "1", "--max-request-size", "1MB")
    pid = load.worker_pids(running).pop()
    running.call(b"x" * 900_000)
    before = load.peak_rss(pid)
    for _ in range(3):
        client = load.raw(running.path)
        sent, piece = 0, load.packet(b"x" * pktline.MAX_DATA)
        with contextlib.suppress(ConnectionError):
            while sent < 10**10:
                sent += client.send(piece)
        assert b"ERR too-large" in load.rest_of(client)
        assert sent < 90 << 20  # what the server discards so that its client can read the reason
        client.close()
    assert load.peak_rss(pid) - before < 3_000_000
    assert load.worker_pids(running) == {pid}


def test_random_bytes_and_mutated_messages_harm_nobody(server: ServerFactory) -> None:
    running = server("handlers_for_tests:echo", "--workers", "2", "--max-request-size", "1MB", "--read-timeout", "1",
                     "--log-level", "error")
    workers, rng = load.worker_pids(running), random.Random(SEED)
    for number in range(1500):
        client = load.raw(running.path)
        with contextlib.suppress(OSError):
            client.sendall(nonsense(rng))
            if number % 2 and load.has_halves(client):
                client.shutdown(socket.SHUT_WR)
                load.rest_of(client)
        client.close()
    assert running.call(b"well") == b"well"
    assert load.worker_pids(running) == workers


def nonsense(rng: random.Random) -> bytes:
    """Bytes of no sense, or messages that have been damaged."""
    kind = rng.randrange(4)
    if kind == 0:
        return rng.randbytes(rng.randrange(1, 300))
    whole = b"".join(load.message(rng.randbytes(rng.randrange(1, 100))) for _ in range(rng.randrange(1, 5)))
    if kind == 1:
        return whole[: rng.randrange(len(whole))]
    if kind == 2:
        damaged = bytearray(whole)
        for _ in range(rng.randrange(1, 6)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        return bytes(damaged)
    return b"".join(rng.choice([b"0000", b"0001", b"0004", b"fff0", b"FFFF", b"0005", b"00"]) for _ in range(20))


# -- surroundings that go away ----------------------------------------------------------------------------------------


def test_the_folder_that_a_server_was_started_in_may_go(
    server: ServerFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    running = server("handlers_for_tests:echo", "--workers", "1")
    monkeypatch.undo()
    try:
        folder.rmdir()
    except PermissionError:
        pytest.skip("a folder that a process is in cannot go here")
    support.kill(load.worker_pids(running).pop())
    load.wait_until(lambda: load.is_whole(running), "a new worker serves")
    assert running.call(b"x") == b"x"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the memory of freed blocks is given back by glibc")
def test_worker_gives_the_memory_of_large_requests_back(server: ServerFactory) -> None:
    running = server("handlers_for_tests:echo", "--workers", "1")

    def resident() -> int:
        size: int = load.workers_of(running)[0]["rss_bytes"]
        return size

    before = resident()
    for _ in range(3):
        assert len(running.call(b"x" * 20_000_000)) == 20_000_000
    load.wait_until(lambda: resident() - before < 10_000_000, "the memory is given back")
