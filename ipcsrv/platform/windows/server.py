"""The server's half of the platform seam on Windows: pipes whose handles go from process to process.

What each name promises is said in `serving`.  The parts: `windows_rendezvous` (the place at a path), `windows_queue`
(the queue), `windows_handover` (the channels), `windows_poller` (readiness), `windows_processes` (signals, processes,
memory), and here what a worker asks of a connection.
"""

from __future__ import annotations

import sys

assert sys.platform == "win32"

import contextlib
from collections.abc import Iterable
from typing import Final

from ...errors import SettingsError
from ...peer import Peer
from .handover import Channel, channel, close_raw
from .pipe import DONTWAIT, Pipe
from .poller import HANGUP, READ, WRITE, Poller, announce, forget
from .processes import (
    Process,
    SharedMemory,
    SignalInbox,
    announce_descriptors,
    answer_timeouts_with,
    become_daemon_child,
    child_hygiene,
    default_start_method,
    descriptor_limit,
    handler_gate,
    lifeline,
    open_descriptors,
    quiet_about_threads,
    resident_bytes,
    start_methods,
)
from .queue import END, LOST, RETIRE, QueueReader, QueueWriter, queue
from .rendezvous import Listener, Rendezvous, pipe_sddl
from .win32 import client_process, sid_of_pipe_client, sid_of_process

__all__ = [
    "DONTWAIT", "END", "HANGUP", "LOST", "READ", "RETIRE", "SHARED", "WRITE", "Admission", "Channel", "Connection",
    "Lifebuoy", "Listener", "Process", "QueueReader", "QueueWriter", "Rendezvous", "SharedMemory", "SignalInbox",
    "accept_raw", "adopt", "adopt_channel", "announce_descriptors", "answer_timeouts_with", "backlog_depth",
    "become_daemon_child", "channel", "child_hygiene", "close_raw", "default_start_method",
    "descriptor_limit", "enlarge", "handler_gate", "keep_freed_memory", "lifeline", "open_descriptors", "poller",
    "queue", "quiet_about_threads", "rescue", "resident_bytes", "start_methods",
]  # fmt: skip

SHARED: Final = 0  # whoever waits for the queue is woken, and one of them gets what came


# -- connections ------------------------------------------------------------------------------------------------------


class Connection(Pipe):
    """A connected client, in the worker that owns it."""

    __slots__ = ("__weakref__",)

    def __init__(self, raw: int) -> None:
        super().__init__(raw)
        announce(self)

    def credentials(self) -> bytes:
        """Which process is at the other end."""
        return client_process(self._handle).to_bytes(4, "little")

    def peer(self) -> Peer:
        """The client's process, and the SID of its user ("" where it cannot be told any more)."""
        try:
            pid = client_process(self._handle)
        except OSError:
            return Peer(None, "")
        with contextlib.suppress(OSError):
            return Peer(pid, sid_of_process(pid))
        with contextlib.suppress(OSError):
            return Peer(pid, sid_of_pipe_client(self._handle))
        return Peer(pid, "")

    def hear_out(self) -> bool | None:
        """None: a pipe cannot be closed in one direction, so there is no moment after which nothing can have come."""
        return None

    def has_said(self) -> bool | None:
        """Whether there is something to read: True, False at the client's end, None if it is silent."""
        try:
            return bool(self._available())
        except BlockingIOError:
            return None

    def shutdown_both(self) -> None:
        """Nothing: to disconnect would take from the client what it has not read yet.

        The client sees the end once the master, who is told, has closed its copy.
        """

    def detach(self) -> int:
        """The handle, for somebody else to own."""
        forget(self)
        return super().detach()


adopt = Connection


def receive_descriptors() -> None:
    """Refuse: a named pipe cannot pass descriptors."""
    raise SettingsError("is not possible on Windows: a named pipe cannot pass descriptors", name="receive_descriptors")


class Admission:
    """Who may ask (PROTOCOL.md section 5).  Windows decides it when a client opens the pipe, by its access list.

    allow: users and groups as the setting takes them. Raises `SettingsError` for one that this system does not know.
    """

    def __init__(self, allow: Iterable[str] = ()) -> None:
        pipe_sddl(allow)

    def admits(self, connection: Connection) -> bool:
        """Whether this client may ask: it could not have connected otherwise."""
        return True

    def user(self, connection: Connection) -> tuple[int, int] | None:
        """Users have no numbers here."""
        return None


def adopt_channel(raw: int) -> Channel:
    """Never asked for: a channel travels to a template only, and where nothing can be forked there is none."""
    raise NotImplementedError("an end of a channel cannot be sent through another")


def accept_raw(listener: Listener) -> int:
    """The next connection of a listener; `BlockingIOError` if none waits."""
    return listener.accept()


def backlog_depth(listener: Listener) -> int | None:
    """How many clients have come that nobody has accepted."""
    return listener.depth()


def enlarge(connection: Connection, size: int) -> None:
    """Nothing: a pipe's buffer is as large as it was made."""


def poller() -> Poller:
    """A readiness poller with `select.epoll`'s interface."""
    return Poller()


def keep_freed_memory(_size: int) -> None:
    """Nothing: the heap does so by itself."""


class Lifebuoy:
    """Nothing: here every connection comes by the master's queue, and is watched, with a copy in trust, at once."""

    def fileno(self) -> int:
        """There is no end to give away."""
        return -1

    def hold(self, raw: int) -> bool:
        """It cannot be held."""
        return False

    def let_go(self) -> None:
        """There is nothing in it."""

    def close(self) -> None:
        """Nothing to close."""


def rescue(buoy: int, known: Iterable[int]) -> list[int]:
    """Nobody is in a lifebuoy."""
    return []
