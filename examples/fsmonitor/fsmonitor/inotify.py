"""Linux's inotify by ctypes (inotify(7)): watches on folders, and the events that the kernel has queued for them."""

from __future__ import annotations

import array
import ctypes
import fcntl
import os
import struct
import termios
from collections.abc import Iterator
from typing import NamedTuple

MODIFY, ATTRIB, CLOSE_WRITE = 0x2, 0x4, 0x8
MOVED_FROM, MOVED_TO, CREATE, DELETE = 0x40, 0x80, 0x100, 0x200
MOVE_SELF = 0x800
UNMOUNT, OVERFLOW, IGNORED = 0x2000, 0x4000, 0x8000
IS_FOLDER = 0x40000000
_ONLY_FOLDERS, _NO_SYMLINK = 0x01000000, 0x02000000

#: CLOSE_WRITE as well as MODIFY: a write through a memory mapping is no event, the close after it is one.
_MASK = (MODIFY | ATTRIB | CLOSE_WRITE | MOVED_FROM | MOVED_TO | CREATE | DELETE | MOVE_SELF
         | _ONLY_FOLDERS | _NO_SYMLINK)  # fmt: skip

_HEADER = struct.Struct("iIII")
_LONGEST_EVENT = _HEADER.size + 256  # bytes; read(2) fails if the next event does not fit

_libc = ctypes.CDLL(None, use_errno=True)


class Event(NamedTuple):
    """One event: the watch, what happened, and the name inside the watched folder (empty: the folder itself)."""

    watch: int
    mask: int
    name: bytes


class Inotify:
    """An inotify instance: a queue of events for the folders that are watched."""

    def __init__(self) -> None:
        self._fd = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), b"inotify_init1")

    def close(self) -> None:
        """Release every watch."""
        os.close(self._fd)

    def watch(self, folder: bytes) -> int:
        """Watch a folder; return its number, the same one if it is watched already. Raises OSError."""
        return _checked(_libc.inotify_add_watch(self._fd, folder, ctypes.c_uint32(_MASK)), folder)

    def unwatch(self, watch: int) -> None:
        """End a watch; one that has ended already is no error."""
        _libc.inotify_rm_watch(self._fd, watch)

    def queued(self) -> Iterator[Event]:
        """Yield the events that are in the queue now, and perhaps a few newer ones; an endless writer ends nothing."""
        waiting = array.array("i", [0])
        fcntl.ioctl(self._fd, termios.FIONREAD, waiting)
        left = waiting[0]
        while left > 0:
            data = os.read(self._fd, max(left, _LONGEST_EVENT))
            left -= len(data)
            position = 0
            while position < len(data):
                watch, mask, _, size = _HEADER.unpack_from(data, position)
                position += _HEADER.size + size
                yield Event(watch, mask, data[position - size : position].rstrip(b"\0"))


def _checked(result: int, what: bytes) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fsdecode(what))
    return result
