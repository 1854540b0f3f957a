"""Requests that take longer than `request_timeout`, and workers that are stuck. In the master.

No worker is asked: since when a request runs is in the scoreboard. Nor does anything look while nothing depends on it:
a worker that begins a request while the watchdog sleeps (`WATCHED` is 0 in its slot) says so.

Stacks are requested from one worker after the other: each writes its own in many small pieces, from a signal handler,
and two at once would be mixed up in the log.
"""

from __future__ import annotations

import math
from collections import deque
from time import monotonic_ns
from typing import TYPE_CHECKING

from ..platform import logs
from ..platform.server import Process
from ..supervision import scoreboard as board

if TYPE_CHECKING:
    from .worker_processes import WorkerProcess, WorkerProcesses

log = logs.get("ipcsrv.master")

STACKS_LOOK = 0.01  # seconds between two looks whether a worker has written its stacks
STACKS_PATIENCE = 0.5  # seconds for a worker that does not write any, because it is stopped, say


class StacksAsked:
    """The process that was asked last for its stacks."""

    def __init__(self) -> None:
        self._process: Process | None = None
        self._at = -math.inf

    def note(self, process: Process | None, now: float) -> None:
        """Remember the process that was asked for its stacks just now."""
        self._process, self._at = process, now

    def still_writing(self, now: float) -> bool:
        """Return whether it may still write its stacks; False after `STACKS_PATIENCE`.

        Between the moments in which the signal is pending and blocked it is neither (`Process.owes_stacks`), so that
        it is too early to look just after the signal was sent.
        """
        if self._process is None or now - self._at > STACKS_PATIENCE:
            return False
        return now - self._at < STACKS_LOOK or self._process.owes_stacks()


class Watchdog:
    """Looks after the requests of the workers; request_timeout: in seconds, None for no limit."""

    def __init__(self, processes: WorkerProcesses, request_timeout: float | None) -> None:
        self._processes, self._limit = processes, request_timeout
        self._seen: dict[int, tuple[tuple[int, int], float]] = {}  # by worker: LENT and TAKEN, and since when they are
        self._asked = StacksAsked()

    def begin(self) -> float:
        """A request has begun, or a connection was passed, while nothing looked; return in how many seconds to look."""
        for words in self._processes.serving_slots():
            words[board.WATCHED] = 1
        return math.inf if self._limit is None else self._limit

    def look(self, now: float) -> float:
        """Have workers ended that took too long; return when to look again, infinity for never."""
        if self._limit is None:
            return math.inf
        again = min((self._look_at(worker, now) for worker in list(self._processes.workers.values())), default=math.inf)
        return now + again

    def _look_at(self, worker: WorkerProcess, now: float) -> float:
        assert self._limit is not None
        words = self._processes.scoreboard.words(worker.slot)
        words[board.WATCHED] = 0  # before the look: a request that begins from now on is reported
        age = self._age(worker, words, now)
        if age is None:
            return math.inf
        words[board.WATCHED] = 1
        limit = self._limit + words[board.GRACE_NS] / 1e9
        if age < limit:
            return limit - age
        if self._asked.still_writing(now):  # the next one's would be mixed up with them
            return STACKS_LOOK
        if decided := self._processes.supervisor.overdue(worker.number, now):
            log.warning("worker %d has been at one request for %.1f s (request_timeout)", worker.number, age)
            self._processes.obey(decided)
            self._asked.note(worker.process, now)
        return self._limit

    def _age(self, worker: WorkerProcess, words: memoryview[int], now: float) -> float | None:
        """For how long a worker has been at a request, or has done nothing with what it has or could take."""
        if since := words[board.SINCE_NS]:
            return (monotonic_ns() - since) / 1e9
        lent = words[board.LENT]
        if not lent and not self._processes.has_queued(worker):
            self._seen.pop(worker.number, None)
            return None
        seen = lent, words[board.TAKEN]
        before = self._seen.get(worker.number)
        if before is None or before[0] != seen:
            self._seen[worker.number] = seen, now
            return 0.0
        return now - before[1]


class StackRound:
    """Has all workers write their stacks into the log, one after the other."""

    def __init__(self, processes: WorkerProcesses) -> None:
        self._processes = processes
        self._waiting: deque[int] = deque()
        self._asked = StacksAsked()

    def begin(self) -> None:
        """Ask all workers that there are, after those that still wait to be asked."""
        self._waiting.extend(number for number in self._processes.workers if number not in self._waiting)

    def go_on(self, now: float) -> float:
        """Ask the next one if the last has written its stacks, or never will; return when to call again."""
        if self._asked.still_writing(now):
            return now + STACKS_LOOK
        while self._waiting:
            asked = self._processes.dump_stacks(self._waiting.popleft())
            if asked is not None:
                self._asked.note(asked, now)
                return now + STACKS_LOOK
        return math.inf
