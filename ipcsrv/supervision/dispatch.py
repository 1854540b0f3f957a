"""The states of the connections in the master, as pure code: facts and the time in, commands out.

The master keeps its own descriptor of every connection until that connection ends, and lends a copy to one worker at a
time. What is known of a connection is one record with one state; `TRANSITIONS` is the whole list of how a state may
change. `Dispatch` decides (whom to watch, to pass, to refuse, to close); the dispatcher of the master acts on
descriptors. Times are monotonic seconds and are passed in.
"""

from __future__ import annotations

import heapq
from collections import deque
from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple

from .messages import ExchangeState, Passed, Returned, Stage

if TYPE_CHECKING:
    from collections.abc import Iterator

NEW_CLIENT_GRACE = 1.0  # seconds after accept in which a drain waits for a client's first request
REPASS_INTERVAL = 0.05  # seconds between two passes of the same stalled connection
LINGER_TIME = 1.0  # seconds in which a refused client may read the reason (docs/protocol.md, failure reply)
LINGER_BYTES = 64 << 20
MOST_LINGERING = 64  # refused connections; the oldest is closed
MOST_DEATHS = 5  # of workers that had taken a connection, until it is refused
MOST_READY = 256  # connections that wait here for room in the queue; then the backlog holds the load back

DEADLY = ("crashed", "several workers died before they could read this request")
STOPPING = ("stopping", "the server has stopped")


class ConnectionState(Enum):
    """What a connection is doing."""

    NEW = auto()  # accepted, has sent nothing yet; watched
    IDLE = auto()  # between two requests; watched
    READY = auto()  # has something for a worker; waits for room in the queue
    QUEUED = auto()  # in the queue
    LENT = auto()  # taken by a worker
    STALLED = auto()  # in the middle of a request or a response that makes no progress; watched
    LINGERING = auto()  # refused; what its client still sends is read and discarded
    CLOSED = auto()


class Event(Enum):
    """What changes a state."""

    READABLE = auto()
    QUEUE = auto()
    TAKE = auto()
    RETURN = auto()
    RETURN_AHEAD = auto()
    STALL = auto()
    RESUME = auto()
    FLUSH = auto()
    REQUEUE = auto()
    REFUSE = auto()
    CLOSE = auto()


_S, _E = ConnectionState, Event
_WATCHED = {_E.READABLE: _S.READY, _E.REFUSE: _S.LINGERING, _E.CLOSE: _S.CLOSED}
_WITH_WORKER = {
    _E.RETURN: _S.IDLE,
    _E.RETURN_AHEAD: _S.READY,
    _E.STALL: _S.STALLED,
    _E.REQUEUE: _S.IDLE,
    _E.REFUSE: _S.LINGERING,
    _E.CLOSE: _S.CLOSED,
}
TRANSITIONS: dict[ConnectionState, dict[Event, ConnectionState]] = {
    _S.NEW: _WATCHED,
    _S.IDLE: _WATCHED,
    _S.READY: {_E.QUEUE: _S.QUEUED, _E.REFUSE: _S.LINGERING, _E.CLOSE: _S.CLOSED},
    _S.QUEUED: {_E.TAKE: _S.LENT, **_WITH_WORKER},
    _S.LENT: _WITH_WORKER,
    _S.STALLED: {_E.RESUME: _S.READY, _E.FLUSH: _S.IDLE, _E.REFUSE: _S.LINGERING, _E.CLOSE: _S.CLOSED},
    _S.LINGERING: {_E.CLOSE: _S.CLOSED},
    _S.CLOSED: {},
}


class Act(Enum):
    """What the dispatcher is to do with a connection."""

    WATCH = auto()  # for input
    WATCH_OUTPUT = auto()
    UNWATCH = auto()
    CHECK = auto()  # look whether it has input, is silent or has ended; then tell
    REFUSE = auto()  # send the failure reply, shut down writing, watch for input to discard
    HEAR_OUT = auto()  # let it send no more and look whether it has input; then tell
    CLOSE = auto()  # shut down, on every copy, and close


class Command(NamedTuple):
    """One act; `code` and `text` are those of a failure reply."""

    act: Act
    number: int
    code: str = ""
    text: str = ""


class Record:
    """What is known of one connection.

    since: when it entered its state; served: whether it was ever passed to a worker; stage, began_ns, state: of the
    exchange that it is in the middle of; passed: when it was queued last; queue: the generation whose queue that was;
    progress: when its client took output last; discarded: bytes since it was refused; due: when the time of its state
    is over, 0 for never; holder: the worker that keeps its suspended stream, 0 for none.
    """

    __slots__ = ("began_ns", "deaths", "discarded", "due", "holder", "number", "passed", "progress", "queue", "served",
                 "since", "stage", "state", "status")  # fmt: skip

    def __init__(self, number: int, now: float) -> None:
        self.number = number
        self.status = ConnectionState.NEW
        self.since = self.progress = now
        self.passed = 0.0
        self.queue = 0
        self.due = 0.0
        self.served = False
        self.stage = Stage.BETWEEN
        self.began_ns = 0
        self.state: ExchangeState | None = None
        self.discarded = 0
        self.holder = 0
        self.deaths = 0  # of workers that had taken it and had begun nothing

    @property
    def buffered(self) -> int:
        """Bytes held for its exchange."""
        return 0 if self.state is None else self.state.size


class Timeouts(NamedTuple):
    """The settings that bound a stalled exchange: seconds, and bytes held for all of them."""

    read: float
    write: float
    max_buffered: int | None


class Dispatch:
    """The connections of one master.

    timeouts: of stalled exchanges. Facts are methods that return commands; `next_ready` and `ready` are how the
    dispatcher moves connections into the queue. overdue: the connections whose stalled exchange the last `tick` ended,
    and the stage of it (READING or WRITING).
    """

    def __init__(self, timeouts: Timeouts) -> None:
        self.records: dict[int, Record] = {}
        self.ready: deque[int] = deque()
        self.draining = False
        self.queue = 0
        self._timeouts = timeouts
        self._last = 0
        self._plain: dict[int, float] = {}  # passed at once when they were accepted, and when; they have no record yet
        self._idle: dict[int, Record] = {}  # NEW and IDLE, the longest silent first
        self._lingering: dict[int, Record] = {}
        self._stalled: dict[int, Record] = {}
        self._places = {
            ConnectionState.NEW: self._idle,
            ConnectionState.IDLE: self._idle,
            ConnectionState.STALLED: self._stalled,
            ConnectionState.LINGERING: self._lingering,
        }
        self._buffered = 0
        self.overdue: list[tuple[int, Stage]] = []
        self._timers: list[tuple[float, int]] = []

    # -- for status -------------------------------------------------------------------------------------------------

    @property
    def buffered(self) -> int:
        """Bytes held for stalled exchanges."""
        return self._buffered

    @property
    def waiting(self) -> int:
        """How many connections wait here for room in the queue."""
        return len(self.ready)

    @property
    def silent(self) -> int:
        """How many connections are watched for their next request."""
        return len(self._idle)

    @property
    def stalled(self) -> int:
        """How many exchanges make no progress."""
        return len(self._stalled)

    # -- a connection comes, speaks, ends ---------------------------------------------------------------------------

    def accept(self, now: float, *, readable: bool) -> tuple[int, list[Command]]:
        """Return the number of a new connection, and what to do: nothing if it is READY, else to watch it."""
        self._last = number = self._last + 1
        record = self.records[number] = Record(number, now)
        self._enter(record, ConnectionState.READY if readable else ConnectionState.NEW, now)
        return number, [] if readable else [Command(Act.WATCH, number)]

    @property
    def next_number(self) -> int:
        """The number of the next connection."""
        return self._last + 1

    def accept_passed(self, now: float) -> int:
        """Return the number of a new connection that has been passed already: nearly every one is of this kind."""
        self._last = number = self._last + 1
        self._plain[number] = now
        return number

    def forget_passed(self, number: int) -> bool:
        """A worker has ended a connection; False if more is known of it, so that `ended` must be told."""
        return self._plain.pop(number, None) is not None

    def forget_all(self) -> None:
        """Forget every connection, since the master has closed all; later reports of workers are ignored."""
        self.records.clear()
        self._plain.clear()

    def find(self, number: int) -> Record | None:
        """Return the record of a connection, None if there is none of this number (any more)."""
        record = self.records.get(number)
        if record is None and (passed := self._plain.pop(number, None)) is not None:
            record = self.records[number] = Record(number, passed)
            record.status, record.served, record.passed = ConnectionState.QUEUED, True, passed
            record.queue = self.queue
        return record

    def all(self) -> list[Record]:
        """Return the records of all connections."""
        for number in list(self._plain):
            self.find(number)
        return list(self.records.values())

    def refuse_new(self, now: float, code: str, text: str) -> tuple[int, list[Command]]:
        """Return the number of a new connection that may not use this server."""
        number, _ = self.accept(now, readable=False)
        return number, self._refuse(self.records[number], now, code, text)

    def readable(self, number: int, now: float) -> list[Command]:
        """A watched connection has input (or output space, if it is STALLED in a response)."""
        record = self.records[number]
        self._move(record, Event.RESUME if record.status is ConnectionState.STALLED else Event.READABLE, now)
        return [Command(Act.UNWATCH, number)]

    def ended(self, number: int) -> list[Command]:
        """The client, or the worker, has ended it; a number that is not known any more is ignored."""
        record = self.find(number)
        return [] if record is None else self._close(record)

    def checked(self, number: int, found: bool | None, now: float) -> list[Command]:
        """Answer of CHECK: input is there (True), the client has ended (False), it is silent (None)."""
        record = self.records[number]
        if found is False:
            return self._close(record)
        if found:
            self._move(record, Event.READABLE, now)
            return []
        if self.draining:
            return self._end_silent(record, now)
        return [Command(Act.WATCH, number)]

    # -- between master and workers ---------------------------------------------------------------------------------

    def next_ready(self) -> Record | None:
        """Return the connection that goes into the queue next; `queued` or `not_queued` follows."""
        while self.ready:
            record = self.records.get(self.ready.popleft())
            if record is not None and record.status is ConnectionState.READY:
                return record
        return None

    def queued(self, record: Record, now: float) -> None:
        """It is in the queue now."""
        record.served, record.passed, record.queue = True, now, self.queue
        self._move(record, Event.QUEUE, now)

    def not_queued(self, record: Record) -> None:
        """There was no room."""
        self.ready.appendleft(record.number)

    def passed(self, record: Record) -> Passed:
        """Return the queue message of a connection."""
        return Passed(record.number, int(record.since * 1e9), not record.served, record.stage, record.began_ns,
                      record.state)

    def taken(self, number: int, now: float) -> None:
        """A worker's slot names it."""
        record = self.find(number)
        if record is not None and record.status is ConnectionState.QUEUED:
            self._move(record, Event.TAKE, now)

    def held(self, number: int, worker: int) -> None:
        """A suspended stream stays in its worker."""
        record = self.find(number)
        if record is not None:
            self.taken(number, record.since)
            record.holder = worker

    def returned(self, returned: Returned, now: float) -> list[Command]:
        """A worker gives a connection back. One that the master has ended meanwhile is ignored."""
        record = self.find(returned.number)
        if record is None or record.status not in (ConnectionState.QUEUED, ConnectionState.LENT):
            return []
        if returned.stage is Stage.UNTOUCHED:
            return self.requeue(record, now)
        self._forget_state(record)
        record.stage, record.began_ns, record.state = returned.stage, returned.began_ns, returned.state
        record.holder = record.deaths = 0
        self._buffered += record.buffered
        stage = returned.stage
        if stage is Stage.BETWEEN:
            self._move(record, Event.RETURN, now)
            return [Command(Act.CHECK, record.number)]
        if stage is Stage.AHEAD:
            self._move(record, Event.RETURN_AHEAD, now)
            return []
        if stage is Stage.LINGERING:
            return self._linger(record, now)
        self._move(record, Event.STALL, now)
        record.progress = now
        return [*self._begin_stall(record, now), *self._bound_buffered(now)]

    def worker_died(self, number: int, *, untouched: bool, now: float, may_reply: bool = False, code: str = "",
                    text: str = "", served: bool = False) -> list[Command]:
        """A worker has died with this connection, or what it returned with it was lost.

        untouched: nothing of a request was read; may_reply: a failure reply would not fall into a packet; served: the
        worker had answered a request of it, so that the connection is no reason to die.
        """
        record = self.find(number)
        if record is None or record.status not in (ConnectionState.QUEUED, ConnectionState.LENT):
            return []
        record.deaths = 0 if served else record.deaths + untouched
        if untouched and record.deaths < MOST_DEATHS:
            return self.requeue(record, now)
        if untouched:  # it may be the reason: no more workers are lost to it
            may_reply, (code, text) = record.stage is not Stage.WRITING, DEADLY
        return self._refuse(record, now, code, text) if may_reply else self._close(record)

    def requeue(self, record: Record, now: float) -> list[Command]:
        """Nothing was done with it: another worker shall have it if there is something to read."""
        if record.state is not None:
            self._move(record, Event.RETURN_AHEAD, now)
            return []
        self._move(record, Event.REQUEUE, now)
        return [Command(Act.CHECK, record.number)]

    def holder_died(self, worker: int) -> list[Command]:
        """Return commands for the suspended streams that died with a worker."""
        return [command for record in list(self.records.values()) if record.holder == worker
                for command in self._close(record)]

    # -- stalled exchanges ------------------------------------------------------------------------------------------

    def wrote(self, number: int, left: int, now: float) -> list[Command]:
        """The master has sent output of a stalled response; `left` bytes of it remain."""
        record = self.records[number]
        record.progress = now
        state = record.state
        assert state is not None
        if left:
            self._set_due(record, now + self._timeouts.write)
            return []
        ahead = state.ahead
        if ahead:
            return self._go_on_ahead(record, state, now)
        self._forget_state(record)
        self._move(record, Event.FLUSH, now)
        return [Command(Act.UNWATCH, number), Command(Act.CHECK, number)]

    def _go_on_ahead(self, record: Record, state: ExchangeState, now: float) -> list[Command]:
        """The response is out; what the client sent ahead is next."""
        self._forget_state(record)
        record.stage, record.began_ns, record.state = Stage.AHEAD, 0, state
        self._buffered += record.buffered
        self._move(record, Event.RESUME, now)
        return [Command(Act.UNWATCH, record.number)]

    def _begin_stall(self, record: Record, now: float) -> list[Command]:
        if record.stage is Stage.WRITING:
            self._set_due(record, now + self._timeouts.write)
            return [Command(Act.WATCH_OUTPUT, record.number)]
        self._set_due(record, record.passed + REPASS_INTERVAL)
        return []

    def _bound_buffered(self, now: float) -> list[Command]:
        """Refuse the slowest while more is held than `max_buffered_size`."""
        commands: list[Command] = []
        limit = self._timeouts.max_buffered
        while limit is not None and self._buffered > limit and self._stalled:
            commands += self.refuse_slowest(now)
        return commands

    def refuse_slowest(self, now: float) -> list[Command]:
        """Too much is held: end the stalled exchange that has taken longest, if there is one."""
        if not self._stalled:
            return []
        slowest = min(self._stalled.values(), key=lambda record: record.began_ns or record.since * 1e9)
        if slowest.stage is Stage.READING:
            return self._refuse(slowest, now, "busy", "too much is held for stalled requests")
        return self._close(slowest)

    def _read_by(self, record: Record) -> float:
        return record.began_ns / 1e9 + self._timeouts.read

    # -- refusing ---------------------------------------------------------------------------------------------------

    def _refuse(self, record: Record, now: float, code: str, text: str) -> list[Command]:
        watched = record.status in (ConnectionState.NEW, ConnectionState.IDLE, ConnectionState.STALLED)
        before = [Command(Act.UNWATCH, record.number)] if watched else []
        return [*before, Command(Act.REFUSE, record.number, code, text), *self._linger(record, now)]

    def _linger(self, record: Record, now: float) -> list[Command]:
        self._forget_state(record)
        record.holder = 0
        self._move(record, Event.REFUSE, now)
        self._set_due(record, now + LINGER_TIME)
        commands = [Command(Act.WATCH, record.number)]
        while len(self._lingering) > MOST_LINGERING:
            commands += self._close(next(iter(self._lingering.values())))
        return commands

    def discarded(self, number: int, size: int) -> list[Command]:
        """So many bytes of a refused client were read and discarded; 0 is its end."""
        record = self.records[number]
        record.discarded += size
        return self._close(record) if not size or record.discarded > LINGER_BYTES else []

    # -- time -------------------------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """Return when `tick` must be called next; None while nothing depends on the time."""
        while self._timers:
            due, number = self._timers[0]
            record = self.records.get(number)
            if record is not None and record.due == due:
                return due
            heapq.heappop(self._timers)
        return None

    def tick(self, now: float) -> list[Command]:
        """Time has passed."""
        commands: list[Command] = []
        self.overdue = []
        while (due := self.next_deadline()) is not None and due <= now:
            record = self.records[heapq.heappop(self._timers)[1]]
            record.due = 0.0
            commands += self._over(record, now)
        return commands

    def _over(self, record: Record, now: float) -> list[Command]:
        """Its time is over."""
        if record.status is ConnectionState.LINGERING:
            return self._close(record)
        if record.status is not ConnectionState.STALLED:
            return self._end_silent(record, now) if self.draining and record.number in self._idle else []
        if record.stage is Stage.WRITING:
            self.overdue.append((record.number, record.stage))
            return self._close(record)
        if now >= self._read_by(record):
            self.overdue.append((record.number, record.stage))
            return self._refuse(record, now, "timeout", "the request was not complete within read_timeout")
        self._set_due(record, self._read_by(record))
        return [Command(Act.WATCH, record.number)]

    def _set_due(self, record: Record, due: float) -> None:
        record.due = due
        heapq.heappush(self._timers, (due, record.number))

    # -- descriptors ------------------------------------------------------------------------------------------------

    def make_room(self, wanted: int, now: float) -> list[Command]:
        """Descriptors have run out: close `wanted` silent connections, the longest silent first.

        One that has just connected has a moment to ask for something.
        """
        silent = [record for record in self._idle.values()
                  if record.served or now - record.since >= NEW_CLIENT_GRACE]
        return [command for record in silent[:wanted] for command in self._close(record)]

    # -- draining ---------------------------------------------------------------------------------------------------

    def drain(self, now: float) -> list[Command]:
        """The server stops: silent connections end; one that has just connected has a moment to ask."""
        self.draining = True
        commands: list[Command] = []
        for record in list(self._idle.values()):
            if record.served or now >= record.since + NEW_CLIENT_GRACE:
                commands += [Command(Act.UNWATCH, record.number), Command(Act.CHECK, record.number)]
            else:
                self._set_due(record, record.since + NEW_CLIENT_GRACE)
        return commands

    def _end_silent(self, record: Record, now: float) -> list[Command]:
        """The server stops and this client is silent: between two requests its connection is ended."""
        if not record.served and now < record.since + NEW_CLIENT_GRACE:
            self._set_due(record, record.since + NEW_CLIENT_GRACE)
            return [Command(Act.WATCH, record.number)]
        if record.served:
            return [Command(Act.UNWATCH, record.number), Command(Act.HEAR_OUT, record.number)]
        return self._refuse(record, now, *STOPPING)

    def heard_out(self, number: int, found: bool | None, now: float) -> list[Command]:
        """Answer of HEAR_OUT: a request that came in the last moment is served.

        found: whether there is one; None where it may still come, for which the client is told that it is not served.
        """
        record = self.records[number]
        if found is None:
            return self._refuse(record, now, *STOPPING)
        if not found:
            return self._close(record)
        self._move(record, Event.READABLE, now)
        return []

    def give_up(self, now: float) -> list[Command]:
        """drain_timeout is over: refuse all that no worker has."""
        with_worker = (ConnectionState.QUEUED, ConnectionState.LENT, ConnectionState.LINGERING)
        commands: list[Command] = []
        for record in self.all():
            if record.status in with_worker:
                continue
            partial = record.status is ConnectionState.STALLED and record.stage is Stage.WRITING
            commands += self._close(record) if partial else self._refuse(record, now, *STOPPING)
        return commands

    def refuse_all(self, now: float) -> list[Command]:
        """No worker is left: refuse every connection that is not refused already."""
        commands: list[Command] = []
        for record in self.all():
            if record.status is not ConnectionState.LINGERING:
                commands += self._refuse(record, now, *STOPPING)
        return commands

    @property
    def open(self) -> bool:
        """Whether any connection is left."""
        return bool(self._plain or self.records)

    @property
    def occupied(self) -> bool:
        """Whether anything but refused clients is left."""
        return bool(self._plain) or len(self.records) > len(self._lingering)

    def lead_to(self, queue: int) -> None:
        """Connections go to the queue of this generation from now on."""
        self.all()  # those without a record went to the one before
        self.queue = queue

    def in_queue(self, queue: int) -> Iterator[Record]:
        """Yield the connections that are in this queue, or have been taken from it unseen."""
        return (record for record in self.all() if record.status is ConnectionState.QUEUED and record.queue == queue)

    def passed_to(self, queue: int) -> Iterator[Record]:
        """Yield what was passed to this queue and has not come back, suspended streams excepted: they have a holder."""
        states = (ConnectionState.QUEUED, ConnectionState.LENT)
        return (record for record in self.all()
                if record.status in states and record.queue == queue and not record.holder)

    # -- changing a state -------------------------------------------------------------------------------------------

    def _move(self, record: Record, event: Event, now: float) -> None:
        status = TRANSITIONS[record.status].get(event)
        if status is None:
            raise ValueError(f"{event.name} is not possible in the state {record.status.name}")
        # One that was READY stays in `ready` until its turn comes, when `next_ready` skips it.
        if record.status in self._places:
            del self._places[record.status][record.number]
        record.due = 0.0
        self._enter(record, status, now)

    def _enter(self, record: Record, status: ConnectionState, now: float) -> None:
        """Put a record into the place of its new state, behind those that are there."""
        record.status, record.since = status, now
        if status is ConnectionState.READY:
            self.ready.append(record.number)
        elif status in self._places:
            self._places[status][record.number] = record

    def _forget_state(self, record: Record) -> None:
        self._buffered -= record.buffered
        record.stage, record.began_ns, record.state = Stage.BETWEEN, 0, None

    def _close(self, record: Record) -> list[Command]:
        self._forget_state(record)
        self._move(record, Event.CLOSE, record.since)
        del self.records[record.number]
        return [Command(Act.CLOSE, record.number)]
