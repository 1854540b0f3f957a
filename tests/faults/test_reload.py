"""Reloading and scaling cost no request, and code that does not import costs a line in the log."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import support
from conftest import ServerFactory
from faults import load

import ipcsrv
from ipcsrv.platform import server as serving

Background = Callable[[Callable[[], object]], load.Future]
INTERVAL = 0.1  # seconds


@pytest.fixture
def version(tmp_path: Path) -> Path:
    """The file that `versioned` reads when it is imported."""
    path = tmp_path / "version"
    path.write_text("one")
    return path


def test_reloads_under_load_cost_no_request(server: ServerFactory) -> None:
    running = server("handlers_for_tests:echo", "--workers", "2")
    with load.Load(running.path) as clients:
        reloads = support.rounds(10)
        for _ in range(reloads):
            running.ask_to("reload")
            time.sleep(INTERVAL)
        wanted = 4 if reloads == 10 else 2
        load.wait_until(lambda: running.status()["generation"] >= wanted, "new ones serve")  # type: ignore[operator]
    assert not clients.failures and not clients.refusals and not clients.wrong, clients.report()


def test_scaling_under_load_costs_no_request(server: ServerFactory) -> None:
    running = server("handlers_for_tests:echo", "--workers", "3")
    with load.Load(running.path) as clients:
        wishes = [("more", 4), ("fewer", 3), ("fewer", 2), ("more", 3)]
        for wish, wanted in wishes * support.rounds(3):
            running.ask_to(wish)  # the kernel would make one of two signals that the server has not seen yet
            load.wait_until(lambda wanted=wanted: running.status()["workers_wanted"] == wanted, f"{wanted} are wanted")
            time.sleep(INTERVAL)
        load.wait_until(lambda: load.is_whole(running), "the pool is whole")
    assert not clients.failures and not clients.refusals and not clients.wrong, clients.report()
    assert len(load.worker_pids(running)) == 3


def test_scaling_down_works_while_the_workers_are_busy(slow_two: support.RunningServer) -> None:
    clients = [load.raw(slow_two.path, load.message(b"20")) for _ in range(40)]
    slow_two.ask_to("fewer")
    assert [client.recv(100) for client in clients] == [load.message(b"20")] * 40
    load.wait_until(lambda: load.is_whole(slow_two) and len(load.worker_pids(slow_two)) == 1, "one worker is left")
    for client in clients:
        client.close()


def test_worker_serves_until_another_is_ready_in_its_place(server: ServerFactory, tmp_path: Path) -> None:
    """More are wanted, and fewer before they are ready: it is one of them that is too many in the end."""
    gate = tmp_path / "gate"
    gate.touch()
    running = server("handlers_for_tests:echo", "--workers", "1", "--on-worker-start",
                     "handlers_for_faults:starts_behind_a_gate", env={"START_GATE": os.fspath(gate)})
    gate.unlink()
    ipcsrv.scale(running.path, 3)
    load.wait_until(lambda: len(list(tmp_path.glob("gate.waits-*"))) >= 3, "two more workers wait for the gate")
    ipcsrv.scale(running.path, 1)
    assert [running.call(b"%d" % number) for number in range(20)] == [b"%d" % number for number in range(20)]
    gate.touch()
    load.wait_until(lambda: load.is_whole(running), "the pool is whole")
    assert len(load.worker_pids(running)) == running.status()["workers_wanted"] == 1


def test_pool_has_its_size_after_a_retiring_worker_died(server: ServerFactory, tmp_path: Path) -> None:
    running = server("handlers_for_faults:gated", "--workers", "2")
    names = [os.fspath(tmp_path / name) for name in ("one", "two")]
    clients = [load.raw(running.path, load.message(name.encode())) for name in names]
    load.wait_until(lambda: len(list(tmp_path.glob("*.begun-*"))) == 2, "both workers are busy")
    ipcsrv.scale(running.path, 1)
    [retiring] = [worker["pid"] for worker in load.workers_of(running) if worker["leaving_seconds"] is not None]
    support.kill(retiring)
    load.wait_until(lambda: retiring not in load.worker_pids(running), "it is gone")
    for name in names:
        Path(f"{name}.go").touch()
    responses = [client.recv(1000) for client in clients]
    assert sorted(b"ERR crashed" in response for response in responses) == [False, True]
    load.wait_until(lambda: load.is_whole(running), "the pool is whole")
    assert len(load.worker_pids(running)) == 1
    for client in clients:
        client.close()


def test_recycled_workers_under_load_cost_no_request(server: ServerFactory) -> None:
    running = server("handlers_for_tests:echo", "--workers", "2", "--max-requests", "50:20")
    with load.Load(running.path, keeping=4, connecting=4) as clients:
        before = load.worker_pids(running)
        load.wait_until(lambda: clients.answered > support.rounds(3000), "thousands of requests")
        load.wait_until(lambda: not before & load.worker_pids(running), "all workers are new")
    assert not clients.failures and not clients.refusals and not clients.wrong, clients.report()


def test_a_worker_that_has_grown_is_replaced_between_requests(server: ServerFactory) -> None:
    running = server("handlers_for_tests:leak", "--workers", "1", "--max-rss", "96MiB")
    pids = {int(running.call(b"1000000")) for _ in range(200)}
    assert 2 <= len(pids) <= 20
    load.wait_until(lambda: load.is_whole(running), "the pool is whole")


def test_a_failing_request_that_is_a_workers_last_is_answered(server: ServerFactory) -> None:
    running = server("handlers_for_tests:raise_error", "--workers", "1", "--max-requests", "2")
    for _ in range(support.rounds(10)):
        client = load.raw(running.path, load.message(b"no"), timeout=5.0)
        assert b"ERR handler ValueError: no" in load.rest_of(client)
        client.close()


def test_old_version_serves_on_when_the_new_one_does_not_import(server: ServerFactory, version: Path) -> None:
    running = server("handlers_for_faults:versioned", "--workers", "2", env={"VERSION_FILE": os.fspath(version)})
    version.write_text("raise")
    done = support.run_command("reload", running.path)
    assert done.returncode == 1
    assert b"this version is broken" in done.stderr
    running.output.wait_for("generation 1 serves on")
    assert running.call(b"x") == b"one x"
    version.write_text("two")
    assert support.run_command("reload", running.path).returncode == 0
    assert running.call(b"x") == b"two x"
    load.wait_until(lambda: load.is_whole(running), "the pool is whole")


@pytest.mark.parametrize("method", serving.start_methods())
def test_a_reload_during_another_waits_for_its_own_code(
    server: ServerFactory, tmp_path: Path, in_background: Background, method: str
) -> None:
    module, begun = tmp_path / "served.py", tmp_path / "begun"
    code = f"import time\nopen({os.fspath(begun)!r}, 'a').close()\ntime.sleep(0.5)\ndef handle(request): return b'%s'\n"
    module.write_text(code % "one")
    found = {"PYTHONPATH": os.pathsep.join([os.fspath(tmp_path), support.environment()["PYTHONPATH"]])}
    running = server("served:handle", "--workers", "1", "--start-method", method, env=found)

    def reload_twice(second: str) -> load.Future:
        begun.unlink()
        first = in_background(lambda: ipcsrv.reload(running.path, timeout=support.TIMEOUT))
        load.wait_until(begun.exists, "the first imports")
        module.write_text(second)
        return first

    first = reload_twice(code % "three")
    assert ipcsrv.reload(running.path, timeout=support.TIMEOUT)["generation"] == 3
    assert running.call() == b"three"
    assert first.result()["generation"] == 2
    first = reload_twice("no Python")
    with pytest.raises(ipcsrv.ServerError, match="SyntaxError"):
        ipcsrv.reload(running.path, timeout=support.TIMEOUT)
    first.result()
    assert running.call() == b"three"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="holds the import with a FIFO")
@pytest.mark.parametrize("half_closed", [False, True])
def test_questions_behind_a_reload_are_answered_after_it(
    server: ServerFactory, version: Path, half_closed: bool
) -> None:
    running = server("handlers_for_faults:versioned", "--workers", "1", env={"VERSION_FILE": os.fspath(version)})
    version.unlink()
    os.mkfifo(version)
    questions = load.message(b'{"command": "reload"}') * 2 + load.message(b'{"command": "ping", "worker": true}') * 2
    with load.raw(running.path + ".control", questions) as client:
        with version.open("w") as held:  # the import has begun
            if half_closed:
                client.shutdown(socket.SHUT_WR)
            before = load.cpu_seconds(running.pid)
            time.sleep(0.3)  # the time in which one that looks all the time would show
            assert load.cpu_seconds(running.pid) - before < 0.1
            version.unlink()
            version.write_text("three")
            held.write("two")
        answers = b""
        while answers.count(b"}0000") < 4:
            answers += client.recv(1000)
    assert answers.count(b'"ok": true') == 4
    assert answers.index(b'"generation": 2') < answers.index(b'"generation": 3') < answers.index(b'"worker": true')


def test_a_version_that_hangs_while_importing_is_given_up(server: ServerFactory, version: Path) -> None:
    running = server("handlers_for_faults:versioned", "--workers", "2", "--startup-timeout", f"{support.REPLACED:g}",
                     env={"VERSION_FILE": os.fspath(version)})
    version.write_text("hang")
    processes = running.processes()
    assert support.run_command("reload", running.path).returncode == 1
    assert running.call(b"x") == b"one x"
    load.wait_until(lambda: running.processes() == processes, "the failed generation is gone")


def test_a_request_under_way_is_finished_by_the_old_version(
    server: ServerFactory, slow_two: support.RunningServer
) -> None:
    clients = [load.raw(slow_two.path, load.message(b"400")) for _ in range(2)]
    load.wait_until(lambda: all(worker["state"] == "busy" for worker in load.workers_of(slow_two)), "both are busy")
    old = load.worker_pids(slow_two)
    assert support.run_command("reload", slow_two.path).returncode == 0
    assert [client.recv(100) for client in clients] == [load.message(b"400")] * 2
    load.wait_until(lambda: load.is_whole(slow_two) and not old & load.worker_pids(slow_two), "the old ones are gone")
    for client in clients:
        client.close()


def test_a_kept_connection_lives_through_reloads(server: ServerFactory, version: Path) -> None:
    running = server("handlers_for_faults:versioned", "--workers", "2", env={"VERSION_FILE": os.fspath(version)})
    client = load.raw(running.path)
    for text in ("two", "three"):
        version.write_text(text)
        assert support.run_command("reload", running.path).returncode == 0
        client.sendall(load.message(b"x"))
        assert client.recv(100) == load.message(text.encode() + b" x")
    client.close()
