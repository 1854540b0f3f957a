"""The queue of connections between the master and the workers of one generation, on Windows.

It is one pipe of messages that all workers read; each message goes to one of them. It brings the numbers that a
connection, and the file with its exchange's state, have in the master, which keeps both open meanwhile: the worker
duplicates them into itself. When the writing end is closed, workers take what is left and then find the end.

Workers set an event when they have taken a message; for the master's poller that is room in the queue.
"""

from __future__ import annotations

import sys

assert sys.platform == "win32"

import _winapi
import os
import struct
from typing import Any, Final

from ...supervision.messages import INLINE_STATE, PASSED_SIZE, STATE_SIZE
from .descriptors import OtherProcess, duplicated, for_child, handle_of_file, private_pipe, pull, pull_file
from .pipe import CLOSED, DONTWAIT, MessagePipe
from .poller import Event, announce, forget, new_event, set_event

END: Final = "end"
#: Bytes of an exchange's state that may travel inside a queue message.
INLINE_LIMIT: Final = INLINE_STATE
#: Whether the master can go on with a response that its client does not read: the write that waits is its worker's.
PASSES_OUTPUT: Final = False
CAPACITY: Final = 256 * 1024  # bytes of messages in a queue
_HANDLES: Final = struct.Struct("<QQ")  # of connection and file, in the master; 0 for none
_LARGEST: Final = _HANDLES.size + PASSED_SIZE + STATE_SIZE + INLINE_LIMIT


class QueueWriter(MessagePipe):
    """The master's end of a generation's queue; reader: the other end, to see how much is in it; room: the event."""

    __slots__ = ("__weakref__", "_reader", "_room")

    def __init__(self, handle: int, reader: int, room: int) -> None:
        super().__init__(handle)
        self._reader, self._room = reader, room
        announce(self)

    def put(self, raw: int, message: bytes, file: int | None = None) -> None:
        """Pass a connection, and the file with its exchange's state; `BlockingIOError` (nothing is sent) if it is full.

        Both must stay open here until the connection is returned or has ended.
        """
        self._send(_HANDLES.pack(raw, handle_of_file(file)) + message)

    def put_plain(self, message: bytes) -> None:
        """Send a message without a connection; `BlockingIOError` if the queue is full."""
        self._send(_HANDLES.pack(0, 0) + message)

    def _send(self, data: bytes) -> None:
        if int(_winapi.PeekNamedPipe(self._reader, 0)[0]) + len(data) > CAPACITY:
            raise BlockingIOError
        self.send_message(data, wait=False)

    def begin_output_wait(self) -> Any:
        """Return None if a worker has taken a message since the last time; else what is set when one does."""
        return Event(self._room).begin_wait()

    def close(self) -> None:
        """Close the queue: workers take what is in it, and then find its end."""
        if self._handle != CLOSED:
            forget(self)
            _winapi.CloseHandle(self._reader)
            _winapi.CloseHandle(self._room)
        super().close()


class QueueReader(MessagePipe):
    """The workers' end of a generation's queue; every worker has this same one."""

    __slots__ = ("__weakref__", "_master", "_room")

    def __init__(self, handle: int, room: int, master: int) -> None:
        super().__init__(handle)
        self._room = room
        self._master = OtherProcess(master)
        announce(self)

    def has_ended(self) -> bool:
        """Return whether a process has ended this end for all: a pipe has nothing of that kind."""
        return False

    def get(self, flags: int = 0) -> tuple[bytes, int | None, int | None] | str:
        """Return the next message, its connection and its file; `END` once the queue is closed and empty.

        The connection is None if it could not be duplicated into this process (or the message brings none).
        flags: `DONTWAIT`, to raise `BlockingIOError` where it would wait. The caller closes connection and file.
        """
        data = self.take(flags)
        if not data:
            return END
        set_event(self._room)
        handle, file_handle = _HANDLES.unpack_from(data)
        message = data[_HANDLES.size :]
        if not handle:
            return message, None, None
        try:
            raw = pull(self._master, handle)
        except OSError:
            return message, None, None
        try:
            return message, raw, pull_file(self._master, file_handle)
        except OSError:
            _winapi.CloseHandle(raw)
            return message, None, None

    def take(self, flags: int) -> bytes:
        """Return the next message as it was sent, b"" at the end."""
        return self.receive_message(_LARGEST, wait=not flags & DONTWAIT)

    def close(self) -> None:
        """Close this process's end."""
        if self._handle != CLOSED:
            forget(self)
            _winapi.CloseHandle(self._room)
        super().close()

    def __reduce__(self) -> tuple[Any, ...]:
        return QueueReader, (for_child(self.fileno()), for_child(self._room), self._master.pid)


def queue() -> tuple[QueueWriter, QueueReader]:
    """Return both ends of a new generation's queue."""
    ours, theirs = private_pipe(CAPACITY)
    room = new_event(by_hand=False)
    return QueueWriter(ours, duplicated(theirs), room), QueueReader(theirs, duplicated(room), os.getpid())


def taken_back(reader: QueueReader) -> list[bytes]:
    """Take all messages that are in a queue now, as the master does with its own reading end; returns them in order."""
    found: list[bytes] = []
    while True:
        try:
            data = reader.take(DONTWAIT)
        except BlockingIOError:
            return found
        if not data:
            return found
        found.append(data[_HANDLES.size :])
