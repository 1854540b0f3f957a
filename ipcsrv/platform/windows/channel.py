"""The private pipe between the master and one child, on Windows: one message a record, with a file if need be.

Neither side trusts the other's bytes: `hear` raises `FormatError` for what is no message (`supervision.messages`).
Its end is how either side learns that the other died.

A file goes with a message as the number of its handle. The receiver duplicates it, and the sender waits until that is
done: a sender that is killed before has sent nothing, one that is killed later has handed the file over.
"""

from __future__ import annotations

import sys

assert sys.platform == "win32"

import _winapi
import os
import struct
from typing import Any, Final

from ...supervision.messages import FRAME_SIZE, MAX_BODY, FormatError, Kind, frame, parse_frame
from .descriptors import OtherProcess, duplicated, for_child, handle_of_file, private_pipe, pull_file
from .pipe import CLOSED, MessagePipe, wait_any
from .poller import announce, forget, new_event, set_event

_SENDER: Final = struct.Struct("<QQ")  # the file's handle in the sender, the sender's pid
_LARGEST: Final = _SENDER.size + FRAME_SIZE + MAX_BODY
_BUFFER: Final = 128 * 1024  # bytes; more than the largest message
_LOOK: Final = 1.0  # seconds between two looks whether the receiver of a file is still there

Message = tuple[Kind, bytes, int | None]
"""Kind, body, and the descriptor of a file that the receiver closes."""


class Channel(MessagePipe):
    """One end of the pipe; taken: an event, which the receiver of a file sets. Files go in one direction."""

    __slots__ = ("__weakref__", "_peer", "_taken")

    def __init__(self, handle: int, taken: int) -> None:
        super().__init__(handle)
        self._peer = OtherProcess(0)
        self._taken = taken
        announce(self)

    def tell(self, kind: Kind, body: bytes = b"", descriptor: int | None = None, *, wait: bool = True) -> None:
        """Send one message and a copy of a file; `BlockingIOError` where it would have to wait and may not."""
        handle = handle_of_file(descriptor)
        self.send_message(_SENDER.pack(handle, os.getpid()) + frame(kind, body), wait=wait)
        while handle and wait_any([self._taken], _LOOK) is None:
            if self.has_ended():
                raise BrokenPipeError("the receiver of the file is gone")

    def hear(self, *, wait: bool = True) -> Message | None:
        """Return the next message, None at the end of the channel; `BlockingIOError` if not `wait` and none is there.

        Raises `FormatError` for bytes that are no message.
        """
        while True:
            data = self.receive_message(_LARGEST, wait=wait)
            if not data:
                return None
            if len(data) < _SENDER.size:
                raise FormatError(f"{len(data)} bytes")
            handle, pid = _SENDER.unpack_from(data)
            kind, body = parse_frame(data[_SENDER.size :])
            try:
                file = self._file(handle, pid)
            except OSError:  # the sender was killed while it waited: it had done nothing yet
                continue
            return kind, body, file

    def _file(self, handle: int, pid: int) -> int | None:
        if not handle:
            return None
        if pid != self._peer.pid:
            self._peer = OtherProcess(pid)
        file = pull_file(self._peer, handle)
        set_event(self._taken)
        return file

    def has_ended(self) -> bool:
        """Return whether the other side is gone; takes nothing."""
        try:
            _winapi.PeekNamedPipe(self._handle, 0)
        except OSError:
            return True
        return False

    def close(self) -> None:
        """Close this end; once is enough."""
        if self._handle != CLOSED:
            forget(self)
            _winapi.CloseHandle(self._taken)
        super().close()

    def __reduce__(self) -> tuple[Any, ...]:
        return Channel, (for_child(self.fileno()), for_child(self._taken))


def adopt_channel(raw: int) -> Channel:
    """Refuse: a channel travels to a template alone, and without fork there is none."""
    raise NotImplementedError("an end of a channel cannot be sent through another")


def channel() -> tuple[Channel, Channel]:
    """Return the two ends of a new channel."""
    ours, theirs = private_pipe(_BUFFER)
    taken = new_event(by_hand=False)
    return Channel(ours, taken), Channel(theirs, duplicated(taken))
