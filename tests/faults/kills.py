"""Random kills at any step of a server's life: while it starts, reloads, scales or drains.

Whatever dies in whatever order, a reload and a change of size end in a server that serves, a start does that or fails,
a stop ends in time, and after the master's own death no process is left.  The delays are random because that is the
point: a kill has to hit every moment of a step.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable

import support
from faults import load

import ipcsrv

STEPS = ("start", "reload", "scale", "drain")
STARTUP, DRAIN = 8.0, 2.0  # seconds, as given to the server
SLACK = 3.0  # seconds beyond what is allowed, on a busy machine
Start = Callable[..., support.RunningServer]


def survive(start: Start, method: str, step: str, rng: random.Random, *, stop_template: bool = False) -> None:
    """Start a server, kill any subset of its processes during this step, and assert how that ends.

    start: makes a `RunningServer` from a handler and options, and does not wait.
    stop_template: also stop the template (SIGSTOP) before the step, and leave it so.
    """
    running = start("handlers_of_processes:hang_or_echo", "--workers", str(rng.randint(1, 4)), "--start-method", method,
                    "--drain-timeout", f"{DRAIN:g}", "--startup-timeout", f"{STARTUP:g}")
    master_too = rng.random() < 0.25
    if step != "start":
        running.wait_until_listening()
        if stop_template:
            os.kill(load.template_pid(running), signal.SIGSTOP)
        if step == "drain" and not master_too:  # with a dead template beside a dead master no process has a deadline
            _hang(running, rng.randint(0, 2))
        _begin(running, step, rng)
    for _ in range(rng.randint(1, 3)):
        longest = rng.choice([0.02, 0.3, 1.0 if step == "start" else 0.02])
        time.sleep(rng.uniform(0.0, longest))  # to hit any moment of the step
        _kill_some(running, rng)
    if master_too:
        _assert_nothing_outlives_master(running)
        return
    if step != "drain":
        _assert_serves(running, may_have_failed=step == "start")
        running.signal(signal.SIGTERM)
    running.wait(DRAIN + 1.0 + SLACK)
    assert support.wait_gone(running.processes(), 1.0 + SLACK) == set(), running.output


def _hang(running: support.RunningServer, count: int) -> None:
    """Occupy workers with requests that never end."""
    for _ in range(count):
        load.Future(lambda: running.call(b"hang"))
    if count:
        load.wait_until(lambda: any(worker["state"] == "busy" for worker in load.workers_of(running)), "it hangs")


def _begin(running: support.RunningServer, step: str, rng: random.Random) -> None:
    signals = {"reload": [signal.SIGHUP], "scale": [signal.SIGTTIN, signal.SIGTTOU], "drain": [signal.SIGTERM]}
    running.signal(rng.choice(signals[step]))


def _kill_some(running: support.RunningServer, rng: random.Random) -> None:
    """Kill any of the processes but the master, some of them while they are stopped."""
    others = sorted(running.processes() - {running.pid})
    for pid in rng.sample(others, rng.randint(min(1, len(others)), len(others))):
        with contextlib.suppress(ProcessLookupError):
            if rng.random() < 0.3:
                os.kill(pid, signal.SIGSTOP)
            os.kill(pid, signal.SIGKILL)


def _assert_nothing_outlives_master(running: support.RunningServer) -> None:
    running.kill()
    for pid in running.processes():  # one that is stopped can end when it goes on
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    assert support.wait_gone(running.processes(), 1.0 + SLACK) == set(), running.output


def _assert_serves(running: support.RunningServer, *, may_have_failed: bool) -> None:
    def is_settled() -> bool:
        if running.process.poll() is not None:
            return True
        try:
            return load.is_whole(running)
        except ipcsrv.IpcError:
            return False

    load.wait_until(is_settled, "the pool is whole", STARTUP + support.TIMEOUT)
    if not may_have_failed or running.process.poll() is None:
        assert running.process.poll() is None, running.output.rest()
        assert running.call(b"x") == b"x"
