"""The way of a connection through the master: in by the listener or back from a worker, out to the workers' queue.

    backlog --(accept)--> queue of the serving generation --> a worker
                            ^                                    |
                            '-- readable again -- parked <-- silent

Where the kernel can wake one of several processes that wait for a listener, the workers accept for themselves, and
only what was silent comes this way; elsewhere all does.  When the queue is full we stop accepting until there is room,
so that the listen backlog, and then the clients' own deadlines, hold the load back, and nothing is a list in
memory.  Out of descriptors is the same state with another way out of it.

Stopping has an order: the path goes, so that nobody new can come; who has come is accepted and handed over; who has
just connected has a moment to ask; who only kept a connection is told that nothing was done with it.  Runs in the
master.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable
from time import monotonic, monotonic_ns
from typing import Any, Protocol

from ..platform import logs
from ..platform import server as serving
from ..platform.server import HANGUP, READ, WRITE, QueueWriter, Rendezvous
from ..protocol.exchange import failure_packet
from ..supervision import scoreboard as board
from ..supervision.messages import PACED, PASSING
from .headroom import Headroom
from .worker_processes import Crew

log = logs.get("ipcsrv.master")

PACED_NS = 2_000_000  # a client that was silent for 2 ms takes its time
NEW_CLIENT_GRACE = 1.0  # seconds after accept in which a stop waits for a client's first request
BACK_OFF = (0.1, 2.0)  # seconds, first and longest, without accepting when a descriptor or the memory ran out
CALM = 2.0  # seconds without want after which it is over
STAMPS = 1024  # connections; a queue of the kernel's holds fewer
ACCEPTS_A_TURN = 64  # connections accepted before the other events have theirs
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS}


class Parked:
    """A silent connection: since when (monotonic ns), and whether it has been served before."""

    __slots__ = ("served", "since")

    def __init__(self, since: int, served: bool) -> None:
        self.since, self.served = since, served


class Reception(Protocol):
    """What the doorway needs of the master around it."""

    def watch(self, key: int, callback: Callable[[], None], mask: int = READ) -> None: ...
    def unwatch(self, key: int) -> None: ...
    def set_timer(self, name: str, when: float) -> None: ...
    def nobody_waits(self) -> None: ...


class Doorway:
    """Connections on their way through the master."""

    def __init__(self, reception: Reception, rendezvous: Rendezvous, crew: Crew, poller: Any) -> None:
        self._reception, self._rendezvous, self._crew, self._poller = reception, rendezvous, crew, poller
        self.parked: dict[int, Parked] = {}
        self._waiting: deque[tuple[int, int]] = deque()  # accepted or readable again, and no room in the queue
        self._queue: QueueWriter | None = None
        self._room_watched = False
        self._accepting = False
        self._draining = False
        self._short = False  # of descriptors
        self._headroom = Headroom(crew)
        self._exhausted_for = 0.0  # seconds of the present back-off, 0 if there is none
        self._stamps = [0] * STAMPS  # when the last so many connections were put into the queue, as a ring
        self._handed = 0  # connections put into queues
        self.accepted = 0
        self.last_client = monotonic()

    # -- in -----------------------------------------------------------------------------------------------------------

    def lead_to(self, queue: QueueWriter) -> None:
        """Connections go to this queue from now on."""
        self._watch_room(False)
        self._queue = queue
        if self._waiting:
            self.refill()

    def open(self) -> None:
        """Begin to accept, where that is the master's part."""
        self._watch_listener(True)

    def _accept(self) -> None:
        """Accept what waits in the backlog and hand it over, for one turn."""
        accept = self._rendezvous.accept
        for _ in range(ACCEPTS_A_TURN):
            try:
                raw = accept()
            except BlockingIOError:
                break
            except OSError as error:
                self._accept_failed(error)
                break
            self.accepted += 1
            if not self._hand_over(raw, monotonic_ns()):
                break
        self.last_client = monotonic()
        if self._draining:
            self.go_on_draining()

    def _accept_failed(self, error: OSError) -> None:
        if error.errno in _EXHAUSTED:
            self._back_off(error)
        elif error.errno == errno.EINVAL and self._draining:
            self._watch_listener(False)  # shut down, and its backlog is empty
        elif error.errno not in PASSING:
            raise error

    def _hand_over(self, raw: int, stamp: int) -> bool:
        """Put a connection into the queue; if that cannot be done now, it waits here and False is returned."""
        assert self._queue is not None
        try:
            self._queue.put(raw, stamp)
        except OSError as error:
            self._waiting.append((raw, stamp))
            self._no_room(error)
            return False
        handed = self._handed
        self._stamps[handed & STAMPS - 1] = stamp
        self._handed = handed + 1
        return True

    def _no_room(self, error: OSError) -> None:
        """The queue is full, or the kernel holds too many descriptors in flight: stop accepting until there is room."""
        self._watch_listener(False)
        if isinstance(error, BlockingIOError):
            self._watch_room(True)
        else:
            self._back_off(error)

    def refill(self) -> None:
        """There is room in the queue again: hand over what waits, then accept again."""
        self._crew.send_retirements()
        while self._waiting:
            raw, stamp = self._waiting.popleft()
            if not self._hand_over(raw, stamp):
                self._waiting.rotate(1)  # it was put at the end, and is the first
                return
        self._watch_room(False)
        self._watch_listener(not self._short)
        if self._draining:
            self.go_on_draining()

    def _watch_room(self, watch: bool) -> None:
        if self._queue is None or watch == self._room_watched:
            return
        self._room_watched = watch
        if watch:
            self._reception.watch(self._queue.fileno(), self.refill, WRITE)
        else:
            self._reception.unwatch(self._queue.fileno())

    def _watch_listener(self, watch: bool) -> None:
        listener = self._rendezvous.listener
        if listener is None or watch == self._accepting or self._crew.listener is not None:
            return
        self._accepting = watch
        if watch:
            self._reception.watch(listener.fileno(), self._accept)
        else:
            self._reception.unwatch(listener.fileno())

    # -- states of want -----------------------------------------------------------------------------------------------

    def _back_off(self, error: OSError) -> None:
        """Out of descriptors or memory is a state: say so once, pause, try again."""
        self._say_exhausted(os.strerror(error.errno or 0))
        self._exhausted_for = min(BACK_OFF[1], self._exhausted_for * 2 or BACK_OFF[0])
        self._reception.set_timer("calm", monotonic() + self._exhausted_for + CALM)
        self._watch_listener(False)
        self._reception.set_timer("resume", monotonic() + self._exhausted_for)

    def exhausted(self, reason: str) -> None:
        """There is no descriptor for new clients: say so once, until there has been one for a while."""
        self._say_exhausted(reason)
        self._exhausted_for = self._exhausted_for or BACK_OFF[0]
        self._reception.set_timer("calm", monotonic() + CALM)

    def _say_exhausted(self, reason: str) -> None:
        if not self._exhausted_for:
            log.warning("cannot take connections for now: %s; clients wait", reason)

    def recover(self) -> None:
        """Nothing has run out for a while."""
        if self._short:
            self._reception.set_timer("calm", monotonic() + CALM)
        elif self._exhausted_for:
            self._exhausted_for = 0.0
            log.info("taking connections again")

    def take_stock(self) -> None:
        """See whether there are descriptors for more connections; if not, none is accepted until there are.

        Who was served and has been silent for longest makes room, between two requests; for others may wait to be
        served for the first time.
        """
        held, room = self._held(), self._headroom.room()
        if held >= room:
            self.exhausted(os.strerror(errno.EMFILE))
            self._set_short(True)
            if held >= self._headroom.limit():
                self._crew.listen_to_workers(False)
        if self._short:
            self._reception.set_timer("resume", monotonic() + BACK_OFF[0])

    def _held(self) -> int:
        return len(self.parked) + len(self._waiting) + self._headroom.entrusted()

    def _set_short(self, short: bool) -> None:
        self._short = short
        self._crew.set_short(short)
        self._watch_listener(not short)

    def resume(self) -> None:
        """Try whether things are better."""
        if self._short:
            self._make_room()
            self._crew.listen_to_workers(self._held() < self._headroom.limit())
            self._crew.hear_what_brings_nobody()
            if self._held() >= self._headroom.limit() and self._headroom.one_more():
                self._crew.hear_one()  # or its client waits though it may ask, and all whom we hold are silent
            if self._held() * 4 >= self._headroom.room() * 3:
                self._reception.set_timer("resume", monotonic() + BACK_OFF[0])
                return
            self._set_short(False)
        self.refill()

    def _make_room(self) -> None:
        excess = self._held() - self._headroom.room() // 2
        served = [raw for raw, parked in self.parked.items() if parked.served]
        for raw in served[: max(0, excess)]:
            self._leave_park(raw)
            self._see_off(raw)

    # -- parking ------------------------------------------------------------------------------------------------------

    def park(self, raw: int, *, served: bool) -> None:
        """Keep a silent connection until it has something to say."""
        if self._draining and served:
            self._see_off(raw)
            return
        self.parked[raw] = Parked(monotonic_ns(), served)
        self._poller.register(raw, READ)
        self.take_stock()
        if self._draining:
            self.go_on_draining()

    def unpark(self, key: int, mask: int) -> None:
        """A parked connection has spoken, or ended."""
        parked = self._leave_park(key)
        now = monotonic_ns()
        if mask & HANGUP:
            serving.close_raw(key)  # gone, with whatever it may have said: there is nobody to answer
        elif now - parked.since > PACED_NS and parked.served:
            self.requeue(key, now | PACED)
        else:
            self.requeue(key, now)
        if self._draining:
            self.go_on_draining()

    def _leave_park(self, key: int) -> Parked:
        self._poller.unregister(key)
        return self.parked.pop(key)

    def take_back(self, raw: int) -> None:
        """Hand over what was handed over before, to workers who never took it."""
        self._handed -= 1
        self.requeue(raw)

    def requeue(self, raw: int, stamp: int | None = None) -> None:
        """Hand over a connection that was accepted before."""
        stamp = monotonic_ns() if stamp is None else stamp
        if self._queue is None:
            say_farewell(raw)
        elif self._waiting:
            self._waiting.append((raw, stamp))
        else:
            self._hand_over(raw, stamp)

    # -- stopping -----------------------------------------------------------------------------------------------------

    def begin_draining(self) -> None:
        """Take the path away; then `nobody_waits` is called when every client that has come is with the workers."""
        self._draining = True
        self._rendezvous.withdraw()
        grace = monotonic_ns() - int(NEW_CLIENT_GRACE * 1e9)
        for raw, parked in list(self.parked.items()):
            if parked.served or parked.since < grace:
                self._leave_park(raw)
                self._see_off(raw)
        self.go_on_draining()

    def _see_off(self, raw: int) -> None:
        """A silent client's time is over; but if it has just asked, it is served."""
        connection = serving.adopt(raw)
        asked = connection.hear_out() if self._queue is not None else None
        raw = connection.detach()
        if asked:
            self.requeue(raw)
        elif asked is None:
            say_farewell(raw)
        else:
            serving.close_raw(raw)  # between two requests, the end says it all

    def go_on_draining(self) -> None:
        """See whether the backlog is empty and nobody is about to ask."""
        if self._queue is not None:
            self._accept_rest()
            if self._waiting:
                return
        if self.parked:
            newest = max(parked.since for parked in self.parked.values())
            self._reception.set_timer("grace", newest / 1e9 + NEW_CLIENT_GRACE)
            return
        self._reception.nobody_waits()

    def _accept_rest(self) -> None:
        """What the backlog still holds: nobody new can come since the path was withdrawn."""
        while self._accepting:
            try:
                raw = self._rendezvous.accept()
            except OSError as error:
                self._watch_listener(False)
                if error.errno in _EXHAUSTED:
                    self._back_off(error)  # there may be more
                return
            self.accepted += 1
            self._hand_over(raw, monotonic_ns())  # where it cannot, it stops the accepting

    def end_grace(self) -> None:
        """Who has connected and not asked by now has had the time."""
        for raw in list(self.parked):
            self._leave_park(raw)
            self._see_off(raw)
        self.go_on_draining()

    def close(self) -> None:
        """Hand nothing over any more: the queue is about to be closed."""
        self._watch_listener(False)
        self._watch_room(False)
        self._queue = None

    def turn_away(self) -> None:
        """Tell whoever is still here, or in a backlog that is ours to empty, that the server has stopped."""
        for raw, _ in self._waiting:
            say_farewell(raw)
        self._waiting.clear()
        for raw in list(self.parked):
            self._leave_park(raw)
            say_farewell(raw)
        if self._draining and not self._rendezvous.adopted:
            self._turn_backlog_away()

    def _turn_backlog_away(self) -> None:
        try:
            while True:
                say_farewell(self._rendezvous.accept())
        except OSError:
            pass  # there is none left

    # -- facts --------------------------------------------------------------------------------------------------------

    @property
    def occupied(self) -> bool:
        """Whether a client is here, silent or waiting."""
        return bool(self.parked or self._waiting)

    def facts(self) -> dict[str, Any]:
        """How many connections no worker has taken yet, for how long the first has waited, and whether more can come.

        Where workers accept themselves nobody sees when a client came: then it is for how long none has been taken.
        """
        now = monotonic_ns()
        queued = max(0, self._handed - self._crew.scoreboard.totals().queued)
        since = self._stamps[self._handed - queued & STAMPS - 1] & ~PACED if queued else now
        backlog = self._backlog_depth()
        if backlog:
            words = [self._crew.scoreboard.words(hand.slot) for hand in self._crew.hands.values()]
            taken = [max(slot[board.LAST_NS], slot[board.SINCE_NS]) for slot in words]
            since = min(since, max(taken, default=now) or now)
        accepts = self._accepting or self._crew.listener is not None
        return {"depth": queued + len(self._waiting) + backlog, "oldest_seconds": max(0.0, (now - since) / 1e9),
                "accepting": accepts and not self._draining and not self._exhausted_for}

    def _backlog_depth(self) -> int:
        listener = self._rendezvous.listener
        return 0 if listener is None else serving.backlog_depth(listener) or 0


def say_farewell(raw: int) -> None:
    """Close a connection that will not be served, telling its client that nothing was done."""
    connection = serving.adopt(raw)
    try:
        connection.send(failure_packet("stopping", "the server has stopped"), serving.DONTWAIT)
    except OSError:
        pass  # gone, or it does not read
    connection.close()
