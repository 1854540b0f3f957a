"""No sequence of facts breaks the supervisor.

A model of the master carries out its commands, or fails to, and tells it facts: true ones, late ones and wrong ones,
in any order and at any time. After each, the commands are compared with what must always hold; and whenever everything
that is awaited happens, the pool is complete again.
"""

from __future__ import annotations

from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ipcsrv.supervision.commands import (
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
from ipcsrv.supervision.records import PoolState, WorkerPhase
from ipcsrv.supervision.supervisor import Supervisor

MAX_SLOTS = 8
MOST_STEPS = 200
REASONS = st.sampled_from(["", "why"])
STATUSES = st.sampled_from([None, 0, 1, -9, -11])
UNDER_WAY = (PoolState.STARTING, PoolState.RUNNING)


class SupervisorMachine(RuleBasedStateMachine):
    """The master: which workers live, what they were told, and which generation serves."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.living: dict[int, Spawn] = {}
        self.killed: set[int] = set()
        self.ready: set[int] = set()
        self.loading: set[int] = set()
        self.templates: set[int] = set()
        self.begun = 0
        self.ended: set[int] = set()
        self.serving: int | None = None
        self.told: set[int] = set()
        self.given_up = False
        self.stopped = False

    @initialize(
        size=st.integers(1, 2),
        max_slots=st.integers(4, MAX_SLOTS),
        seed=st.integers(0, 9),
        timeout=st.sampled_from([None, 0.5, 30.0]),
        flap_limit=st.integers(1, 3),
    )
    def make(self, size: int, max_slots: int, seed: int, timeout: float | None, flap_limit: int) -> None:
        self.pool = Supervisor(
            size,
            startup_timeout=timeout,
            drain_timeout=timeout,
            max_slots=max_slots,
            rng=Random(seed),
            flap_limit=flap_limit,
        )
        self.obey(self.pool.start(self.now))

    # -- commands: what must always be so -----------------------------------------------------------------------

    def obey(self, commands: list[Command]) -> None:
        for command in commands:
            assert not self.stopped, f"{command} after Stopped"
            self.carry_out(command)

    def carry_out(self, command: Command) -> None:
        match command:
            case StartGeneration(generation):
                self.begin(generation)
            case Spawn():
                self.spawn(command)
            case RetireOne(generation):
                assert generation in self.begun_and_not_ended()
                self.tell_to_leave(generation)
            case EndGeneration(generation):
                self.end(generation)
            case SwitchTo(generation):
                self.switch(generation)
            case DumpStacks(worker):
                assert worker in self.living
                assert worker not in self.killed
            case DumpTemplateStacks(generation):
                assert generation in self.loading
            case Kill(worker, reason, code):
                assert reason
                assert code in {"crashed", "stopping", "timeout"}
                assert worker in self.living
                assert worker not in self.killed, "killed twice"
                self.killed.add(worker)
                self.ready.discard(worker)
            case Report(level, text):
                assert level in {"debug", "info", "warning", "error"}
                assert text
            case GiveUp(reason, _):
                assert reason
                assert not self.given_up
                assert not self.ready_of(self.serving), "gave up while somebody served"
                self.given_up = True
            case Stopped():
                assert not self.living
                assert self.pool.state is PoolState.STOPPED
                self.stopped = True

    def begin(self, generation: int) -> None:
        assert generation == self.begun + 1
        assert len(self.begun_and_not_ended()) <= 1, "two upcoming generations"
        self.begun = generation
        self.loading.add(generation)

    def spawn(self, command: Spawn) -> None:
        assert not self.living or command.worker > max(self.living)
        assert command.slot in range(MAX_SLOTS)
        assert command.slot not in {other.slot for other in self.living.values()}, "a slot shared"
        assert command.generation in self.templates, "nobody can fork it"
        assert command.generation not in self.ended
        self.living[command.worker] = command

    def switch(self, generation: int) -> None:
        assert generation in self.begun_and_not_ended()
        assert generation != self.serving
        assert len(self.ready_of(generation)) >= self.pool.size, "not whole"
        self.serving = generation

    def end(self, generation: int) -> None:
        assert generation in self.begun_and_not_ended(), "ended twice"
        if generation == self.serving:
            assert self.pool.state not in UNDER_WAY, "nobody serves"
        self.ended.add(generation)
        self.loading.discard(generation)
        self.templates.discard(generation)

    def begun_and_not_ended(self) -> set[int]:
        return set(range(1, self.begun + 1)) - self.ended

    def ready_of(self, generation: int | None) -> set[int]:
        return {worker for worker in self.ready if self.living[worker].generation == generation}

    # -- facts: anything, at any time ---------------------------------------------------------------------------

    def some_worker(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.living) or [1]) | st.integers(0, 40), label="worker")

    def some_generation(self, data: st.DataObject) -> int:
        return data.draw(st.integers(1, self.begun + 1), label="generation")

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.2, 1.0, 5.0, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def tick(self) -> None:
        self.obey(self.pool.tick(self.now))
        deadline = self.pool.next_deadline()
        assert deadline is None or deadline > self.now, "the master would spin"

    @rule()
    def wake_at_the_deadline(self) -> None:
        self.now = max(self.now, self.pool.next_deadline() or 0.0)
        self.tick()

    @rule(data=st.data())
    def template_is_ready(self, data: st.DataObject) -> None:
        generation = self.some_generation(data)
        self.load(generation)

    def load(self, generation: int) -> None:
        if generation in self.loading:
            self.loading.discard(generation)
            self.templates.add(generation)
        self.obey(self.pool.generation_ready(generation, self.now))

    @rule(data=st.data(), reason=REASONS)
    def import_fails(self, data: st.DataObject, reason: str) -> None:
        generation = self.some_generation(data)
        self.obey(self.pool.generation_failed(generation, reason, None, self.now))

    @rule(data=st.data(), reason=REASONS)
    def template_dies(self, data: st.DataObject, reason: str) -> None:
        generation = self.some_generation(data)
        self.templates.discard(generation)
        self.loading.discard(generation)
        self.obey(self.pool.generation_lost(generation, reason, self.now))

    @rule(data=st.data())
    def worker_is_ready(self, data: st.DataObject) -> None:
        self.come_up(self.some_worker(data))

    def come_up(self, worker: int) -> None:
        record = self.pool.workers.get(worker)
        if record and record.phase is WorkerPhase.STARTING and record.generation not in self.ended:
            self.ready.add(worker)
        self.obey(self.pool.ready(worker, self.now))

    @rule(data=st.data())
    def worker_recycles(self, data: st.DataObject) -> None:
        self.leave(self.some_worker(data))

    @rule(data=st.data())
    def worker_takes_retirement(self, data: st.DataObject) -> None:
        worker = self.some_worker(data)
        if worker in self.ready:
            self.retire(worker)

    def tell_to_leave(self, generation: int) -> None:
        """Tell the first that may; the master prefers an idle one."""
        if not self.pool.surplus(generation):
            return
        staying = [number for number, worker in self.pool.workers.items() if worker.generation == generation
                   and worker.phase is WorkerPhase.READY and number not in self.told]  # fmt: skip
        assert len(staying) > self.pool.size
        self.told.add(staying[0])
        self.pool.told_to_leave(staying[0])

    def retire(self, worker: int) -> None:
        if worker in self.told:
            self.leave(worker)

    def leave(self, worker: int) -> None:
        self.ready.discard(worker)
        self.obey(self.pool.leaving(worker, self.now))

    @rule(data=st.data(), status=STATUSES, reason=REASONS, served=st.booleans())
    def worker_exits(self, data: st.DataObject, status: int | None, reason: str, served: bool) -> None:
        self.die(self.some_worker(data), status, reason, served)

    def die(self, worker: int, status: int | None, reason: str, served: bool) -> None:
        self.living.pop(worker, None)
        self.ready.discard(worker)
        self.obey(self.pool.exited(worker, status, reason, self.now, served=served))

    @rule(data=st.data(), reason=REASONS)
    def fork_is_refused(self, data: st.DataObject, reason: str) -> None:
        worker = self.some_worker(data)
        record = self.pool.workers.get(worker)
        if record is None or record.phase is WorkerPhase.STARTING:
            self.living.pop(worker, None)
            self.obey(self.pool.spawn_failed(worker, reason, self.now))

    @rule(data=st.data())
    def request_takes_too_long(self, data: st.DataObject) -> None:
        worker = self.some_worker(data)
        self.ready.discard(worker)
        self.obey(self.pool.overdue(worker, self.now))

    @rule(size=st.integers(-1, MAX_SLOTS))
    def scale(self, size: int) -> None:
        self.obey(self.pool.scale(size, self.now))
        assert 1 <= self.pool.size <= MAX_SLOTS // 2

    @rule()
    def reload(self) -> None:
        self.obey(self.pool.reload(self.now))

    @precondition(lambda self: self.begun > 2)
    @rule(drain_timeout=st.sampled_from([None, 0.0, 3.0]))
    def stop(self, drain_timeout: float | None) -> None:
        self.obey(self.pool.stop(self.now, drain_timeout))
        assert self.pool.state not in UNDER_WAY

    @precondition(lambda self: self.pool.state not in UNDER_WAY)
    @rule()
    def stop_now(self) -> None:
        self.obey(self.pool.stop_now(self.now))
        assert self.killed >= set(self.living)

    # -- what must be so between facts --------------------------------------------------------------------------

    @invariant()
    def both_sides_know_the_same_workers(self) -> None:
        if self.begun:
            assert set(self.pool.workers) == set(self.living)
            assert len(self.living) <= MAX_SLOTS

    @invariant()
    def a_generation_serves_from_the_first_switch_on(self) -> None:
        if self.begun:
            assert (self.pool.state is PoolState.RUNNING) <= (self.serving in self.begun_and_not_ended())
            assert (self.pool.state is PoolState.STOPPED) == self.stopped

    # -- all that is awaited happens -----------------------------------------------------------------------------

    @rule()
    def all_that_is_awaited_happens(self) -> None:
        for _ in range(MOST_STEPS):
            if not self.awaited_step() and self.at_rest():
                break
        else:
            raise AssertionError(f"never at rest: {self.pool.workers}")
        if self.pool.state is PoolState.RUNNING:
            assert len(self.ready_of(self.serving)) == len(self.living) == self.pool.size
            assert not self.pool.reloading
        else:
            assert self.stopped

    def awaited_step(self) -> bool:
        """Whatever is waited for happens. Whether anything was."""
        waiting = [(number, worker.phase) for number, worker in self.pool.workers.items()]
        loading = sorted(self.loading)
        retiring = sorted(self.ready & self.told)
        for generation in loading:
            self.load(generation)
        for worker, phase in waiting:
            if phase is WorkerPhase.STARTING:
                self.come_up(worker)
            elif phase is not WorkerPhase.READY:
                self.die(worker, 0, "exited", served=True)
        for worker in retiring[:1]:
            if worker in self.ready:
                self.retire(worker)
        return bool(loading or retiring or any(phase is not WorkerPhase.READY for _, phase in waiting))

    def at_rest(self) -> bool:
        """Whether nothing depends on the time either; it passes otherwise."""
        if self.pool.next_deadline() is None:
            return True
        self.wake_at_the_deadline()
        return False

    def teardown(self) -> None:
        if self.begun:
            self.stop(drain_timeout=None)
            self.all_that_is_awaited_happens()
            assert self.stopped


SupervisorMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_supervisor_is_right_after_any_facts = SupervisorMachine.TestCase
