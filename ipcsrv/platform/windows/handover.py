"""Connections from one process to another, on Windows: how, and the channel of each child.

A handle means something in one process only, and there is no passing it through a pipe.  What can be passed is its
*number*, if somebody duplicates the handle across (DuplicateHandle): either side can, with the other's process open.
In between either process may die, and then nothing must be lost that was not in the dead one's hands, nor be kept
open by the living one, whose client would wait for ever.

**The queue** (`windows_queue`) has a worker duplicate a handle of the master into itself.

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
from collections.abc import Callable
from ctypes import POINTER, c_uint64
from ctypes.wintypes import BOOL, DWORD, HANDLE
from multiprocessing import context
from typing import Any, Final

from .pipe import DONTWAIT, Pipe
from .poller import announce, forget
from .win32 import SecurityDescriptor, declare_kernel32, own_sid

MAX_BODY: Final = 16 * 1024  # bytes
_BUFFER: Final = 65536  # bytes of each private pipe
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


def private_name(what: str) -> str:
    """A name for memory that this process shares with its children."""
    return rf"Local\ipcsrv-{what}-{os.getpid()}-{next(_names)}-{secrets.token_hex(8)}"


def for_child(handle: int) -> int:
    """While a child is being spawned: this handle's number in it."""
    popen: Any = context.get_spawning_popen()
    return int(popen.duplicate_for_child(handle))


class OtherProcess:
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


def pull(source: OtherProcess, handle: int) -> int:
    """A handle of another process, duplicated into this one; OSError where it, or the process, is gone."""
    return _winapi.DuplicateHandle(source.handle, handle, _winapi.GetCurrentProcess(), 0, False, _SAME_ACCESS)


# -- channels ---------------------------------------------------------------------------------------------------------

deaths: list[Callable[[], None]] = []  # what to call when the other end of a channel turns out to be gone


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
        self._peer = OtherProcess(peer)
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
            self._peer = OtherProcess(pid)
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
        for note in deaths:
            note()
        forget(self)
        super().close()

    def __reduce__(self) -> tuple[Any, ...]:
        return Channel, (for_child(self.fileno()), os.getpid(), self._incoming.tag, self._outgoing.tag)


def channel() -> tuple[Channel, Channel]:
    """The two ends of a new channel; the second is the child's."""
    ours, theirs = private_pipe()
    to_child, to_master = private_name("down"), private_name("up")
    return Channel(ours, os.getpid(), to_master, to_child), Channel(theirs, os.getpid(), to_child, to_master)
