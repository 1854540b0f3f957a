"""Supervision as pure code: facts and the time in, commands out. In the master.

The master tells the supervisor each fact (a child exited, a worker is ready, a timer is due) and carries out the
commands that it returns. The supervisor does no I/O, reads no clock and takes its randomness as an argument, so unit
tests need no process. Facts may come late and out of order; a fact that does not fit is ignored.

A **worker** is STARTING until it says that it is ready, READY while it serves, LEAVING once it says that it leaves or
must leave, KILLED once it was sent SIGKILL and until it is reaped. Its slot of the scoreboard is free again when it has
exited. It has at most one time limit.

A **generation** is a template process that has imported the handler, a queue, and the workers forked from that
template. One generation is *serving*. A reload makes an *upcoming* one, which serves once all its workers are ready; if
it fails, the serving one goes on. The generation that served before has then *ended*: its queue is closed, its workers
empty it and exit. Starting the server is the same without a serving generation; there, a failed generation is a failed
start.

A generation wants as many workers as the pool's size. It has its STARTING and READY ones that were not told to leave.
If it has fewer, workers are spawned; if more of them than wanted are READY, that many are told to leave. A spawn waits
for a free slot, for the system (`spawn_failed`), and for the back-off after workers have died at their start. Only the
last makes the server give up, and only if no worker serves. A worker that dies later costs one request and is replaced
at once, however often that happens.
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
    GenerationStage,
    PoolState,
    TimeLimit,
    WorkerFacts,
    WorkerPhase,
    WorkerTable,
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

#: Seconds between asking a process for its stacks and killing it.
STACKS_SECONDS = 0.3
#: The exit status after a SIGKILL, which no program sends itself.
SIGKILLED = -9
_UNDER_WAY = frozenset({PoolState.STARTING, PoolState.RUNNING})
#: The failure code for the client of a worker that does not end in time.
_CODES = {WorkerPhase.LEAVING: "stopping"}
#: The phases in which a fact about a worker is new; in others it came late.
_READY_IS_NEWS = frozenset({WorkerPhase.STARTING})
_LEAVING_IS_NEWS = frozenset({WorkerPhase.READY})
_OVERDUE_IS_NEWS = frozenset({WorkerPhase.READY, WorkerPhase.LEAVING})


class Supervisor:
    """The supervisor of `size` workers.

    max_slots: workers at once at most, leaving ones included; since a reload needs twice the size, the size is at most
    half of it. Timeouts: seconds, None for no limit. backoff: the first and the longest pause between attempts, in
    seconds. flap_limit: how many starts in a row may fail.
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
        self._table = WorkerTable(max_slots)
        self._serving: Generation | None = None
        self._upcoming: Generation | None = None
        self._reload_wanted = False
        self._refusals = Failures()  # to fork, by the system
        self._losses = Failures()  # of the serving generation's template, and of attempts to make its successor
        self._commands: list[Command] = []

    # -- for status ---------------------------------------------------------------------------------------------

    @property
    def workers(self) -> Mapping[int, WorkerFacts]:
        """Return every worker that has not exited, by number."""
        return MappingProxyType(self._table.workers)

    @property
    def generation(self) -> int:
        """Return the number of the serving generation, else of the upcoming one; 0 before the start."""
        current = self._serving or self._upcoming
        return current.number if current else 0

    @property
    def reloading(self) -> bool:
        """Return whether a reload is in progress."""
        return self.state is PoolState.RUNNING and self._upcoming is not None

    @property
    def last_generation(self) -> int:
        """Return the number of the generation that was begun last: code that changes now is in none of these."""
        return self._table.last_generation

    @property
    def largest_size(self) -> int:
        """Return the largest size that `scale` can set."""
        return self._table.slots // 2

    def next_deadline(self) -> float | None:
        """Return when `tick` must be called next; None while nothing depends on the time."""
        deadlines = [worker.due for worker in self._table.workers.values()]
        deadlines += [self._resumption(generation) for generation in self._current()]
        earliest = min(deadlines, default=inf)
        return None if earliest == inf else earliest

    def _resumption(self, generation: Generation) -> float:
        """Return when time alone changes something for this generation."""
        if generation.stage is GenerationStage.LOADING:
            return generation.load_by - (0.0 if generation.asked_for_stacks else STACKS_SECONDS)
        if generation.stage is GenerationStage.LOST:
            return inf if self._upcoming else self._losses.until
        if self._table.missing(generation, self.size) > 0 and self._table.free_slot() is not None:
            return max(generation.failures.until, self._refusals.until)
        return inf

    def surplus(self, generation: int) -> int:
        """Return how many workers of a generation shall be told to leave: those that serve beyond the pool's size.

        One that is still starting does not take the place of one that serves.
        """
        record = self._table.generations.get(generation)
        return 0 if record is None else max(0, self._table.staying(record) - self.size)

    # -- facts about the whole ----------------------------------------------------------------------------------

    def start(self, now: float) -> list[Command]:
        """The server begins."""
        if self.state in _UNDER_WAY and not self._table.last_generation:
            self._begin_generation(now)
        return self._settle(now)

    def reload(self, now: float) -> list[Command]:
        """Load the code again. During a reload another one follows, since the first may have read older code."""
        self._reload_wanted = self._table.last_generation > 0
        return self._settle(now)

    def scale(self, size: int, now: float) -> list[Command]:
        """Set how many workers are wanted."""
        if self.state not in _UNDER_WAY:
            return []
        self.size = max(1, min(size, self.largest_size))
        if self.size != size:
            self._report("warning", f"cannot have {size} workers: from 1 to {self.largest_size} are possible")
        return self._settle(now)

    def stop(self, now: float, drain_timeout: float | None = None) -> list[Command]:
        """Drain and stop the server within `drain_timeout`, by default the setting."""
        if drain_timeout is not None:
            self._drain_timeout = drain_timeout
        if self.state in _UNDER_WAY:
            self._wind_up(PoolState.STOPPING, now)
        self._table.hasten(now + self._drain_timeout)
        return self._settle(now)

    def stop_now(self, now: float) -> list[Command]:
        """Stop the server at once, whatever its workers are doing."""
        if self.state in _UNDER_WAY:
            self._wind_up(PoolState.STOPPING, now)
        for number, worker in self._table.workers.items():
            self._kill(number, worker, "the server was told to stop now", now)
        return self._settle(now)

    def tick(self, now: float) -> list[Command]:
        """Time has passed."""
        for number, worker in self._table.workers.items():
            if worker.due <= now:
                self._enforce(number, worker, now)
        upcoming = self._upcoming
        if upcoming and upcoming.stage is GenerationStage.LOADING and upcoming.load_by - STACKS_SECONDS <= now:
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
        record = self._table.generations.get(generation)
        if record and record.stage is GenerationStage.LOADING:
            record.stage = GenerationStage.FILLING
        return self._settle(now)

    def generation_failed(self, generation: int, reason: str, traceback: str | None, now: float) -> list[Command]:
        """Its handler cannot be imported, or its template cannot be started."""
        if self._upcoming and self._upcoming.number == generation:
            self._fail_upcoming(reason, traceback, now)
        return self._settle(now)

    def generation_lost(self, generation: int, reason: str, now: float) -> list[Command]:
        """Its template has died. Its workers serve on, but it cannot have new ones: a new generation is needed."""
        record = self._table.generations.get(generation)
        if record and record is self._upcoming:
            self._fail_upcoming(reason, None, now)
        elif record and record.stage is GenerationStage.SERVING:
            self._lose(record, reason, now)
        return self._settle(now)

    # -- facts about a worker -----------------------------------------------------------------------------------

    def ready(self, worker: int, now: float) -> list[Command]:
        """The worker takes connections."""
        record = self._hear(worker, _READY_IS_NEWS)
        if record:
            self._enter_service(record, now)
        return self._settle(now)

    def told_to_leave(self, worker: int) -> None:
        """A RetireOne was carried out on this worker; until one was, the next fact asks for it again."""
        self._table.workers[worker].retiring = True

    def leaving(self, worker: int, now: float) -> list[Command]:
        """The worker says that it leaves: it has served its number of requests, or was told to leave."""
        record = self._hear(worker, _LEAVING_IS_NEWS)
        if record:
            self._let_go(record, now + self._drain_timeout, now)
        return self._settle(now)

    def overdue(self, worker: int, now: float) -> list[Command]:
        """The request of this worker has taken longer than `request_timeout`."""
        record = self._hear(worker, _OVERDUE_IS_NEWS)
        if record and record.limit is not TimeLimit.STACKS:
            self.restarts += record.phase is WorkerPhase.READY
            self._end_with_stacks(worker, record, "timeout", "the handler did not answer within request_timeout", now)
        return self._settle(now)

    def spawn_failed(self, worker: int, reason: str, now: float) -> list[Command]:
        """The system could not start the worker (EAGAIN, ENOMEM). This is reported once until it is over.

        A start or a reload waits for better times no longer than `startup_timeout`.
        """
        record = self._table.workers.pop(worker, None)
        if record:
            if not self._refusals.row:
                self.last_error = reason
                self._report("warning", f"workers cannot be started: {reason}; trying again until they can")
            self._refusals.add(record.started, now, self._backoff.after(self._refusals), reason)
            upcoming = self._upcoming
            if upcoming and upcoming.number == record.generation and now >= upcoming.load_by:
                self._fail_upcoming(f"workers cannot be started: {reason}", None, now)
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
        """The worker was reaped.

        status: its exit status, negative for a signal, None if unknown; reason: the same in words; served: whether it
        ever took a connection, which matters for one that dies just after it was ready.
        """
        record = self._table.workers.pop(worker, None)
        if record:
            self._note_exit(record, status, reason, traceback, served, now)
        return self._settle(now)

    # -- what follows for a worker ------------------------------------------------------------------------------

    def _hear(self, number: int, news: frozenset[WorkerPhase]) -> WorkerFacts | None:
        """Return the worker if a fact about it is new in its phase."""
        worker = self._table.workers.get(number)
        return worker if worker and worker.phase in news else None

    def _enter_service(self, worker: WorkerFacts, now: float) -> None:
        generation = self._table.generations[worker.generation]
        worker.enter(WorkerPhase.READY, now)
        if self._refusals.row and worker.started > self._refusals.last:
            self._refusals.over()
            self._report("info", "workers can be started again")
        if generation.stage is GenerationStage.ENDED:
            self._let_go(worker, generation.drain_by, now)

    def _let_go(self, worker: WorkerFacts, drain_by: float, now: float) -> None:
        """The worker leaves when it has served what it has."""
        worker.enter(WorkerPhase.LEAVING, now)
        worker.hasten(drain_by)

    def _enforce(self, number: int, worker: WorkerFacts, now: float) -> None:
        """The time limit of a worker is over: ask for its stacks, and kill it once it had time to write them."""
        if worker.limit is not TimeLimit.STACKS:
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
        worker.give(TimeLimit.STACKS, now + STACKS_SECONDS, reason)

    def _kill(self, number: int, worker: WorkerFacts, reason: str, now: float) -> None:
        if worker.phase is not WorkerPhase.KILLED:
            worker.enter(WorkerPhase.KILLED, now)
            self._do(Kill(number, reason, worker.code or "stopping"))

    def _note_exit(
        self, worker: WorkerFacts, status: int | None, reason: str, traceback: str | None, served: bool, now: float
    ) -> None:
        """A worker has exited. Unless it was leaving or told to leave, it has died."""
        generation = self._table.generations[worker.generation]
        if generation.stage is GenerationStage.ENDED or worker.phase in (WorkerPhase.LEAVING, WorkerPhase.KILLED):
            return
        if status == 0 and (worker.retiring or generation.stage is GenerationStage.LOST):
            return
        self.restarts += 1
        self.last_error = reason
        served = served and generation.has_served
        if worker.phase is WorkerPhase.STARTING or self._on_probation(worker, status, served, now):
            self._count_failed_start(generation, worker, reason, traceback, now, killed=status == SIGKILLED)
        elif worker.since > generation.failures.last:
            generation.failures.over()

    def _on_probation(self, worker: WorkerFacts, status: int | None, served: bool, now: float) -> bool:
        """Return whether the death of a worker that was ready counts as a failed start."""
        return not served and status != SIGKILLED and now - worker.since < PROBATION_SECONDS

    def _blame_late_starter(self, worker: WorkerFacts, now: float) -> None:
        """A worker was not ready in time. A start or a reload does not wait that long twice."""
        generation = self._table.generations[worker.generation]
        if generation.stage is GenerationStage.ENDED:
            return
        self.restarts += 1
        self.last_error = worker.reason
        if generation is self._upcoming:
            self._fail_upcoming(worker.reason, None, now)
        else:
            self._count_failed_start(generation, worker, worker.reason, None, now)

    def _count_failed_start(
        self, generation: Generation, worker: WorkerFacts, reason: str, traceback: str | None, now: float, *,
        killed: bool = False,
    ) -> None:
        failures = generation.failures
        if self._table.has_proved_itself(generation, now):
            failures.over()
        pause = self._backoff.after(failures)
        killed = killed and generation.has_served  # a server that has served waits for better times
        known = failures.row > 0 and reason == failures.reason and not generation.has_served
        if failures.add(worker.started, now, pause, reason, traceback, killed=killed):
            if not known:  # a start that tries five times in a second says the same cause once
                self._report("warning", f"a worker died at its start: {reason}; the next attempt is in {pause:.1f} s")
            self._judge(generation, failures, now)

    # -- what follows for a generation --------------------------------------------------------------------------

    def _begin_generation(self, now: float) -> None:
        self._reload_wanted = False
        self._upcoming = self._table.add_generation(now, now + self._startup_timeout)
        self._do(StartGeneration(self._upcoming.number))

    def _switch(self, upcoming: Generation, now: float) -> None:
        """The workers of the upcoming generation are ready: it serves now, and the serving one ends."""
        previous, self._serving, self._upcoming = self._serving, upcoming, None
        upcoming.stage, upcoming.since = GenerationStage.SERVING, now
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
        serving.stage = GenerationStage.LOST
        self.last_error = reason
        self._report("warning", f"generation {serving.number} cannot start workers any more: {reason}")

    def _fail_upcoming(self, reason: str, traceback: str | None, now: float) -> None:
        """The upcoming generation has failed. The serving one goes on; without one, the server could not start."""
        failed, serving = self._upcoming, self._serving
        self.last_error = reason
        if not failed or not serving:
            self._give_up(reason, traceback, now)
            return
        self._upcoming = None
        self._end(failed, now)
        text = f"generation {failed.number} failed: {reason}; generation {serving.number} serves on"
        self._report("error", f"{text}\n{traceback}" if traceback else text)
        if serving.stage is GenerationStage.LOST:
            self._losses.add(inf, now, self._backoff.after(self._losses), reason, traceback)
            self._judge(serving, self._losses, now)

    def _judge(self, generation: Generation, failures: Failures, now: float) -> None:
        """Give up on a generation after too many failures in a row."""
        if failures.row - failures.kills < self._flap_limit:
            return
        if generation is self._upcoming:
            self._fail_upcoming(failures.reason, failures.traceback, now)
        elif not self._upcoming and not self._table.ready(generation):
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
        """End a generation: its workers leave. A starting one of a generation that never served is killed at once."""
        has_served = generation.has_served
        generation.stage, generation.drain_by = GenerationStage.ENDED, now + self._drain_timeout
        self._do(EndGeneration(generation.number))
        for number, worker in self._table.members(generation):
            if worker.phase is WorkerPhase.READY:
                self._let_go(worker, generation.drain_by, now)
            elif worker.phase is WorkerPhase.STARTING and not has_served:
                self._kill(number, worker, "its generation was given up", now)
            else:
                worker.hasten(generation.drain_by)

    # -- what follows from the present state -----------------------------------------------------------------------

    def _settle(self, now: float) -> list[Command]:
        """Do what follows from the present state; return the commands. Every fact ends with this."""
        if self.state in _UNDER_WAY:
            self._advance(now)
        elif self.state is not PoolState.STOPPED and not self._table.workers:
            self.state = PoolState.STOPPED
            self._do(Stopped())
        self._table.forget_generations()
        commands, self._commands = self._commands, []
        return commands

    def _advance(self, now: float) -> None:
        upcoming = self._upcoming
        if upcoming and self._table.staying(upcoming) >= self.size:
            self._switch(upcoming, now)
        serving = self._serving
        succession = serving and serving.stage is GenerationStage.LOST and self._losses.until <= now
        if serving and not self._upcoming and (self._reload_wanted or succession):
            self._begin_generation(now)
        for generation in self._current():
            self._fill(generation, now)

    def _fill(self, generation: Generation, now: float) -> None:
        """Bring the generation to the pool's size, as far as possible now."""
        for _ in range(self.surplus(generation.number)):
            self._do(RetireOne(generation.number))
        missing = self._table.missing(generation, self.size)
        if generation.spawns and now >= max(generation.failures.until, self._refusals.until):
            for lacking in range(missing, 0, -1):
                slot = self._table.free_slot()
                if slot is None:
                    self._make_room(lacking, now)
                    break
                self._spawn(slot, generation, now)

    def _spawn(self, slot: int, generation: Generation, now: float) -> None:
        number, worker = self._table.add_worker(slot, generation, now)
        reason = f"a worker was not ready within {self._startup_timeout:g} s"
        worker.give(TimeLimit.START, now + self._startup_timeout, reason)
        self._do(Spawn(number, slot, generation.number))

    def _make_room(self, slots: int, now: float) -> None:
        """No slot is free: end the workers that have been leaving for longest, as many as slots are needed."""
        leaving: list[tuple[float, int]] = []
        ending = 0
        for number, worker in self._table.workers.items():
            if worker.phase is WorkerPhase.KILLED or worker.limit is TimeLimit.STACKS:
                ending += worker.phase not in PRESENT
            elif worker.phase is WorkerPhase.LEAVING:
                leaving.append((worker.since, number))
        for _, number in sorted(leaving)[: max(0, slots - ending)]:
            reason = "it does not end, and its place is needed"
            self._end_with_stacks(number, self._table.workers[number], "stopping", reason, now)

    def _current(self) -> list[Generation]:
        """Return the generations that have not ended, the serving one first."""
        both = (self._serving, self._upcoming)
        return [generation for generation in both if generation and generation.stage is not GenerationStage.ENDED]

    def _do(self, *commands: Command) -> None:
        self._commands += commands

    def _report(self, level: str, text: str) -> None:
        self._do(Report(level, text))
