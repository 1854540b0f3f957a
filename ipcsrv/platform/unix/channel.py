"""The private pipe between the master and one child, on Unix: one message a record, with a descriptor if need be.

Neither side trusts the other's bytes: `hear` raises `FormatError` for what is no message (`supervision.messages`).
Its end is how either side learns that the other died.
"""

from __future__ import annotations

import sys

assert sys.platform != "win32"

import os
import socket
import struct
from typing import Final

from ...supervision.messages import FRAME_SIZE, MAX_BODY, FormatError, Kind, frame, parse_frame, parse_header
from .sockets import CLOEXEC, DONTWAIT, HAS_RECORDS, PAIR_TYPE, PEEK, RIGHTS, Sendable, made

_DESCRIPTOR: Final = struct.Struct("i")
_ANCILLARY: Final = socket.CMSG_SPACE(_DESCRIPTOR.size)
_GONE: Final = (ConnectionResetError, BrokenPipeError)

Message = tuple[Kind, bytes, int | None]
"""Kind, body, and a descriptor that the receiver closes."""


class Channel(Sendable):
    """One end of the pipe."""

    __slots__ = ()

    def tell(self, kind: Kind, body: bytes = b"", descriptor: int | None = None, *, wait: bool = True) -> None:
        """Send one message and a copy of a descriptor; `BlockingIOError` where it would have to wait and may not."""
        rights = [] if descriptor is None else [(*RIGHTS, _DESCRIPTOR.pack(descriptor))]
        data = frame(kind, body)
        sent = self.sendmsg([data], rights, 0 if wait else DONTWAIT)
        if sent < len(data):  # of a stream alone
            self.sendall(data[sent:])

    def hear(self, *, wait: bool = True) -> Message | None:
        """Return the next message, None at the end of the channel; `BlockingIOError` if not `wait` and none is there.

        Raises `FormatError` for bytes that are no message; a descriptor that came with them is closed.
        """
        flags = CLOEXEC | (0 if wait else DONTWAIT)
        try:
            size = FRAME_SIZE + MAX_BODY if HAS_RECORDS else FRAME_SIZE
            data, ancillary, _, _ = self.recvmsg(size, _ANCILLARY, flags)
        except _GONE:  # the other side died before it read all messages
            return None
        if not data:
            return None
        descriptors = [number for _, _, content in ancillary for (number,) in _DESCRIPTOR.iter_unpack(content)]
        try:
            if len(descriptors) > 1:
                raise FormatError(f"{len(descriptors)} descriptors")
            kind, body = parse_frame(data) if HAS_RECORDS else self._rest_of(data)
        except FormatError:
            for descriptor in descriptors:
                os.close(descriptor)
            raise
        return kind, body, descriptors[0] if descriptors else None

    def has_ended(self) -> bool:
        """Return whether the other side is gone; takes nothing."""
        try:
            return not self.recv(1, PEEK | DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _rest_of(self, data: bytes) -> tuple[Kind, bytes]:
        """Read the body of a stream's frame: it was sent by the same call as its header, so it is there."""
        if len(data) < FRAME_SIZE:
            raise FormatError(f"{len(data)} bytes")
        kind, size = parse_header(data)
        parts = []
        while size:
            try:
                part = self.recv(size, DONTWAIT)
            except BlockingIOError:
                part = b""
            if not part:
                raise FormatError("a message that is not whole")
            parts.append(part)
            size -= len(part)
        return kind, b"".join(parts)


def adopt_channel(raw: int) -> Channel:
    """Return an end of a channel that came with a message."""
    return made(Channel, raw)


def channel() -> tuple[Channel, Channel]:
    """Return the two ends of a new channel."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, PAIR_TYPE)
    return made(Channel, ours.detach()), made(Channel, theirs.detach())
