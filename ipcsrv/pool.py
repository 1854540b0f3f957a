"""Supervision as a pure machine: facts and the time go in, commands come out.

The master observes (a child exited, a worker wrote that it is ready, a timer went off) and tells the pool each
*fact*; the pool decides, and answers with the *commands* that the master then carries out. It does no I/O, reads
no clock and draws no randomness of its own, so that every story can be told in a unit test without a process.

A **worker** is STARTING until it says that it is ready, READY while it serves, LEAVING once it was asked to go or
said that it goes, KILLED when it was sent a SIGKILL and is not reaped yet. Its slot in the scoreboard is free
again only when it has exited. What a worker must do in time it has as its one ultimatum, see `Ultimatum`.

A **generation** is a template process that has imported the handler, a queue of connections, and the workers that
were forked from the one to read the other. One generation is *serving*. A reload makes an *upcoming* one, which
becomes the serving one when all its workers are ready, and not before: code that does not import, or whose workers
do not start, costs nothing but a line in the log. What was serving is then *ended*: its queue is closed, its
workers empty it and leave. Starting the server is the same with nobody serving before; there, a failed generation
is a failed start.

How many workers a generation wants is the pool's size; how many it has are its STARTING and READY ones. From the
difference alone follow the spawns and the retirements, whatever the facts were that led to it. Three things hold a
spawn back: no free slot, the system's refusal to fork (`spawn_failed`: a state, not a death), and workers of this
generation dying at their start. Only the last ends in giving up, and only when nobody serves: a server of three
workers that wants four is better than none. A worker that dies *after* it was taken into service costs one request
and is replaced at once, however often that happens.

Facts may come late and out of order (a worker exits while it is asked to leave). One that does not fit is ignored.
This runs in the master.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum, auto
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from random import Random

#: A worker that dies within so many seconds of being ready, having served nobody, has died at its start.
PROBATION_SECONDS = 1.0
#: Between telling a worker to answer its client with a failure and killing it: long enough to write one packet.
GRACE_SECONDS = 1.0
#: Exit status of a SIGKILL, which is never a program's own doing.
_SIGKILLED = -9


class State(Enum):
    """Of the pool as a whole. It never goes back to an earlier one."""

    STARTING = auto()
    RUNNING = auto()
    STOPPING = auto()
    FAILED = auto()
    STOPPED = auto()


class Phase(Enum):
    """Of a worker."""

    STARTING = auto()
    READY = auto()
    LEAVING = auto()
    KILLED = auto()


class Stage(Enum):
    """Of a generation: its template imports, its workers start, it serves (LOST: with no template), it is over."""

    LOADING = auto()
    FILLING = auto()
    SERVING = auto()
    LOST = auto()
    ENDED = auto()


class Ultimatum(Enum):
    """What a worker has a limited time for, which decides what happens to it after that."""

    START = auto()
    DRAIN = auto()
    LAST_WORDS = auto()


#: Which facts are news in which phases; in the others they are late, and ignored.
_READY_IS_NEWS = frozenset({Phase.STARTING})
_LEAVING_IS_NEWS = frozenset({Phase.READY})
_OVERDUE_IS_NEWS = frozenset({Phase.READY, Phase.LEAVING})
_PRESENT = frozenset({Phase.STARTING, Phase.READY})
_UNDER_WAY = frozenset({State.STARTING, State.RUNNING})


# -- commands ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StartGeneration:
    """Make a queue, and a template that imports the handler; then say `generation_ready` or `generation_failed`."""

    generation: int


@dataclass(frozen=True, slots=True)
class Spawn:
    """Have this generation's template fork a worker; say `spawn_failed` if that cannot be done now."""

    worker: int
    slot: int
    generation: int


@dataclass(frozen=True, slots=True)
class RetireOne:
    """Put a message into this generation's queue that makes whichever worker takes it leave."""

    generation: int


@dataclass(frozen=True, slots=True)
class EndGeneration:
    """Close this generation's queue, so that its workers drain it and exit, and end its template."""

    generation: int


@dataclass(frozen=True, slots=True)
class SwitchTo:
    """From now on, connections go to this generation's queue."""

    generation: int


@dataclass(frozen=True, slots=True)
class DumpStacks:
    """Have the worker's stacks written to the log."""

    worker: int


@dataclass(frozen=True, slots=True)
class TimeOut:
    """Tell the worker to answer the request in its hands with this failure (`ERR code`) and to die."""

    worker: int
    code: str = "timeout"


@dataclass(frozen=True, slots=True)
class Kill:
    """Send the worker a SIGKILL."""

    worker: int
    reason: str


@dataclass(frozen=True, slots=True)
class Report:
    """Write a line to the log; `level` is one of debug, info, warning, error."""

    level: str
    text: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The server has failed, for this reason. What is left of it drains; Stopped follows."""

    reason: str
    traceback: str | None


@dataclass(frozen=True, slots=True)
class Stopped:
    """Every worker has exited. Nothing follows."""


Command = (
    StartGeneration
    | Spawn
    | RetireOne
    | EndGeneration
    | SwitchTo
    | DumpStacks
    | TimeOut
    | Kill
    | Report
    | GiveUp
    | Stopped
)


# -- what the pool knows ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class WorkerFacts:
    """A worker: its slot and generation, its phase and since when (seconds); the rest is the pool's own."""

    slot: int
    generation: int
    phase: Phase
    since: float
    started: float
    ultimatum: Ultimatum | None = None
    due: float = math.inf
    reason: str = ""


@dataclass(slots=True)
class _Failures:
    """Failures in a row, which double the pause before the next attempt.

    What was attempted before the last failure is of the same volley: sixteen workers that die at once of the same
    cause have failed once.
    """

    row: int = 0
    last: float = -math.inf
    until: float = -math.inf
    reason: str = ""
    traceback: str | None = None

    def add(self, attempted: float, now: float, reason: str, traceback: str | None, pause: float) -> bool:
        """Count it, unless it is of a volley that has been counted. `reason` is kept if it is the first in the row."""
        if attempted <= self.last:
            return False
        if not self.row:
            self.reason, self.traceback = reason, traceback
        self.row += 1
        self.last = now
        self.until = now + pause
        return True

    def over(self) -> None:
        """Something has gone well: the next failure is a first one."""
        self.row = 0


@dataclass(slots=True)
class _Generation:
    number: int
    stage: Stage
    load_by: float
    drain_by: float = math.inf
    retiring: int = 0
    failures: _Failures = field(default_factory=_Failures)

    @property
    def spawns(self) -> bool:
        """Whether there is a template that workers can be forked from."""
        return self.stage in (Stage.FILLING, Stage.SERVING)


class Pool:
    """The supervisor of `size` workers.

    `max_slots` is how many workers there may ever be at once, the leaving ones included. A reload needs twice the
    size, so the size is limited to the half of it. Timeouts are in seconds, None for no limit; `backoff` is the first
    and the longest pause between attempts; `flap_limit` is how many starts may fail in a row.
    """

    def __init__(
        self,
        size: int,
        *,
        startup_timeout: float | None,
        drain_timeout: float | None,
        max_slots: int,
        rng: Random,
        flap_limit: int = 5,
        backoff: tuple[float, float] = (0.1, 10.0),
    ) -> None:
        if not 1 <= size <= max_slots // 2:
            raise ValueError(f"size is {size}: it must be from 1 to {max_slots // 2}, half of {max_slots} slots")
        self.state = State.STARTING
        self.size = size
        self.max_slots = max_slots
        self.restarts = 0
        self.last_error: str | None = None
        self._startup_timeout = math.inf if startup_timeout is None else startup_timeout
        self._drain_timeout = math.inf if drain_timeout is None else drain_timeout
        self._flap_limit = flap_limit
        self._backoff = backoff
        self._rng = rng
        self._workers: dict[int, WorkerFacts] = {}
        self._generations: dict[int, _Generation] = {}
        self._serving: _Generation | None = None
        self._upcoming: _Generation | None = None
        self._wanted = False
        self._refusals = _Failures()
        self._last_worker = 0
        self._last_generation = 0
        self._commands: list[Command] = []

    # -- for status ---------------------------------------------------------------------------------------------

    @property
    def workers(self) -> Mapping[int, WorkerFacts]:
        """Every worker that has not exited, by its id."""
        return MappingProxyType(self._workers)

    @property
    def generation(self) -> int:
        """The serving generation; before there is one, the upcoming one; 0 before the start."""
        current = self._serving or self._upcoming
        return current.number if current else 0

    @property
    def reloading(self) -> bool:
        """Whether a reload is under way or waiting for its turn."""
        return self._serving is not None and (self._upcoming is not None or self._wanted)

    @property
    def largest_size(self) -> int:
        """The most workers that `scale` can ask for."""
        return self.max_slots // 2

    def next_deadline(self) -> float | None:
        """When `tick` must be called next; None while nothing depends on the time."""
        deadlines = [worker.due for worker in self._workers.values()]
        if self.state in _UNDER_WAY:
            deadlines += [self._resumption(generation) for generation in self._current()]
        earliest = min(deadlines, default=math.inf)
        return None if earliest == math.inf else earliest

    def _resumption(self, generation: _Generation) -> float:
        """When the time alone lets this generation go on."""
        if generation.stage is Stage.LOADING:
            return generation.load_by
        if generation.stage is Stage.LOST:
            return math.inf if self._upcoming else generation.failures.until
        if self._missing(generation) > 0 and self._free_slot() is not None:
            return max(generation.failures.until, self._refusals.until)
        return math.inf

    # -- facts about the whole ----------------------------------------------------------------------------------

    def start(self, now: float) -> list[Command]:
        """The server begins."""
        self._wanted = self._last_generation == 0
        return self._settle(now)

    def reload(self, now: float) -> list[Command]:
        """New code is wanted. During a reload it is wanted once that is over, for it may have read older code."""
        self._wanted = True
        return self._settle(now)

    def scale(self, size: int, now: float) -> list[Command]:
        """So many workers are wanted."""
        self.size = max(1, min(size, self.largest_size))
        if self.size != size:
            self._report("warning", f"cannot have {size} workers: from 1 to {self.largest_size} are possible")
        return self._settle(now)

    def stop(self, now: float) -> list[Command]:
        """The server ends: what is queued is served, for `drain_timeout`."""
        if self.state in _UNDER_WAY:
            self._wind_up(State.STOPPING, now)
        return self._settle(now)

    def stop_now(self, now: float) -> list[Command]:
        """The server ends, whatever its workers are doing."""
        if self.state in _UNDER_WAY:
            self._wind_up(State.STOPPING, now)
        for number in self._workers:
            self._kill(number, "the server was told to stop now", now)
        return self._settle(now)

    def tick(self, now: float) -> list[Command]:
        """Time has passed."""
        for number, worker in self._workers.items():
            if worker.due <= now:
                self._enforce(number, worker, now)
        upcoming = self._upcoming
        if upcoming and upcoming.stage is Stage.LOADING and upcoming.load_by <= now:
            self._fail(f"the handler was not imported within {self._startup_timeout:g} s", None, now)
        return self._settle(now)

    # -- facts about a generation -------------------------------------------------------------------------------

    def generation_ready(self, generation: int, now: float) -> list[Command]:
        """Its template has imported the handler."""
        record = self._generations.get(generation)
        if record and record.stage is Stage.LOADING:
            record.stage = Stage.FILLING
        return self._settle(now)

    def generation_failed(self, generation: int, reason: str, traceback: str | None, now: float) -> list[Command]:
        """Its handler cannot be imported, or its template cannot be started."""
        if self._upcoming and self._upcoming.number == generation:
            self._fail(reason, traceback, now)
        return self._settle(now)

    def generation_lost(self, generation: int, reason: str, now: float) -> list[Command]:
        """Its template has died. Its workers live on and serve, but it cannot have new ones: the next must follow."""
        record = self._generations.get(generation)
        if record and record is self._upcoming:
            self._fail(reason, None, now)
        elif record and record.stage is Stage.SERVING:
            record.stage = Stage.LOST
            self.last_error = reason
            self._report("warning", f"generation {generation} cannot start workers any more: {reason}")
        return self._settle(now)

    # -- facts about a worker -----------------------------------------------------------------------------------

    def ready(self, worker: int, now: float) -> list[Command]:
        """It takes connections."""
        record = self._hear(worker, _READY_IS_NEWS)
        if record:
            self._enter_service(record, now)
        return self._settle(now)

    def leaving(self, worker: int, now: float) -> list[Command]:
        """It goes by itself: it has served its number of requests, or has taken the message of a RetireOne."""
        record = self._hear(worker, _LEAVING_IS_NEWS)
        if record:
            generation = self._generations[record.generation]
            generation.retiring = max(0, generation.retiring - 1)
            self._let_go(record, now + self._drain_timeout, now)
        return self._settle(now)

    def overdue(self, worker: int, now: float) -> list[Command]:
        """The request in its hands has taken longer than `request_timeout`."""
        record = self._hear(worker, _OVERDUE_IS_NEWS)
        if record and record.ultimatum is not Ultimatum.LAST_WORDS:
            self.restarts += 1
            self._last_words(worker, record, "timeout", "request_timeout is over", now)
        return self._settle(now)

    def spawn_failed(self, worker: int, reason: str, now: float) -> list[Command]:
        """The system could not start it (EAGAIN, ENOMEM): it has never been. It is said once, until it is over."""
        record = self._workers.pop(worker, None)
        if record:
            first = not self._refusals.row
            self._refusals.add(record.started, now, reason, None, self._pause(self._refusals))
            if first:
                self.last_error = reason
                self._report("warning", f"workers cannot be started: {reason}; trying again until they can")
        return self._settle(now)

    def exited(
        self, worker: int, status: int | None, reason: str, now: float, *, traceback: str | None = None, served: bool = True
    ) -> list[Command]:
        """It was reaped.

        `status` is its exit status, negative for a signal, None if that is unknown; `reason` is the same in words;
        `served` is whether it ever took a connection, if that is known.
        """
        record = self._workers.pop(worker, None)
        if record and record.phase in _PRESENT:
            self._died(record, status, reason, traceback, served, now)
        return self._settle(now)

    # -- workers: what follows from the facts -------------------------------------------------------------------

    def _hear(self, worker: int, news: frozenset[Phase]) -> WorkerFacts | None:
        record = self._workers.get(worker)
        return record if record and record.phase in news else None

    def _enter_service(self, worker: WorkerFacts, now: float) -> None:
        generation = self._generations[worker.generation]
        worker.phase, worker.since = Phase.READY, now
        worker.ultimatum, worker.due = None, math.inf
        if self._refusals.row and worker.started > self._refusals.last:
            self._refusals.over()
            self._report("info", "workers can be started again")
        if generation.stage is Stage.ENDED:
            self._let_go(worker, generation.drain_by, now)

    def _let_go(self, worker: WorkerFacts, drain_by: float, now: float) -> None:
        """It is to leave when it has served what it has."""
        worker.phase, worker.since = Phase.LEAVING, now
        worker.ultimatum, worker.due = Ultimatum.DRAIN, drain_by
        worker.reason = "drain_timeout is over"

    def _enforce(self, number: int, worker: WorkerFacts, now: float) -> None:
        """The worker's time is over."""
        if worker.ultimatum is Ultimatum.LAST_WORDS:
            self._kill(number, worker.reason, now)
        elif worker.phase is Phase.LEAVING:
            self._last_words(number, worker, "stopping", worker.reason, now)
        else:
            self._do(DumpStacks(number))
            self._kill(number, worker.reason, now)
            if worker.ultimatum is Ultimatum.START:
                self._timed_out_at_start(worker, now)

    def _last_words(self, number: int, worker: WorkerFacts, code: str, reason: str, now: float) -> None:
        """Its client shall hear why. If it is stuck outside the interpreter it cannot, so it is killed a little later."""
        self._do(DumpStacks(number), TimeOut(number, code))
        worker.phase, worker.since = Phase.LEAVING, now
        worker.ultimatum, worker.due = Ultimatum.LAST_WORDS, min(worker.due, now) + GRACE_SECONDS
        worker.reason = reason

    def _kill(self, number: int, reason: str, now: float) -> None:
        worker = self._workers[number]
        if worker.phase is not Phase.KILLED:
            worker.phase, worker.since, worker.due = Phase.KILLED, now, math.inf
            self._do(Kill(number, reason))

    def _timed_out_at_start(self, worker: WorkerFacts, now: float) -> None:
        generation = self._generations[worker.generation]
        self.restarts += 1
        self.last_error = worker.reason
        if generation is self._upcoming:
            self._fail(worker.reason, None, now)
        else:
            self._died_at_start(generation, worker, worker.reason, None, now)

    def _died(
        self, worker: WorkerFacts, status: int | None, reason: str, traceback: str | None, served: bool, now: float
    ) -> None:
        """A worker has exited that had not said so before."""
        generation = self._generations[worker.generation]
        ready = worker.phase is Phase.READY
        if ready and status == 0 and generation.retiring:
            generation.retiring -= 1
            return
        self.restarts += 1
        self.last_error = reason
        on_probation = ready and now - worker.since < PROBATION_SECONDS and not served and status != _SIGKILLED
        if on_probation or not ready:
            self._died_at_start(generation, worker, reason, traceback, now)
        elif worker.since > generation.failures.last:
            generation.failures.over()

    def _died_at_start(
        self, generation: _Generation, worker: WorkerFacts, reason: str, traceback: str | None, now: float
    ) -> None:
        if generation.stage is Stage.ENDED:
            return
        failures = generation.failures
        if self._has_proved_itself(generation, now):
            failures.over()
        if failures.add(worker.started, now, reason, traceback, self._pause(failures)):
            text = f"a worker died at its start: {reason}; the next attempt is in {failures.until - now:.1f} s"
            self._report("warning", text)
            self._weigh(generation, now)

    def _has_proved_itself(self, generation: _Generation, now: float) -> bool:
        """Whether a worker of it that became ready after the last failure is past its probation."""
        return any(
            worker.phase is Phase.READY
            and worker.generation == generation.number
            and worker.since > generation.failures.last
            and now - worker.since >= PROBATION_SECONDS
            for worker in self._workers.values()
        )

    def _pause(self, failures: _Failures) -> float:
        """Exponential, and up to a half shorter, so that what failed together does not try again together."""
        first, longest = self._backoff
        return min(longest, first * 2.0 ** min(failures.row, 60)) * self._rng.uniform(0.5, 1.0)

    # -- generations --------------------------------------------------------------------------------------------

    def _weigh(self, generation: _Generation, now: float) -> None:
        """Decide whether a generation that has failed to start workers once more has failed for good."""
        failures = generation.failures
        if failures.row < self._flap_limit:
            return
        if generation is self._upcoming:
            self._fail(failures.reason, failures.traceback, now)
        elif not self._upcoming and not self._count(generation, Phase.READY):
            self._give_up(failures.reason, failures.traceback, now)

    def _fail(self, reason: str, traceback: str | None, now: float) -> None:
        """The upcoming generation will not do. Whoever serves goes on; if nobody does, the server could not start."""
        failed = self._upcoming
        assert failed is not None
        self.last_error = reason
        serving = self._serving
        if serving is None:
            self._give_up(reason, traceback, now)
            return
        self._upcoming = None
        self._end(failed, now)
        details = f"\n{traceback}" if traceback else ""
        text = f"generation {failed.number} failed: {reason}; generation {serving.number} serves on{details}"
        self._report("error", text)
        if serving.stage is Stage.LOST:
            serving.failures.add(math.inf, now, reason, traceback, self._pause(serving.failures))
            self._weigh(serving, now)

    def _give_up(self, reason: str, traceback: str | None, now: float) -> None:
        self.last_error = reason = reason or "for an unknown reason"
        self._do(GiveUp(reason, traceback))
        self._wind_up(State.FAILED, now)

    def _wind_up(self, state: State, now: float) -> None:
        self.state = state
        self._wanted = False
        for generation in self._current():
            self._end(generation, now)

    def _end(self, generation: _Generation, now: float) -> None:
        """Its workers leave. Those of one that never served and are not ready hold no client, and need not go on."""
        never_served = generation.stage in (Stage.LOADING, Stage.FILLING)
        generation.stage = Stage.ENDED
        generation.drain_by = now + self._drain_timeout
        self._do(EndGeneration(generation.number))
        for number, worker in self._workers.items():
            if worker.generation != generation.number:
                continue
            if worker.phase is Phase.READY:
                self._let_go(worker, generation.drain_by, now)
            elif worker.phase is Phase.STARTING and never_served:
                self._kill(number, "its generation was given up", now)
            elif worker.phase is Phase.STARTING and generation.drain_by < worker.due:
                worker.ultimatum, worker.due = Ultimatum.DRAIN, generation.drain_by
                worker.reason = "drain_timeout is over"

    def _begin_next(self, now: float) -> None:
        self._wanted = False
        self._last_generation += 1
        number = self._last_generation
        self._upcoming = self._generations[number] = _Generation(number, Stage.LOADING, now + self._startup_timeout)
        self._do(StartGeneration(number))

    def _switch(self, now: float) -> None:
        """The upcoming generation is whole: it serves, and the one that has served until now ends."""
        previous, self._serving, self._upcoming = self._serving, self._upcoming, None
        assert self._serving is not None
        self._serving.stage = Stage.SERVING
        self._do(SwitchTo(self._serving.number))
        self.state = State.RUNNING
        if previous:
            self._end(previous, now)
            self._report("info", f"generation {self._serving.number} serves now")

    # -- what follows from how things are -----------------------------------------------------------------------

    def _settle(self, now: float) -> list[Command]:
        """Do whatever is due as things are, and hand the commands over: the end of every fact."""
        if self.state in _UNDER_WAY:
            self._advance(now)
        elif self.state is not State.STOPPED and not self._workers:
            self.state = State.STOPPED
            self._do(Stopped())
        self._forget_generations()
        commands, self._commands = self._commands, []
        return commands

    def _advance(self, now: float) -> None:
        upcoming = self._upcoming
        if upcoming and self._count(upcoming, Phase.READY) - upcoming.retiring >= self.size:
            self._switch(now)
        if not self._upcoming and (self._wanted or self._must_be_succeeded(now)):
            self._begin_next(now)
        for generation in self._current():
            self._fill(generation, now)

    def _must_be_succeeded(self, now: float) -> bool:
        serving = self._serving
        return serving is not None and serving.stage is Stage.LOST and serving.failures.until <= now

    def _fill(self, generation: _Generation, now: float) -> None:
        """Bring the generation to the pool's size, as far as that can be done now."""
        missing = self._missing(generation)
        for _ in range(-missing):
            generation.retiring += 1
            self._do(RetireOne(generation.number))
        if not generation.spawns or now < max(generation.failures.until, self._refusals.until):
            return
        for _ in range(missing):
            slot = self._free_slot()
            if slot is not None:
                self._spawn(generation, slot, now)

    def _spawn(self, generation: _Generation, slot: int, now: float) -> None:
        self._last_worker += 1
        number = self._last_worker
        worker = WorkerFacts(slot, generation.number, Phase.STARTING, now, now)
        worker.ultimatum, worker.due = Ultimatum.START, now + self._startup_timeout
        worker.reason = f"it was not ready within {self._startup_timeout:g} s"
        self._workers[number] = worker
        self._do(Spawn(number, slot, generation.number))

    def _missing(self, generation: _Generation) -> int:
        """How many workers it lacks, or has too many (negative), once those told to retire have gone."""
        if generation.stage is Stage.LOADING:
            return 0
        return self.size - (self._count(generation, *_PRESENT) - generation.retiring)

    def _count(self, generation: _Generation, *phases: Phase) -> int:
        workers = self._workers.values()
        return sum(worker.generation == generation.number and worker.phase in phases for worker in workers)

    def _free_slot(self) -> int | None:
        taken = {worker.slot for worker in self._workers.values()}
        return next((slot for slot in range(self.max_slots) if slot not in taken), None)

    def _current(self) -> list[_Generation]:
        return [generation for generation in (self._serving, self._upcoming) if generation and generation.stage is not Stage.ENDED]

    def _forget_generations(self) -> None:
        """Those that are over and have no workers left."""
        inhabited = {worker.generation for worker in self._workers.values()}
        for number, generation in list(self._generations.items()):
            if generation.stage is Stage.ENDED and number not in inhabited:
                del self._generations[number]

    def _do(self, *commands: Command) -> None:
        self._commands += commands

    def _report(self, level: str, text: str) -> None:
        self._do(Report(level, text))
