"""However the master dies, no process is left, and the next start finds the path free."""

from __future__ import annotations

import contextlib
import os
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
workers_finish = pytest.mark.skipif(support.workers_end_with_master, reason="the system ends workers with their master")


def test_killed_master_leaves_no_process_and_a_usable_path(server: ServerFactory) -> None:
    running = server("handlers_for_tests:echo", "--workers", "2")
    processes = running.processes()
    with load.Load(running.path, keeping=4, connecting=4, timeout=1.0) as clients:
        running.kill()
        assert support.wait_gone(processes, 1.0) == set()
        clients.stop_asking()
    assert not clients.wrong
    assert clients.slowest_failure < load.PROMPT, clients.report()
    assert server("handlers_for_tests:echo").call(b"next") == b"next"


@workers_finish
def test_workers_of_a_killed_master_finish_beside_a_new_server(
    server: ServerFactory, in_background: Background, tmp_path: Path
) -> None:
    name = os.fspath(tmp_path / "r")
    old = server("handlers_for_faults:gated", "--workers", "2")
    calls = [in_background(lambda: old.call(name.encode())) for _ in range(2)]
    load.wait_until(lambda: len(os.listdir(tmp_path)) == 2, "both requests begin")
    processes = old.processes()
    old.kill()
    new = server("handlers_for_tests:echo")  # at once, though the old workers are still busy
    assert new.call(b"new") == b"new"
    Path(name + ".go").touch()
    assert [call.result() for call in calls] == [name.encode()] * 2
    assert support.wait_gone(processes, 1.0) == set()
    assert new.call(b"new") == b"new"


@workers_finish
def test_waiting_clients_are_served_or_told_when_the_master_dies(
    server: ServerFactory, in_background: Background, tmp_path: Path
) -> None:
    name = os.fspath(tmp_path / "r")
    running = server("handlers_for_faults:gated", "--workers", "1")
    calls = [in_background(lambda: running.call(name.encode())) for _ in range(5)]
    load.wait_until(lambda: os.listdir(tmp_path), "the first request begins")
    load.wait_until(lambda: running.status()["queue"]["depth"] == 4, "four wait")  # type: ignore[index]
    running.kill()
    Path(name + ".go").touch()
    assert [call.result() for call in calls] == [name.encode()] * 5


def test_a_master_that_is_killed_while_it_starts_leaves_nobody(server: ServerFactory, tmp_path: Path) -> None:
    version = tmp_path / "version"
    version.write_text("fine")
    os.mkfifo(tmp_path / "slow")
    environment = {"VERSION_FILE": os.fspath(tmp_path / "slow")}
    running = server("handlers_for_faults:versioned", listening=False, env=environment)
    with open(tmp_path / "slow", "wb", buffering=0) as slow:  # opens when the template has begun to import
        processes = running.processes()
        running.kill()
        with contextlib.suppress(BrokenPipeError):  # the importing process is gone already
            slow.write(b"late")
    assert len(processes) >= 2
    assert support.wait_gone(processes, 1.0) == set()
    fine = server("handlers_for_faults:versioned", env={"VERSION_FILE": os.fspath(version)})
    assert fine.call(b"x") == b"fine x"


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_nobody_outlives_the_master_whatever_the_start_method(server: ServerFactory, method: str) -> None:
    if method not in serving.start_methods():
        pytest.skip(f"{method} does not exist here")
    running = server("handlers_for_tests:echo", "--workers", "2", "--start-method", method)
    assert running.call(b"x") == b"x"
    processes = running.processes()
    running.kill()
    assert support.wait_gone(processes, 1.5) == set()
    assert server("handlers_for_tests:echo").call(b"next") == b"next"


def test_a_silent_client_learns_of_the_masters_death(server: ServerFactory) -> None:
    running = server("handlers_for_tests:echo", "--workers", "2")
    silent = load.raw(running.path)
    with ipcsrv.connect(running.path) as kept:
        kept.call(b"once")
        load.wait_until(lambda: running.status()["idle"] == 2, "both are parked")
        began = time.monotonic()
        running.kill()
        assert load.rest_of(silent) == b""
        with pytest.raises(ipcsrv.ConnectionLost):
            kept.call(b"twice")
    assert time.monotonic() - began < load.PROMPT
    silent.close()
