"""Supervision as a pure machine: facts and the time go in, commands come out.

The master observes (a child exited, a worker wrote that it is ready, a timer went off) and tells the pool each
*fact*; the pool decides, and answers with the *commands* that the master then carries out. It does no I/O, reads
no clock and draws no randomness of its own, so that every story can be told in a unit test without a process.

A **worker** is STARTING until it says that it is ready, READY while it serves, LEAVING once it was asked to go or
said that it goes, KILLED when it was sent a SIGKILL and is not reaped yet. Its slot in the scoreboard is free
again only when it has exited. What it must do in time it has as its one ultimatum.

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
workers that wants four is better than none. A worker that dies after it was taken into service costs one request
and is replaced at once, however often that happens.

Facts may come late and out of order (a worker exits while it is asked to leave). One that does not fit is ignored.
This runs in the master.
"""

from __future__ import annotations

from math import inf
from types import MappingProxyType
from typing import TYPE_CHECKING

from .commands import (
    Command,
    DumpStacks,
    DumpTemplateStacks,
    EndGeneration,
    GiveUp,
    Kill,
    Report,
    RetireOne,
    Spawn,
    StartGeneration,
    Stopped,
    SwitchTo,
)
from .records import (
    PRESENT,
    PROBATION_SECONDS,
    Backoff,
    Failures,
    Generation,
    PoolState,
    Roster,
    Stage,
    Ultimatum,
    WorkerFacts,
    WorkerPhase,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from random import Random

__all__ = [
    "Command",
    "DumpStacks",
    "DumpTemplateStacks",
    "EndGeneration",
    "GiveUp",
    "Kill",
    "PoolState",
    "Report",
    "RetireOne",
    "Spawn",
    "StartGeneration",
    "Stopped",
    "Supervisor",
    "SwitchTo",
    "WorkerFacts",
    "WorkerPhase",
]  # fmt: skip

#: Between asking a process for its stacks and killing it: long enough to write them.
STACKS_SECONDS = 0.3
#: The exit status of a SIGKILL, which is never a program's own doing.
SIGKILLED = -9
_UNDER_WAY = frozenset({PoolState.STARTING, PoolState.RUNNING})
#: What the client of a worker is told that does not end in time.
_CODES = {WorkerPhase.LEAVING: "stopping"}
#: In which phases a worker's facts are news; in the others they are late.
_READY_IS_NEWS = frozenset({WorkerPhase.STARTING})
_LEAVING_IS_NEWS = frozenset({WorkerPhase.READY})
_OVERDUE_IS_NEWS = frozenset({WorkerPhase.READY, WorkerPhase.LEAVING})


class Supervisor:
    """The supervisor of `size` workers.

    `max_slots` is how many workers there may ever be at once, the leaving ones included. A reload needs twice the
    size, so the size is limited to the half of it. Timeouts are in seconds, None for no limit; `backoff` is the first
    and the longest pause between attempts, in seconds; `flap_limit` is how many starts in a row may fail.
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
        self.state = PoolState.STARTING
        self.size = size
        self.restarts = 0
        self.last_error: str | None = None
        self._startup_timeout = inf if startup_timeout is None else startup_timeout
        self._drain_timeout = inf if drain_timeout is None else drain_timeout
        self._flap_limit = flap_limit
        self._backoff = Backoff(*backoff, rng)
        self._roster = Roster(max_slots)
        self._serving: Generation | None = None
        self._upcoming: Generation | None = None
        self._reload_wanted = False
        self._refusals = Failures()  # of the system, to fork
        self._losses = Failures()  # of the serving generation's template, and of attempts to make its successor
        self._commands: list[Command] = []

    # -- for status ---------------------------------------------------------------------------------------------

    @property
    def workers(self) -> Mapping[int, WorkerFacts]:
        """Every worker that has not exited, by its number."""
        return MappingProxyType(self._roster.workers)

    @property
    def generation(self) -> int:
        """The serving generation's number; before there is one, the upcoming one's; 0 before the start."""
        current = self._serving or self._upcoming
        return current.number if current else 0

    @property
    def reloading(self) -> bool:
        """Whether a reload is under way."""
        return self.state is PoolState.RUNNING and self._upcoming is not None

    @property
    def largest_size(self) -> int:
        """The most workers that `scale` can ask for."""
        return self._roster.slots // 2

    def next_deadline(self) -> float | None:
        """When `tick` must be called next; None while nothing depends on the time."""
        deadlines = [worker.due for worker in self._roster.workers.values()]
        deadlines += [self._resumption(generation) for generation in self._current()]
        earliest = min(deadlines, default=inf)
        return None if earliest == inf else earliest

    def _resumption(self, generation: Generation) -> float:
        """When the time alone makes a difference to this generation."""
        if generation.stage is Stage.LOADING:
            return generation.load_by - (0.0 if generation.asked_for_stacks else STACKS_SECONDS)
        if generation.stage is Stage.LOST:
            return inf if self._upcoming else self._losses.until
        if self._roster.missing(generation, self.size) > 0 and self._roster.free_slot() is not None:
            return max(generation.failures.until, self._refusals.until)
        return inf

    def surplus(self, generation: int) -> int:
        """Return how many workers of a generation shall be told to leave: those that serve beyond the pool's size.

        One that is still starting does not take the place of one that serves.
        """
        record = self._roster.generations.get(generation)
        return 0 if record is None else max(0, self._roster.staying(record) - self.size)

    # -- facts about the whole ----------------------------------------------------------------------------------

    def start(self, now: float) -> list[Command]:
        """The server begins."""
        if self.state in _UNDER_WAY and not self._roster.last_generation:
            self._begin_generation(now)
        return self._settle(now)

    def reload(self, now: float) -> list[Command]:
        """New code is wanted. During a reload it is wanted once that is over, for it may have read older code."""
        self._reload_wanted = self._roster.last_generation > 0
        return self._settle(now)

    def scale(self, size: int, now: float) -> list[Command]:
        """So many workers are wanted."""
        if self.state not in _UNDER_WAY:
            return []
        self.size = max(1, min(size, self.largest_size))
        if self.size != size:
            self._report("warning", f"cannot have {size} workers: from 1 to {self.largest_size} are possible")
        return self._settle(now)

    def stop(self, now: float, drain_timeout: float | None = None) -> list[Command]:
        """The server ends: what is queued is served, for `drain_timeout`, or for what the caller has left of it."""
        if drain_timeout is not None:
            self._drain_timeout = drain_timeout
        if self.state in _UNDER_WAY:
            self._wind_up(PoolState.STOPPING, now)
        self._roster.hasten(now + self._drain_timeout)
        return self._settle(now)

    def stop_now(self, now: float) -> list[Command]:
        """The server ends, whatever its workers are doing."""
        if self.state in _UNDER_WAY:
            self._wind_up(PoolState.STOPPING, now)
        for number, worker in self._roster.workers.items():
            self._kill(number, worker, "the server was told to stop now", now)
        return self._settle(now)

    def tick(self, now: float) -> list[Command]:
        """Time has passed."""
        for number, worker in self._roster.workers.items():
            if worker.due <= now:
                self._enforce(number, worker, now)
        upcoming = self._upcoming
        if upcoming and upcoming.stage is Stage.LOADING and upcoming.load_by - STACKS_SECONDS <= now:
            self._hasten_loading(upcoming, now)
        return self._settle(now)

    def _hasten_loading(self, upcoming: Generation, now: float) -> None:
        if not upcoming.asked_for_stacks:
            upcoming.asked_for_stacks = True
            self._do(DumpTemplateStacks(upcoming.number))
        if upcoming.load_by <= now:
            self._fail_upcoming(f"the handler was not imported within {self._startup_timeout:g} s", None, now)

    # -- facts about a generation -------------------------------------------------------------------------------

    def generation_ready(self, generation: int, now: float) -> list[Command]:
        """Its template has imported the handler."""
        record = self._roster.generations.get(generation)
        if record and record.stage is Stage.LOADING:
            record.stage = Stage.FILLING
        return self._settle(now)

    def generation_failed(self, generation: int, reason: str, traceback: str | None, now: float) -> list[Command]:
        """Its handler cannot be imported, or its template cannot be started."""
        if self._upcoming and self._upcoming.number == generation:
            self._fail_upcoming(reason, traceback, now)
        return self._settle(now)

    def generation_lost(self, generation: int, reason: str, now: float) -> list[Command]:
        """Its template has died. Its workers live on and serve, but it cannot have new ones: it needs a successor."""
        record = self._roster.generations.get(generation)
        if record and record is self._upcoming:
            self._fail_upcoming(reason, None, now)
        elif record and record.stage is Stage.SERVING:
            self._lose(record, reason, now)
        return self._settle(now)

    # -- facts about a worker -----------------------------------------------------------------------------------

    def ready(self, worker: int, now: float) -> list[Command]:
        """It takes connections."""
        record = self._hear(worker, _READY_IS_NEWS)
        if record:
            self._enter_service(record, now)
        return self._settle(now)

    def told_to_leave(self, worker: int) -> None:
        """A RetireOne was carried out on this worker; until one was, the next fact asks for it again."""
        self._roster.workers[worker].retiring = True

    def leaving(self, worker: int, now: float) -> list[Command]:
        """It goes by itself: it has served its number of requests, or was told to leave."""
        record = self._hear(worker, _LEAVING_IS_NEWS)
        if record:
            self._let_go(record, now + self._drain_timeout, now)
        return self._settle(now)

    def overdue(self, worker: int, now: float) -> list[Command]:
        """The request in its hands has taken longer than `request_timeout`."""
        record = self._hear(worker, _OVERDUE_IS_NEWS)
        if record and record.ultimatum is not Ultimatum.STACKS:
            self.restarts += record.phase is WorkerPhase.READY
            self._end_with_stacks(worker, record, "timeout", "the handler did not answer within request_timeout", now)
        return self._settle(now)

    def spawn_failed(self, worker: int, reason: str, now: float) -> list[Command]:
        """The system could not start it (EAGAIN, ENOMEM): it has never been. It is said once, until it is over."""
        record = self._roster.workers.pop(worker, None)
        if record:
            if not self._refusals.row:
                self.last_error = reason
                self._report("warning", f"workers cannot be started: {reason}; trying again until they can")
            self._refusals.add(record.started, now, self._backoff.after(self._refusals), reason)
        return self._settle(now)

    def exited(
        self,
        worker: int,
        status: int | None,
        reason: str,
        now: float,
        *,
        traceback: str | None = None,
        served: bool = True,
    ) -> list[Command]:
        """It was reaped.

        `status` is its exit status, negative for a signal, None if that is unknown; `reason` is the same in words;
        `served` is whether it ever took a connection. It matters to one that dies just after it was ready.
        """
        record = self._roster.workers.pop(worker, None)
        if record:
            self._mourn(record, status, reason, traceback, served, now)
        return self._settle(now)

    # -- what follows for a worker ------------------------------------------------------------------------------

    def _hear(self, number: int, news: frozenset[WorkerPhase]) -> WorkerFacts | None:
        """The worker, if a fact about it is news in its phase."""
        worker = self._roster.workers.get(number)
        return worker if worker and worker.phase in news else None

    def _enter_service(self, worker: WorkerFacts, now: float) -> None:
        generation = self._roster.generations[worker.generation]
        worker.enter(WorkerPhase.READY, now)
        if self._refusals.row and worker.started > self._refusals.last:
            self._refusals.over()
            self._report("info", "workers can be started again")
        if generation.stage is Stage.ENDED:
            self._let_go(worker, generation.drain_by, now)

    def _let_go(self, worker: WorkerFacts, drain_by: float, now: float) -> None:
        """It leaves when it has served what it has."""
        worker.enter(WorkerPhase.LEAVING, now)
        worker.hasten(drain_by)

    def _enforce(self, number: int, worker: WorkerFacts, now: float) -> None:
        """The worker's time is over: ask for its stacks, and kill it when it has had the time to write them."""
        if worker.ultimatum is not Ultimatum.STACKS:
            self._end_with_stacks(number, worker, _CODES.get(worker.phase, "crashed"), worker.reason, now)
            return
        starting = worker.phase is WorkerPhase.STARTING
        self._kill(number, worker, worker.reason, now)
        if starting:
            self._blame_late_starter(worker, now)

    def _end_with_stacks(self, number: int, worker: WorkerFacts, code: str, reason: str, now: float) -> None:
        self._do(DumpStacks(number))
        if worker.phase is not WorkerPhase.STARTING:
            worker.enter(WorkerPhase.LEAVING, now)
        worker.code = code
        worker.give(Ultimatum.STACKS, now + STACKS_SECONDS, reason)

    def _kill(self, number: int, worker: WorkerFacts, reason: str, now: float) -> None:
        if worker.phase is not WorkerPhase.KILLED:
            worker.enter(WorkerPhase.KILLED, now)
            self._do(Kill(number, reason, worker.code or "stopping"))

    def _mourn(
        self, worker: WorkerFacts, status: int | None, reason: str, traceback: str | None, served: bool, now: float
    ) -> None:
        """A worker has exited. Unless it was asked to, or had said so, that was a death."""
        generation = self._roster.generations[worker.generation]
        if generation.stage is Stage.ENDED or worker.phase in (WorkerPhase.LEAVING, WorkerPhase.KILLED):
            return
        if worker.retiring and status == 0:
            return
        self.restarts += 1
        self.last_error = reason
        served = served and generation.has_served
        if worker.phase is WorkerPhase.STARTING or self._on_probation(worker, status, served, now):
            self._count_failed_start(generation, worker, reason, traceback, now)
        elif worker.since > generation.failures.last:
            generation.failures.over()

    def _on_probation(self, worker: WorkerFacts, status: int | None, served: bool, now: float) -> bool:
        """Whether this worker, which was ready, has died of its start all the same, and not of a request."""
        return not served and status != SIGKILLED and now - worker.since < PROBATION_SECONDS

    def _blame_late_starter(self, worker: WorkerFacts, now: float) -> None:
        """A worker was not ready in time. To wait that long more than once is too much for a start or a reload."""
        generation = self._roster.generations[worker.generation]
        if generation.stage is Stage.ENDED:
            return
        self.restarts += 1
        self.last_error = worker.reason
        if generation is self._upcoming:
            self._fail_upcoming(worker.reason, None, now)
        else:
            self._count_failed_start(generation, worker, worker.reason, None, now)

    def _count_failed_start(
        self, generation: Generation, worker: WorkerFacts, reason: str, traceback: str | None, now: float
    ) -> None:
        failures = generation.failures
        if self._roster.has_proved_itself(generation, now):
            failures.over()
        pause = self._backoff.after(failures)
        if failures.add(worker.started, now, pause, reason, traceback):
            self._report("warning", f"a worker died at its start: {reason}; the next attempt is in {pause:.1f} s")
            self._judge(generation, failures, now)

    # -- what follows for a generation --------------------------------------------------------------------------

    def _begin_generation(self, now: float) -> None:
        self._reload_wanted = False
        self._upcoming = self._roster.add_generation(now, now + self._startup_timeout)
        self._do(StartGeneration(self._upcoming.number))

    def _switch(self, upcoming: Generation, now: float) -> None:
        """The upcoming generation is whole: it serves, and what has served until now ends."""
        previous, self._serving, self._upcoming = self._serving, upcoming, None
        upcoming.stage, upcoming.since = Stage.SERVING, now
        self.state = PoolState.RUNNING
        self._do(SwitchTo(upcoming.number))
        if previous:
            self._end(previous, now)
            self._report("info", f"generation {upcoming.number} serves now")

    def _lose(self, serving: Generation, reason: str, now: float) -> None:
        """The serving generation has no template any more."""
        if now - serving.since >= PROBATION_SECONDS:
            self._losses.over()
        self._losses.add(inf, now, self._backoff.after(self._losses), reason)
        serving.stage = Stage.LOST
        self.last_error = reason
        self._report("warning", f"generation {serving.number} cannot start workers any more: {reason}")

    def _fail_upcoming(self, reason: str, traceback: str | None, now: float) -> None:
        """The upcoming generation will not do. Whoever serves goes on; if nobody does, the server could not start."""
        failed, serving = self._upcoming, self._serving
        self.last_error = reason
        if not failed or not serving:
            self._give_up(reason, traceback, now)
            return
        self._upcoming = None
        self._end(failed, now)
        text = f"generation {failed.number} failed: {reason}; generation {serving.number} serves on"
        self._report("error", f"{text}\n{traceback}" if traceback else text)
        if serving.stage is Stage.LOST:
            self._losses.add(inf, now, self._backoff.after(self._losses), reason, traceback)
            self._judge(serving, self._losses, now)

    def _judge(self, generation: Generation, failures: Failures, now: float) -> None:
        """Decide whether these failures are enough."""
        if failures.row < self._flap_limit:
            return
        if generation is self._upcoming:
            self._fail_upcoming(failures.reason, failures.traceback, now)
        elif not self._upcoming and not self._roster.ready(generation):
            self._give_up(failures.reason, failures.traceback, now)

    def _give_up(self, reason: str, traceback: str | None, now: float) -> None:
        self._do(GiveUp(reason or "for an unknown reason", traceback))
        self._wind_up(PoolState.FAILED, now)

    def _wind_up(self, state: PoolState, now: float) -> None:
        self.state = state
        for generation in self._current():
            self._end(generation, now)
        self._upcoming = None

    def _end(self, generation: Generation, now: float) -> None:
        """Its workers leave. One that is not ready, where nobody ever served, holds no client and need not go on."""
        has_served = generation.has_served
        generation.stage, generation.drain_by = Stage.ENDED, now + self._drain_timeout
        self._do(EndGeneration(generation.number))
        for number, worker in self._roster.members(generation):
            if worker.phase is WorkerPhase.READY:
                self._let_go(worker, generation.drain_by, now)
            elif worker.phase is WorkerPhase.STARTING and not has_served:
                self._kill(number, worker, "its generation was given up", now)
            else:
                worker.hasten(generation.drain_by)

    # -- what follows from how things are -----------------------------------------------------------------------

    def _settle(self, now: float) -> list[Command]:
        """Do whatever is due as things are, and hand the commands over: the end of every fact."""
        if self.state in _UNDER_WAY:
            self._advance(now)
        elif self.state is not PoolState.STOPPED and not self._roster.workers:
            self.state = PoolState.STOPPED
            self._do(Stopped())
        self._roster.forget_generations()
        commands, self._commands = self._commands, []
        return commands

    def _advance(self, now: float) -> None:
        upcoming = self._upcoming
        if upcoming and self._roster.staying(upcoming) >= self.size:
            self._switch(upcoming, now)
        serving = self._serving
        succession = serving and serving.stage is Stage.LOST and self._losses.until <= now
        if serving and not self._upcoming and (self._reload_wanted or succession):
            self._begin_generation(now)
        for generation in self._current():
            self._fill(generation, now)

    def _fill(self, generation: Generation, now: float) -> None:
        """Bring the generation to the pool's size, as far as that can be done now."""
        for _ in range(self.surplus(generation.number)):
            self._do(RetireOne(generation.number))
        missing = self._roster.missing(generation, self.size)
        if generation.spawns and now >= max(generation.failures.until, self._refusals.until):
            for lacking in range(missing, 0, -1):
                slot = self._roster.free_slot()
                if slot is None:
                    self._make_room(lacking, now)
                    break
                self._spawn(slot, generation, now)

    def _spawn(self, slot: int, generation: Generation, now: float) -> None:
        number, worker = self._roster.add_worker(slot, generation, now)
        reason = f"a worker was not ready within {self._startup_timeout:g} s"
        worker.give(Ultimatum.START, now + self._startup_timeout, reason)
        self._do(Spawn(number, slot, generation.number))

    def _make_room(self, slots: int, now: float) -> None:
        """Every slot is taken: the workers that have been leaving for longest free so many, and no more than that."""
        leaving: list[tuple[float, int]] = []
        ending = 0
        for number, worker in self._roster.workers.items():
            if worker.phase is WorkerPhase.KILLED or worker.ultimatum is Ultimatum.STACKS:
                ending += worker.phase not in PRESENT
            elif worker.phase is WorkerPhase.LEAVING:
                leaving.append((worker.since, number))
        for _, number in sorted(leaving)[: max(0, slots - ending)]:
            reason = "it does not end, and its place is needed"
            self._end_with_stacks(number, self._roster.workers[number], "stopping", reason, now)

    def _current(self) -> list[Generation]:
        """The generations that are not over, the serving one first."""
        both = (self._serving, self._upcoming)
        return [generation for generation in both if generation and generation.stage is not Stage.ENDED]

    def _do(self, *commands: Command) -> None:
        self._commands += commands

    def _report(self, level: str, text: str) -> None:
        self._do(Report(level, text))
