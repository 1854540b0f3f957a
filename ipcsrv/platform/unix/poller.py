"""Readiness on Unix, with `select.epoll`'s interface."""

from __future__ import annotations

import sys

assert sys.platform != "win32"

import os
import select
from collections.abc import Callable
from time import monotonic_ns
from typing import Any, Final

from ...cpus import usable_cpus

READ: Final = select.POLLIN
WRITE: Final = select.POLLOUT
HANGUP: Final = select.POLLHUP | select.POLLERR
SHARED: Final = int(getattr(select, "EPOLLEXCLUSIVE", 0))  # wake one of the processes that wait for the same queue
EDGE: Final = int(getattr(select, "EPOLLET", 0))  # report every change and not the state


BUSY_POLL_NS: Final = 50_000  # for which input is looked for before sleeping
MOST_VAIN: Final = 16  # looks in a row that found nothing, after which ...
SKIPPED: Final = 64  # ... so many waits sleep at once
LONG_YIELD_NS: Final = 1_000_000  # other processes ran for so long: there is more to do than CPUs
LEAST_PAUSE_NS: Final = 50_000_000  # without looking, after the first long yield
MOST_PAUSE_NS: Final = 2_000_000_000

Events = list[tuple[int, int]]


class _PollPoller:
    """`select.epoll`'s interface over `select.poll`, for systems without epoll."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self.register = self._poll.register
        self.modify = self._poll.modify
        self.unregister = self._poll.unregister

    def poll(self, timeout: float | None = None) -> list[tuple[int, int]]:
        return self._poll.poll(None if timeout is None else max(0.0, timeout * 1000))

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        """Nothing to close: poll(2) has no descriptor."""


def poller() -> Any:
    """A readiness poller with `select.epoll`'s interface."""
    return select.epoll() if hasattr(select, "epoll") else _PollPoller()


class BusyPoll:
    """Looks for events for a moment before it sleeps, where that is quicker.

    A process that sleeps on a CPU of its own is woken through an interrupt, which takes 20 µs and more on a virtual
    machine: longer than most clients take to ask again. So `poll` gives the CPU to other processes and looks again,
    for `BUSY_POLL_NS`. It sleeps at once for a while if nothing came several times in a row, and where giving the CPU
    away took long: then others need it, and the kernel runs a sleeper sooner than a process that has yielded. After a
    sleep in which nothing came, it sleeps again.

    wait: `poll` of a poller; clock: nanoseconds; yield_cpu: sched_yield(2).
    """

    def __init__(self, wait: Callable[[float | None], Events], clock: Callable[[], int] = monotonic_ns,
                 yield_cpu: Callable[[], object] | None = None) -> None:
        self._wait, self._clock = wait, clock
        self._yield = os.sched_yield if yield_cpu is None else yield_cpu
        self._vain = self._skip = self._paused_until = self._pause_ns = 0
        self._idle = False

    def poll(self, timeout: float | None) -> Events:
        """Return the events that there are, or that come within `timeout` seconds (None: whenever)."""
        wait = self._wait
        if self._skip:
            self._skip -= 1
            return wait(timeout)
        if self._idle:
            return self._sleep(timeout)
        events = wait(0)
        if events or timeout == 0:
            return events
        before = self._clock()
        if before < self._paused_until:
            return self._sleep(timeout)
        until = before + BUSY_POLL_NS
        while before < until:
            self._yield()
            now = self._clock()
            if now - before > LONG_YIELD_NS:
                self._pause_ns = min(MOST_PAUSE_NS, self._pause_ns * 2 or LEAST_PAUSE_NS)
                self._paused_until = before + self._pause_ns
                return self._sleep(timeout)
            if events := wait(0):
                self._vain = 0
                self._pause_ns -= self._pause_ns // 64
                return events
            before = now
        self._vain += 1
        if self._vain >= MOST_VAIN:
            self._skip = SKIPPED
        return self._sleep(timeout)

    def _sleep(self, timeout: float | None) -> Events:
        events = self._wait(timeout)
        self._idle = not events
        return events


def busy_poll_ns() -> int:
    """Nanoseconds for which a process looks for input before it sleeps; 0 where it has no CPU to spare for that."""
    return BUSY_POLL_NS if hasattr(os, "sched_yield") and usable_cpus() >= 2 else 0


def eager_poll(poller: Any) -> Callable[[float | None], Events]:
    """Return the `poll` of a poller that is quick where events follow each other."""
    poll: Callable[[float | None], Events] = poller.poll
    return BusyPoll(poll).poll if busy_poll_ns() else poll
