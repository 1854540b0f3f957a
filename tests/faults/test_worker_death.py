"""A crash costs one request: whatever a worker dies of, the others go on, and a new one is there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import support
from conftest import ServerFactory
from faults import load

import ipcsrv
from ipcsrv.platform import server as serving

Background = Callable[[Callable[[], object]], load.Future]


def begun(name: str, count: int = 1) -> list[int]:
    """The workers in which the gated request `name` has begun, once there are so many."""
    folder, base = os.path.split(name)

    def found() -> list[int]:
        marks = [entry for entry in os.listdir(folder) if entry.startswith(f"{base}.begun-")]
        return [int(mark.rpartition("-")[2]) for mark in marks]

    load.wait_until(lambda: len(found()) >= count, f"{count} requests begin")
    return found()


@pytest.mark.parametrize("death", ["SEGV", "KILL", "ABRT", "9", "0"])
def test_worker_that_dies_fails_its_request_and_is_replaced(server: ServerFactory, death: str) -> None:
    if not (death.isdigit() or hasattr(signal, f"SIG{death}")):
        pytest.skip(f"there is no SIG{death}")
    running = server("handlers_for_tests:crash", "--workers", "1")
    before = load.worker_pids(running)
    began = time.monotonic()
    with pytest.raises(ipcsrv.HandlerCrashed) as caught:
        running.call(death.encode())
    assert time.monotonic() - began < load.PROMPT
    assert caught.value.code == "crashed"
    load.wait_until(lambda: load.is_whole(running) and not load.worker_pids(running) & before, "a new worker serves")


def test_a_killed_worker_fails_only_its_own_request(
    server: ServerFactory, in_background: Background, tmp_path: Path
) -> None:
    running = server("handlers_for_faults:gated", "--workers", "2")
    names = [os.fspath(tmp_path / "one"), os.fspath(tmp_path / "two")]
    calls = [in_background(lambda name=name: running.call(name.encode())) for name in names]
    victim, other = begun(names[0])[0], begun(names[1])[0]
    assert victim != other
    support.kill(victim)
    assert isinstance(calls[0].error(), ipcsrv.HandlerCrashed)
    assert calls[0].seconds < 20
    Path(names[1] + ".go").touch()
    assert calls[1].result() == names[1].encode()


def test_idle_connection_survives_worker_crash(server: ServerFactory) -> None:
    running = server("handlers_for_tests:crash_if_asked", "--workers", "1")
    for _ in range(support.rounds(15)):
        load.wait_until(lambda: load.is_whole(running), "the pool is whole")
        answered = [load.raw(running.path) for _ in range(5)]
        for client in answered:  # one after the other: each new one is served as soon as the last was answered
            client.sendall(load.message(b"hello"))
            assert client.recv(100) == load.message(b"hello")
        with load.raw(running.path) as killer:
            killer.sendall(load.message(b"crash"))
            assert load.rest_of(killer)[4:].startswith(b"ERR crashed ")
        for client in answered:
            client.sendall(load.message(b"again"))
            assert client.recv(100) == load.message(b"again")
        for client in answered:
            client.close()


def test_requests_that_wait_are_served_though_every_worker_dies(
    server: ServerFactory, in_background: Background, tmp_path: Path
) -> None:
    running = server("handlers_for_faults:gated", "--workers", "2")
    name = os.fspath(tmp_path / "r")
    calls = [in_background(lambda: running.call(name.encode())) for _ in range(10)]
    for pid in begun(name, 2):
        support.kill(pid)
    Path(name + ".go").touch()
    lost = [call for call in calls if _lost(call)]
    assert len(lost) == 2


def _lost(call: load.Future) -> bool:
    try:
        call.result()
    except ipcsrv.HandlerCrashed:
        return True
    return False


def test_kept_connection_survives_crash_of_its_worker(server: ServerFactory) -> None:
    running = server("handlers_for_tests:crash_if_asked", "--workers", "1")
    with ipcsrv.connect(running.path) as kept:
        for _ in range(support.rounds(20)):
            kept.call(b"in a loop")
            kept.call(b"in a loop")
            with pytest.raises(ipcsrv.HandlerCrashed):
                running.call(b"crash")
            assert kept.call(b"again") == b"again"


def test_silent_connection_survives_worker_crash(server: ServerFactory) -> None:
    running = server("handlers_for_tests:crash_if_asked", "--workers", "1")
    for _ in range(support.rounds(20)):
        silent = load.raw(running.path)
        with pytest.raises(ipcsrv.HandlerCrashed):
            running.call(b"crash")
        silent.sendall(load.message(b"hello"))
        assert silent.recv(100) == load.message(b"hello")
        silent.close()


def test_pipelined_responses_before_a_crash_arrive(server: ServerFactory) -> None:
    running = server("handlers_for_tests:crash_if_asked", "--workers", "1")
    client = load.raw(running.path, load.message(b"one") + load.message(b"two") + load.message(b"crash"))
    before, _, failure = load.rest_of(client).partition(load.message(b"one") + load.message(b"two"))
    assert before == b"" and failure[4:].startswith(b"ERR crashed exited with status 9")
    client.close()
    assert running.call(b"next") == b"next"


def test_random_kills_under_load_cost_at_most_one_request_each(server: ServerFactory) -> None:
    running = server("handlers_for_tests:echo", "--workers", "4")
    with load.Load(running.path) as clients:
        killed = load.kill_workers(running, 1.5)
        over = time.monotonic()
        load.wait_until(lambda: load.is_whole(running), "the pool is whole")
        seconds = time.monotonic() - over
    assert seconds < support.REPLACED
    assert clients.wrong == 0
    assert len(clients.failures) + len(clients.refusals) <= killed, clients.report()
    assert clients.slowest_failure < load.PROMPT, clients.report()


def test_suspended_worker_goes_on_and_does_not_affect_others(server: ServerFactory) -> None:
    running = server("handlers_for_tests:pid", "--workers", "2")
    stopped = min(load.worker_pids(running))
    os.kill(stopped, signal.SIGSTOP)
    load.wait_until(lambda: load.process_state(stopped) == "T", "it is stopped, and no longer waits for clients")
    try:
        assert {int(running.call(timeout=2.0)) for _ in range(50)} == load.worker_pids(running) - {stopped}
    finally:
        os.kill(stopped, signal.SIGCONT)
    with ThreadPoolExecutor(8) as callers:  # one after the other, they might all be the same worker's

        def serving() -> set[int]:
            return set(callers.map(lambda _: int(running.call()), range(32)))

        load.wait_until(lambda: stopped in serving(), "the stopped one serves again")


def test_the_death_of_the_template_is_mended_without_a_failure(server: ServerFactory) -> None:
    running = server("handlers_for_tests:echo", "--workers", "2")
    with load.Load(running.path, keeping=2, connecting=2) as clients:
        support.kill(load.template_pid(running))
        load.wait_until(lambda: running.status()["generation"] == 2 and load.is_whole(running),
                        "a new generation serves")
        support.kill(min(load.worker_pids(running)))
        load.wait_until(lambda: load.is_whole(running), "a worker is replaced")
    assert len(clients.failures) <= 1 and not clients.wrong, clients.report()


# -- workers that die at their start ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "options", "status", "said"),
    [
        ("handlers_for_tests:echo", ("--on-worker-start", "handlers_for_tests:on_worker_start_raises"), 1,
         "no database today"),
        ("handlers_for_tests:echo", ("--on-worker-start", "handlers_for_faults:dies_at_start"), 1,
         "exited with status 3"),
        ("handlers_for_tests:echo",
         ("--on-worker-start", "handlers_for_faults:hangs_at_start", "--startup-timeout", "0.5"), 1, "0.5 s"),
    ],
    ids=["a hook that raises", "a hook that exits", "a hook that hangs"],
)
@pytest.mark.usefixtures("leaves_nothing")
def test_server_gives_up_when_workers_cannot_start(
    server: ServerFactory, target: str, options: tuple[str, ...], status: int, said: str
) -> None:
    running = server(target, "--workers", "2", *options, listening=False)
    assert running.wait() == status
    running.output.wait_for(said)


@pytest.mark.usefixtures("leaves_nothing")
def test_a_handler_that_takes_too_long_to_import_is_given_up(server: ServerFactory, tmp_path: Path) -> None:
    version = tmp_path / "version"
    version.write_text("hang")
    running = server("handlers_for_faults:versioned", "--startup-timeout", "0.5", listening=False,
                     env={"VERSION_FILE": os.fspath(version)})
    assert running.wait(4.0 + support.REPLACED) == 1
    imported_by = "was not imported" if "fork" in serving.start_methods() else "a worker was not ready"
    running.output.wait_for(f"{imported_by} within 0.5 s")


def test_worker_that_dies_at_its_start_later_on_is_started_again(
    server: ServerFactory, tmp_path: Path
) -> None:
    version = tmp_path / "version"
    version.write_text("live")
    running = server("handlers_for_tests:pid", "--workers", "2", "--on-worker-start",
                     "handlers_for_faults:dies_at_start_if_told", env={"VERSION_FILE": os.fspath(version)})
    version.write_text("die")
    victim = min(load.worker_pids(running))
    support.kill(victim)
    running.output.wait_for("told to die")
    assert int(running.call()) in load.worker_pids(running)
    version.write_text("live")
    load.wait_until(lambda: load.is_whole(running) and victim not in load.worker_pids(running), "the pool is whole")


# -- the caller's own way with its children ---------------------------------------------------------------------------

REAPER = """
import os, signal, sys
import ipcsrv

def reap(*_):
    try:
        while os.waitpid(-1, os.WNOHANG)[0]: pass
    except ChildProcessError:
        pass

if __name__ == "__main__":
    path, method, reaps = sys.argv[1:]
    chosen = reap if reaps == "reaps" else signal.SIG_IGN
    signal.signal(signal.SIGCHLD, chosen)
    ipcsrv.serve(path, "handlers_for_tests:pid", workers=2, start_method=method, log_level="error")
    assert signal.getsignal(signal.SIGCHLD) is chosen
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGCHLD")
@pytest.mark.parametrize("start_method", ["fork", "spawn"])
@pytest.mark.parametrize("reaps", ["ignores", "reaps"])
def test_worker_is_replaced_when_the_caller_reaps_children(
    reaps: str, start_method: str, sock_path: str, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(REAPER)
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen([sys.executable, program, sock_path, start_method, reaps],
                                   stdout=output, stderr=output, env=support.environment())  # fmt: skip
    try:
        load.wait_until(lambda: os.path.exists(sock_path), "the server listens")
        killed = int(ipcsrv.call(sock_path, b"", timeout=support.TIMEOUT))
        os.kill(killed, signal.SIGKILL)
        for _ in range(8):
            assert int(ipcsrv.call(sock_path, b"", timeout=support.TIMEOUT)) != killed
        process.terminate()
        assert process.wait(support.TIMEOUT) == 0, (tmp_path / "output").read_text()
    finally:
        process.kill()
        process.wait()
