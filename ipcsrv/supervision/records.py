"""The records of workers and generations, on which the supervisor decides. In the master.

Times are monotonic seconds and are passed in; a deadline that never comes is infinite.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

#: A worker that dies within so many seconds of being ready, before it took a connection, counts as a failed start.
PROBATION_SECONDS = 1.0


class PoolState(Enum):
    """State of the whole pool of workers. It never goes back to an earlier one."""

    STARTING = auto()
    RUNNING = auto()
    STOPPING = auto()
    FAILED = auto()
    STOPPED = auto()


class WorkerPhase(Enum):
    """Phase of a worker. It never goes back to an earlier one, and may skip some."""

    STARTING = auto()
    READY = auto()
    LEAVING = auto()
    KILLED = auto()


#: Workers in one of these phases count towards the size of their generation.
PRESENT = frozenset({WorkerPhase.STARTING, WorkerPhase.READY})


class TimeLimit(Enum):
    """What a worker has a limited time for. It decides what happens after that time."""

    START = auto()
    DRAIN = auto()
    STACKS = auto()


class GenerationStage(Enum):
    """Stage of a generation: the template imports, workers start, it serves, it serves without a template, it ends."""

    LOADING = auto()
    FILLING = auto()
    SERVING = auto()
    LOST = auto()
    ENDED = auto()


class WorkerFacts:
    """A worker: its slot and generation, its phase and since when, when it was spawned; its time limit, if any.

    retiring: whether it was told to leave.
    """

    __slots__ = ("code", "due", "generation", "limit", "phase", "reason", "retiring", "since", "slot", "started")

    def __init__(self, slot: int, generation: int, started: float) -> None:
        self.slot, self.generation = slot, generation
        self.phase = WorkerPhase.STARTING
        self.since = self.started = started
        self.retiring = False
        self.limit: TimeLimit | None = None
        self.due = inf
        self.reason = self.code = ""

    def enter(self, phase: WorkerPhase, now: float) -> None:
        """Begin this phase, without a time limit."""
        self.phase, self.since = phase, now
        self.limit, self.due = None, inf

    def give(self, limit: TimeLimit, due: float, reason: str) -> None:
        """Set a time limit; `reason` says why the worker is killed after it."""
        self.limit, self.due, self.reason = limit, due, reason

    def hasten(self, drain_by: float) -> None:
        """Let it drain until `drain_by` at most, unless it is being killed already."""
        ending = self.phase is WorkerPhase.KILLED or self.limit is TimeLimit.STACKS
        if drain_by < self.due and not ending:
            self.give(TimeLimit.DRAIN, drain_by, "drain_timeout is over")


class Failures:
    """Failures in a row, each of which doubles the pause before the next attempt.

    Attempts that began before the last failure count as one with it: sixteen workers that die at once, of the same
    cause, have failed once. `kills` of them were SIGKILLs, as the kernel sends when memory is short.
    """

    __slots__ = ("kills", "last", "reason", "row", "traceback", "until")

    def __init__(self) -> None:
        self.row = self.kills = 0
        self.last = self.until = -inf
        self.reason = ""
        self.traceback: str | None = None

    def add(self, attempted: float, now: float, pause: float, reason: str, traceback: str | None = None, *,
            killed: bool = False) -> bool:
        """Count a failure and keep the reason of the first; return False if it counts as one with the last failure.

        killed: it came from outside, so that it is a reason to pause and none to give up.
        """
        if attempted <= self.last:
            return False
        if not self.row:
            self.reason, self.traceback = reason, traceback
        self.row += 1
        self.kills += killed
        self.last, self.until = now, now + pause
        return True

    def over(self) -> None:
        """Note a success: the next failure is a first one."""
        self.row = self.kills = 0


@dataclass(frozen=True)
class Backoff:
    """The pauses between attempts: the first, the longest (both in seconds), and the source of the jitter."""

    first: float
    longest: float
    rng: Random

    def after(self, failures: Failures) -> float:
        """Return the next pause: twice the last one, and up to a half shorter so that servers do not retry in step."""
        exponent = min(failures.row, 60)
        return min(self.longest, self.first * 2.0**exponent) * self.rng.uniform(0.5, 1.0)


class Generation:
    """A generation: its stage and since when, how long it may load and drain."""

    __slots__ = ("asked_for_stacks", "drain_by", "failures", "load_by", "number", "since", "stage")

    def __init__(self, number: int, since: float, load_by: float) -> None:
        self.number = number
        self.stage = GenerationStage.LOADING
        self.since, self.load_by = since, load_by
        self.drain_by = inf
        self.asked_for_stacks = False
        self.failures = Failures()

    @property
    def has_served(self) -> bool:
        """Whether connections ever went to it."""
        return self.stage in (GenerationStage.SERVING, GenerationStage.LOST)

    @property
    def spawns(self) -> bool:
        """Whether it has a template to fork workers from."""
        return self.stage in (GenerationStage.FILLING, GenerationStage.SERVING)


class WorkerTable:
    """The workers that have not exited, each in a slot of its own, and their generations.

    Numbers are never used again; slots are.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.workers: dict[int, WorkerFacts] = {}
        self.generations: dict[int, Generation] = {}
        self.last_worker = 0
        self.last_generation = 0

    def add_generation(self, now: float, load_by: float) -> Generation:
        """Add a generation, which loads."""
        self.last_generation += 1
        generation = Generation(self.last_generation, now, load_by)
        self.generations[self.last_generation] = generation
        return generation

    def forget_generations(self) -> None:
        """Forget generations that have ended and have no workers left."""
        with_workers = {worker.generation for worker in self.workers.values()}
        over = {number for number, generation in self.generations.items() if generation.stage is GenerationStage.ENDED}
        for number in over - with_workers:
            del self.generations[number]

    def hasten(self, drain_by: float) -> None:
        """Let every generation and every worker drain until `drain_by` at most."""
        for generation in self.generations.values():
            generation.drain_by = min(generation.drain_by, drain_by)
        for worker in self.workers.values():
            worker.hasten(drain_by)

    def free_slot(self) -> int | None:
        """Return the lowest slot without a worker."""
        taken = {worker.slot for worker in self.workers.values()}
        return next((slot for slot in range(self.slots) if slot not in taken), None)

    def add_worker(self, slot: int, generation: Generation, now: float) -> tuple[int, WorkerFacts]:
        """Add a worker; return its number and its record."""
        self.last_worker += 1
        worker = self.workers[self.last_worker] = WorkerFacts(slot, generation.number, now)
        return self.last_worker, worker

    def members(self, generation: Generation) -> Iterator[tuple[int, WorkerFacts]]:
        """Return the workers of a generation, with their numbers."""
        return ((number, worker) for number, worker in self.workers.items() if worker.generation == generation.number)

    def ready(self, generation: Generation) -> int:
        """Return how many workers of a generation serve."""
        return sum(worker.phase is WorkerPhase.READY for _, worker in self.members(generation))

    def staying(self, generation: Generation) -> int:
        """Return how many workers of a generation serve and were not told to leave."""
        return sum(worker.phase is WorkerPhase.READY and not worker.retiring for _, worker in self.members(generation))

    def missing(self, generation: Generation, size: int) -> int:
        """Return how many workers it lacks; those that were told to leave do not count."""
        if generation.stage is GenerationStage.LOADING:
            return 0
        present = sum(worker.phase in PRESENT and not worker.retiring for _, worker in self.members(generation))
        return max(0, size - present)

    def has_proved_itself(self, generation: Generation, now: float) -> bool:
        """Return whether a worker that became ready after the last failure has lasted for the probation time."""
        since = [worker.since for _, worker in self.members(generation) if worker.phase is WorkerPhase.READY]
        return any(moment > generation.failures.last and now - moment >= PROBATION_SECONDS for moment in since)
