"""The states of connections in the master: what is to be done after each fact, with the time passed in."""

from __future__ import annotations

import pytest

from ipcsrv.supervision import dispatch
from ipcsrv.supervision.dispatch import Act, Command, ConnectionState, Dispatch, Event, Timeouts
from ipcsrv.supervision.messages import ExchangeState, Returned, Stage

HELD = ExchangeState(body=b"x" * 10)


@pytest.fixture
def core() -> Dispatch:
    return Dispatch(Timeouts(read=30.0, write=20.0, max_buffered=25))


def acts(commands: list[Command]) -> list[Act]:
    return [command.act for command in commands]


def count(core: Dispatch, state: ConnectionState) -> int:
    return sum(record.status is state for record in core.all())


def give_back(core: Dispatch, stage: Stage, state: ExchangeState | None = None, now: float = 1.0) -> int:
    number = core.accept_passed(now)
    core.taken(number, now)
    core.returned(Returned(number, stage, int(now * 1e9), state), now)
    return number


def test_new_connection_is_ready_or_watched(core: Dispatch) -> None:
    assert core.next_number == 1
    assert core.accept(0.0, readable=True) == (1, [])
    assert core.accept(0.0, readable=False) == (2, [Command(Act.WATCH, 2)])
    assert (core.waiting, core.silent, count(core, ConnectionState.NEW)) == (1, 1, 1)
    assert core.readable(2, 1.0) == [Command(Act.UNWATCH, 2)]
    assert (core.waiting, core.silent) == (2, 0)


def test_queue_order_is_kept_when_there_is_no_room(core: Dispatch) -> None:
    for _ in range(3):
        core.accept(2.0, readable=True)
    core.ended(1)
    record = core.next_ready()
    assert record is not None and record.number == 2
    core.not_queued(record)
    assert core.next_ready() is record
    assert core.passed(record)[:3] == (2, 2_000_000_000, True)
    core.queued(record, 3.0)
    assert [queued.number for queued in core.in_queue(core.queue)] == [2]
    core.ended(3)
    assert core.next_ready() is None


def test_queued_connections_are_known_by_their_queue(core: Dispatch) -> None:
    old, before = core.queue, core.accept_passed(0.0)
    core.lead_to(old + 1)
    after = core.accept_passed(1.0)
    assert [record.number for record in core.in_queue(old)] == [before]
    assert [record.number for record in core.in_queue(old + 1)] == [after]


def test_connections_that_workers_may_have_are_known(core: Dispatch) -> None:
    queued, taken, suspended, silent = (core.accept_passed(0.0) for _ in range(4))
    core.taken(taken, 1.0)
    core.held(suspended, 7)
    core.returned(Returned(silent, Stage.BETWEEN), 1.0)
    assert {record.number for record in core.passed_to(core.queue)} == {queued, taken}
    assert not list(core.passed_to(core.queue + 1))


def test_passed_connection_is_forgotten_once(core: Dispatch) -> None:
    number = core.accept_passed(0.0)
    assert core.open and core.occupied
    assert core.forget_passed(number)
    assert not core.forget_passed(number)
    assert not core.open and not core.occupied
    core.accept_passed(0.0)
    core.forget_all()
    assert core.all() == []


def test_unknown_number_is_ignored(core: Dispatch) -> None:
    core.taken(9, 0.0)
    core.held(9, 1)
    assert core.ended(9) == core.returned(Returned(9, Stage.BETWEEN), 0.0) == []
    assert core.worker_died(9, untouched=True, may_reply=True, code="", text="", now=0.0) == []
    assert core.records == {}


def test_returned_connection_is_checked(core: Dispatch) -> None:
    number = core.accept_passed(0.0)
    assert core.returned(Returned(number, Stage.BETWEEN), 1.0) == [Command(Act.CHECK, number)]
    assert core.checked(number, None, 1.0) == [Command(Act.WATCH, number)]
    assert core.checked(number, True, 1.0) == []
    assert core.waiting == 1
    assert core.returned(Returned(number, Stage.BETWEEN), 1.0) == []  # no worker has it
    other = give_back(core, Stage.BETWEEN)
    assert core.checked(other, False, 1.0) == [Command(Act.CLOSE, other)]


def test_returned_with_input_ahead_is_ready(core: Dispatch) -> None:
    give_back(core, Stage.AHEAD, HELD)
    assert (core.waiting, core.buffered) == (1, 10)


def test_impossible_event_raises(core: Dispatch) -> None:
    number, _ = core.accept(0.0, readable=True)
    with pytest.raises(ValueError, match="READABLE is not possible in the state READY"):
        core.readable(number, 0.0)
    assert dispatch.TRANSITIONS[ConnectionState.LINGERING] == {Event.CLOSE: ConnectionState.CLOSED}


def test_transitions_name_every_state_and_event_once() -> None:
    table = dispatch.TRANSITIONS
    assert set(table) == set(ConnectionState)
    assert {event for row in table.values() for event in row} == set(Event)
    for state in set(ConnectionState) - {ConnectionState.CLOSED}:
        assert table[state][Event.CLOSE] is ConnectionState.CLOSED  # whatever it does, it can end
    reached = {ConnectionState.NEW}
    while (more := reached.union(*(table[state].values() for state in reached))) != reached:
        reached = more
    assert reached == set(ConnectionState)


def test_connection_of_a_dead_worker_is_passed_or_ended(core: Dispatch) -> None:
    def die(*, untouched: bool = False, may_reply: bool = False) -> list[Act]:
        number = core.accept_passed(0.0)
        return acts(core.worker_died(number, untouched=untouched, may_reply=may_reply, code="crashed", text="", now=1))

    assert die(untouched=True) == [Act.CHECK]
    assert die(may_reply=True) == [Act.REFUSE, Act.WATCH]
    assert die() == [Act.CLOSE]


@pytest.mark.parametrize(("stage", "end"), [
    (Stage.BETWEEN, Act.REFUSE), (Stage.READING, Act.REFUSE), (Stage.WRITING, Act.CLOSE),
])
def test_connection_that_workers_die_of_is_ended(core: Dispatch, stage: Stage, end: Act) -> None:
    number = core.accept_passed(0.0)
    record = core.find(number)
    assert record is not None
    record.stage = stage
    for _ in range(dispatch.MOST_DEATHS - 1):
        commands = core.worker_died(number, untouched=True, now=1.0)
        assert acts(commands) == [Act.CHECK]
        core.checked(number, True, 1.0)
        assert core.next_ready() is record
        core.queued(record, 1.0)
    commands = core.worker_died(number, untouched=True, now=1.0)
    assert commands[0].act is end
    assert number not in core.records or count(core, ConnectionState.LINGERING) == 1


def test_kept_connection_outlives_any_number_of_workers(core: Dispatch) -> None:
    number = core.accept_passed(0.0)
    record = core.find(number)
    assert record is not None
    for _ in range(3 * dispatch.MOST_DEATHS):
        assert acts(core.worker_died(number, untouched=True, served=True, now=1.0)) == [Act.CHECK]
        core.checked(number, True, 1.0)
        assert core.next_ready() is record
        core.queued(record, 1.0)


def test_requeued_exchange_with_state_is_ready(core: Dispatch) -> None:
    give_back(core, Stage.AHEAD, HELD)
    record = core.next_ready()
    assert record is not None
    core.queued(record, 2.0)
    assert core.requeue(record, 3.0) == []
    assert core.waiting == 1


def test_streams_of_a_dead_worker_are_closed(core: Dispatch) -> None:
    numbers = [core.accept_passed(0.0) for _ in range(2)]
    for worker, number in enumerate(numbers, 7):
        core.held(number, worker)
    assert count(core, ConnectionState.LENT) == 2
    assert core.holder_died(7) == [Command(Act.CLOSE, numbers[0])]


def test_stalled_response_is_written_then_checked(core: Dispatch) -> None:
    number = core.accept_passed(0.0)
    commands = core.returned(Returned(number, Stage.WRITING, 0, HELD), 1.0)
    assert commands == [Command(Act.WATCH_OUTPUT, number)]
    assert (core.stalled, core.next_deadline()) == (1, 21.0)
    assert core.wrote(number, 4, 5.0) == []
    assert core.next_deadline() == 25.0
    assert acts(core.wrote(number, 0, 6.0)) == [Act.UNWATCH, Act.CHECK]
    assert (core.stalled, core.buffered, core.next_deadline()) == (0, 0, None)


def test_input_ahead_is_next_after_a_stalled_response(core: Dispatch) -> None:
    number = give_back(core, Stage.WRITING, HELD._replace(ahead=2))
    assert acts(core.wrote(number, 0, 2.0)) == [Act.UNWATCH]
    assert core.records[number].stage is Stage.AHEAD
    assert (core.waiting, core.buffered) == (1, 10)


def test_stalled_response_is_closed_after_write_timeout(core: Dispatch) -> None:
    number = give_back(core, Stage.WRITING, HELD)
    assert core.tick(20.9) == []
    assert core.tick(21.0) == [Command(Act.CLOSE, number)]


def test_stalled_request_is_watched_then_refused(core: Dispatch) -> None:
    number = give_back(core, Stage.READING, HELD)
    assert core.tick(2.0) == [Command(Act.WATCH, number)]
    assert core.next_deadline() == 31.0
    commands = core.tick(31.0)
    assert acts(commands) == [Act.UNWATCH, Act.REFUSE, Act.WATCH]
    assert commands[1].code == "timeout"
    assert count(core, ConnectionState.LINGERING) == 1
    assert core.tick(32.0) == [Command(Act.CLOSE, number)]


def test_stalled_request_resumes_with_input(core: Dispatch) -> None:
    number = give_back(core, Stage.READING, HELD)
    assert core.readable(number, 2.0) == [Command(Act.UNWATCH, number)]
    assert (core.stalled, core.waiting) == (0, 1)


@pytest.mark.parametrize(("stage", "act"), [(Stage.READING, Act.REFUSE), (Stage.WRITING, Act.CLOSE)])
def test_slowest_goes_when_too_much_is_held(core: Dispatch, stage: Stage, act: Act) -> None:
    give_back(core, stage, HELD, now=1.0)
    give_back(core, stage, HELD, now=2.0)
    number = core.accept_passed(3.0)
    commands = core.returned(Returned(number, Stage.READING, 3_000_000_000, HELD), 3.0)
    assert Command(act, 1) in [command._replace(code="", text="") for command in commands]
    assert core.buffered == 20


def test_slowest_is_refused_when_descriptors_run_out(core: Dispatch) -> None:
    assert core.refuse_slowest(0.0) == []
    number = give_back(core, Stage.READING, HELD)
    assert acts(core.refuse_slowest(2.0)) == [Act.UNWATCH, Act.REFUSE, Act.WATCH]
    assert count(core, ConnectionState.LINGERING) == 1 and core.records[number].buffered == 0


def test_untouched_connection_is_passed_again_as_it_was(core: Dispatch) -> None:
    number = give_back(core, Stage.READING, HELD)
    core.readable(number, 2.0)
    record = core.next_ready()
    assert record is not None
    core.queued(record, 2.0)
    assert core.returned(Returned(number, Stage.UNTOUCHED), 3.0) == []
    assert core.next_ready() is record
    assert core.passed(record)[3:] == (Stage.READING, 1_000_000_000, HELD)


def test_refused_client_lingers_until_its_end_or_limit(core: Dispatch) -> None:
    first, commands = core.refuse_new(0.0, "denied", "no")
    assert Command(Act.REFUSE, first, "denied", "no") in commands
    assert core.discarded(first, 5) == []
    assert core.discarded(first, 0) == [Command(Act.CLOSE, first)]
    second = give_back(core, Stage.LINGERING)
    assert core.open and not core.occupied
    assert core.discarded(second, dispatch.LINGER_BYTES + 1) == [Command(Act.CLOSE, second)]


def test_oldest_refused_client_is_closed_beyond_the_most(core: Dispatch) -> None:
    for _ in range(dispatch.MOST_LINGERING):
        core.refuse_new(0.0, "denied", "no")
    assert core.refuse_new(0.0, "denied", "no")[1][-1] == Command(Act.CLOSE, 1)


def test_room_is_made_by_the_longest_silent(core: Dispatch) -> None:
    core.accept(0.0, readable=False)
    core.accept(0.5, readable=False)
    core.accept(5.0, readable=False)
    assert core.make_room(1, 5.0) == [Command(Act.CLOSE, 1)]
    assert core.make_room(9, 5.0) == [Command(Act.CLOSE, 2)]


def test_drain_ends_silent_clients_after_their_grace(core: Dispatch) -> None:
    number, _ = core.accept(1.0, readable=False)
    served = give_back(core, Stage.BETWEEN)
    assert core.drain(1.5) == [Command(Act.UNWATCH, served), Command(Act.CHECK, served)]
    assert acts(core.checked(served, None, 1.5)) == [Act.UNWATCH, Act.HEAR_OUT]
    assert core.checked(number, None, 1.5) == [Command(Act.WATCH, number)]
    assert Command(Act.REFUSE, number, *dispatch.STOPPING) in core.tick(2.0)


def test_timer_does_nothing_outside_a_drain(core: Dispatch) -> None:
    core.accept(1.0, readable=False)
    core.drain(1.5)
    core.draining = False
    assert core.tick(2.0) == []


@pytest.mark.parametrize(
    ("found", "expected"), [(True, []), (False, [Act.CLOSE]), (None, [Act.UNWATCH, Act.REFUSE, Act.WATCH])]
)
def test_last_request_is_heard_out(core: Dispatch, found: bool | None, expected: list[Act]) -> None:
    number = give_back(core, Stage.BETWEEN)
    assert acts(core.heard_out(number, found, 2.0)) == expected
    assert core.waiting == (found is True)


def test_give_up_refuses_all_that_no_worker_has(core: Dispatch) -> None:
    core.accept(0.0, readable=True)
    core.accept_passed(0.0)
    partial = give_back(core, Stage.WRITING, HELD)
    assert acts(core.give_up(2.0)) == [Act.REFUSE, Act.WATCH, Act.CLOSE]
    assert partial not in core.records
    assert count(core, ConnectionState.QUEUED) == 1


def test_refuse_all_refuses_each_once(core: Dispatch) -> None:
    core.accept_passed(0.0)
    assert acts(core.refuse_all(1.0)) == [Act.REFUSE, Act.WATCH]
    assert core.refuse_all(1.0) == []
