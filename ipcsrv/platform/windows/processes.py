"""Signals, processes and memory on Windows, as the server's half of the seam promises them.  In the master and workers.

No signals reach a process without a console; so a worker listens to its master through named events, in a thread of
its own.  What that thread does to the worker it does while the worker's own thread is in the handler, and that one does
not come back from there meanwhile (`handler_gate`).  All workers are in a job object that ends them with the master,
however that dies.
"""

from __future__ import annotations

import sys

assert sys.platform == "win32"

import _winapi
import contextlib
import ctypes
import faulthandler
import mmap
import msvcrt
import os
import secrets
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from ctypes import POINTER, byref, c_size_t, c_void_p, c_wchar_p
from ctypes.wintypes import BOOL, DWORD, HANDLE
from functools import partial
from multiprocessing import parent_process
from typing import Any, Final

from .pipe import wait_any
from .poller import Event, announce, forget, new_event, reset_event, set_event
from .win32 import declare_kernel32

HANDLE_LIMIT: Final = 1 << 16  # per process; Windows allows 16 million, the memory for their connections does not
_PROCESS_TERMINATE: Final = 0x0001
_PROCESS_QUERY_LIMITED: Final = 0x1000
_JOB_OBJECT_ASSIGN_PROCESS: Final = 0x0001
_EVENT_MODIFY_STATE: Final = 0x0002
_KILLED: Final = 0x10000  # what multiprocessing reads as "terminated"
_HANDLER_BEGINS: Final = 0.1  # seconds from a request's beginning, by the scoreboard, to the handler's, at most


# -- signals ----------------------------------------------------------------------------------------------------------

_CONSOLE_HANDLER = ctypes.WINFUNCTYPE(BOOL, DWORD)
_SetConsoleCtrlHandler = declare_kernel32("SetConsoleCtrlHandler", BOOL, _CONSOLE_HANDLER, BOOL, check=False)
_CONSOLE_EVENTS: Final = {0: "SIGINT", 1: "SIGTERM", 2: "SIGTERM", 5: "SIGTERM", 6: "SIGTERM"}  # C, Break, close, ...


class SignalInbox:
    """What the console tells its programs, as the signals that mean the same elsewhere.

    Ctrl-C is SIGINT; Ctrl-Break, closing the window, logging off and shutting down are SIGTERM.  Each comes in a thread
    that Windows makes for it.  So is an event that `stop` sets where a server has no control pipe.
    `signal.raise_signal` and the like reach us as SIGINT and SIGTERM too.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)
        self._event = int(_CreateEvent(None, True, False, _event_name(os.getpid(), "stop")))
        self._come: deque[str] = deque()
        self._handler = _CONSOLE_HANDLER(self._on_console_event)
        _SetConsoleCtrlHandler(self._handler, True)
        self._old = {}
        for name in self._names & {"SIGINT", "SIGTERM", "SIGBREAK"}:
            if threading.current_thread() is threading.main_thread():
                number = getattr(signal, name)
                self._old[number] = signal.signal(number, self._on_signal)
        announce(self)

    def fileno(self) -> int:
        """Becomes readable when a signal has come."""
        return self._event

    def begin_wait(self) -> Event | None:
        """None if one has come."""
        return Event(self._event).begin_wait()

    def end_wait(self, waiting: Any) -> None:
        """Nothing was begun."""

    def receive(self) -> list[str]:
        """The names of the signals that came since the last time; SIGTERM where only the event came, from outside."""
        reset_event(self._event)
        come = []
        while self._come:
            come.append(self._come.popleft())
        return come or ["SIGTERM"]

    def restore(self) -> None:
        """Put back what was there before."""
        forget(self)
        _SetConsoleCtrlHandler(self._handler, False)
        for number, handler in self._old.items():
            signal.signal(number, handler)
        _winapi.CloseHandle(self._event)

    def _on_console_event(self, number: int) -> bool:
        name = _CONSOLE_EVENTS.get(number)
        if name not in self._names:
            return False
        self._tell(name)
        return True

    def _on_signal(self, number: int, frame: Any) -> None:
        self._tell(signal.Signals(number).name)

    def _tell(self, name: str) -> None:
        self._come.append(name)
        set_event(self._event)


_CreateEvent = declare_kernel32("CreateEventW", HANDLE, c_void_p, BOOL, BOOL, c_wchar_p)
_OpenEvent = declare_kernel32("OpenEventW", HANDLE, DWORD, BOOL, c_wchar_p)


# -- processes --------------------------------------------------------------------------------------------------------


class _BasicLimits(ctypes.Structure):
    """JOBOBJECT_BASIC_LIMIT_INFORMATION."""

    _fields_ = (
        ("process_time", ctypes.c_int64), ("job_time", ctypes.c_int64), ("flags", DWORD), ("least", c_size_t),
        ("most", c_size_t), ("processes", DWORD), ("affinity", c_size_t), ("priority", DWORD), ("scheduling", DWORD),
    )  # fmt: skip


class _ExtendedLimits(ctypes.Structure):
    """JOBOBJECT_EXTENDED_LIMIT_INFORMATION."""

    _fields_ = (("basic", _BasicLimits), ("io", ctypes.c_uint64 * 6), ("memory", c_size_t * 4))


class _MemoryCounters(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS."""

    _fields_ = (
        ("size", DWORD), ("faults", DWORD), ("peak_resident", c_size_t), ("resident", c_size_t),
        ("quotas", c_size_t * 4), ("pagefile", c_size_t), ("peak_pagefile", c_size_t),
    )  # fmt: skip


_CreateJobObject = declare_kernel32("CreateJobObjectW", HANDLE, c_void_p, c_wchar_p)
_OpenJobObject = declare_kernel32("OpenJobObjectW", HANDLE, DWORD, BOOL, c_wchar_p)
_SetInformationJobObject = declare_kernel32("SetInformationJobObject", BOOL, HANDLE, ctypes.c_int, c_void_p, DWORD)
_AssignProcessToJobObject = declare_kernel32("AssignProcessToJobObject", BOOL, HANDLE, HANDLE)
_TerminateProcess = declare_kernel32("TerminateProcess", BOOL, HANDLE, DWORD)
_GetProcessMemoryInfo = declare_kernel32("K32GetProcessMemoryInfo", BOOL, HANDLE, POINTER(_MemoryCounters), DWORD)
_EXTENDED_LIMITS: Final = 9
_KILL_ON_JOB_CLOSE: Final = 0x2000
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


def _join_job() -> None:
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


def default_start_method() -> str:
    """spawn: there is nothing else."""
    return "spawn"


def start_methods() -> tuple[str, ...]:
    """The start methods that work on this system."""
    return ("spawn",)


def open_descriptors() -> set[int]:
    """Nothing: a new process has no handle that it was not given."""
    return set()


def child_hygiene(keep: Iterable[int] | None = None) -> None:
    """In a new child of ours: end with the master, and leave the console's signals to it."""
    _join_job()
    for number in (signal.SIGINT, signal.SIGBREAK, signal.SIGTERM):
        signal.signal(number, _ignore)


def _ignore(*_: Any) -> None:
    """The master decides what a signal to the whole console means."""


def announce_descriptors(*things: Any) -> list[int]:
    """The numbers of things, for `child_hygiene(keep=...)`."""
    return [thing if isinstance(thing, int) else thing.fileno() for thing in things]


def _event_name(pid: int, what: str) -> str:
    return rf"Local\ipcsrv-{what}-{pid}"


_gate = threading.Lock()  # a worker's own thread has it, but while it is in the handler


def handler_gate() -> threading.Lock:
    """The lock, taken, that a worker's own thread is to release while it is in the handler, and then alone.

    Meanwhile the thread that hears the master may do with its connections what a signal handler does elsewhere.
    """
    _gate.acquire()
    return _gate


def answer_timeouts_with(reply: Callable[[], None], relieve: Callable[[], None], log_descriptor: int) -> None:
    """In a worker: on the master's word, dump all stacks, or run `reply` or `relieve`; in a thread that waits for it.

    Unlike a signal handler it needs the interpreter, so it waits for a handler that keeps that to itself (in C).
    """
    names = ("stacks", "last-words", "relief")
    events = [_CreateEvent(None, False, False, _event_name(os.getpid(), name)) for name in names]
    answers = partial(faulthandler.dump_traceback, file=log_descriptor), reply, partial(_in_its_place, relieve)
    threading.Thread(target=_listen_to_master, args=(events, answers), name="ipcsrv-listener", daemon=True).start()


def _listen_to_master(events: list[int], answers: Sequence[Callable[[], object]]) -> None:
    while True:
        heard = wait_any(events, None)
        if heard is not None:
            answers[heard]()


def _in_its_place(relieve: Callable[[], None]) -> None:
    """Run it while the worker's own thread is in the handler; if that is over, there is no need."""
    if _gate.acquire(timeout=_HANDLER_BEGINS):
        try:
            relieve()
        finally:
            _gate.release()


def ask_to_stop_by_event(pid: int) -> None:
    """Tell a master to drain and stop, as SIGTERM does elsewhere."""
    _set_event_of(pid, "stop")


def _set_event_of(pid: int, what: str) -> None:
    with contextlib.suppress(OSError):  # it is gone, or not so far yet
        event = _OpenEvent(_EVENT_MODIFY_STATE, False, _event_name(pid, what))
        set_event(event)
        _winapi.CloseHandle(event)


def lifeline(descriptor: int) -> int:
    """What a poller waits for, to learn of the end of an anonymous pipe: an event, set by a thread that reads it.

    It reads a handle of its own: a descriptor that is being read is locked, and to close it would wait for the end.
    """
    event, own, given = new_event(), _winapi.GetCurrentProcess(), msvcrt.get_osfhandle(descriptor)
    handle = _winapi.DuplicateHandle(own, given, own, 0, False, _winapi.DUPLICATE_SAME_ACCESS)

    def read() -> None:
        with contextlib.suppress(OSError):
            while _winapi.ReadFile(handle, 4096)[0]:
                pass
        _winapi.CloseHandle(handle)
        set_event(event)

    threading.Thread(target=read, name="ipcsrv-lifeline", daemon=True).start()
    return event


class Process:
    """A worker as the master knows it: an open process, which keeps its pid from being another's."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        access = _PROCESS_TERMINATE | _PROCESS_QUERY_LIMITED
        try:
            self._handle = _winapi.OpenProcess(access, False, pid)
        except OSError:  # it is gone already
            self._handle = 0

    def ask_for_stacks(self) -> None:
        """Have it write the stacks of all its threads into the log."""
        _set_event_of(self.pid, "stacks")

    def owes_stacks(self) -> bool:
        """False: nobody can tell."""
        return False

    def ask_for_relief(self) -> None:
        """Have it give back what waits behind the request in its hands, if its interpreter still runs."""
        _set_event_of(self.pid, "relief")

    def ask_for_last_words(self) -> None:
        """Have it answer the request in its hands with a failure and exit, if its interpreter still runs."""
        _set_event_of(self.pid, "last-words")

    def ask_to_reopen_log(self) -> None:
        """Nothing: a file that is open cannot be renamed here."""

    def kill(self) -> None:
        """End it at once."""
        with contextlib.suppress(OSError):
            if self._handle:
                _TerminateProcess(self._handle, _KILLED)

    def close(self) -> None:
        """It has been reaped."""
        handle, self._handle = self._handle, 0
        if handle:
            _winapi.CloseHandle(handle)


def become_daemon_child() -> None:
    """Nothing: who starts us in the background gives us no console."""


def descriptor_limit() -> int:
    """How many handles this process may have open."""
    return HANDLE_LIMIT


def resident_bytes(pid: int | None = None) -> int:
    """The working set of a process, of this one if none is named, in bytes; 0 if it cannot be asked."""
    counters = _MemoryCounters(size=ctypes.sizeof(_MemoryCounters))
    own = _winapi.GetCurrentProcess()
    try:
        process = own if pid is None else _winapi.OpenProcess(_PROCESS_QUERY_LIMITED, False, pid)
    except OSError:
        return 0
    try:
        _GetProcessMemoryInfo(process, byref(counters), counters.size)
    except OSError:
        return 0
    finally:
        if process != own:
            _winapi.CloseHandle(process)
    return int(counters.resident)


class SharedMemory:
    """Memory that the master and its workers see; backed by the paging file, so that nothing is left of it."""

    def __init__(self, size: int, tag: str | None = None) -> None:
        self._tag = tag or rf"Local\ipcsrv-memory-{os.getpid()}-{secrets.token_hex(8)}"
        self.size = size
        self.buffer = mmap.mmap(-1, size, tagname=self._tag)

    def fileno(self) -> int:
        """No descriptor is behind it."""
        return -1

    def close(self) -> None:
        """The mapping goes with its last user."""

    def __reduce__(self) -> tuple[Any, ...]:
        return SharedMemory, (self.size, self._tag)


@contextlib.contextmanager
def quiet_about_threads() -> Any:
    """A server forks only where the caller has no other threads, or asked for it by name."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*multi-threaded.*", category=DeprecationWarning)
        yield
