"""Looking for events for a moment before sleeping, with a clock of the test's own."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field

import pytest

if sys.platform == "win32":
    pytest.skip("only where a poller looks before it sleeps", allow_module_level=True)

from ipcsrv.platform.unix import poller
from ipcsrv.platform.unix.poller import BUSY_POLL_NS, LEAST_PAUSE_NS, LONG_YIELD_NS, MOST_PAUSE_NS, MOST_VAIN, SKIPPED

EVENT = [(3, 1)]


@dataclass
class Machine:
    """A clock that moves when the CPU is given away, and a poller: `comes` is how many looks find nothing first."""

    now: int = 0
    step: int = 1000  # ns
    comes: int | None = None
    quiet: bool = False  # nothing comes in a sleep
    slept: list[float | None] = field(default_factory=list)
    looks: int = 0

    def wait(self, timeout: float | None) -> list[tuple[int, int]]:
        if timeout != 0:
            self.slept.append(timeout)
            return [] if self.quiet else EVENT
        self.looks += 1
        return EVENT if self.comes is not None and self.looks > self.comes else []

    def clock(self) -> int:
        return self.now

    def give_cpu(self) -> None:
        self.now += self.step


def busy_poll(machine: Machine) -> poller.BusyPoll:
    return poller.BusyPoll(machine.wait, machine.clock, machine.give_cpu)


def fail_once(machine: Machine, polling: poller.BusyPoll) -> int:
    """Poll while nothing comes; returns how often it looked."""
    before = machine.looks
    assert polling.poll(5.0) == EVENT
    return machine.looks - before


def test_event_that_is_there_needs_no_sleep() -> None:
    machine = Machine(comes=0)
    assert busy_poll(machine).poll(None) == EVENT
    assert (machine.slept, machine.now) == ([], 0)


def test_event_that_comes_soon_needs_no_sleep() -> None:
    machine = Machine(comes=10)
    assert busy_poll(machine).poll(None) == EVENT
    assert (machine.slept, machine.now) == ([], 10 * machine.step)


def test_poll_sleeps_after_its_moment() -> None:
    machine = Machine()
    assert busy_poll(machine).poll(7.5) == EVENT
    assert machine.slept == [7.5]
    assert machine.now == BUSY_POLL_NS


def test_zero_timeout_neither_looks_again_nor_sleeps() -> None:
    machine = Machine()
    assert busy_poll(machine).poll(0) == []
    assert (machine.slept, machine.now) == ([], 0)


def test_poll_sleeps_at_once_after_many_looks_in_vain() -> None:
    machine = Machine()
    polling = busy_poll(machine)
    assert all(fail_once(machine, polling) > 1 for _ in range(MOST_VAIN))
    assert [fail_once(machine, polling) for _ in range(SKIPPED)] == [0] * SKIPPED
    assert fail_once(machine, polling) > 1
    assert fail_once(machine, polling) == 0, "one more in vain is enough now"


def test_success_forgets_the_looks_in_vain() -> None:
    machine = Machine()
    polling = busy_poll(machine)
    for _ in range(MOST_VAIN - 1):
        fail_once(machine, polling)
    machine.comes = machine.looks + 5
    assert polling.poll(None) == EVENT
    machine.comes = None
    assert all(fail_once(machine, polling) > 1 for _ in range(MOST_VAIN))


def test_poll_sleeps_again_until_something_has_come() -> None:
    machine = Machine(quiet=True)
    polling = busy_poll(machine)
    assert polling.poll(4.0) == []
    looks = machine.looks
    assert [polling.poll(4.0) for _ in range(3)] == [[]] * 3
    assert machine.looks == looks, "a timer is no sign of work"
    machine.quiet = False
    assert fail_once(machine, polling) == 0
    assert fail_once(machine, polling) > 1


def test_poll_sleeps_at_once_where_others_need_the_cpu() -> None:
    machine = Machine(step=LONG_YIELD_NS + 1)
    polling = busy_poll(machine)
    assert fail_once(machine, polling) == 1, "it gave the CPU away once, for long"
    machine.now += LEAST_PAUSE_NS - machine.step - 1
    assert fail_once(machine, polling) == 1
    assert len(machine.slept) == 2
    machine.now += 1
    assert fail_once(machine, polling) == 1
    assert machine.now > LEAST_PAUSE_NS + LONG_YIELD_NS, "it tried again"


def test_pause_grows_up_to_its_limit() -> None:
    machine = Machine(step=LONG_YIELD_NS + 1)
    polling = busy_poll(machine)
    pauses = []
    for _ in range(9):
        fail_once(machine, polling)
        pauses.append(polling._pause_ns)
        machine.now = polling._paused_until
    assert pauses[:3] == [LEAST_PAUSE_NS, 2 * LEAST_PAUSE_NS, 4 * LEAST_PAUSE_NS]
    assert pauses[-1] == MOST_PAUSE_NS


@pytest.mark.parametrize(("cpus", "expected"), [(1.5, 0), (2, BUSY_POLL_NS)])
def test_process_with_less_than_two_cpus_does_not_look(monkeypatch: pytest.MonkeyPatch, cpus: float,
                                                       expected: int) -> None:
    monkeypatch.setattr(poller, "usable_cpus", lambda: cpus)
    monkeypatch.setattr(os, "sched_yield", lambda: None, raising=False)
    made = poller.poller()
    try:
        assert poller.busy_poll_ns() == expected
        assert (poller.eager_poll(made) == made.poll) is (expected == 0)
    finally:
        made.close()
