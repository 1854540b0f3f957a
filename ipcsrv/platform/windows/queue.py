"""The queue of connections between the master and one generation of workers, on Windows.

It is one pipe that every worker of a generation reads, so the kernel gives each message to one idle worker.
A message is a number, the connection's handle *in the master*, and a stamp.  The worker duplicates the handle into
itself and acknowledges the number through a second pipe; then the master closes its own.

A message that was read by a worker that died before it acknowledged is neither in the pipe nor acknowledged: the
master looks for such ones after each death, and puts their connections into the queue again.  It must not take for lost
what a living worker is just about to acknowledge, however long that one is kept from running.  Two would have the
connection then; and if the one that reads the request died, the other's handle would keep the client waiting for ever.
So each worker counts in shared memory when it begins to take from the queue and when it has acknowledged, and the
master waits for that (`_Takers`).
"""

from __future__ import annotations

import sys

assert sys.platform == "win32"

import _winapi
import itertools
import mmap
import os
import struct
import time
from collections.abc import Callable
from multiprocessing import context
from typing import Any, Final, NamedTuple

from .handover import (
    OtherProcess,
    close_raw,
    deaths,
    for_child,
    private_name,
    private_pipe,
    pull,
)
from .pipe import CLOSED, DONTWAIT, Pipe, give_up, wait_any, wait_readable
from .poller import Event, announce, forget, new_errands, new_event, reset_event, set_event

END: Final = "end"
LOST: Final = "lost"
RETIRE: Final = "retire"
QUEUE_DEPTH: Final = 256  # connections in a queue; more wait in the listener
MOST_TAKERS: Final = 8192  # living workers of one generation
LOOK_AGAIN: Final = 0.01  # seconds until a worker that is taking something is looked at again
_ORDER: Final = struct.Struct("<QQQ")  # number, handle in the master (0: retire), stamp
_RECEIPT: Final = struct.Struct("<Q")
_SYNCHRONIZE: Final = 0x00100000


class QueueWriter(Pipe):
    """The master's end of a generation's queue."""

    __slots__ = ("__weakref__", "_receipts")

    def __init__(self, handle: int, receipts: Receipts) -> None:
        super().__init__(handle)
        self._receipts = receipts
        announce(self)

    def put(self, raw: int, stamp: int) -> None:
        """Hand the connection over; `BlockingIOError` (nothing changed) if the queue is full.

        stamp: when the connection was accepted or became readable, in monotonic nanoseconds.
        """
        if self._receipts.full():
            raise BlockingIOError
        self._order(raw, stamp)

    def retire(self) -> None:
        """Make one worker, whichever takes it, leave after what it has."""
        self._order(0, 0)

    def _order(self, raw: int, stamp: int) -> None:
        self.sendall(_ORDER.pack(self._receipts.expect(raw, stamp), raw, stamp))

    def put_again(self, raw: int, stamp: int) -> None:
        """Hand over once more what a dead worker has taken."""
        self._order(raw, stamp)

    @property
    def writing(self) -> Any:
        """What a poller waits for if the queue is full."""
        return self._receipts.room if self._receipts.full() else None

    def close(self) -> None:
        """The drain: workers take what is in the queue, and then find its end."""
        forget(self)
        super().close()


class _Expected(NamedTuple):
    """A connection in the queue: its handle in the master, and its stamp."""

    raw: int
    stamp: int


class _Takers:
    """Which workers are just taking something from the queue: a count for each in shared memory, odd while it does."""

    def __init__(self, tag: str) -> None:
        self.tag = tag
        self.counts = memoryview(mmap.mmap(-1, 8 * MOST_TAKERS, tagname=tag)).cast("Q")
        self._processes: dict[int, int] = {}  # in the master: by place in `counts`; 0 is the master's own place

    def admit(self, process: int) -> int:
        """A place for a new worker, which is this process; those that have ended make room."""
        for place, handle in list(self._processes.items()):
            if _has_ended(handle):
                _winapi.CloseHandle(handle)
                del self._processes[place]
        place = next(place for place in range(1, MOST_TAKERS) if place not in self._processes)
        own = _winapi.GetCurrentProcess()
        self._processes[place] = _winapi.DuplicateHandle(own, process, own, _SYNCHRONIZE, False, 0)
        self.counts[place] += self.counts[place] & 1  # its predecessor may have died in the middle
        return place

    def __reduce__(self) -> tuple[Any, ...]:
        return _Takers, (self.tag,)

    def taking(self) -> dict[int, int]:
        """The counts of the living that are taking something, by place."""
        return {place: count for place, handle in self._processes.items()
                if (count := self.counts[place]) & 1 and not _has_ended(handle)}

    def close(self) -> None:
        """No worker is left."""
        for handle in self._processes.values():
            _winapi.CloseHandle(handle)
        self._processes.clear()


def _has_ended(process: int) -> bool:
    return _winapi.WaitForSingleObject(process, 0) == _winapi.WAIT_OBJECT_0


class _Search(NamedTuple):
    """For what dead workers have taken along: what has left the queue, and who may yet acknowledge it."""

    numbers: list[int]
    takers: dict[int, int]
    again_at: float  # monotonic seconds


class Receipts:
    """The master's knowledge of which connections the workers have taken; an errand of whatever poller it runs.

    handle: where the receipts come; reader: the queue's other end, to ask how much is in it; takers: who reads there.
    """

    def __init__(self, handle: int, reader: int, takers: _Takers) -> None:
        self._pipe = Pipe(handle)
        self._reader = Pipe(reader)
        self._expected: dict[int, _Expected] = {}  # by number, in the order of the queue
        self._numbers = itertools.count(1)
        self._room = Event(new_event())
        self._takers = takers
        self._died = False  # a worker has, since the last search began
        self._search: _Search | None = None
        self.queue: Callable[[], QueueWriter | None] = lambda: None
        deaths.append(self._note_death)

    def expect(self, raw: int, stamp: int) -> int:
        """A number for a connection that goes into the queue."""
        number = next(self._numbers)
        self._expected[number] = _Expected(raw, stamp)
        return number

    def full(self) -> bool:
        """Whether the queue is full, also after a look at what has come."""
        if len(self._expected) >= QUEUE_DEPTH:
            self._take_receipts()
        full = len(self._expected) >= QUEUE_DEPTH
        if full:
            reset_event(self._room.event)
        return full

    @property
    def room(self) -> Event:
        """Set when the queue is no longer full."""
        return self._room

    def fileno(self) -> int:
        """The pipe of the receipts."""
        return self._pipe.fileno()

    def begin_wait(self) -> Any:
        """A read of no bytes."""
        return wait_readable(self._pipe.fileno())

    def end_wait(self, waiting: Any) -> None:
        """Cancel it."""
        give_up(waiting)

    def due(self) -> float | None:
        """A worker has died and may have taken something with it."""
        if self._search is not None:
            return max(0.0, self._search.again_at - time.monotonic())
        return 0.0 if self._died else None

    def run(self) -> bool:
        """Close what has been taken, queue again what was lost; False once no worker is left, nor ever will be."""
        alive = self._take_receipts()
        if self.due() == 0.0:
            self._look_for_lost()
        return alive

    def close(self) -> None:
        """No worker is left: close what none has taken."""
        deaths.remove(self._note_death)
        for taken in self._expected.values():
            if taken.raw:
                close_raw(taken.raw)
        self._expected.clear()
        self._pipe.close()
        self._reader.close()
        self._takers.close()
        _winapi.CloseHandle(self._room.event)

    def _take_receipts(self) -> bool:
        try:
            while data := self._pipe.recv(4096, DONTWAIT):
                for (number,) in _RECEIPT.iter_unpack(data):
                    taken = self._expected.pop(number, None)
                    if taken is not None and taken.raw:
                        close_raw(taken.raw)
        except BlockingIOError:
            if len(self._expected) < QUEUE_DEPTH:
                set_event(self._room.event)
            return True
        return False

    def _note_death(self) -> None:
        self._died = self._died or bool(self._expected)

    def _look_for_lost(self) -> None:
        """What has left the queue was a dead worker's, unless a living one that was just taking it acknowledges it."""
        if self._search is None:
            self._died = False
            gone = list(self._expected)[: max(0, len(self._expected) - self._in_queue())]
            takers = self._takers.taking()  # asked after the queue was: who has taken any of it is among them, or done
        else:
            gone, now = self._search.numbers, self._takers.taking()
            takers = {place: count for place, count in self._search.takers.items() if now.get(place) == count}
        if gone and takers:
            self._search = _Search(gone, takers, time.monotonic() + LOOK_AGAIN)
            return
        self._search = None
        self._take_receipts()
        for number in gone:
            self._queue_again(number)

    def _queue_again(self, number: int) -> None:
        lost, writer = self._expected.pop(number, None), self.queue()
        if lost is None:
            return  # it was acknowledged
        if writer is not None and writer.fileno() != CLOSED:
            writer.put_again(lost.raw, lost.stamp)
        elif lost.raw:
            close_raw(lost.raw)

    def _in_queue(self) -> int:
        try:
            return int(_winapi.PeekNamedPipe(self._reader.fileno(), 0)[0]) // _ORDER.size
        except OSError:
            return 0


class QueueReader(Pipe):
    """The workers' end of a generation's queue: the same one for all; `place` is each one's own among the takers."""

    __slots__ = ("__weakref__", "_counts", "_master", "_place", "_receipts", "_takers")

    def __init__(self, handle: int, receipts: int, master: int, takers: _Takers, place: int = 0) -> None:
        super().__init__(handle)
        self._receipts = Pipe(receipts)
        self._master = OtherProcess(master)
        self._takers, self._counts, self._place = takers, takers.counts, place
        announce(self)

    def get(self, flags: int = 0) -> tuple[int, int] | str:
        """The next connection as `(raw, stamp)`, `RETIRE`, `LOST`, or `END` once the queue is closed and empty.

        flags: `DONTWAIT`, to raise `BlockingIOError` where it would wait.
        """
        while True:
            try:
                return self._take()
            except BlockingIOError:
                if flags & DONTWAIT:
                    raise
            arrival = wait_readable(self._handle)
            try:
                if arrival is not None:
                    wait_any([arrival.event], None)
            finally:
                give_up(arrival)

    def _take(self) -> tuple[int, int] | str:
        self._counts[self._place] += 1
        try:
            while self._available():
                order = self.read(_ORDER.size, 0)
                if order is None:
                    raise BlockingIOError  # another worker was quicker
                if order and (taken := self._accept(*_ORDER.unpack(order))) is not None:
                    return taken
            return END
        finally:
            self._counts[self._place] += 1

    def _accept(self, number: int, handle: int, stamp: int) -> tuple[int, int] | str | None:
        """Make what an order names our own; None where the master is gone, and its connections with it."""
        try:
            raw = pull(self._master, handle) if handle else 0
        except OSError:
            return LOST if self._acknowledge(number) else None
        self._acknowledge(number)
        return (raw, stamp) if raw else RETIRE

    def _acknowledge(self, number: int) -> bool:
        try:
            self._receipts.send(_RECEIPT.pack(number))
        except OSError:
            return False  # the master is gone: what it had open is closed
        return True

    def close(self) -> None:
        """Close this process's end."""
        forget(self)
        self._receipts.close()
        super().close()

    def __reduce__(self) -> tuple[Any, ...]:
        popen: Any = context.get_spawning_popen()
        handles = for_child(self.fileno()), for_child(self._receipts.fileno())
        return QueueReader, (*handles, self._master.pid, self._takers, self._takers.admit(popen.sentinel))


def queue() -> tuple[QueueWriter, QueueReader]:
    """A new generation's queue."""
    import weakref

    orders, taken = private_pipe()
    receipts_in, receipts_out = private_pipe()
    takers = _Takers(private_name("takers"))
    receipts = Receipts(receipts_in, pull(OtherProcess(os.getpid()), taken), takers)
    writer = QueueWriter(orders, receipts)
    receipts.queue = weakref.ref(writer)
    new_errands.append(receipts)
    return writer, QueueReader(taken, receipts_out, os.getpid(), takers)
