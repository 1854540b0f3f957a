"""The queue of connections between the master and the workers of one generation, on Unix (unix(7), SCM_RIGHTS).

It is one socket pair that all workers read: the kernel wakes one idle worker for a message. The master keeps its own
descriptor of every connection that it puts in. When the last writing end is closed, however the master came to close
it, workers take what is left and then find the end.

Where `SOCK_SEQPACKET` is missing (macOS) it is a stream of messages of one size, which readers cannot cut: then no
state travels inside a message, but all of it in a file (`INLINE_LIMIT`).
"""

from __future__ import annotations

import sys

assert sys.platform != "win32"

import os
import socket
import struct
from typing import Final

from ...supervision.messages import INLINE_STATE, PASSED_SIZE, STATE_SIZE
from .sockets import CLOEXEC, DONTWAIT, HAS_RECORDS, PAIR_TYPE, PEEK, RIGHTS, Sendable, made

END: Final = "end"
#: Bytes of an exchange's state that may travel inside a queue message; 0 where messages have one size.
INLINE_LIMIT: Final = INLINE_STATE if HAS_RECORDS else 0
#: Whether the master can go on with a response that its client does not read.
PASSES_OUTPUT: Final = True
_FIXED: Final = PASSED_SIZE + STATE_SIZE
_LARGEST: Final = _FIXED + INLINE_LIMIT
_ONE: Final = struct.Struct("i")
_TWO: Final = struct.Struct("2i")
_ANCILLARY: Final = socket.CMSG_SPACE(_TWO.size)


class QueueWriter(Sendable):
    """The master's end of a generation's queue."""

    __slots__ = ()

    def put(self, raw: int, message: bytes, file: int | None = None) -> None:
        """Pass a connection, and the file with its exchange's state; `BlockingIOError` (nothing is sent) if it is full.

        Both descriptors stay open here; the message holds copies (unix(7)).
        """
        descriptors = _ONE.pack(raw) if file is None else _TWO.pack(raw, file)
        if not HAS_RECORDS:
            message = message.ljust(_FIXED, b"\0")
        self.sendmsg((message,), ((*RIGHTS, descriptors),), DONTWAIT)

    def put_plain(self, message: bytes) -> None:
        """Send a message without a connection; `BlockingIOError` if the queue is full."""
        self.send(message if HAS_RECORDS else message.ljust(_FIXED, b"\0"), DONTWAIT)


class QueueReader(Sendable):
    """The workers' end of a generation's queue; every worker has this same one."""

    __slots__ = ()

    def get(self, flags: int = 0) -> tuple[bytes, int | None, int | None] | str:
        """Return the next message, its connection and its file; `END` once the queue is closed and empty.

        The connection is None if this process had no descriptor left for it (or the message brings none).
        flags: `DONTWAIT`, to raise `BlockingIOError` where it would wait. The caller closes the descriptors.
        """
        try:
            data, ancillary, _, _ = self.recvmsg(_LARGEST if HAS_RECORDS else _FIXED, _ANCILLARY, flags | CLOEXEC)
        except ConnectionResetError:  # the master has closed its end, with bytes unread that a handler has written
            return END
        if not data:
            return END
        if not ancillary:
            return data, None, None
        content = ancillary[0][2]
        if len(content) == _ONE.size:
            return data, _ONE.unpack(content)[0], None
        raw, file = _TWO.unpack(content)
        return data, raw, file

    def has_ended(self) -> bool:
        """Return whether a process has shut this end down, which all share; takes nothing."""
        try:
            return not self.recv(1, PEEK | DONTWAIT)
        except OSError:
            return False


def queue() -> tuple[QueueWriter, QueueReader]:
    """Return both ends of a new generation's queue."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, PAIR_TYPE)
    return made(QueueWriter, ours.detach()), made(QueueReader, theirs.detach())


def taken_back(reader: QueueReader) -> list[bytes]:
    """Take all messages that are in a queue now, as the master does with its own reading end; returns them in order.

    The copies of the descriptors are closed: the master has its own.
    """
    found: list[bytes] = []
    while True:
        try:
            item = reader.get(DONTWAIT)
        except BlockingIOError:
            return found
        if isinstance(item, str):
            return found
        message, *descriptors = item
        found.append(message)
        for descriptor in descriptors:
            if descriptor is not None:
                os.close(descriptor)
