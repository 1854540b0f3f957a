"""What `status` says is right, also when every worker is stuck and a crowd waits."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import support
from conftest import ServerFactory

import ipcsrv


def status(running: support.RunningServer) -> dict[str, Any]:
    return running.status()


def settled(running: support.RunningServer, **totals: int) -> dict[str, Any]:
    """The status, once its totals are these: a worker counts a request just after its client has the response."""
    support.wait_until(lambda: totals.items() <= status(running)["totals"].items(), f"{totals}")
    return status(running)


@pytest.mark.skipif(not support.paths_are_sockets, reason="its times and numbers are those of sockets")
def test_status_answers_at_once_while_all_workers_are_stuck(
    server: ServerFactory, tmp_path: Path
) -> None:
    running = server("handlers_for_tests:hold", "--workers", "2")
    held = [tmp_path / "one", tmp_path / "two"]
    stuck = [threading.Thread(target=running.call, args=(bytes(path),)) for path in held]
    for thread in stuck:
        thread.start()
    support.wait_until(lambda: all(path.exists() for path in held), "both in the handler")
    begun_by = time.monotonic()
    support.wait_until(lambda: [w["state"] for w in status(running)["workers"]] == ["busy", "busy"], "both stuck")
    crowd = [socket.socket(socket.AF_UNIX) for _ in range(500)]
    for client in crowd:
        client.connect(running.path)
        client.sendall(b"000510000")
    asked = time.monotonic()
    answers, took = [], []
    for _ in range(5):
        begun = time.monotonic()
        answers.append(status(running))
        took.append(time.monotonic() - begun)
    assert sorted(took)[2] < 0.05, took
    facts = answers[-1]
    assert [worker["state"] for worker in facts["workers"]] == ["busy", "busy"]
    assert all(worker["busy_seconds"] > 0 and worker["rss_bytes"] > 1 << 20 for worker in facts["workers"])
    assert facts["queue"]["depth"] + facts["idle"] == 500
    assert 0 < facts["queue"]["oldest_seconds"] < time.monotonic() - asked + support.TIMEOUT
    assert (facts["state"], facts["workers_wanted"], facts["queue"]["accepting"]) == ("running", 2, True)
    time.sleep(max(0.0, begun_by + 1.1 - time.monotonic()))  # for the percentile below
    for path in held:
        path.unlink()
    for client in crowd:
        client.settimeout(support.TIMEOUT)
        with client:
            assert client.recv(100) == b"000510000"
    for thread in stuck:
        thread.join()
    after = settled(running, requests=502, ok=502)
    assert after["queue"]["depth"] == 0
    assert after["totals"]["connections"] - after["totals"]["probes"] == 502
    assert after["latency"]["since_start"]["handler"]["p999"] > 1.0


def test_worker_deaths_are_counted_and_cost_one_request_each(server: ServerFactory) -> None:
    running = server("handlers_for_tests:crash_if_asked", "--workers", "1")
    assert status(running)["last_error"] is None
    for _ in range(2):
        assert running.call(b"well") == b"well"
        (worker,) = status(running)["workers"]
        with pytest.raises(ipcsrv.HandlerCrashed):
            running.call(b"crash")
    support.wait_until(lambda: status(running)["totals"]["worker_restarts"] == 2, "the second replacement")
    assert running.call(b"well") == b"well"
    facts = settled(running, requests=5, ok=3, lost=2, timeouts=0)
    assert sum(worker["restarts"] for worker in facts["workers"]) == 2
    assert f"(pid {worker['pid']}) exited with status 9" in facts["last_error"]["text"]
    assert abs(facts["last_error"]["when"] - time.time()) < support.TIMEOUT


def test_a_request_that_took_too_long_is_a_timeout(server: ServerFactory) -> None:
    running = server("handlers_for_tests:hang_if_asked", "--workers", "1", "--request-timeout", "0.2")
    with pytest.raises(ipcsrv.HandlerTimeout):
        running.call(b"hang")
    assert running.call(b"well") == b"well"
    facts = settled(running, requests=2, ok=1, lost=0, timeouts=1)
    assert "request_timeout" in facts["last_error"]["text"]


def test_failed_reload_is_the_last_error(server: ServerFactory, tmp_path: Path) -> None:
    (tmp_path / "fleeting.py").write_text("def handle(request): return request\n")
    running = server("fleeting:handle", "--workers", "1", "--chdir", str(tmp_path))
    (tmp_path / "fleeting.py").write_text("raise RuntimeError('not today')\n")
    with pytest.raises(ipcsrv.IpcError):
        ipcsrv.reload(running.path)
    facts = status(running)
    assert (facts["generation"], facts["state"], facts["totals"]["worker_restarts"]) == (1, "running", 0)
    assert "fleeting" in facts["last_error"]["text"]


def test_handler_error_is_the_last_error(server: ServerFactory) -> None:
    running = server("handlers_for_tests:raise_error", "--workers", "1")
    with pytest.raises(ipcsrv.HandlerError):
        running.call(b"broken")
    support.wait_until(lambda: status(running)["last_error"], "the worker's word")
    facts = settled(running, requests=1, handler_errors=1, ok=0, bytes_in=6)
    assert facts["last_error"]["text"] == "ValueError: broken"
    assert facts["workers"][0]["errors"] == 1
    recent, ever = facts["latency"]["last_minute"], facts["latency"]["since_start"]
    assert recent["handler"] == ever["handler"] != {"p50": None, "p90": None, "p99": None, "p999": None}
    assert recent["requests_per_second"] > 0


def test_a_response_in_pieces_counts_every_byte_of_both_ways(server: ServerFactory) -> None:
    running = server("handlers_for_tests:big", "--workers", "1")
    for size in (0, 10, 70_000, 900_000):
        assert len(running.call(b"%d" % size)) == size
    with ipcsrv.connect(running.path, timeout=support.TIMEOUT) as connection:
        assert len(b"".join(connection.stream(b"2000000"))) == 2_000_000
    totals = settled(running, ok=5)["totals"]
    assert totals["bytes_out"] == 70_010 + 900_000 + 2_000_000
    assert totals["bytes_in"] == sum(map(len, ("0", "10", "70000", "900000", "2000000")))
