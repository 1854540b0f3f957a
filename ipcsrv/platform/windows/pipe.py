"""One end of a connected pipe, with a socket's methods.  Used by client and server on Windows, in every process.

A pipe has no readiness that could be asked for.  Every read and write is started *overlapped*, with an event of its
own, and then waited for; what does not end in time is cancelled.  Two rules give it the semantics of a socket:

- A cancelled read loses no data only if it asked for none.  So a process that waits for data without reading it yet has
  a read of zero bytes pending: it ends when data (or the end) is there, and leaves it there (as libuv does).
- A write that cannot end at once is *not* cancelled, since it would not be known how much of it the peer has read.  It
  stays, `send` says `BlockingIOError`, and the caller's next `send`, which begins with the same bytes, is told how
  many went.  A count that was returned is in the kernel's hands: closing the handle then loses none of it.  (A next
  `send` of other bytes means that the caller has given those up; it begins once they are through.)
"""

from __future__ import annotations

import sys

assert sys.platform == "win32"

import _winapi
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    Buffer = bytes | bytearray | memoryview

DONTWAIT = 0x40  # any bit: the flag is not passed to Windows
# Reading and writing, but not FILE_CREATE_PIPE_INSTANCE, which GENERIC_WRITE would ask for: what `allow` grants others
PIPE_ACCESS = 0x0012019B
PIECE = 65536  # bytes of one write: what a pipe takes at once if its reader has kept up
CLOSED = -1
INFINITE = 0xFFFFFFFF

# winerror.h: BROKEN_PIPE, NO_DATA, PIPE_NOT_CONNECTED: the peer closed, is closing, or was disconnected
PEER_IS_GONE = frozenset({109, 232, 233})
BAD_PIPE = 230  # what a disconnected server's end answers to a peek
OPERATION_ABORTED = 995
IO_PENDING = 997


def milliseconds(seconds: float | None) -> int:
    """A time for a wait function: rounded up, so that no wait ends early; None is for ever."""
    return INFINITE if seconds is None else min(max(0, -int(-seconds * 1000 // 1)), INFINITE - 1)


def wait_any(events: list[int], seconds: float | None) -> int | None:
    """The index of the first of these handles to be set, or None when the time is over.  Ctrl-C interrupts it."""
    until = None if seconds is None else time.monotonic() + seconds
    while True:
        try:
            found = _winapi.WaitForMultipleObjects(events, False, milliseconds(seconds))
        except InterruptedError:  # Ctrl-C, and its handler did not raise
            seconds = None if until is None else until - time.monotonic()
            continue
        return None if found == _winapi.WAIT_TIMEOUT else found - _winapi.WAIT_OBJECT_0


class Pipe:
    """An overlapped handle of a connected byte pipe; it belongs to this object until `detach` or `close`."""

    __slots__ = ("_handle", "_piece", "_writing")

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._writing: _winapi.Overlapped | None = None
        self._piece: bytes | memoryview = b""  # what it writes, which must stay alive and as it is until then

    def fileno(self) -> int:
        """The handle; -1 once closed."""
        return self._handle

    def recv(self, size: int, flags: int = 0) -> bytes:
        """At most `size` bytes as soon as there are any, b"" at the end; with DONTWAIT `BlockingIOError` for none."""
        if flags & DONTWAIT:
            size = min(size, self._available())
            if not size:
                return b""
        data = self.read(size, None)
        assert data is not None
        return data

    def read(self, size: int, seconds: float | None) -> bytes | None:
        """At most `size` bytes, b"" at the end, None when the time is over."""
        try:
            operation, error = _winapi.ReadFile(self._handle, size, overlapped=True)
            if error == IO_PENDING and wait_any([operation.event], seconds) is None:
                operation.cancel()
            error = operation.GetOverlappedResult(True)[1]
        except OSError as failure:
            if failure.winerror in PEER_IS_GONE:
                return b""
            raise
        return None if error == OPERATION_ABORTED else operation.getbuffer() or b""

    def _available(self) -> int:
        """Bytes that can be read at once, 0 at the end; BlockingIOError where a read would wait."""
        try:
            available = int(_winapi.PeekNamedPipe(self._handle, 0)[0])
        except OSError as error:
            if error.winerror in PEER_IS_GONE or error.winerror == BAD_PIPE:
                return 0
            raise
        if not available:
            raise BlockingIOError
        return available

    def gone(self) -> bool:
        """True once the peer has closed its end (and, since a pipe tells it only then, all that it sent was read)."""
        try:
            return not self._available()
        except BlockingIOError:
            return False

    def send(self, data: Buffer, flags: int = 0) -> int:
        """How many bytes from the start of `data` went; with DONTWAIT `BlockingIOError` where it would wait."""
        return self.sendmsg((data,), (), flags)

    def sendmsg(self, buffers: Iterable[Buffer], ancillary: object = (), flags: int = 0) -> int:
        """`send` for the bytes of several buffers in a row."""
        piece = first_piece(buffers)
        seconds = 0 if flags & DONTWAIT else None
        if self._writing is not None:
            begun = self._piece
            sent = self._end_write(seconds)
            if piece[: len(begun)] == begun:
                return sent
        self._begin_write(piece)
        return self._end_write(seconds)

    def sendall(self, data: Buffer) -> None:
        """Send all of it, for as long as that takes."""
        view = memoryview(data)
        while view:
            view = view[self.send(view) :]

    def _begin_write(self, piece: bytes | memoryview) -> None:
        try:
            self._writing = _winapi.WriteFile(self._handle, piece, overlapped=True)[0]
            self._piece = piece
        except OSError as error:
            if error.winerror in PEER_IS_GONE:
                raise BrokenPipeError("the other end of the pipe is closed") from None
            raise

    def _end_write(self, seconds: float | None) -> int:
        """How many bytes the write under way has moved, once it has ended; else BlockingIOError."""
        operation = self._writing
        assert operation is not None
        if wait_any([operation.event], seconds) is None:
            raise BlockingIOError
        self._writing, self._piece = None, b""
        try:
            sent, error = operation.GetOverlappedResult(True)
        except OSError as failure:
            raise BrokenPipeError(f"the other end of the pipe is closed ({failure.winerror})") from None
        if error == OPERATION_ABORTED:
            raise BrokenPipeError("the pipe was closed")
        return sent

    @property
    def writing(self) -> _winapi.Overlapped | None:
        """The write under way, whose event is set once it has ended; None where the next need not wait."""
        return self._writing

    def begin_wait(self) -> _winapi.Overlapped | None:
        """A read of no bytes (see above); None if one can read at once."""
        return wait_readable(self._handle)

    def end_wait(self, waiting: _winapi.Overlapped) -> None:
        """Take that read back."""
        give_up(waiting)

    def begin_output_wait(self) -> _winapi.Overlapped | None:
        """Return the write under way, None if there is none; nothing has to be taken back."""
        return self._writing

    def detach(self) -> int:
        """Give the handle away: its new owner closes it."""
        handle, self._handle = self._handle, CLOSED
        return handle

    def close(self) -> None:
        """Close the handle, and give up a write under way; once is enough.  The peer can still read what was sent."""
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None
        handle = self.detach()
        if handle != CLOSED:
            _winapi.CloseHandle(handle)

    def __enter__(self) -> Pipe:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if self._handle != CLOSED:
            self.close()


class MessagePipe(Pipe):
    """One end of a private pipe of messages: each read takes one whole message, also with several readers."""

    __slots__ = ()

    def send_message(self, data: bytes, *, wait: bool) -> None:
        """Send one message; `BlockingIOError` if not `wait` and the last one still waits for room.

        One message may wait: it goes out when the reader has made room, and is lost only if this end is closed before.
        """
        seconds = None if wait else 0
        if self._writing is not None:
            self._end_write(seconds)
        self._begin_write(data)
        try:
            self._end_write(seconds)
        except BlockingIOError:
            pass

    def receive_message(self, size: int, *, wait: bool) -> bytes:
        """Return the next message, of at most `size` bytes; b"" at the end; `BlockingIOError` if it would have to wait.

        size: no smaller than any message, since another reader may take the one that is there now.
        """
        if not wait:
            self._available()
        data = self.read(size, None if wait else 0)
        if data is None:
            raise BlockingIOError  # another reader was quicker
        return data


def wait_readable(handle: int) -> _winapi.Overlapped | None:
    """A read of no bytes, whose event tells that data or the end has come; None if they are there already."""
    try:
        if _winapi.PeekNamedPipe(handle, 0)[0]:
            return None
        operation, error = _winapi.ReadFile(handle, 0, overlapped=True)
    except OSError as failure:
        if failure.winerror in PEER_IS_GONE or failure.winerror == BAD_PIPE:
            return None
        raise
    return operation if error == IO_PENDING else None


def give_up(operation: _winapi.Overlapped | None) -> None:
    """Cancel an operation whose result is not needed, and wait until Windows has let go of it."""
    if operation is None:
        return
    operation.cancel()
    try:
        operation.GetOverlappedResult(True)
    except OSError:
        pass


def first_piece(buffers: Iterable[Buffer]) -> bytes | memoryview:
    """The bytes that one write may take from the front of `buffers`; copied, unless they are immutable already."""
    parts: list[Buffer] = []
    size = 0
    for buffer in buffers:
        parts.append(buffer if size + len(buffer) <= PIECE else memoryview(buffer)[: PIECE - size])
        size += len(parts[-1])
        if size == PIECE:
            break
    if len(parts) == 1 and isinstance(parts[0], bytes):
        return parts[0]
    return b"".join(parts)
