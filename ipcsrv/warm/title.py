"""What ps(1) and top(1) show of a run: its own command line and name, not those of the server.

Linux reads the arguments in the process's own memory, where execve(2) put them (proc(5), stat, fields 48 and 49); the
name is set by prctl(2).  Elsewhere nothing is changed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from typing import Any

_SET_PARENT_DEATH_SIGNAL, _SET_NAME = 1, 15  # prctl(2)


def _find_arguments() -> tuple[int, int]:
    """Return address and size of this process's arguments in its memory; 0 and 0 where that is not known."""
    try:
        with open("/proc/self/stat", "rb") as file:
            fields = file.read().rpartition(b") ")[2].split()
        start, end = int(fields[45]), int(fields[46])
    except (OSError, IndexError, ValueError):
        return 0, 0
    return start, end - start


def _find_prctl() -> Any:
    with contextlib.suppress(AttributeError, OSError):
        return ctypes.CDLL(None).prctl
    return None


_ADDRESS, _SIZE = _find_arguments()  # in the template: its children have the same
_PRCTL = _find_prctl()


def set_command_line(arguments: list[str], name: str) -> None:
    """Show `arguments` as this process's command line, cut to the room there is, and `name` as its name."""
    if _SIZE > 1:
        text = b"\0".join(map(os.fsencode, arguments))[: _SIZE - 1]
        ctypes.memmove(_ADDRESS, text.ljust(_SIZE, b"\0"), _SIZE)
    if _PRCTL is not None:
        _PRCTL(_SET_NAME, ctypes.c_char_p(os.fsencode(name)[:15]), 0, 0, 0)


def end_with_parent(signal_number: int) -> None:
    """Have the kernel send this process a signal when its parent ends, where there is such a thing (Linux)."""
    if _PRCTL is not None:
        _PRCTL(_SET_PARENT_DEATH_SIGNAL, signal_number, 0, 0, 0)
