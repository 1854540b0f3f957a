"""Handles that go from one process of a server to another, on Windows.

A handle means something in one process only. Whoever is told its number, and of which process it is, duplicates it into
itself (DuplicateHandle) while the owner keeps it open; so a process that dies in between takes nothing along and leaves
nothing open.
"""

from __future__ import annotations

import sys

assert sys.platform == "win32"

import _winapi
import ctypes
import itertools
import msvcrt
import os
import secrets
from multiprocessing import context
from typing import Any, Final

from .win32 import SecurityDescriptor, own_sid

_PIPE_ACCESS_DUPLEX: Final = 3
_FIRST_AND_OVERLAPPED: Final = 0x00080000 | 0x40000000
_FILE_FLAG_OVERLAPPED: Final = 0x40000000
_READ_MESSAGES: Final = 2  # PIPE_READMODE_MESSAGE
_MESSAGES_LOCAL_ONLY: Final = 4 | _READ_MESSAGES | 8  # PIPE_TYPE_MESSAGE, PIPE_REJECT_REMOTE_CLIENTS
_GENERIC_READ_WRITE: Final = 0xC0000000
_PROCESS_DUP_HANDLE: Final = 0x0040

_names = itertools.count(1)


def private_pipe(size: int) -> tuple[int, int]:
    """Return both ends of a new pipe of messages that holds `size` bytes; no other process can open it."""
    name = rf"\\.\pipe\ipcsrv-{os.getpid()}-{next(_names)}-{secrets.token_hex(8)}"
    descriptor = SecurityDescriptor(f"D:P(A;;GA;;;{own_sid()})")
    ours = _winapi.CreateNamedPipe(
        name, _PIPE_ACCESS_DUPLEX | _FIRST_AND_OVERLAPPED, _MESSAGES_LOCAL_ONLY, 1, size, size, 0,
        ctypes.addressof(descriptor.attributes),
    )  # fmt: skip
    waiting = _winapi.ConnectNamedPipe(ours, overlapped=True)
    theirs = _winapi.CreateFile(name, _GENERIC_READ_WRITE, 0, 0, _winapi.OPEN_EXISTING, _FILE_FLAG_OVERLAPPED, 0)
    waiting.GetOverlappedResult(True)
    _winapi.SetNamedPipeHandleState(theirs, _READ_MESSAGES, None, None)
    return ours, theirs


def for_child(handle: int) -> int:
    """While a child is being spawned: return this handle's number in it."""
    popen: Any = context.get_spawning_popen()
    return int(popen.duplicate_for_child(handle))


class OtherProcess:
    """A process whose handles can be duplicated; opened when first needed."""

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
    """Return a handle of another process, duplicated into this one; OSError where it, or the process, is gone."""
    own = _winapi.GetCurrentProcess()
    return _winapi.DuplicateHandle(source.handle, handle, own, 0, False, _winapi.DUPLICATE_SAME_ACCESS)


def duplicated(handle: int) -> int:
    """Return a second handle of this process for the same thing."""
    own = _winapi.GetCurrentProcess()
    return _winapi.DuplicateHandle(own, handle, own, 0, False, _winapi.DUPLICATE_SAME_ACCESS)


def handle_of_file(file: int | None) -> int:
    """Return the handle behind a file's descriptor, to tell another process; 0 for no file."""
    return 0 if file is None else msvcrt.get_osfhandle(file)


def pull_file(source: OtherProcess, handle: int) -> int | None:
    """Return a descriptor of a file that another process has open under this handle; None for 0."""
    if not handle:
        return None
    raw = pull(source, handle)
    try:
        return msvcrt.open_osfhandle(raw, os.O_RDWR | os.O_BINARY | os.O_NOINHERIT)
    except OSError:  # out of descriptors
        _winapi.CloseHandle(raw)
        raise
