"""What the pool knows of its workers and generations, and how each of them changes.

These are the records; what to do about them is decided in `pool`. They keep no time of their own: every moment is in
seconds and passed in, and a deadline that never comes is infinite. This runs in the master.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

#: Who dies within so many seconds of being ready, having served nobody, has died at the start.
PROBATION_SECONDS = 1.0


class PoolState(Enum):
    """Of the pool as a whole. It never goes back to an earlier one."""

    STARTING = auto()
    RUNNING = auto()
    STOPPING = auto()
    FAILED = auto()
    STOPPED = auto()


class WorkerPhase(Enum):
    """Of a worker. It goes from one to a later one, and may leave out any."""

    STARTING = auto()
    READY = auto()
    LEAVING = auto()
    KILLED = auto()


#: A worker in one of these counts towards its generation's strength; the others are as good as gone.
PRESENT = frozenset({WorkerPhase.STARTING, WorkerPhase.READY})


class Ultimatum(Enum):
    """What a worker has a limited time for, which decides what happens to it after that."""

    START = auto()
    DRAIN = auto()
    STACKS = auto()


class Stage(Enum):
    """Of a generation: its template imports, its workers start, it serves, it serves without a template, it is over."""

    LOADING = auto()
    FILLING = auto()
    SERVING = auto()
    LOST = auto()
    ENDED = auto()


class WorkerFacts:
    """A worker: its slot and generation, its phase and since when, when it was spawned; its ultimatum, if any.

    retiring: whether it was told to leave.
    """

    __slots__ = ("code", "due", "generation", "phase", "reason", "retiring", "since", "slot", "started", "ultimatum")

    def __init__(self, slot: int, generation: int, started: float) -> None:
        self.slot, self.generation = slot, generation
        self.phase = WorkerPhase.STARTING
        self.since = self.started = started
        self.retiring = False
        self.ultimatum: Ultimatum | None = None
        self.due = inf
        self.reason = self.code = ""

    def enter(self, phase: WorkerPhase, now: float) -> None:
        """Begin this phase, free of ultimatums."""
        self.phase, self.since = phase, now
        self.ultimatum, self.due = None, inf

    def give(self, ultimatum: Ultimatum, due: float, reason: str) -> None:
        """It has until `due`; after that, `reason` is why it is killed."""
        self.ultimatum, self.due, self.reason = ultimatum, due, reason

    def hasten(self, drain_by: float) -> None:
        """It has until then to be gone, unless it has less time already or its fate is sealed."""
        sealed = self.phase is WorkerPhase.KILLED or self.ultimatum is Ultimatum.STACKS
        if drain_by < self.due and not sealed:
            self.give(Ultimatum.DRAIN, drain_by, "drain_timeout is over")


class Failures:
    """Failures in a row, each of which doubles the pause before the next attempt.

    What was attempted before the last failure is of the same volley: sixteen workers that die at once, of the same
    cause, have failed once.
    """

    __slots__ = ("last", "reason", "row", "traceback", "until")

    def __init__(self) -> None:
        self.row = 0
        self.last = self.until = -inf
        self.reason = ""
        self.traceback: str | None = None

    def add(self, attempted: float, now: float, pause: float, reason: str, traceback: str | None = None) -> bool:
        """Count one, the first with its reason; False if its volley has been counted already."""
        if attempted <= self.last:
            return False
        if not self.row:
            self.reason, self.traceback = reason, traceback
        self.row += 1
        self.last, self.until = now, now + pause
        return True

    def over(self) -> None:
        """Something has gone well: the next failure is a first one."""
        self.row = 0


@dataclass(frozen=True)
class Backoff:
    """The pauses between attempts: the first, the longest (both in seconds), and the source of the jitter."""

    first: float
    longest: float
    rng: Random

    def after(self, failures: Failures) -> float:
        """Each pause is twice the one before it, and up to a half shorter, lest all servers try in step."""
        exponent = min(failures.row, 60)
        return min(self.longest, self.first * 2.0**exponent) * self.rng.uniform(0.5, 1.0)


class Generation:
    """A generation: its stage and since when, how long it may load and drain."""

    __slots__ = ("asked_for_stacks", "drain_by", "failures", "load_by", "number", "since", "stage")

    def __init__(self, number: int, since: float, load_by: float) -> None:
        self.number = number
        self.stage = Stage.LOADING
        self.since, self.load_by = since, load_by
        self.drain_by = inf
        self.asked_for_stacks = False
        self.failures = Failures()

    @property
    def has_served(self) -> bool:
        """Whether connections ever went to it."""
        return self.stage in (Stage.SERVING, Stage.LOST)

    @property
    def spawns(self) -> bool:
        """Whether it has a template to fork workers from."""
        return self.stage in (Stage.FILLING, Stage.SERVING)


class Roster:
    """The workers that have not exited, each in a slot of its own, and their generations.

    Numbers are never used twice; slots are.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.workers: dict[int, WorkerFacts] = {}
        self.generations: dict[int, Generation] = {}
        self.last_worker = 0
        self.last_generation = 0

    def add_generation(self, now: float, load_by: float) -> Generation:
        """A new generation, which loads."""
        self.last_generation += 1
        generation = Generation(self.last_generation, now, load_by)
        self.generations[self.last_generation] = generation
        return generation

    def forget_generations(self) -> None:
        """Strike off those that are over and have no workers left."""
        inhabited = {worker.generation for worker in self.workers.values()}
        over = {number for number, generation in self.generations.items() if generation.stage is Stage.ENDED}
        for number in over - inhabited:
            del self.generations[number]

    def hasten(self, drain_by: float) -> None:
        """Let no generation and no worker have longer than that to be gone. All are going."""
        for generation in self.generations.values():
            generation.drain_by = min(generation.drain_by, drain_by)
        for worker in self.workers.values():
            worker.hasten(drain_by)

    def free_slot(self) -> int | None:
        """The lowest slot that no worker is in."""
        taken = {worker.slot for worker in self.workers.values()}
        return next((slot for slot in range(self.slots) if slot not in taken), None)

    def add_worker(self, slot: int, generation: Generation, now: float) -> tuple[int, WorkerFacts]:
        """A new worker and its number."""
        self.last_worker += 1
        worker = self.workers[self.last_worker] = WorkerFacts(slot, generation.number, now)
        return self.last_worker, worker

    def members(self, generation: Generation) -> Iterator[tuple[int, WorkerFacts]]:
        """The workers of a generation, with their numbers."""
        return ((number, worker) for number, worker in self.workers.items() if worker.generation == generation.number)

    def ready(self, generation: Generation) -> int:
        """How many workers of a generation serve."""
        return sum(worker.phase is WorkerPhase.READY for _, worker in self.members(generation))

    def staying(self, generation: Generation) -> int:
        """How many workers of a generation serve and were not told to leave."""
        return sum(worker.phase is WorkerPhase.READY and not worker.retiring for _, worker in self.members(generation))

    def missing(self, generation: Generation, size: int) -> int:
        """How many workers it lacks; those that were told to leave do not count."""
        if generation.stage is Stage.LOADING:
            return 0
        present = sum(worker.phase in PRESENT and not worker.retiring for _, worker in self.members(generation))
        return max(0, size - present)

    def has_proved_itself(self, generation: Generation, now: float) -> bool:
        """Whether a worker that became ready after the generation's last failure is past its probation."""
        since = [worker.since for _, worker in self.members(generation) if worker.phase is WorkerPhase.READY]
        return any(moment > generation.failures.last and now - moment >= PROBATION_SECONDS for moment in since)
