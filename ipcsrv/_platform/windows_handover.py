"""Connections from one process to another: the queue of a generation, and the channel of each child.  On Windows.

A handle means something in one process only, and there is no passing it through a pipe.  What can be passed is its
*number*, if somebody duplicates the handle across (DuplicateHandle): either side can, with the other's process open.
In between either process may die, and then nothing must be lost that was not in the dead one's hands, nor be kept
open by the living one, whose client would wait for ever.

**The queue** is one pipe that every worker of a generation reads, so the kernel gives each message to one idle worker.
A message is a number, the connection's handle *in the master*, and a stamp.  The worker duplicates the handle into
itself and acknowledges the number through a second pipe; then the master closes its own.  A message that was read by a
worker that died before it acknowledged is neither in the pipe nor acknowledged: the master finds that out soon after
the death, and puts the connection into the queue again, under a new handle.

**The channel** is a private pipe between the master and a child.  A connection goes with a message by being duplicated
*into* the receiver.  If the sender dies between that and the message, the receiver would own a handle that it knows
nothing of; so the call writes the handle's number straight into memory that both share, beside a draft of the message,
and a receiver that finds the channel ended looks there for one that was never sent.
"""

from __future__ import annotations

import sys

assert sys.platform == "win32"

import _winapi
import ctypes
import itertools
import mmap
import os
import secrets
import struct
import time
from collections.abc import Callable
from ctypes import POINTER, c_uint64
from ctypes.wintypes import BOOL, DWORD, HANDLE
from multiprocessing import context
from typing import Any, Final, NamedTuple

from .win32 import SecurityDescriptor, declare_kernel32, own_sid
from .windows_pipe import CLOSED, DONTWAIT, Pipe, give_up, wait_readable
from .windows_poller import Event, announce, forget, new_errands, new_event, reset_event, set_event

END: Final = "end"
RETIRE: Final = "retire"
QUEUE_DEPTH: Final = 256  # connections in a queue; more wait in the listener
SUSPICION: Final = 0.25  # seconds from a worker's death until what it may have read counts as lost
MAX_BODY: Final = 16 * 1024  # bytes
_BUFFER: Final = 65536  # bytes of each private pipe
_ORDER: Final = struct.Struct("<QQQ")  # of the queue: number, handle in the master (0: retire), stamp
_RECEIPT: Final = struct.Struct("<Q")
_HEADER: Final = struct.Struct("<4sIQQI")  # of a channel: kind, size of the body, number, handle, the sender's pid
_DRAFT: Final = struct.Struct("<QQ4sI40s")  # number, handle, kind, size of the body, body
_PIPE_ACCESS_DUPLEX: Final = 3
_FIRST_AND_OVERLAPPED: Final = 0x00080000 | 0x40000000
_REJECT_REMOTE_CLIENTS: Final = 8
_GENERIC_READ_WRITE: Final = 0xC0000000
_PROCESS_DUP_HANDLE: Final = 0x0040
_SAME_ACCESS: Final = 2

_names = itertools.count(1)
_DuplicateInto = declare_kernel32(
    "DuplicateHandle", BOOL, HANDLE, HANDLE, HANDLE, POINTER(c_uint64), DWORD, BOOL, DWORD
)  # fmt: skip


def close_raw(raw: int) -> None:
    """Close a connection of which only the handle is known."""
    _winapi.CloseHandle(raw)


def private_pipe() -> tuple[int, int]:
    """Both ends of a new pipe that has a name, but whose only instance is taken when this returns."""
    name = rf"\\.\pipe\ipcsrv-{os.getpid()}-{next(_names)}-{secrets.token_hex(8)}"
    descriptor = SecurityDescriptor(f"D:P(A;;GA;;;{own_sid()})")
    ours = _winapi.CreateNamedPipe(
        name, _PIPE_ACCESS_DUPLEX | _FIRST_AND_OVERLAPPED, _REJECT_REMOTE_CLIENTS, 1, _BUFFER, _BUFFER, 0,
        ctypes.addressof(descriptor.attributes),
    )  # fmt: skip
    waiting = _winapi.ConnectNamedPipe(ours, overlapped=True)
    theirs = _winapi.CreateFile(name, _GENERIC_READ_WRITE, 0, 0, _winapi.OPEN_EXISTING, 0x40000000, 0)
    waiting.GetOverlappedResult(True)
    return ours, theirs


def _for_child(handle: int) -> int:
    """While a child is being spawned: this handle's number in it."""
    popen: Any = context.get_spawning_popen()
    return int(popen.duplicate_for_child(handle))


class _Process:
    """Another process whose handles can be duplicated, opened when first needed."""

    __slots__ = ("_handle", "pid")

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._handle: int | None = None

    @property
    def handle(self) -> int:
        """A handle of the process; OSError where it is gone."""
        if self._handle is None:
            own = self.pid == os.getpid()
            self._handle = (
                _winapi.GetCurrentProcess() if own else _winapi.OpenProcess(_PROCESS_DUP_HANDLE, False, self.pid)
            )
        return self._handle

    def __del__(self) -> None:
        if self._handle is not None and self._handle != _winapi.GetCurrentProcess():
            _winapi.CloseHandle(self._handle)


def _pull(source: _Process, handle: int) -> int:
    """A handle of another process, duplicated into this one; OSError where it, or the process, is gone."""
    return _winapi.DuplicateHandle(source.handle, handle, _winapi.GetCurrentProcess(), 0, False, _SAME_ACCESS)


# -- the queue --------------------------------------------------------------------------------------------------------


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
        """Hand over once more what a dead worker may have taken; under a new handle, in case it yet lives."""
        again = 0
        if raw:
            again = _pull(_Process(os.getpid()), raw)
            close_raw(raw)
        self._order(again, stamp)

    @property
    def writing(self) -> Any:
        """What a poller waits for if the queue is full."""
        return self._receipts.room if self._receipts.full() else None

    def close(self) -> None:
        """The drain: workers take what is in the queue, and then find its end."""
        forget(self)
        super().close()


class _Expected(NamedTuple):
    """A connection in the queue: its handle in the master, its stamp, and when it was put there (monotonic seconds)."""

    raw: int
    stamp: int
    queued: float


class Receipts:
    """The master's knowledge of which connections the workers have taken; an errand of whatever poller it runs.

    handle: where the receipts come; reader: the queue's other end, to ask how much is in it.
    """

    def __init__(self, handle: int, reader: int) -> None:
        self._pipe = Pipe(handle)
        self._reader = Pipe(reader)
        self._expected: dict[int, _Expected] = {}  # by number, in the order of the queue
        self._numbers = itertools.count(1)
        self._room = Event(new_event())
        self._deaths: list[float] = []  # moments (monotonic seconds) at which workers died, not looked into yet
        self.queue: Callable[[], QueueWriter | None] = lambda: None
        _deaths.append(self._note_death)

    def expect(self, raw: int, stamp: int) -> int:
        """A number for a connection that goes into the queue."""
        number = next(self._numbers)
        self._expected[number] = _Expected(raw, stamp, time.monotonic())
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
        """A worker has died and may have taken something with it: look again soon."""
        if not self._deaths:
            return None
        return max(0.0, self._deaths[0] + SUSPICION - time.monotonic())

    def run(self) -> bool:
        """Close what has been taken, queue again what was lost; False once no worker is left, nor ever will be."""
        alive = self._take_receipts()
        if self.due() == 0.0:
            self._queue_lost_again(self._deaths.pop(0))
        return alive

    def close(self) -> None:
        """No worker is left: close what none has taken."""
        _deaths.remove(self._note_death)
        for taken in self._expected.values():
            if taken.raw:
                close_raw(taken.raw)
        self._expected.clear()
        self._pipe.close()
        self._reader.close()
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
        if self._expected:
            self._deaths.append(time.monotonic())

    def _queue_lost_again(self, died: float) -> None:
        """What was queued before a worker died, has left the queue and is not acknowledged by now is in nobody's hands.

        (What was queued since may be in the hands of a living one, which is just about to acknowledge it.)
        """
        writer = self.queue()
        gone = list(self._expected.items())[: max(0, len(self._expected) - self._in_queue())]
        for number, lost in [(number, entry) for number, entry in gone if entry.queued < died]:
            del self._expected[number]
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
    """The workers' end of a generation's queue; every worker has this same one."""

    __slots__ = ("__weakref__", "_master", "_receipts")

    def __init__(self, handle: int, receipts: int, master: int) -> None:
        super().__init__(handle)
        self._receipts = Pipe(receipts)
        self._master = _Process(master)
        announce(self)

    def get(self, flags: int = 0) -> tuple[int, int] | str:
        """The next connection as `(raw, stamp)`, `RETIRE`, or `END` once the queue is closed and empty.

        flags: `DONTWAIT`, to raise `BlockingIOError` where it would wait.
        """
        while True:
            order = self.read(_ORDER.size, 0 if flags & DONTWAIT else None)
            if order is None:
                raise BlockingIOError
            if not order:
                return END
            number, handle, stamp = _ORDER.unpack(order)
            try:
                raw = _pull(self._master, handle) if handle else 0
            except OSError:
                continue  # the master is gone, and its connections with it; or it thought that we were
            self._acknowledge(number)
            return (raw, stamp) if raw else RETIRE

    def _acknowledge(self, number: int) -> None:
        try:
            self._receipts.send(_RECEIPT.pack(number))
        except OSError:
            pass  # the master is gone: what it had open is closed

    def close(self) -> None:
        """Close this process's end."""
        forget(self)
        self._receipts.close()
        super().close()

    def __reduce__(self) -> tuple[Any, ...]:
        handles = _for_child(self.fileno()), _for_child(self._receipts.fileno())
        return QueueReader, (*handles, self._master.pid)


def queue() -> tuple[QueueWriter, QueueReader]:
    """A new generation's queue."""
    import weakref

    orders, taken = private_pipe()
    receipts_in, receipts_out = private_pipe()
    receipts = Receipts(receipts_in, _pull(_Process(os.getpid()), taken))
    writer = QueueWriter(orders, receipts)
    receipts.queue = weakref.ref(writer)
    new_errands.append(receipts)
    return writer, QueueReader(taken, receipts_out, os.getpid())


# -- channels ---------------------------------------------------------------------------------------------------------

_deaths: list[Callable[[], None]] = []  # what to call when the other end of a channel turns out to be gone


class _Draft:
    """Memory that both ends of a channel share: the message that a connection is just about to be sent with."""

    def __init__(self, tag: str) -> None:
        self.tag = tag
        self._memory = mmap.mmap(-1, _DRAFT.size, tagname=tag)
        self._handle = c_uint64.from_buffer(self._memory, 8)

    def begin(self, number: int, kind: bytes, body: bytes) -> Any:
        """Write the message down; returns where the handle's number is to be written."""
        _DRAFT.pack_into(self._memory, 0, number, 0, kind, len(body), body)
        return ctypes.pointer(self._handle)

    @property
    def handle(self) -> int:
        """The handle's number in the receiver."""
        return int(self._handle.value)

    def unsent_after(self, number: int) -> tuple[str, bytes, int] | None:
        """The message that was never sent, if there is one later than `number` whose connection is with us."""
        drafted, handle, kind, size, body = _DRAFT.unpack_from(self._memory, 0)
        if drafted <= number or not handle:
            return None
        return kind.rstrip(b"\0").decode(), body[:size], handle


class Channel(Pipe):
    """One end of a private pipe between the master and a child; messages of a kind, a body and maybe a connection."""

    __slots__ = ("__weakref__", "_heard", "_incoming", "_outgoing", "_peer", "_sent", "_unheard")

    def __init__(self, handle: int, peer: int, incoming: str, outgoing: str) -> None:
        super().__init__(handle)
        self._peer = _Process(peer)
        self._incoming, self._outgoing = _Draft(incoming), _Draft(outgoing)
        self._heard = self._sent = 0
        self._unheard = b""  # read already
        announce(self)

    def tell(self, kind: str, body: bytes = b"", raw: int | None = None, *, keep: bool = False) -> None:
        """Send one message; a connection in it is the other side's from then on, and closed here unless `keep`."""
        body, name, handle = body[:MAX_BODY], kind.encode(), 0
        if raw is not None:
            self._sent += 1
            where = self._outgoing.begin(self._sent, name, body[:40])
            _DuplicateInto(_winapi.GetCurrentProcess(), raw, self._peer.handle, where, 0, False, _SAME_ACCESS)
            handle = self._outgoing.handle
        self.sendall(_HEADER.pack(name, len(body), self._sent, handle, os.getpid()) + body)
        if raw is not None and not keep:
            close_raw(raw)

    def hear(self, wait: bool = True) -> tuple[str, bytes, int | None] | None:
        """The next message, or None at the end of the channel; `BlockingIOError` if not `wait` and none is there."""
        while not (message := self._take_unheard()):
            data = self.recv(_BUFFER, 0 if wait else DONTWAIT)
            if not data:
                return self._last_message()
            self._unheard += data
        return message

    def brings_connection(self) -> bool | None:
        """Never in a way that it could not be taken: handles do not run out."""
        return False

    def _take_unheard(self) -> tuple[str, bytes, int | None] | None:
        """The first message of those that have been read, if it is whole."""
        if len(self._unheard) < _HEADER.size:
            return None
        name, size, number, handle, pid = _HEADER.unpack_from(self._unheard)
        end = _HEADER.size + size
        if len(self._unheard) < end:
            return None
        body, self._unheard = self._unheard[_HEADER.size : end], self._unheard[end:]
        self._heard = number
        if pid != self._peer.pid:
            self._peer = _Process(pid)
        return name.rstrip(b"\0").decode(), body, handle or None

    def begin_wait(self) -> Any:
        """None if a message can be had at once."""
        if len(self._unheard) >= _HEADER.size:
            size = _HEADER.unpack_from(self._unheard)[1]
            if len(self._unheard) >= _HEADER.size + size:
                return None
        return super().begin_wait()

    def _last_message(self) -> tuple[str, bytes, int | None] | None:
        """The other side is gone: one message may have been about to come."""
        unsent = self._incoming.unsent_after(self._heard)
        self._heard += 1
        return unsent

    def close(self) -> None:
        """Close this end.  The master does when a worker has died: then the queues have to be looked after."""
        for note in _deaths:
            note()
        forget(self)
        super().close()

    def __reduce__(self) -> tuple[Any, ...]:
        return Channel, (_for_child(self.fileno()), os.getpid(), self._incoming.tag, self._outgoing.tag)


def channel() -> tuple[Channel, Channel]:
    """The two ends of a new channel; the second is the child's."""
    ours, theirs = private_pipe()
    tag = rf"Local\ipcsrv-{os.getpid()}-{next(_names)}-{secrets.token_hex(8)}"
    to_child, to_master = tag + "-down", tag + "-up"
    return Channel(ours, os.getpid(), to_master, to_child), Channel(theirs, os.getpid(), to_child, to_master)
