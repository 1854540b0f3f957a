"""Signals, processes and memory on Windows, as the server's half of the seam promises them. In the master and workers.

No signals reach a process without a console, so the master asks a worker for its stacks by a named event, for which a
thread of the worker waits. All workers are in a job object that ends them with the master, however that dies.
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
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable
from ctypes import POINTER, byref, c_size_t, c_void_p, c_wchar_p
from ctypes.wintypes import BOOL, DWORD, HANDLE
from typing import Any, Final

from .job import join_job
from .pipe import Pipe, wait_any
from .poller import Event, announce, forget, new_event, reset_event, set_event
from .win32 import declare_kernel32

HANDLE_LIMIT: Final = 1 << 16  # per process; Windows allows 16 million, the memory for their connections does not
_PROCESS_TERMINATE: Final = 0x0001
_PROCESS_QUERY_LIMITED: Final = 0x1000
_EVENT_MODIFY_STATE: Final = 0x0002
_NO_HANDLE: Final = -1
_KILLED: Final = 0x10000  # what multiprocessing reads as "terminated"
_SYNCHRONIZE: Final = 0x00100000
SPARE_DESCRIPTORS: Final = 8  # that are not counted one by one where there are few
HAS_PIDFD: Final = True  # a process handle is set when the process has ended
NEEDS_GUARD: Final = False  # the job object ends what outlives the master
TERMINAL_SIGNALS: Final[frozenset[str]] = frozenset()


# -- signals ----------------------------------------------------------------------------------------------------------

_CONSOLE_HANDLER = ctypes.WINFUNCTYPE(BOOL, DWORD)
_SetConsoleCtrlHandler = declare_kernel32("SetConsoleCtrlHandler", BOOL, _CONSOLE_HANDLER, BOOL, check=False)
_CONSOLE_EVENTS: Final = {0: "SIGINT", 1: "SIGTERM", 2: "SIGTERM", 5: "SIGTERM", 6: "SIGTERM"}  # C, Break, close, ...


class SignalInbox:
    """Events of the console, as the signals that mean the same elsewhere.

    Ctrl-C is SIGINT; Ctrl-Break, closing the window, logging off and shutting down are SIGTERM.  Each comes in a thread
    that Windows makes for it.  So is an event that `stop` sets where a server has no control pipe.
    `signal.raise_signal` and the like are received as SIGINT and SIGTERM too.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)
        self._event = int(_CreateEvent(None, True, False, _event_name(os.getpid(), "stop")))
        self._come: deque[str] = deque()
        self._open = True
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

    def close(self) -> None:
        """Receive no more, and let the signals still have no effect: this process is about to end."""
        forget(self)
        self._open = False
        _winapi.CloseHandle(self._event)

    def restore(self) -> None:
        """Put back what was there before."""
        self.close()
        _SetConsoleCtrlHandler(self._handler, False)
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _on_console_event(self, number: int) -> bool:
        name = _CONSOLE_EVENTS.get(number)
        if name not in self._names:
            return False
        self._tell(name)
        return True

    def _on_signal(self, number: int, frame: Any) -> None:
        self._tell(signal.Signals(number).name)

    def _tell(self, name: str) -> None:
        if self._open:
            self._come.append(name)
            with contextlib.suppress(OSError):  # closed in this moment, by another thread
                set_event(self._event)


_CreateEvent = declare_kernel32("CreateEventW", HANDLE, c_void_p, BOOL, BOOL, c_wchar_p)
_OpenEvent = declare_kernel32("OpenEventW", HANDLE, DWORD, BOOL, c_wchar_p)


# -- processes --------------------------------------------------------------------------------------------------------


class _MemoryCounters(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS."""

    _fields_ = (
        ("size", DWORD), ("faults", DWORD), ("peak_resident", c_size_t), ("resident", c_size_t),
        ("quotas", c_size_t * 4), ("pagefile", c_size_t), ("peak_pagefile", c_size_t),
    )  # fmt: skip


_TerminateProcess = declare_kernel32("TerminateProcess", BOOL, HANDLE, DWORD)
_GetProcessTimes = declare_kernel32("GetProcessTimes", BOOL, HANDLE, *[POINTER(ctypes.c_uint64)] * 4)
_GetProcessMemoryInfo = declare_kernel32("K32GetProcessMemoryInfo", BOOL, HANDLE, POINTER(_MemoryCounters), DWORD)
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
    """In a new process of the server: end with the master, and leave the console's signals to it."""
    join_job()
    for number in (signal.SIGINT, signal.SIGBREAK, signal.SIGTERM):
        signal.signal(number, _ignore)


def _ignore(*_: Any) -> None:
    """The master decides what a signal to the whole console means."""


def announce_descriptors(*things: Any) -> list[int]:
    """The numbers of things, for `child_hygiene(keep=...)`."""
    return [thing if isinstance(thing, int) else thing.fileno() for thing in things]


def _event_name(pid: int, what: str) -> str:
    return rf"Local\ipcsrv-{what}-{pid}"


def dump_stacks_on_request(descriptor: int) -> None:
    """In a worker: write all stacks to `descriptor` on the master's request, and at a crash.

    A thread does it, which needs the interpreter: it waits for a handler whose C code does not release that.
    """
    faulthandler.enable(file=descriptor, all_threads=True)
    event = int(_CreateEvent(None, True, False, _event_name(os.getpid(), "stacks")))
    threading.Thread(target=_dump_stacks, args=(event, descriptor), name="ipcsrv-stacks", daemon=True).start()


def _dump_stacks(event: int, descriptor: int) -> None:
    while wait_any([event], None) is not None:
        faulthandler.dump_traceback(file=descriptor, all_threads=True)
        reset_event(event)  # which tells the master that they are written


def end_with_parent(wanted: bool) -> None:
    """Nothing: the job object that `child_hygiene` has joined ends this process with the master."""


def start_resource_tracker() -> None:
    """Nothing: multiprocessing has none here."""


def wake_resource_tracker() -> None:
    """Nothing: multiprocessing has none here."""


def call_in_forked_children(callback: Callable[[], object]) -> contextlib.AbstractContextManager[None]:
    """Nothing: a process cannot be forked here."""
    return contextlib.nullcontext()


def protect_children(*ends: Pipe) -> None:
    """Nothing: a process cannot be forked here, and a new one gets no handle that it was not given."""


def ignore(names: Iterable[str]) -> None:
    """Nothing: there are no such signals."""


def has_controlling_terminal() -> bool:
    """Return False: closing the console is a signal of its own (`SignalInbox`)."""
    return False


def reap_orphans(known: set[int]) -> bool:
    """Nothing: a process that has ended leaves nothing to reap."""
    return False


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


def start_ticks(pid: int) -> int:
    """Return when a process started, in units of 100 ns (GetProcessTimes); 0 where that cannot be told."""
    try:
        process = _winapi.OpenProcess(_PROCESS_QUERY_LIMITED | _SYNCHRONIZE, False, pid)
    except OSError:
        return 0
    times = [ctypes.c_uint64() for _ in range(4)]  # the first one is that of creation
    try:
        if _winapi.WaitForSingleObject(process, 0) == _winapi.WAIT_OBJECT_0:
            return 0  # it has ended, and another process has it open
        _GetProcessTimes(process, *map(byref, times))
    except OSError:
        return 0
    finally:
        _winapi.CloseHandle(process)
    return times[0].value


def is_same_process(pid: int, ticks: int) -> bool:
    """Return whether the process that had this pid and start time is alive."""
    return pid > 0 and ticks > 0 and start_ticks(pid) == ticks


def kill(pid: int) -> None:
    """End a process at once."""
    process = Process(pid)
    process.kill()
    process.close()


def kill_family(pid: int, *, itself: bool = True) -> None:
    """End a process at once; what it has started ends with the master's job object."""
    if itself:
        kill(pid)


class Process:
    """A worker as the master knows it: an open process, which keeps its pid from being another's."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        try:
            access = _PROCESS_TERMINATE | _PROCESS_QUERY_LIMITED | _SYNCHRONIZE
            self._handle = _winapi.OpenProcess(access, False, pid)
        except OSError:  # it is gone already
            self._handle = _NO_HANDLE

    def fileno(self) -> int:
        """Become readable when the process ends; -1 where it has ended before."""
        return self._handle

    def ask_for_stacks(self) -> None:
        """Have it write the stacks of all its threads into the log."""
        _set_event_of(self.pid, "stacks")

    def owes_stacks(self) -> bool:
        """Whether it has been asked for its stacks and has not written all of them: then its event is still set."""
        try:
            event = _OpenEvent(_SYNCHRONIZE, False, _event_name(self.pid, "stacks"))
        except OSError:  # it is gone, or not so far yet
            return False
        try:
            return _winapi.WaitForSingleObject(event, 0) == _winapi.WAIT_OBJECT_0
        finally:
            _winapi.CloseHandle(event)

    def ask_to_reopen_log(self) -> None:
        """Nothing: a file that is open cannot be renamed here."""

    def kill(self) -> None:
        """End it at once."""
        with contextlib.suppress(OSError):
            if self._handle != _NO_HANDLE:
                _TerminateProcess(self._handle, _KILLED)

    def kill_family(self) -> None:
        """End it at once (see `kill_family`)."""
        self.kill()

    def close(self) -> None:
        """It has been reaped."""
        handle, self._handle = self._handle, _NO_HANDLE
        if handle != _NO_HANDLE:
            _winapi.CloseHandle(handle)


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


def keep_freed_memory(_size: int) -> None:
    """Nothing: the heap does so by itself."""


def release_freed_memory() -> None:
    """Nothing: the heap does so by itself."""


def anonymous_file(name: str) -> int:
    """Return a descriptor of a new file that no other process opens and that is deleted with its last handle."""
    path = os.path.join(tempfile.gettempdir(), f"{name}-{os.getpid()}-{secrets.token_hex(8)}")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_BINARY | os.O_NOINHERIT
    return os.open(path, flags | os.O_TEMPORARY | os.O_SHORT_LIVED, 0o600)


def read_at(file: int, size: int, at: int) -> bytes:
    """Return at most `size` bytes of a file. Copies of it share one position, but a state has one user at a time."""
    os.lseek(file, at, os.SEEK_SET)
    return os.read(file, size)


def write_at(file: int, data: bytes | memoryview, at: int) -> int:
    """Write to a file; return how many bytes."""
    os.lseek(file, at, os.SEEK_SET)
    return os.write(file, data)


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
