"""Supervision, story by story: facts and times in, commands out, and no process anywhere."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

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

STARTUP, DRAIN = 30.0, 20.0


class Steady(Random):
    """No jitter: a pause is what it is at most."""

    def uniform(self, a: float, b: float) -> float:
        return b


def make(size: int = 2, *, max_slots: int = 12, **options: Any) -> Supervisor:
    given: dict[str, Any] = {"startup_timeout": STARTUP, "drain_timeout": DRAIN, **options}
    return Supervisor(size, max_slots=max_slots, rng=Steady(), **given)


def running(size: int = 2, *, max_slots: int = 12, **options: Any) -> Supervisor:
    """A pool that serves since second 0, with workers 1 to `size`."""
    pool = make(size, max_slots=max_slots, **options)
    pool.start(0.0)
    pool.generation_ready(1, 0.0)
    for worker in range(1, size + 1):
        pool.ready(worker, 0.0)
    assert pool.state is PoolState.RUNNING
    return pool


def phases(pool: Supervisor) -> dict[int, str]:
    return {number: worker.phase.name for number, worker in pool.workers.items()}


def without_reports(commands: list[Command]) -> list[Command]:
    return [command for command in commands if not isinstance(command, Report)]


def reports(commands: list[Command]) -> list[str]:
    return [f"{command.level}: {command.text}" for command in commands if isinstance(command, Report)]


# -- starting ---------------------------------------------------------------------------------------------------


def test_start_imports_then_spawns_then_serves() -> None:
    pool = make(2)
    assert pool.generation == 0
    assert pool.start(0.0) == [StartGeneration(1)]
    assert pool.generation_ready(1, 1.0) == [Spawn(1, 0, 1), Spawn(2, 1, 1)]
    assert pool.ready(2, 2.0) == []
    assert (pool.state, pool.generation) == (PoolState.STARTING, 1)
    assert pool.ready(1, 3.0) == [SwitchTo(1)]
    assert pool.state is PoolState.RUNNING
    assert pool.workers[1].phase is WorkerPhase.READY
    assert pool.workers[1].since == 3.0


def test_a_second_start_changes_nothing() -> None:
    pool = make()
    pool.start(0.0)
    assert pool.start(1.0) == []


def test_facts_before_the_start_change_nothing() -> None:
    pool = make()
    assert pool.reload(0.0) == pool.tick(0.0) == pool.generation_ready(1, 0.0) == pool.ready(1, 0.0) == []
    assert pool.start(1.0) == [StartGeneration(1)]


def test_failed_import_ends_the_start_with_its_traceback() -> None:
    pool = make()
    pool.start(0.0)
    commands = pool.generation_failed(1, "no module named x", "Traceback ...", 1.0)
    assert commands == [GiveUp("no module named x", "Traceback ..."), EndGeneration(1), Stopped()]
    assert pool.state is PoolState.STOPPED
    assert pool.last_error == "no module named x"


def test_a_template_that_dies_during_the_start_ends_it() -> None:
    pool = make()
    pool.start(0.0)
    assert pool.generation_lost(1, "killed", 1.0)[0] == GiveUp("killed", None)


def test_without_a_startup_timeout_nothing_waits_for_the_time() -> None:
    pool = make(startup_timeout=None)
    pool.start(0.0)
    pool.generation_ready(1, 0.0)
    assert pool.next_deadline() is None


def test_deaths_at_the_start_back_off_and_give_the_first_reason() -> None:
    pool = make(1)
    pool.start(0.0)
    pool.generation_ready(1, 0.0)
    now = 0.0
    for worker, pause in enumerate([0.1, 0.2, 0.4, 0.8], start=1):
        commands = pool.exited(worker, 1, f"reason {worker}", now, traceback=f"traceback {worker}")
        assert len(reports(commands)) == len(commands) == 1
        assert pool.next_deadline() == pytest.approx(now + pause)
        now = pool.next_deadline() or 0.0
        assert pool.tick(now) == [Spawn(worker + 1, 0, 1)]
    commands = pool.exited(5, 1, "reason 5", now)
    assert without_reports(commands) == [GiveUp("reason 1", "traceback 1"), EndGeneration(1), Stopped()]
    assert pool.next_deadline() is None


def test_workers_that_die_together_have_failed_once() -> None:
    pool = make(6)
    pool.start(0.0)
    pool.generation_ready(1, 0.0)
    commands = [command for worker in range(1, 7) for command in pool.exited(worker, 1, "no memory", 0.5)]
    assert len(reports(commands)) == len(commands) == 1
    assert len(pool.tick(0.6)) == 6


def test_a_pause_has_jitter_and_a_limit() -> None:
    pauses = set()
    for seed in range(20):
        pool = Supervisor(
            1, startup_timeout=None, drain_timeout=None, max_slots=2, rng=Random(seed), backoff=(4.0, 5.0)
        )
        pool.start(0.0)
        pool.generation_ready(1, 0.0)
        pool.exited(1, 1, "died", 0.0)
        first = pool.next_deadline() or 0.0
        pool.tick(first)
        pool.exited(2, 1, "died", first)
        assert 2.0 <= first <= 4.0
        assert 2.5 <= (pool.next_deadline() or 0.0) - first <= 5.0
        pauses.add(first)
    assert len(pauses) == 20


def test_a_giving_up_always_has_a_reason() -> None:
    pool = make()
    pool.start(0.0)
    assert pool.generation_failed(1, "", None, 1.0)[0] == GiveUp("for an unknown reason", None)


@pytest.mark.parametrize("size", [0, -1, 7])
def test_a_size_that_leaves_no_room_for_a_reload_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=r"it must be from 1 to 6, half of 12 slots"):
        make(size)


# -- deaths -----------------------------------------------------------------------------------------------------


def test_a_worker_that_dies_is_replaced_at_once_in_its_slot() -> None:
    pool = running()
    assert pool.exited(1, -11, "segmentation fault", 5.0) == [Spawn(3, 0, 1)]
    assert pool.restarts == 1
    assert pool.last_error == "segmentation fault"


def test_a_running_pool_waits_for_nothing() -> None:
    assert running().next_deadline() is None


def test_requests_that_kill_their_workers_never_end_the_server() -> None:
    pool = running(1)
    for worker in range(1, 200):
        assert pool.exited(worker, 1, "exited with status 1", 0.0) == [Spawn(worker + 1, 0, 1)]
        pool.ready(worker + 1, 0.0)


def test_a_kill_from_outside_is_no_death_at_the_start() -> None:
    pool = running(1)
    for worker in range(1, 20):
        assert pool.exited(worker, -9, "killed", 0.0, served=False) == [Spawn(worker + 1, 0, 1)]
        pool.ready(worker + 1, 0.0)


def test_deaths_just_after_ready_end_a_server_without_requests() -> None:
    pool = running(1)
    now, commands = 0.9, []
    for worker in range(1, 6):
        commands = pool.exited(worker, 3, f"reason {worker}", now, served=False)
        now = pool.next_deadline() or now
        pool.tick(now)
        pool.ready(worker + 1, now)
        now += 0.9
    assert without_reports(commands) == [GiveUp("reason 1", None), EndGeneration(1), Stopped()]


def test_worker_past_its_probation_resets_earlier_failures() -> None:
    pool = running(2)
    now = 10.0
    for worker in range(3, 30):
        pool.exited(worker - 1, 1, "died", now, served=False)  # the ready one: the next one has to start
        now = max(now, pool.next_deadline() or now)
        pool.tick(now)
        now += 2.0
        pool.ready(worker, now)
        now += 2.0
    assert pool.state is PoolState.RUNNING


def test_living_worker_past_its_probation_resets_failures() -> None:
    pool = running(2)
    pool.exited(1, 1, "died", 5.0)  # 3 starts
    pool.exited(3, 1, "died", 5.0)  # 4 starts after a pause of 0.1 s
    assert pool.tick(5.1) == [Spawn(4, 0, 1)]
    pool.ready(4, 5.2)
    pool.exited(2, 1, "died", 6.0)  # 5 starts
    commands = pool.exited(5, 1, "died", 7.0)
    assert reports(commands) == ["warning: a worker died at its start: died; the next attempt is in 0.1 s"]


def test_deaths_at_the_start_never_end_a_serving_server() -> None:
    pool = running(2)
    pool.exited(1, 1, "crashed", 100.0)
    now = 100.0
    for worker in range(3, 20):
        pool.exited(worker, 1, "database is down", now)
        now = pool.next_deadline() or 0.0
        assert pool.tick(now) == [Spawn(worker + 1, 0, 1)]
    assert pool.state is PoolState.RUNNING
    pool.leaving(2, now)
    pool.exited(2, 0, "exited", now)
    commands = pool.exited(20, 1, "database is down", now)
    assert GiveUp("database is down", None) in commands


def test_flapping_generation_ends_the_server_with_first_reason() -> None:
    pool = running(1)
    reload(pool, 2, [2], 10.0)
    pool.exited(1, 0, "exited", 10.0)
    pool.exited(2, -11, "segmentation fault", 20.0)
    now, commands = 20.0, []
    for worker in range(3, 8):
        commands = pool.exited(worker, 1, f"reason {worker}", now)
        now = pool.next_deadline() or now
        pool.tick(now)
    assert without_reports(commands) == [GiveUp("reason 3", None), EndGeneration(2), Stopped()]


def test_facts_about_unknown_workers_change_nothing() -> None:
    pool = running()
    pool.exited(1, 1, "crashed", 5.0)
    for worker in (1, 99):
        assert pool.ready(worker, 6.0) == pool.leaving(worker, 6.0) == pool.overdue(worker, 6.0) == []
        assert pool.exited(worker, 0, "exited", 6.0) == pool.spawn_failed(worker, "why", 6.0) == []


@pytest.mark.parametrize(
    ("phase", "fact"),
    [
        (WorkerPhase.STARTING, "leaving"),
        (WorkerPhase.STARTING, "overdue"),
        (WorkerPhase.READY, "ready"),
        (WorkerPhase.LEAVING, "ready"),
        (WorkerPhase.LEAVING, "leaving"),
        (WorkerPhase.KILLED, "ready"),
        (WorkerPhase.KILLED, "leaving"),
        (WorkerPhase.KILLED, "overdue"),
    ],
)
def test_a_fact_that_does_not_fit_the_phase_changes_nothing(phase: WorkerPhase, fact: str) -> None:
    pool = running(1, drain_timeout=None)
    pool.exited(1, 1, "crashed", 5.0)  # worker 2 is STARTING
    if phase is not WorkerPhase.STARTING:
        pool.ready(2, 5.0)
    if phase is WorkerPhase.LEAVING:
        pool.leaving(2, 5.0)
    if phase is WorkerPhase.KILLED:
        pool.stop_now(5.0)
    assert pool.workers[2].phase is phase
    assert getattr(pool, fact)(2, 6.0) == []
    assert pool.workers[2].phase is phase


# -- recycling and requests that take too long ------------------------------------------------------------------


def test_replacement_of_a_leaving_worker_starts_before_its_exit() -> None:
    pool = running()
    assert pool.leaving(1, 5.0) == [Spawn(3, 2, 1)]
    assert phases(pool) == {1: "LEAVING", 2: "READY", 3: "STARTING"}
    assert pool.exited(1, 0, "exited", 6.0) == []
    assert pool.restarts == 0


def test_an_overdue_worker_that_dies_of_its_answer_is_not_killed() -> None:
    pool = running()
    pool.overdue(1, 5.0)
    pool.ready(3, 5.1)
    assert pool.exited(1, 1, "exited with status 1", 5.2) == []
    assert pool.next_deadline() is None


# -- the system refuses to fork ---------------------------------------------------------------------------------


def test_refused_fork_is_retried_and_its_end_reported() -> None:
    pool = running()
    pool.exited(1, 1, "crashed", 5.0)
    assert reports(pool.spawn_failed(3, "EAGAIN", 5.0)) == [
        "warning: workers cannot be started: EAGAIN; trying again until they can"
    ]
    now = 5.0
    for worker in range(4, 40):
        now = pool.next_deadline() or 0.0
        assert pool.tick(now) == [Spawn(worker, 0, 1)]
        assert pool.spawn_failed(worker, "EAGAIN", now) == []
    now = pool.next_deadline() or 0.0
    assert pool.tick(now) == [Spawn(40, 0, 1)]
    assert reports(pool.ready(40, now)) == ["info: workers can be started again"]
    assert pool.state is PoolState.RUNNING
    assert pool.restarts == 1


def test_a_refused_fork_does_not_count_as_a_death() -> None:
    pool = make(1, startup_timeout=None)
    pool.start(0.0)
    pool.generation_ready(1, 0.0)
    for worker in range(1, 30):
        pool.spawn_failed(worker, "ENOMEM", float(worker * 10))
        assert pool.tick(worker * 10 + 10.0) == [Spawn(worker + 1, 0, 1)]
    assert without_reports(pool.ready(30, 400.0)) == [SwitchTo(1)]


def test_worker_started_before_a_refused_fork_does_not_end_it() -> None:
    pool = make(2)
    pool.start(0.0)
    pool.generation_ready(1, 0.0)
    pool.spawn_failed(2, "EAGAIN", 0.1)
    assert pool.ready(1, 0.15) == []
    pool.tick(0.3)
    assert reports(pool.ready(3, 0.4)) == ["info: workers can be started again"]


def test_a_refused_fork_can_be_the_last_one_a_stop_waits_for() -> None:
    pool = running(1)
    pool.exited(1, 1, "crashed", 5.0)
    pool.stop(5.0)
    assert Stopped() in pool.spawn_failed(2, "EAGAIN", 5.0)


# -- reload -----------------------------------------------------------------------------------------------------


def reload(pool: Supervisor, generation: int, workers: list[int], now: float) -> list[Command]:
    """A reload that goes well, to the end."""
    commands = pool.reload(now) + pool.generation_ready(generation, now)
    for worker in workers:
        commands += pool.ready(worker, now)
    return commands


def test_reload_switches_when_every_new_worker_is_ready() -> None:
    pool = running()
    assert pool.reload(10.0) == [StartGeneration(2)]
    assert pool.reloading
    assert pool.generation_ready(2, 11.0) == [Spawn(3, 2, 2), Spawn(4, 3, 2)]
    assert pool.ready(3, 12.0) == []
    assert (pool.generation, pool.last_generation) == (1, 2)
    assert pool.ready(4, 12.0)[:2] == [SwitchTo(2), EndGeneration(1)]
    assert (pool.generation, pool.reloading) == (2, False)
    assert phases(pool) == {1: "LEAVING", 2: "LEAVING", 3: "READY", 4: "READY"}
    assert pool.exited(1, 0, "exited", 13.0) == pool.exited(2, 0, "exited", 13.0) == []
    assert pool.next_deadline() is None


def test_failed_import_of_a_reload_keeps_the_old_generation() -> None:
    pool = running()
    pool.reload(10.0)
    commands = pool.generation_failed(2, "SyntaxError", "Traceback ...", 11.0)
    assert without_reports(commands) == [EndGeneration(2)]
    assert reports(commands) == ["error: generation 2 failed: SyntaxError; generation 1 serves on\nTraceback ..."]
    assert (pool.generation, pool.last_error, pool.next_deadline()) == (1, "SyntaxError", None)
    assert pool.reload(12.0) == [StartGeneration(3)]


def test_deaths_of_new_workers_keep_the_old_generation() -> None:
    pool = running(1)
    pool.reload(10.0)
    pool.generation_ready(2, 10.0)
    now, commands = 10.0, []
    for worker in range(2, 7):
        commands = pool.exited(worker, 1, f"reason {worker}", now)
        now = pool.next_deadline() or now
        pool.tick(now)
    assert without_reports(commands) == [EndGeneration(2)]
    assert "generation 2 failed: reason 2; generation 1 serves on" in reports(commands)[1]
    assert phases(pool) == {1: "READY"}


def test_death_before_the_switch_is_a_death_at_the_start() -> None:
    pool = running(2)
    pool.reload(10.0)
    pool.generation_ready(2, 10.0)
    pool.ready(3, 10.0)
    assert reports(pool.exited(3, 1, "died", 10.1)) == [
        "warning: a worker died at its start: died; the next attempt is in 0.1 s"
    ]


def test_a_new_template_that_dies_fails_the_reload() -> None:
    pool = running()
    pool.reload(10.0)
    assert without_reports(pool.generation_lost(2, "killed", 11.0)) == [EndGeneration(2)]


def test_a_reload_during_a_reload_follows_it() -> None:
    pool = running(1)
    pool.reload(10.0)
    assert pool.reload(10.1) == pool.reload(10.2) == []
    pool.generation_ready(2, 11.0)
    assert pool.ready(2, 12.0)[-1] == StartGeneration(3)
    pool.generation_ready(3, 13.0)
    commands = pool.ready(3, 14.0)
    assert without_reports(commands) == [SwitchTo(3), EndGeneration(2)]


def test_reload_follows_a_reload_in_progress_that_fails() -> None:
    pool = running(1)
    pool.reload(10.0)
    pool.reload(10.1)
    assert without_reports(pool.generation_failed(2, "SyntaxError", None, 11.0)) == [
        EndGeneration(2),
        StartGeneration(3),
    ]


def test_a_reload_during_the_start_follows_it() -> None:
    pool = make(1)
    pool.start(0.0)
    assert pool.reload(0.5) == []
    pool.generation_ready(1, 1.0)
    assert pool.ready(1, 2.0) == [SwitchTo(1), StartGeneration(2)]


def test_old_workers_are_replaced_while_a_generation_starts() -> None:
    pool = running(2)
    pool.reload(10.0)
    assert pool.exited(1, -9, "killed", 10.1) == [Spawn(3, 0, 1)]
    pool.generation_ready(2, 11.0)
    assert pool.exited(2, -9, "killed", 11.1) == [Spawn(6, 1, 1)]


def test_old_workers_that_start_at_the_switch_leave_when_ready() -> None:
    pool = running(1)
    pool.reload(10.0)
    pool.generation_ready(2, 10.0)
    pool.exited(1, -9, "killed", 10.5)  # worker 3 starts in generation 1
    pool.ready(2, 11.0)
    assert phases(pool) == {2: "READY", 3: "STARTING"}
    assert pool.ready(3, 12.0) == []
    assert pool.workers[3].phase is WorkerPhase.LEAVING
    assert pool.next_deadline() == 11.0 + DRAIN
    assert pool.exited(3, 1, "crashed", 12.1) == []
    assert pool.restarts == 1


# -- a template dies ---------------------------------------------------------------------------------------------


def test_a_template_that_dies_during_a_reload_is_succeeded_by_it() -> None:
    pool = running(1)
    pool.reload(10.0)
    assert without_reports(pool.generation_lost(1, "killed", 10.5)) == []
    pool.generation_ready(2, 11.0)
    assert without_reports(pool.ready(2, 11.0)) == [SwitchTo(2), EndGeneration(1)]


def test_start_without_room_for_workers_ends_after_its_time() -> None:
    pool = make(1, startup_timeout=5.0)
    pool.start(0.0)
    pool.generation_ready(1, 0.0)
    assert without_reports(pool.spawn_failed(1, "EMFILE", 4.9)) == []
    pool.tick(pool.next_deadline() or 0.0)
    assert without_reports(pool.spawn_failed(2, "EMFILE", 5.1))[0] == GiveUp("workers cannot be started: EMFILE", None)


def test_reload_without_room_for_workers_fails_and_others_serve() -> None:
    pool = running(1, startup_timeout=5.0)
    pool.reload(10.0)
    pool.generation_ready(2, 10.0)
    assert without_reports(pool.spawn_failed(2, "EMFILE", 15.0)) == [EndGeneration(2)]
    assert pool.state is PoolState.RUNNING
    assert not pool.reloading


def test_workers_that_leave_a_lost_generation_are_no_failed_starts() -> None:
    pool = running(6)
    assert without_reports(pool.generation_lost(1, "its queue has ended", 0.2)) == []
    for worker in range(1, 7):
        assert GiveUp not in map(type, pool.exited(worker, 0, "exited with status 0", 0.3))
    assert pool.restarts == 0


def test_a_template_of_an_ended_or_unknown_generation_may_die() -> None:
    pool = running(1)
    reload(pool, 2, [2], 10.0)
    assert pool.generation_lost(1, "killed", 11.0) == pool.generation_lost(7, "killed", 11.0) == []
    assert pool.generation_failed(1, "late", None, 11.0) == pool.generation_ready(1, 11.0) == []


def test_failed_successor_is_retried_while_workers_serve() -> None:
    pool = running(2)
    pool.generation_lost(1, "killed", 10.0)
    now = 10.0
    for generation in range(2, 12):
        now = pool.next_deadline() or 0.0
        assert pool.tick(now) == [StartGeneration(generation)]
        assert without_reports(pool.generation_failed(generation, "SyntaxError", None, now)) == [
            EndGeneration(generation)
        ]
    pool.exited(1, -9, "killed", now)
    pool.exited(2, -9, "killed", now)
    assert pool.state is PoolState.RUNNING
    now = pool.next_deadline() or 0.0
    pool.tick(now)
    commands = pool.generation_failed(12, "SyntaxError", None, now)
    assert without_reports(commands) == [EndGeneration(12), GiveUp("killed", None), EndGeneration(1), Stopped()]


def test_templates_that_die_in_a_row_are_replaced_ever_later() -> None:
    pool = running(1)
    now, pauses = 10.0, []
    for generation in range(2, 6):
        pool.generation_lost(generation - 1, "killed", now)
        pauses.append((pool.next_deadline() or 0.0) - now)
        now += pauses[-1]
        pool.tick(now)
        worker = max(pool.workers) + 1
        pool.generation_ready(generation, now)
        pool.ready(worker, now)
        pool.exited(worker - 1, 0, "exited", now)
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8])
    pool.generation_lost(5, "killed", now + 5.0)
    assert pool.next_deadline() == pytest.approx(now + 5.1)


def test_kills_of_starting_workers_never_end_a_server_that_served() -> None:
    """As by the kernel when memory is short: each pause is longer, and then it tries again."""
    pool, now = running(1), 10.0
    pool.exited(1, -9, "killed", now)
    for worker in range(2, 30):
        commands = pool.exited(worker, -9, "killed", now)
        assert not [command for command in commands if isinstance(command, GiveUp)]
        now = pool.next_deadline() or now
        assert Spawn(worker + 1, 0, 1) in pool.tick(now)
    for worker in range(30, 34):
        pool.exited(worker, 1, "crashed", now)
        now = pool.next_deadline() or now
        pool.tick(now)
    assert GiveUp("killed", None) in pool.exited(34, 1, "crashed", now), "five that died by themselves"


# -- scale ------------------------------------------------------------------------------------------------------


def test_a_larger_pool_spawns() -> None:
    pool = running(2)
    assert pool.scale(4, 5.0) == [Spawn(3, 2, 1), Spawn(4, 3, 1)]
    assert pool.scale(4, 6.0) == []
    assert pool.size == 4


def test_a_smaller_pool_retires_whichever_workers_have_the_time() -> None:
    pool = running(3)
    assert pool.scale(1, 5.0) == [RetireOne(1), RetireOne(1)]
    pool.told_to_leave(2)
    assert pool.scale(1, 5.1) == [RetireOne(1)], "until it is carried out"
    pool.told_to_leave(1)
    assert pool.leaving(2, 6.0) == pool.leaving(1, 6.0) == []
    assert pool.exited(2, 0, "exited", 6.0) == pool.exited(1, 0, "exited", 6.0) == []
    assert phases(pool) == {3: "READY"}
    assert pool.restarts == 0


def test_retired_worker_that_exits_silently_is_not_replaced() -> None:
    pool = running(2)
    pool.scale(1, 5.0)
    pool.told_to_leave(1)
    assert pool.exited(1, 0, "exited", 6.0) == []
    assert pool.exited(2, 0, "exited", 7.0) == [Spawn(3, 0, 1)]


def test_pool_that_grows_again_replaces_retiring_workers() -> None:
    pool = running(2)
    pool.scale(1, 5.0)
    pool.told_to_leave(1)
    assert pool.scale(2, 5.1) == [Spawn(3, 2, 1)]
    assert pool.leaving(1, 6.0) == []
    pool.ready(3, 6.0)
    assert phases(pool) == {1: "LEAVING", 2: "READY", 3: "READY"}


def test_worker_that_crashes_instead_of_retiring_is_not_replaced() -> None:
    pool = running(2)
    pool.scale(1, 5.0)
    pool.told_to_leave(1)
    assert pool.exited(1, -11, "segmentation fault", 6.0) == []
    assert phases(pool) == {2: "READY"}
    assert pool.restarts == 1


def test_no_worker_retires_in_favour_of_one_that_starts() -> None:
    pool = running(2)
    pool.scale(4, 5.0)
    assert pool.scale(2, 5.1) == [], "two serve, as is wanted now"
    assert pool.ready(3, 5.2) == [RetireOne(1)]
    pool.told_to_leave(1)
    assert without_reports(pool.exited(4, 1, "crashed", 5.3)) == [], "it was one too many"
    assert pool.leaving(1, 5.4) == []
    assert phases(pool) == {1: "LEAVING", 2: "READY", 3: "READY"}


def test_a_scale_during_a_reload_holds_for_both_generations() -> None:
    pool = running(2)
    pool.reload(10.0)
    pool.generation_ready(2, 10.0)
    assert pool.scale(3, 11.0) == [Spawn(5, 4, 1), Spawn(6, 5, 2)]
    assert pool.ready(3, 12.0) == []
    commands = pool.scale(1, 13.0)  # which one new worker is enough for
    assert without_reports(commands) == [SwitchTo(2), EndGeneration(1)]
    assert pool.ready(4, 14.0) == [RetireOne(2)]


def test_reload_during_which_the_pool_shrinks_switches_to_one_worker() -> None:
    pool = running(3)
    pool.reload(10.0)
    pool.generation_ready(2, 10.0)
    assert pool.scale(1, 11.0) == [RetireOne(1), RetireOne(1)]
    assert pool.ready(4, 12.0)[0] == SwitchTo(2)
    assert pool.ready(5, 12.0) == [RetireOne(2)]


def test_a_scale_while_the_new_generation_loads_waits_for_it() -> None:
    pool = make(2)
    pool.start(0.0)
    assert pool.scale(1, 0.5) == []
    assert pool.generation_ready(1, 1.0) == [Spawn(1, 0, 1)]


@pytest.mark.parametrize(("asked", "given"), [(0, 1), (-5, 1), (7, 6), (1000, 6)])
def test_size_out_of_range_becomes_the_nearest_possible(asked: int, given: int) -> None:
    pool = running(2)
    assert reports(pool.scale(asked, 5.0)) == [f"warning: cannot have {asked} workers: from 1 to 6 are possible"]
    assert pool.size == given


# -- stop -------------------------------------------------------------------------------------------------------


def test_stop_drains_and_ends_after_the_last_worker() -> None:
    pool = running()
    assert pool.stop(5.0) == [EndGeneration(1)]
    assert pool.state.name == "STOPPING"
    assert pool.exited(1, 0, "exited", 6.0) == []
    assert pool.exited(2, 1, "crashed", 6.0) == [Stopped()]
    assert pool.state is PoolState.STOPPED
    assert (pool.restarts, pool.next_deadline()) == (0, None)


def test_a_stop_without_a_drain_timeout_waits() -> None:
    pool = running(drain_timeout=None)
    pool.stop(5.0)
    assert pool.next_deadline() is None


def test_worker_ready_after_the_stop_has_the_same_deadline() -> None:
    pool = running(1)
    pool.exited(1, 1, "crashed", 5.0)
    pool.stop(5.0)
    pool.stop(6.0, 3.0)
    assert pool.ready(2, 7.0) == []
    assert pool.next_deadline() == 9.0


def test_a_stop_can_be_hurried() -> None:
    pool = running(1)
    pool.stop(5.0)
    assert pool.stop_now(6.0) == [Kill(1, "the server was told to stop now", "stopping")]


def test_a_stop_before_anything_has_started_is_a_stop() -> None:
    pool = make()
    assert pool.stop(0.0) == [Stopped()]
    assert pool.start(1.0) == pool.stop(1.0) == pool.stop_now(1.0) == []


def test_stop_during_the_start_kills_starting_workers() -> None:
    pool = make(2)
    pool.start(0.0)
    pool.generation_ready(1, 0.0)
    pool.ready(1, 1.0)
    assert pool.stop(2.0) == [EndGeneration(1), Kill(2, "its generation was given up", "stopping")]


def test_a_stop_during_a_reload_ends_both_generations() -> None:
    pool = running(1)
    pool.reload(10.0)
    pool.generation_ready(2, 10.0)
    assert pool.stop(11.0) == [EndGeneration(1), EndGeneration(2), Kill(2, "its generation was given up", "stopping")]
    assert pool.exited(2, -9, "killed", 11.1) == []
    assert pool.exited(1, 0, "exited", 11.2) == [Stopped()]


@pytest.mark.parametrize("fact", ["reload", "start", "tick", "stop"])
def test_after_a_stop_nothing_starts(fact: str) -> None:
    pool = running()
    pool.stop(5.0)
    assert getattr(pool, fact)(6.0) == pool.scale(3, 6.0) == pool.generation_lost(1, "killed", 6.0) == []
    pool.exited(1, 0, "exited", 7.0)
    pool.exited(2, 0, "exited", 7.0)
    assert getattr(pool, fact)(8.0) == pool.scale(4, 8.0) == pool.generation_ready(2, 8.0) == []


def test_a_failed_server_drains_and_stops() -> None:
    pool = make(2)
    pool.start(0.0)
    pool.generation_ready(1, 0.0)
    pool.ready(1, 1.0)
    assert without_reports(pool.generation_lost(1, "killed", 2.0)) == [
        GiveUp("killed", None),
        EndGeneration(1),
        Kill(2, "its generation was given up", "stopping"),
    ]
    assert pool.state is PoolState.FAILED
    assert pool.exited(2, -9, "killed", 2.1) == []
    assert pool.exited(1, 0, "exited", 2.2) == [Stopped()]


# -- what takes too long ----------------------------------------------------------------------------------------


def test_import_past_its_limit_shows_stacks_before_the_failure() -> None:
    pool = make()
    pool.start(0.0)
    assert pool.next_deadline() == 29.7
    assert pool.tick(29.7) == [DumpTemplateStacks(1)]
    assert pool.next_deadline() == 30.0
    assert pool.tick(29.9) == []
    reason = "the handler was not imported within 30 s"
    assert pool.tick(30.0) == [GiveUp(reason, None), EndGeneration(1), Stopped()]


def test_reload_with_a_slow_import_keeps_the_old_generation() -> None:
    pool = running()
    pool.reload(10.0)
    assert pool.tick(39.7) == [DumpTemplateStacks(2)]
    commands = pool.tick(40.0)
    assert without_reports(commands) == [EndGeneration(2)]
    assert pool.generation == 1
    assert not pool.reloading


def test_slow_starter_shows_its_stacks_and_ends_the_start() -> None:
    pool = make(1)
    pool.start(0.0)
    pool.generation_ready(1, 1.0)
    assert pool.tick(31.0) == [DumpStacks(1)]
    assert pool.next_deadline() == pytest.approx(31.3)
    reason = "a worker was not ready within 30 s"
    assert pool.tick(31.3) == [Kill(1, reason, "crashed"), GiveUp(reason, None), EndGeneration(1)]
    assert (pool.restarts, pool.last_error) == (1, reason)


def test_slow_starter_of_a_running_server_is_replaced_later() -> None:
    pool = running()
    pool.exited(1, 1, "crashed", 5.0)
    pool.tick(35.0)
    commands = pool.tick(35.3)
    assert without_reports(commands) == [Kill(3, "a worker was not ready within 30 s", "crashed")]
    assert len(reports(commands)) == 1
    assert pool.tick(35.4) == [Spawn(4, 2, 1)]


def test_slow_starter_is_nobodys_failure_after_a_stop() -> None:
    pool = running(1)
    pool.exited(1, 1, "crashed", 5.0)
    pool.stop(6.0)
    assert pool.tick(26.0) == [DumpStacks(2)]
    assert pool.tick(26.3) == [Kill(2, "drain_timeout is over", "crashed")]
    assert pool.restarts == 1


def test_overdue_worker_is_killed_after_its_stacks_and_replaced() -> None:
    pool = running()
    assert pool.overdue(1, 5.0) == [DumpStacks(1), Spawn(3, 2, 1)]
    assert pool.overdue(1, 5.1) == []
    reason = "the handler did not answer within request_timeout"
    assert pool.tick(5.3) == [Kill(1, reason, "timeout")]
    assert pool.exited(1, -9, "killed", 5.4) == []
    assert pool.restarts == 1


def test_leaving_worker_can_be_overdue_and_is_counted_once() -> None:
    pool = running()
    pool.leaving(1, 5.0)
    assert pool.overdue(1, 6.0) == [DumpStacks(1)]
    assert pool.restarts == 0


def test_leaving_worker_is_killed_after_the_drain_timeout() -> None:
    pool = running()
    pool.leaving(1, 5.0)
    pool.ready(3, 5.0)
    assert pool.tick(25.0) == [DumpStacks(1)]
    assert pool.tick(25.3) == [Kill(1, "drain_timeout is over", "stopping")]


def test_worker_is_killed_once_however_often_it_is_told() -> None:
    pool = running(1)
    assert len(pool.stop_now(5.0)) == 2
    assert pool.stop_now(6.0) == pool.tick(99.0) == []


def test_longest_leaving_worker_is_ended_when_slots_are_full() -> None:
    pool = running(1, max_slots=2, drain_timeout=None)
    pool.leaving(1, 5.0)
    pool.ready(2, 5.0)
    assert pool.leaving(2, 6.0) == [DumpStacks(1)]
    assert pool.tick(6.1) == []  # one slot is wanted, and one worker is about to free it
    assert pool.tick(6.3) == [Kill(1, "it does not end, and its place is needed", "stopping")]
    assert pool.tick(9.0) == []
    assert pool.exited(1, -9, "killed", 9.1) == [Spawn(3, 0, 1)]
    assert phases(pool) == {2: "LEAVING", 3: "STARTING"}


def test_only_leaving_workers_are_ended_for_their_slots() -> None:
    pool = running(2, max_slots=4, drain_timeout=None)
    for leaving, successor in ((1, 3), (2, 4)):
        pool.leaving(leaving, 4.0 + leaving)
        pool.ready(successor, 4.0 + leaving)
    assert pool.leaving(4, 7.0) == [DumpStacks(1)]
    assert pool.leaving(3, 8.0) == [DumpStacks(2)]  # now two slots are wanted
