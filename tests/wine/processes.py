"""What /proc and pidfds tell the tests on Linux, told on Windows: a server's processes, and when they have gone."""

from __future__ import annotations

import sys

assert sys.platform == "win32"

import _winapi
import ctypes
import os
import time
from ctypes.wintypes import BOOL, DWORD, HANDLE, LONG, MAX_PATH

from ipcsrv.platform.windows.win32 import declare_kernel32

_SNAPSHOT_OF_PROCESSES = 2
_SYNCHRONIZE = 0x00100000
_QUERY_LIMITED = 0x1000


class _Entry(ctypes.Structure):
    """PROCESSENTRY32W."""

    _fields_ = (
        ("size", DWORD), ("usage", DWORD), ("pid", DWORD), ("heap", ctypes.c_size_t), ("module", DWORD),
        ("threads", DWORD), ("parent", DWORD), ("priority", LONG), ("flags", DWORD),
        ("name", ctypes.c_wchar * MAX_PATH),
    )  # fmt: skip


_CreateToolhelp32Snapshot = declare_kernel32("CreateToolhelp32Snapshot", HANDLE, DWORD, DWORD)
_GetProcessTimes = declare_kernel32("GetProcessTimes", BOOL, HANDLE, *[ctypes.POINTER(ctypes.c_uint64)] * 4)
_Process32First = declare_kernel32("Process32FirstW", BOOL, HANDLE, ctypes.POINTER(_Entry), check=False)
_Process32Next = declare_kernel32("Process32NextW", BOOL, HANDLE, ctypes.POINTER(_Entry), check=False)


def children(pid: int | None = None) -> set[int]:
    """The living children of a process, of this one if none is given."""
    return {child for child, parent in _parents().items() if parent == (pid or os.getpid()) and is_alive(child)}


def family(pid: int) -> set[int]:
    """The living processes that are this one or descend from it.

    Those that are older than it are not: their parent had the same pid before.
    """
    found, parents, since = {pid}, _parents(), _made_at(pid)
    while more := {child for child, parent in parents.items() if parent in found and child not in found}:
        found |= {child for child in more if _made_at(child) >= since}
        parents = {child: parent for child, parent in parents.items() if child not in more}
    return {member for member in found if is_alive(member)}


def _made_at(pid: int) -> int:
    """When a process was made, in units of its system; 0 if there is none."""
    try:
        process = _winapi.OpenProcess(_QUERY_LIMITED, False, pid)
    except OSError:
        return 0
    times = [ctypes.c_uint64() for _ in range(4)]
    try:
        _GetProcessTimes(process, *map(ctypes.byref, times))
    finally:
        _winapi.CloseHandle(process)
    return times[0].value


def _parents() -> dict[int, int]:
    snapshot, entry = _CreateToolhelp32Snapshot(_SNAPSHOT_OF_PROCESSES, 0), _Entry(size=ctypes.sizeof(_Entry))
    parents = {}
    more = _Process32First(snapshot, ctypes.byref(entry))
    while more:
        parents[entry.pid] = entry.parent
        more = _Process32Next(snapshot, ctypes.byref(entry))
    _winapi.CloseHandle(snapshot)
    return parents


def is_alive(pid: int) -> bool:
    """Whether it has not ended."""
    return bool(wait_gone({pid}, 0.0))


def wait_gone(pids: set[int], timeout: float = 20.0) -> set[int]:
    """Wait until all of these have ended; returns those that had not in time.

    They are opened before any is waited for: the pid of one that has ended may be another's at once.
    """
    opened = {pid: process for pid in pids if (process := _opened(pid)) is not None}
    until = time.monotonic() + timeout
    try:
        return {pid for pid, process in opened.items() if not _ends_by(process, until)}
    finally:
        for process in opened.values():
            _winapi.CloseHandle(process)


def _opened(pid: int) -> int | None:
    try:
        return _winapi.OpenProcess(_SYNCHRONIZE, False, pid)
    except OSError:
        return None


def _ends_by(process: int, until: float) -> bool:
    milliseconds = max(0, int((until - time.monotonic()) * 1000))
    return _winapi.WaitForSingleObject(process, milliseconds) == _winapi.WAIT_OBJECT_0
