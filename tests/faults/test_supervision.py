"""Whatever dies in whatever order, a stop ends, a reload ends in a serving generation, and no process is left."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import support
from conftest import ServerFactory
from faults import kills, load

import ipcsrv

if sys.platform == "win32":
    pytest.skip("signals and a template", allow_module_level=True)

HANG = "handlers_of_processes:hang_or_echo"
ECHO = "handlers_for_tests:echo"
METHODS = ("fork", "forkserver", "spawn")
TEMPLATES = METHODS[:2]  # the start methods that have one
Background = Callable[[Callable[[], object]], load.Future]


# -- stopping ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("leaves_nothing")
def test_stop_ends_when_template_and_worker_die(server: ServerFactory, in_background: Background) -> None:
    running = server(HANG, "--workers", "1", "--drain-timeout", "1.5")
    template, worker = load.template_pid(running), min(load.worker_pids(running))
    hung = in_background(lambda: running.call(b"hang"))
    load.wait_until(lambda: load.workers_of(running)[0]["state"] == "busy", "it hangs")
    running.signal(signal.SIGTERM)
    running.output.wait_for("draining")
    os.kill(template, signal.SIGSTOP)
    support.kill(worker)
    os.kill(template, signal.SIGKILL)
    assert running.wait(4.0) == 0
    assert isinstance(hung.error(), ipcsrv.IpcError)


@pytest.mark.usefixtures("leaves_nothing")
@pytest.mark.parametrize("told", ["before", "with", "after"])  # the stop
@pytest.mark.parametrize("method", TEMPLATES)
def test_stop_ends_a_worker_that_is_just_born(server: ServerFactory, tmp_path: Path, method: str, told: str) -> None:
    late = tmp_path / "late"
    options = ["--on-worker-start", "handlers_of_processes:leaves_a_thread_if_told_late", "--start-method", method]
    running = server("handlers_of_processes:leaves_a_thread", "--workers", "1", *options,
                     env={"TOLD_LATE": os.fspath(late)})
    template = load.template_pid(running)
    late.touch()
    running.signal(signal.SIGTTIN)
    load.wait_until(lambda: len(support.children(template)) == 2, "another is forked")
    processes = running.processes()
    if told != "after":
        with stopped(running.pid):
            late.unlink()
            load.wait_until(lambda: load.process_state(template) == "S", "its birth is told")
            if told == "with":
                running.signal(signal.SIGQUIT)
    if told != "with":
        running.signal(signal.SIGQUIT)
    assert running.wait(10.0) == 0
    assert support.wait_gone(processes, 5.0) == set()


@pytest.mark.usefixtures("leaves_nothing")
@pytest.mark.parametrize("method", METHODS[1:])
def test_stop_leaves_no_process_that_was_stopped(server: ServerFactory, method: str) -> None:
    running = server(ECHO, "--workers", "1", "--start-method", method, "--drain-timeout", "1")
    processes = running.processes()
    for pid in processes - {running.pid}:
        os.kill(pid, signal.SIGSTOP)
    running.signal(signal.SIGQUIT)
    assert running.wait() == 0
    assert support.wait_gone(processes, 2.0) == set()


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Stop a process meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    yield
    os.kill(pid, signal.SIGCONT)


@pytest.mark.usefixtures("leaves_nothing")
@pytest.mark.parametrize("method", TEMPLATES)
def test_stop_ends_when_an_earlier_template_is_stopped(server: ServerFactory, method: str) -> None:
    running = server(ECHO, "--workers", "1", "--start-method", method, "--drain-timeout", "1.5")
    os.kill(load.template_pid(running), signal.SIGSTOP)
    running.signal(signal.SIGHUP)
    load.wait_until(lambda: running.status()["generation"] == 2 and load.is_whole(running), "it has reloaded")
    assert running.stop(timeout=4.0) == 0


@pytest.mark.usefixtures("leaves_nothing")
@pytest.mark.parametrize("method", TEMPLATES)
def test_queued_requests_outlive_a_generation_that_ends(
    server: ServerFactory, in_background: Background, method: str
) -> None:
    running = server(ECHO, "--workers", "2", "--start-method", method, "--drain-timeout", "1.5")
    workers = load.worker_pids(running)
    os.kill(load.template_pid(running), signal.SIGSTOP)
    for pid in workers:
        support.kill(pid)
    waiting = [in_background(lambda: running.call(b"x", timeout=15.0)) for _ in range(3)]
    load.wait_until(lambda: running.status()["queue"]["depth"] == 3, "they wait")  # type: ignore[index]
    load.wait_until(lambda: {worker["state"] for worker in load.workers_of(running)} == {"starting"},
                    "the template has been told to fork")
    running.signal(signal.SIGHUP)
    assert [call.result() for call in waiting] == [b"x"] * 3
    load.wait_until(lambda: load.is_whole(running), "the pool is whole")
    assert running.stop(timeout=4.0) == 0


@pytest.mark.usefixtures("leaves_nothing")
def test_worker_that_dies_unborn_with_its_template_is_counted_once(server: ServerFactory, tmp_path: Path) -> None:
    dies = tmp_path / "dies"
    running = server(HANG, "--workers", "1", env={"DIES_OF_FORK": str(dies)})
    template = load.template_pid(running)
    dies.touch()
    running.signal(signal.SIGTTIN)
    pid_file = tmp_path / "dies.pid"
    load.wait_until(lambda: pid_file.exists() and pid_file.read_text(), "a worker was forked")
    for pid in template, int(pid_file.read_text()):
        load.wait_until(lambda pid=pid: support.is_zombie(pid) or not os.path.exists(f"/proc/{pid}"), "it has ended")
    running.signal(signal.SIGCONT)
    load.wait_until(lambda: len(load.worker_pids(running)) == 2, "there are two workers")
    assert running.call(b"next") == b"next"
    assert running.stop() == 0
    running.output.rest()
    assert str(running.output).count("worker 2 ") == 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("step", kills.STEPS)
def test_any_kills_at_a_step_end_well(server: ServerFactory, sock_dir: str, method: str, step: str) -> None:
    rng = random.Random(method + step)
    for _ in range(3):
        kills.survive(functools.partial(server, listening=False), method, step, rng)
    assert server(ECHO).stop() == 0
    assert os.listdir(sock_dir) == []  # also of what a killed master has left


# -- starts that are given up -----------------------------------------------------------------------------------------

SPINS = {
    "sleeps": "import time\ntime.sleep(600)\n",
    "spins": "while True: pass\n",
    "spins in C": "sum(map(len, iter(lambda: b'', None)))\n",
}


@pytest.mark.parametrize(("kind", "method"), [*(("spins in C", method) for method in METHODS), ("sleeps", METHODS[0]),
                                               ("spins", METHODS[0])])  # fmt: skip
def test_master_killed_in_an_import_leaves_no_process(
    server: ServerFactory, tmp_path: Path, method: str, kind: str
) -> None:
    begun = tmp_path / "begun"
    (tmp_path / "spin.py").write_text(f"open({os.fspath(begun)!r}, 'w').close()\n{SPINS[kind]}")
    running = server("spin:f", "--start-method", method, listening=False, env={"PYTHONPATH": os.fspath(tmp_path)})
    load.wait_until(begun.exists, "the import begins")
    processes = running.processes()
    running.kill()
    assert support.wait_gone(processes, 2.0) == set()


def test_import_that_takes_too_long_is_reported_with_its_stack(server: ServerFactory, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time\ndef waits():\n    time.sleep(600)\nwaits()\n")
    log = tmp_path / "log"
    options = "--startup-timeout", "1", "--log-file", os.fspath(log)
    running = server("slow:f", *options, listening=False, env={"PYTHONPATH": os.fspath(tmp_path)})
    assert running.wait() == 1
    assert "in waits" in log.read_text()


# -- scaling, descriptors ---------------------------------------------------------------------------------------------


def test_scaling_never_goes_below_one_worker(server: ServerFactory) -> None:
    running = server(ECHO, "--workers", "1")
    running.signal(signal.SIGTTOU)
    running.output.wait_for("cannot have 0 workers")
    assert running.status()["workers_wanted"] == 1
    running.signal(signal.SIGHUP)
    load.wait_until(lambda: running.status()["generation"] == 2, "it reloads all the same")
    assert running.call(b"x") == b"x"


def test_spawning_without_descriptors_is_a_state(server: ServerFactory) -> None:
    with load.started_by('ulimit -n 40; exec "$@"'):
        running = server(ECHO, "--workers", "4")
    for wanted in range(5, 11):
        running.signal(signal.SIGTTIN)
        load.wait_until(lambda wanted=wanted: running.status()["workers_wanted"] == wanted, "one more is wanted")
    running.output.wait_for("workers cannot be started")
    assert running.call(b"x", timeout=10.0) == b"x"  # some are left to accept clients and commands with
    assert support.run_command("scale", running.path, "2").returncode == 0
    load.wait_until(lambda: load.is_whole(running) and len(load.worker_pids(running)) == 2, "two workers are left")
    assert running.stop() == 0


# -- the master is gone -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_deadlines_hold_when_the_master_is_gone(
    server: ServerFactory, in_background: Background, method: str
) -> None:
    running = server(HANG, "--workers", "3", "--start-method", method, "--request-timeout", "1")
    hung = in_background(lambda: running.call(b"hang", timeout=20.0))
    load.wait_until(lambda: any(worker["state"] == "busy" for worker in load.workers_of(running)), "it hangs")
    idle = [worker["pid"] for worker in load.workers_of(running) if worker["state"] == "idle"]
    os.kill(idle[0], signal.SIGSTOP)
    processes = running.processes()
    running.kill()
    assert isinstance(hung.error(), ipcsrv.ConnectionLost)
    assert support.wait_gone(processes, 5.0) == set()


def test_stopped_worker_does_not_hang_its_client(server: ServerFactory) -> None:
    running = server(ECHO, "--workers", "1", "--request-timeout", "1")
    (worker,) = load.worker_pids(running)
    os.kill(worker, signal.SIGSTOP)
    load.wait_until(lambda: load.process_state(worker) == "T", "it is stopped")
    assert running.call(b"x", timeout=10.0) == b"x"  # nothing of it was read, so another worker serves it


# -- the first process of a container ---------------------------------------------------------------------------------


def test_first_process_of_a_pid_namespace_reaps_orphans(sock_path: str) -> None:
    if subprocess.run(["unshare", "--pid", "--fork", "true"], capture_output=True).returncode:
        pytest.skip("no right to make a pid namespace")
    command = [sys.executable, "-m", "ipcsrv", "run", sock_path, "handlers_of_processes:leaves_a_grandchild",
               "--workers", "2"]
    with subprocess.Popen(["unshare", "--pid", "--fork", "--kill-child", *command], env=support.environment(),
                          stderr=subprocess.DEVNULL) as process:  # fmt: skip
        try:
            load.wait_until(lambda: ipcsrv.active_state(sock_path) is ipcsrv.State.LISTENING, "it listens")
            for _ in range(20):
                ipcsrv.call(sock_path, b"x", timeout=10.0, trust="root")
            (master,) = support.children(process.pid)
            load.wait_until(lambda: not [pid for pid in support.children(master) if support.is_zombie(pid)],
                            "no zombie is left")
        finally:
            process.kill()
            process.wait(support.TIMEOUT)


# -- the control socket -----------------------------------------------------------------------------------------------


def test_control_socket_survives_bad_questions(server: ServerFactory) -> None:
    running = server(ECHO, "--workers", "1")
    path = running.path + ".control"
    for question in (b"[" * 60_000, b"null", b"\xff", json.dumps({"command": ["x"]}).encode(), b"{}" * 9):
        with load.raw(path, load.message(question)) as client:
            client.recv(1000)
    with load.raw(path, load.message(b'{"command": "status"}') * 20):
        pass  # gone before the answers
    idle = [load.raw(path) for _ in range(100)]
    assert running.status()["state"] == "running"  # the owner always gets in
    for client in idle:
        client.close()


def test_half_closed_client_is_told_of_its_truncated_request(server: ServerFactory) -> None:
    running = server(ECHO, "--workers", "1")
    with load.raw(running.path, b"0010half") as client:
        client.shutdown(socket.SHUT_WR)
        assert b"ERR malformed" in load.rest_of(client)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1"])
def test_signals_at_any_moment_of_a_stop_change_nothing(server: ServerFactory, name: str, method: str) -> None:
    running = server(ECHO, "--workers", "1", "--start-method", method)
    running.signal(signal.SIGTERM)
    while running.process.poll() is None:  # to the last instruction of the interpreter
        with contextlib.suppress(ProcessLookupError):
            running.signal(getattr(signal, name))
        time.sleep(0.0005)  # the point: a signal at every moment, of a process that still gets some time
    assert running.wait() == 0


def test_closing_the_terminal_stops_a_foreground_server(sock_path: str) -> None:
    import fcntl
    import pty
    import termios

    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "ipcsrv", "run", sock_path, ECHO, "--workers", "1"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=support.environment(),
                               start_new_session=True,
                               preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))  # noqa: PLW1509 # fmt: skip
    os.close(theirs)
    with process:
        load.wait_until(lambda: ipcsrv.active_state(sock_path) is ipcsrv.State.LISTENING, "it listens")
        os.close(ours)  # the terminal hangs up
        assert process.wait(support.TIMEOUT) == 0
    assert not os.path.lexists(sock_path)
