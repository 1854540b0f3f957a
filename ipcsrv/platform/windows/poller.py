"""Readiness on Windows, with `select.epoll`'s interface, for any number of handles. In the master and in each worker.

Windows tells when an operation has *ended*, not when one could begin. So to be told that a pipe is readable, a read of
no bytes is started on it (see `pipe`); to be told that one can write, the write that had to wait is waited for; what
else there is (a process, a signal, a listener) has an event of its own. All these events end in one completion port:
the system's thread pool waits for them, 63 to a thread or better, and posts the number under which one was registered.
What was unregistered meanwhile is recognized by its number and dropped.

The pipes are not bound to the port themselves, as would be usual: a pipe can be bound to one port in its life, and
connections are used by several processes. Like epoll it is level-triggered: what is still ready is reported again.
"""

from __future__ import annotations

import sys

assert sys.platform == "win32"

import _winapi
import ctypes
import importlib
import itertools
import time
import weakref
from collections.abc import Callable
from ctypes.wintypes import BOOL, HANDLE
from typing import Any, Final

from .pipe import INFINITE, Pipe, milliseconds
from .win32 import declare_kernel32

READ: Final = 1
WRITE: Final = 4
HANGUP: Final = 16
SHARED: Final = 0  # every process that waits for the queue is woken, and one gets what came
EDGE: Final = 0  # what is reported as writable is reset by the report itself (`QueueWriter`)

overlapped: Any = importlib.import_module("_overlapped")  # the standard library's own, for asyncio; it has no stubs
_NO_PORT: Final = 0
_INVALID_HANDLE: Final = overlapped.INVALID_HANDLE_VALUE
_tokens = itertools.count(1)  # for all pollers of the process


_CreateEvent = declare_kernel32("CreateEventW", HANDLE, ctypes.c_void_p, BOOL, BOOL, ctypes.c_wchar_p)
set_event = declare_kernel32("SetEvent", BOOL, HANDLE)
reset_event = declare_kernel32("ResetEvent", BOOL, HANDLE)


def new_event(*, by_hand: bool = True) -> int:
    """Return a new event, not set; by_hand: it stays set until it is reset, else one wait resets it."""
    return int(_CreateEvent(None, by_hand, False, None))


class Event:
    """A handle that is itself what to wait for: a process, or an event."""

    __slots__ = ("event",)

    def __init__(self, handle: int) -> None:
        self.event = handle

    def fileno(self) -> int:
        """The handle."""
        return self.event

    def begin_wait(self) -> Event | None:
        """None if it is set."""
        return None if _winapi.WaitForSingleObject(self.event, 0) == _winapi.WAIT_OBJECT_0 else self

    def end_wait(self, waiting: Any) -> None:
        """Nothing was begun."""


class _Wait:
    """One event that the thread pool waits for on a poller's behalf."""

    __slots__ = ("_end", "_registration", "_waiting", "token")

    def __init__(self, port: int, waiting: Any, end: Callable[[Any], None]) -> None:
        self.token = next(_tokens)
        self._waiting = waiting  # kept: its event must not be closed while the pool waits for it
        self._end = end
        self._registration = overlapped.RegisterWaitWithQueue(waiting.event, port, self.token, INFINITE)

    def end(self) -> None:
        """Stop waiting; returns once the pool has let go of the event."""
        overlapped.UnregisterWaitEx(self._registration, _INVALID_HANDLE)
        self._end(self._waiting)


def _leave(writing: Any) -> None:
    """A write that was waited for stays: it is its pipe's."""


class _Entry:
    """Something registered: what is wanted of it, and the waits for that."""

    __slots__ = ("mask", "source", "waits")

    def __init__(self, source: Any, mask: int) -> None:
        self.source = source
        self.mask = mask
        self.waits: list[_Wait] = []


_announced: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def announce(thing: Any) -> None:
    """Make an object known under its number, by which it may be registered."""
    _announced[thing.fileno()] = thing


def forget(thing: Any) -> None:
    """The object is about to lose its number."""
    number = thing.fileno()
    if _announced.get(number) is thing:
        del _announced[number]


def source_of(thing: Any) -> Any:
    """What to wait for, where a number or an object was registered."""
    if not isinstance(thing, int):
        return thing
    known = _announced.get(thing)
    return Event(thing) if known is None else known


class Poller:
    """`select.epoll`'s interface; numbers or objects with `fileno()` are registered, and numbers are reported.

    An object has `begin_wait()`, which returns None if it is readable now and otherwise an object whose `event` is set
    once it is, and `end_wait(waiting)`, which takes that back; one watched for WRITE has `begin_output_wait()` too.
    """

    def __init__(self) -> None:
        self._port = overlapped.CreateIoCompletionPort(_INVALID_HANDLE, _NO_PORT, 0, 0)
        self._entries: dict[int, _Entry] = {}
        self._idle: dict[int, _Entry] = {}  # those that nothing waits for yet: new, changed or just reported
        self._waiting: dict[int, tuple[int, int]] = {}  # token -> (number, what its event means)

    def register(self, thing: Any, mask: int = READ | WRITE) -> None:
        """Report `thing` when what `mask` says is so."""
        number = thing if isinstance(thing, int) else thing.fileno()
        if number in self._entries:
            raise FileExistsError(f"handle {number} is registered already")
        self._entries[number] = self._idle[number] = _Entry(source_of(thing), mask)

    def modify(self, thing: Any, mask: int) -> None:
        """Want something else of it."""
        number = thing if isinstance(thing, int) else thing.fileno()
        entry = self._entries[number]
        if mask != entry.mask:
            self._disarm(entry)
            entry.mask = mask
            self._idle[number] = entry

    def unregister(self, thing: Any) -> None:
        """Report it no more."""
        number = thing if isinstance(thing, int) else thing.fileno()
        entry = self._entries.pop(number)
        self._idle.pop(number, None)
        self._disarm(entry)

    def poll(self, timeout: float | None = None) -> list[tuple[int, int]]:
        """What is ready, as soon as something is; nothing when the time (seconds, None: for ever) is over."""
        until = None if timeout is None or timeout < 0 else time.monotonic() + timeout
        while True:
            ready = self._arm()
            left = None if until is None else max(0.0, until - time.monotonic())
            self._collect(0.0 if ready else left, ready)
            if ready or (until is not None and time.monotonic() >= until):
                return [(number, self._with_hangup(number, mask)) for number, mask in ready.items()]

    def _with_hangup(self, number: int, mask: int) -> int:
        """Add HANGUP where a pipe has nothing more to read, since its client has closed it."""
        source = self._entries[number].source
        return mask | HANGUP if mask & READ and isinstance(source, Pipe) and source.gone() else mask

    def fileno(self) -> int:
        """The port."""
        return int(self._port)

    def close(self) -> None:
        """Forget all, and close the port."""
        for number in list(self._entries):
            self.unregister(number)
        _winapi.CloseHandle(self._port)

    def _arm(self) -> dict[int, int]:
        """Begin to wait for what nothing waits for yet; returns what needs no waiting."""
        ready: dict[int, int] = {}
        for number, entry in list(self._idle.items()):
            mask = self._begin(number, entry)
            if mask:
                ready[number] = mask
                self._disarm(entry)
            else:
                del self._idle[number]
        return ready

    def _begin(self, number: int, entry: _Entry) -> int:
        ready, source = 0, entry.source
        if entry.mask & READ:
            waiting = source.begin_wait()
            if waiting is None:
                ready |= READ
            else:
                self._await(number, entry, READ, waiting, source.end_wait)
        if entry.mask & WRITE:
            writing = source.begin_output_wait()
            if writing is None:
                ready |= WRITE
            else:
                self._await(number, entry, WRITE, writing, _leave)
        return ready

    def _await(self, number: int, entry: _Entry, meaning: int, waiting: Any, end: Callable[[Any], None]) -> None:
        wait = _Wait(self._port, waiting, end)
        entry.waits.append(wait)
        self._waiting[wait.token] = number, meaning

    def _disarm(self, entry: _Entry) -> None:
        for wait in entry.waits:
            self._waiting.pop(wait.token, None)
            wait.end()
        entry.waits.clear()

    def _collect(self, seconds: float | None, ready: dict[int, int]) -> None:
        """Take what the port has, waiting so long for the first."""
        while True:
            status = overlapped.GetQueuedCompletionStatus(self._port, milliseconds(seconds))
            if status is None:
                return
            seconds = 0
            number, meaning = self._waiting.get(status[3], (None, 0))
            if number is not None:
                entry = self._idle[number] = self._entries[number]
                self._disarm(entry)
                ready[number] = ready.get(number, 0) | meaning


def poller() -> Poller:
    """Return a readiness poller with `select.epoll`'s interface."""
    return Poller()


def busy_poll_ns() -> int:
    """Nanoseconds for which a process looks for input before it sleeps: none here."""
    return 0


def eager_poll(poller: Poller) -> Callable[[float | None], list[tuple[int, int]]]:
    """Return the `poll` of a poller that is quick where events follow each other."""
    return poller.poll
