"""The job object on Windows, by which the workers of a master end with it, however it ends."""

from __future__ import annotations

import sys

assert sys.platform == "win32"

import _winapi
import contextlib
import ctypes
import os
from ctypes import byref, c_size_t, c_void_p, c_wchar_p
from ctypes.wintypes import BOOL, DWORD, HANDLE
from multiprocessing import parent_process
from typing import Final

from .win32 import declare_kernel32

_JOB_OBJECT_ASSIGN_PROCESS: Final = 0x0001
_EXTENDED_LIMITS: Final = 9
_KILL_ON_JOB_CLOSE: Final = 0x2000


class _BasicLimits(ctypes.Structure):
    """JOBOBJECT_BASIC_LIMIT_INFORMATION."""

    _fields_ = (
        ("process_time", ctypes.c_int64), ("job_time", ctypes.c_int64), ("flags", DWORD), ("least", c_size_t),
        ("most", c_size_t), ("processes", DWORD), ("affinity", c_size_t), ("priority", DWORD), ("scheduling", DWORD),
    )  # fmt: skip


class _ExtendedLimits(ctypes.Structure):
    """JOBOBJECT_EXTENDED_LIMIT_INFORMATION."""

    _fields_ = (("basic", _BasicLimits), ("io", ctypes.c_uint64 * 6), ("memory", c_size_t * 4))


_CreateJobObject = declare_kernel32("CreateJobObjectW", HANDLE, c_void_p, c_wchar_p)
_OpenJobObject = declare_kernel32("OpenJobObjectW", HANDLE, DWORD, BOOL, c_wchar_p)
_SetInformationJobObject = declare_kernel32("SetInformationJobObject", BOOL, HANDLE, ctypes.c_int, c_void_p, DWORD)
_AssignProcessToJobObject = declare_kernel32("AssignProcessToJobObject", BOOL, HANDLE, HANDLE)

_job: int | None = None  # kept until we die, and closed by that


def _job_name(master: int) -> str:
    return rf"Local\ipcsrv-workers-{master}"


def keep_workers_from_outliving_us() -> None:
    """In the master: make the job object that its workers join, and that ends with the master's last handle of it."""
    global _job
    if _job is None:
        job = _CreateJobObject(None, _job_name(os.getpid()))
        limits = _ExtendedLimits()
        limits.basic.flags = _KILL_ON_JOB_CLOSE
        _SetInformationJobObject(job, _EXTENDED_LIMITS, byref(limits), ctypes.sizeof(limits))
        _job = job


def join_job() -> None:
    """In a worker: enter the master's job, where it has one."""
    master = parent_process()
    if master is None or master.pid is None:
        return
    with contextlib.suppress(OSError):
        job = _OpenJobObject(_JOB_OBJECT_ASSIGN_PROCESS, False, _job_name(master.pid))
        try:
            _AssignProcessToJobObject(job, _winapi.GetCurrentProcess())
        finally:
            _winapi.CloseHandle(job)
