"""An accepted connection on Windows, how it ends, and who may use the server.

The handle of a connection is one pipe instance, which is never used for another client. A pipe cannot be closed in one
direction, and a disconnect takes from the client what it has not read yet. So a thread waits until the client has read
everything (FlushFileBuffers), at most for a second, before a connection is closed (`linger`) or disconnected (`end`).
"""

from __future__ import annotations

import sys

assert sys.platform == "win32"

import _winapi
import contextlib
import math
import threading
from _thread import start_new_thread
from collections.abc import Callable, Iterable
from ctypes import c_void_p
from ctypes.wintypes import BOOL, HANDLE
from time import monotonic
from typing import Any, Final

from ...errors import SettingsError
from ...peer import Peer
from .descriptors import duplicated
from .pipe import CLOSED, DONTWAIT, Pipe, give_up, wait_any, wait_readable
from .poller import announce, forget
from .security import pipe_sddl
from .win32 import client_process, declare_kernel32, is_connected, sid_of_pipe_client, sid_of_process

__all__ = [
    "DONTWAIT", "PASSES_CREDENTIALS", "AcceptedConnection", "Admission", "adopt", "close_raw",
    "enlarge", "receive_descriptors",
]  # fmt: skip

PASSES_CREDENTIALS: Final = False  # the compiled code of the master is for sockets
FLUSH_TIME: Final = 1.0  # seconds for a client to read what was sent before its connection is disconnected
MOST_FLUSHING: Final = 64  # connections of a process that end in this way at the same time

_FlushFileBuffers = declare_kernel32("FlushFileBuffers", BOOL, HANDLE, check=False)
_CancelIoEx = declare_kernel32("CancelIoEx", BOOL, HANDLE, c_void_p, check=False)
_DisconnectNamedPipe = declare_kernel32("DisconnectNamedPipe", BOOL, HANDLE, check=False)


class _Endings:
    """The connections of this process that are to end once their clients have read everything.

    Each is flushed by a thread of its own; one more, while there are any, ends the flushes whose time is over.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._due: dict[int, tuple[float, Callable[[int], object]]] = {}  # by handle: monotonic seconds, and what then

    def begin(self, connection: int, then: Callable[[int], object], late: Callable[[int], object]) -> None:
        """Call `then` with a copy of the handle once the client has read everything, or after `late` has been called.

        late: ends the flush when the time is over. The handle stays the caller's. With too many at once nothing is
        done: the client then finds the end when the last handle is closed.
        """
        with self._changed:
            if len(self._due) >= MOST_FLUSHING:
                return
            handle = duplicated(connection)
            if not self._due:
                start_new_thread(self._keep_time, ())
            self._due[handle] = monotonic() + FLUSH_TIME, late
        start_new_thread(self._flush, (handle, then))

    def _flush(self, handle: int, then: Callable[[int], object]) -> None:
        _FlushFileBuffers(handle)
        then(handle)
        with self._changed:
            del self._due[handle]
            self._changed.notify()
        _winapi.CloseHandle(handle)

    def _keep_time(self) -> None:
        with self._changed:
            while self._due:
                now = monotonic()
                for handle, (due, late) in self._due.items():
                    if due <= now:
                        late(handle)
                        self._due[handle] = math.inf, late
                pause = min(due for due, _ in self._due.values()) - now
                self._changed.wait(None if pause == math.inf else pause)


def _cancel(handle: int) -> None:
    """Cancel what this process has begun with a connection: a flush, or a read."""
    _CancelIoEx(handle, None)


_endings = _Endings()


class AcceptedConnection(Pipe):
    """A connected client."""

    __slots__ = ("__weakref__", "_ending", "_over")

    def __init__(self, raw: int) -> None:
        super().__init__(raw)
        self._ending = self._over = False
        announce(self)

    def credentials(self) -> bytes:
        """Return the process at the other end, as bytes."""
        return client_process(self._handle).to_bytes(4, "little")

    def peer(self) -> Peer:
        """Return the client's process, and the SID of its user ("" where it cannot be told any more)."""
        try:
            pid = client_process(self._handle)
        except OSError:
            return Peer(None, "")
        with contextlib.suppress(OSError):
            return Peer(pid, sid_of_process(pid))
        with contextlib.suppress(OSError):
            return Peer(pid, sid_of_pipe_client(self._handle))
        return Peer(pid, "")

    def wait_readable(self, seconds: float) -> bool:
        """Wait until there is input, or the end; False if there is neither within `seconds`."""
        arrival = wait_readable(self._handle)
        if arrival is None:
            return True
        try:
            return wait_any([arrival.event], seconds) is not None
        finally:
            give_up(arrival)

    def wait_writable(self, seconds: float) -> bool:
        """Wait until output is taken again, or the client is gone; False if neither is so within `seconds`."""
        writing = self._writing
        return writing is None or wait_any([writing.event], seconds) is not None

    def has_input(self) -> bool | None:
        """Return True if there is something to read, False at the client's end, None if it is silent."""
        try:
            return bool(self._available())
        except BlockingIOError:
            return None

    def gone(self) -> bool:
        """Return True once the client has closed its end, whatever it has sent before."""
        return not is_connected(self._handle)

    def end_input(self) -> bool | None:
        """Return True if the client has sent something, None if it still may: no half of a pipe can be closed."""
        return self.has_input()

    def keeps_descriptors(self) -> bool:
        """Return False: a named pipe cannot pass descriptors."""
        return False

    def end_output(self) -> None:
        """Nothing: no half of a pipe can be closed; the master lingers instead."""

    def linger(self) -> None:
        """In the master, whose copy is the last: find the end of input once the client has read everything.

        The connection is then closed, by which the client finds the end too. One that reads later than within a second
        still finds what was sent, and then the end.
        """
        if not self._ending:
            self._ending = True
            _endings.begin(self._handle, self._find_end, _cancel)

    def _find_end(self, copy: int) -> None:
        self._over = True
        _cancel(copy)  # the read of no bytes that a poller may have begun

    def recv(self, size: int, flags: int = 0) -> bytes:
        """As `Pipe.recv`; the end where a client that was refused has read why."""
        return b"" if self._over else super().recv(size, flags)

    def begin_wait(self) -> Any:
        """As `Pipe.begin_wait`."""
        waiting = None if self._over else super().begin_wait()
        if waiting is not None and self._over:  # since then
            give_up(waiting)
            return None
        return waiting

    def end(self) -> None:
        """End the connection for the client too, whichever process still holds a copy of it."""
        if not self._ending and not self.gone():
            self._ending = True
            _endings.begin(self._handle, _DisconnectNamedPipe, _DisconnectNamedPipe)

    def detach(self) -> int:
        """Return the handle, for another owner."""
        if self._handle != CLOSED:
            forget(self)
        return super().detach()


adopt = AcceptedConnection


def receive_descriptors() -> None:
    """Refuse: a named pipe cannot pass descriptors."""
    raise SettingsError("is not possible on Windows: a named pipe cannot pass descriptors", name="receive_descriptors")


class Admission:
    """Who may ask (docs/protocol.md, trust). Windows decides it when a client opens the pipe, by its access list.

    allow: users and groups as the setting takes them. Raises `SettingsError` for one that this system does not know.
    """

    def __init__(self, allow: Iterable[str] = ()) -> None:
        pipe_sddl(allow)
        self.known_users = b""

    def admits(self, connection: AcceptedConnection) -> bool:
        """Whether this client may ask: it could not have connected otherwise."""
        return True


def close_raw(raw: int) -> None:
    """Close a connection of which only the handle is known."""
    _winapi.CloseHandle(raw)


def enlarge(connection: AcceptedConnection, size: int) -> None:
    """Nothing: a pipe's buffer is as large as it was made."""
