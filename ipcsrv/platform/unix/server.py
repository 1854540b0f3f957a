"""The server's half of the platform seam on Unix: descriptors passed through sockets (unix(7), SCM_RIGHTS).

The queue between the master and its workers is one socket pair that all workers of a generation read: the kernel wakes
one idle worker a message, so no worker waits while another has a backlog, and the end of the write side, however the
master came to close it, is the end of the work.  Every message is eight bytes, so it does the same on a stream
socket where `SOCK_SEQPACKET` is missing (macOS): a reader of eight bytes never gets half of one or two.
"""

from __future__ import annotations

import sys

assert sys.platform != "win32"

import array
import contextlib
import grp
import os
import pwd
import select
import socket
import struct
from collections.abc import Iterable
from typing import Any, Final

from ...errors import SettingsError
from ...peer import Peer
from .client import CREDENTIALS_SIZE, credentials, credentials_of
from .descriptors import open_descriptors
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
    keep_freed_memory,
    quiet_about_threads,
    resident_bytes,
    start_methods,
)
from .rendezvous import Rendezvous
from .sockets import Listener, Sendable

__all__ = [
    "DONTWAIT", "END", "HANGUP", "LOST", "READ", "RETIRE", "SHARED", "WRITE", "Admission", "Channel", "Connection",
    "Lifebuoy", "Listener", "Process", "QueueReader", "QueueWriter", "Rendezvous", "SharedMemory", "SignalInbox",
    "accept_raw", "adopt", "adopt_channel", "announce_descriptors", "answer_timeouts_with", "backlog_depth",
    "become_daemon_child", "channel", "child_hygiene", "close_raw", "default_start_method",
    "descriptor_limit", "enlarge", "handler_gate", "keep_freed_memory", "lifeline", "open_descriptors", "poller",
    "queue", "quiet_about_threads", "receive_descriptors", "rescue", "resident_bytes", "start_methods",
]  # fmt: skip

DONTWAIT: Final = int(socket.MSG_DONTWAIT)
CLOEXEC: Final = int(getattr(socket, "MSG_CMSG_CLOEXEC", 0))  # so that a handler's subprocess does not hold a client
READ: Final = select.POLLIN
WRITE: Final = select.POLLOUT
HANGUP: Final = select.POLLHUP | select.POLLERR
SHARED: Final = int(getattr(select, "EPOLLEXCLUSIVE", 0))  # wake one of those who wait for the same queue
END: Final = "end"
RETIRE: Final = "retire"
LOST: Final = "lost"
_RETIRE_STAMP: Final = bytes(8)
_DESCRIPTOR: Final = struct.Struct("i")
_ANCILLARY: Final = socket.CMSG_SPACE(_DESCRIPTOR.size)
_RIGHTS: Final = (int(socket.SOL_SOCKET), int(socket.SCM_RIGHTS))
_QUEUE_TYPE: Final = socket.SOCK_STREAM if not hasattr(select, "epoll") else socket.SOCK_SEQPACKET
_HEADER: Final = struct.Struct("=4sI")
_BRINGS: Final = 1 << 31  # in a header's size: a connection comes with the message
_SOCK_DIAG: Final = 4  # NETLINK_SOCK_DIAG (linux/netlink.h); the others are of linux/unix_diag.h
_SHOW_QUEUES: Final = 0x10
_QUEUES_ATTRIBUTE: Final = 4
_NETLINK_HEADER: Final = struct.Struct("=IHHII")
_UNIX_REQUEST: Final = struct.Struct("=BBHIIIII")
_HAS_XUCRED: Final = sys.platform == "darwin" or sys.platform.startswith(("freebsd", "dragonfly"))
MOST_GROUPS: Final = 256  # supplementary groups of a client: what Python's getsockopt has room for
_CREDENTIALS_LEVEL, _CREDENTIALS_OPTION, _CREDENTIALS_BYTES = CREDENTIALS_SIZE
_VARIABLE_BYTES: Final = 4 if hasattr(select, "epoll") else 0  # Linux' answer begins with the pid, others' do not
MAX_BODY: Final = 16 * 1024  # bytes; a message of this size is written and read whole by one call


# -- connections ------------------------------------------------------------------------------------------------------


class Connection(socket.SocketType):
    """A connected client, in the worker that owns it: the C socket itself, with who the peer is.

    `recv`, `send`, `sendmsg` and `close` are the C methods: a request passes through no Python layer on its way.
    """

    __slots__ = ()

    def credentials(self) -> bytes:
        """The peer's credentials as the kernel packs them: of the process that connected, fixed at that moment."""
        return self.getsockopt(*CREDENTIALS_SIZE)

    def peer(self) -> Peer:
        """The process, user and group that connected (SO_PEERCRED, unix(7))."""
        return credentials(self)

    def wait_at_most(self, seconds: float) -> bool:
        """Have a `recv` without `DONTWAIT` wait for so long, then raise `BlockingIOError` (SO_RCVTIMEO, socket(7)).

        False where that is not possible.
        """
        self.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, int(seconds * 1e6)))
        return True

    def wait_at_most_to_send(self, seconds: float) -> bool:
        """The same for sending (SO_SNDTIMEO): what has been sent by then is returned."""
        self.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 0, int(seconds * 1e6)))
        return True

    def hear_out(self) -> bool | None:
        """Let the client say no more; whether it has said something that is not read yet.

        What it sends from now on fails at its side (EPIPE), so that it knows that nothing was done with it.
        None where a system cannot do that, and nobody knows what is on its way.
        """
        if not self.has_said():
            with contextlib.suppress(OSError):
                self.shutdown(socket.SHUT_RD)
        return bool(self.has_said())

    def has_said(self) -> bool | None:
        """Whether there is something to read: True, False at the client's end, None if it is silent."""
        try:
            return bool(self.recv(1, socket.MSG_PEEK | DONTWAIT))
        except BlockingIOError:
            return None
        except OSError:
            return False

    def shutdown_both(self) -> None:
        """End the connection for the client too, whoever else holds a copy of it."""
        with contextlib.suppress(OSError):
            self.shutdown(socket.SHUT_RDWR)

    def gone(self) -> bool:
        """True once the peer has closed both directions; one that only finished writing still reads."""
        poll = select.poll()
        poll.register(self, 0)  # POLLHUP and POLLERR are always reported
        return bool(poll.poll(0))


class DescriptorConnection(Connection):
    """A connection that keeps the descriptors that come with a request, until the handler takes them."""

    __slots__ = ("_received",)
    _received: tuple[int, ...]

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """As recv(2); descriptors come with the first bytes of what they were sent with."""
        if flags & socket.MSG_PEEK:
            return super().recv(size, flags)
        data, ancillary, _, _ = self.recvmsg(size, _DESCRIPTOR_SPACE, flags | CLOEXEC)
        for level, kind, packed in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                whole = len(packed) - len(packed) % _INT
                self._received = (*self.take_descriptors(), *memoryview(packed)[:whole].cast("i"))
        return data

    def take_descriptors(self) -> tuple[int, ...]:
        """Return the descriptors received so far; the caller closes them."""
        received: tuple[int, ...] = getattr(self, "_received", ())
        self._received = ()
        return received

    def close(self) -> None:
        """Close the connection, and the descriptors that no handler has taken."""
        for descriptor in self.take_descriptors():
            os.close(descriptor)
        super().close()


_INT = struct.calcsize("i")
_DESCRIPTOR_SPACE = socket.CMSG_SPACE(16 * _INT)  # what is beyond 16 descriptors, the kernel discards
_new_connection: type[Connection] = Connection


def adopt(raw: int) -> Connection:
    """A raw descriptor as a `Connection`; given all that the constructor could ask the kernel for."""
    return _new_connection(socket.AF_UNIX, socket.SOCK_STREAM, 0, raw)


def receive_descriptors() -> None:
    """Have the connections of this process, a worker, keep the descriptors that come with requests."""
    global _new_connection
    _new_connection = DescriptorConnection


class Admission:
    """Who may ask (PROTOCOL.md section 5): our own user and root, and whom `allow` adds.

    allow: entries as the setting takes them: `uid:N`, `gid:N`, `user:NAME`, `group:NAME`.
    Raises `SettingsError` for a name that this system does not know.
    """

    def __init__(self, allow: Iterable[str] = ()) -> None:
        self._users = {os.geteuid(), 0}
        self._groups: set[int] = set()
        for entry in allow:
            kind, _, name = entry.partition(":")
            (self._groups if kind in ("gid", "group") else self._users).add(_identifier(kind, name))
        self._known: dict[bytes, bool] = {}

    def admits(self, connection: Connection) -> bool:
        """Whether this client may ask; remembers users, so that most clients cost one system call and a look-up."""
        raw = connection.getsockopt(_CREDENTIALS_LEVEL, _CREDENTIALS_OPTION, _CREDENTIALS_BYTES)
        # the process differs each time, the user and group do not
        return self._known.get(raw[_VARIABLE_BYTES:]) or self._considered(connection, raw)

    def user(self, connection: Connection) -> tuple[int, int] | None:
        """The user and group of a client that was admitted, if these alone admit it; else None."""
        raw = connection.getsockopt(_CREDENTIALS_LEVEL, _CREDENTIALS_OPTION, _CREDENTIALS_BYTES)
        peer = credentials_of(raw)
        return (int(peer.uid), peer.gid or 0) if raw[_VARIABLE_BYTES:] in self._known else None

    def _considered(self, connection: Connection, raw: bytes) -> bool:
        peer = credentials_of(raw)
        admitted = peer.uid in self._users or peer.gid in self._groups
        if admitted and len(self._known) < 1024:
            self._known[raw[_VARIABLE_BYTES:]] = True
        return admitted or (bool(self._groups) and not self._groups.isdisjoint(_supplementary_groups(connection)))


def _identifier(kind: str, name: str) -> int:
    """The number of a user or group, given by number or by name."""
    try:
        if kind == "user":
            return pwd.getpwnam(name).pw_uid
        return grp.getgrnam(name).gr_gid if kind == "group" else int(name)
    except (KeyError, ValueError):
        raise SettingsError(f"there is no {kind} {name!r} on this system", name="allow") from None


def groups_in(credentials: bytes) -> set[int]:
    """The groups in a struct xucred: version, uid, number of groups (a short, padded), groups."""
    words = memoryview(credentials).cast("I")
    return set(words[3 : 3 + (words[2] & 0xFFFF)])


def _supplementary_groups(connection: Connection) -> set[int]:
    """The peer's other groups, where the kernel tells them (SO_PEERGROUPS, Linux 4.13; struct xucred); else none."""
    if _HAS_XUCRED:
        return groups_in(connection.credentials())
    try:
        return set(array.array("I", connection.getsockopt(socket.SOL_SOCKET, 59, MOST_GROUPS * 4)))
    except OSError:  # not on this system, or of more groups than fit: being denied is the safe answer
        return set()


# -- the queue --------------------------------------------------------------------------------------------------------


class QueueWriter(Sendable):
    """The master's end of a generation's queue."""

    __slots__ = ()

    def put(self, raw: int, stamp: int) -> None:
        """Hand the connection over and close our copy; `BlockingIOError` (nothing changed) if the queue is full.

        stamp: when the connection was accepted or became readable, in monotonic nanoseconds.
        """
        self.sendmsg((stamp.to_bytes(8, "little"),), ((*_RIGHTS, _DESCRIPTOR.pack(raw)),), DONTWAIT)
        os.close(raw)  # the message holds it now

    def retire(self) -> None:
        """Make one worker, whichever takes it, leave after what it has."""
        self.send(_RETIRE_STAMP, DONTWAIT)


class QueueReader(Sendable):
    """The workers' end of a generation's queue; every worker has this same one."""

    __slots__ = ()

    def get(self, flags: int = 0) -> tuple[int, int] | str:
        """The next connection as `(raw, stamp)`; `RETIRE`; `LOST` if we had no descriptor left for one, which the
        kernel then closes; or `END` once the queue is closed and empty.

        flags: `DONTWAIT`, to raise `BlockingIOError` where it would wait.
        """
        data, ancillary, _, _ = self.recvmsg(8, _ANCILLARY, flags | CLOEXEC)
        if ancillary:
            return _DESCRIPTOR.unpack(ancillary[0][2])[0], int.from_bytes(data, "little")
        if not data:
            return END
        return RETIRE if data == _RETIRE_STAMP else LOST


def queue() -> tuple[QueueWriter, QueueReader]:
    """A new generation's queue."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, _QUEUE_TYPE)
    return QueueWriter(fileno=ours.detach()), QueueReader(fileno=theirs.detach())


# -- lifebuoys --------------------------------------------------------------------------------------------------------


class Lifebuoy:
    """Copies of connections that outlive their worker: in flight in a socket pair, of which the master has an end too.

    What is in it is neither the worker's nor the master's until one of them takes it out (unix(7), SCM_RIGHTS); to put
    something in wakes nobody.
    """

    def __init__(self) -> None:
        self._out, self._in = socket.socketpair(socket.AF_UNIX, _QUEUE_TYPE)

    def fileno(self) -> int:
        """The end to be given to the master, for `rescue`."""
        return self._out.fileno()

    def hold(self, raw: int) -> bool:
        """Put a copy of a connection in; False if the kernel has no room for it now."""
        try:
            self._in.sendmsg((b"\0",), ((*_RIGHTS, _DESCRIPTOR.pack(raw)),), DONTWAIT)
        except OSError:
            return False
        return True

    def let_go(self) -> None:
        """Close the oldest copy: the kernel does, for a reader that asks for none."""
        self._out.recv(1, DONTWAIT)

    def close(self) -> None:
        """Let go of it; what the master has stays."""
        self._out.close()
        self._in.close()


def rescue(buoy: int, known: Iterable[int]) -> list[int]:
    """The connections that a dead worker's lifebuoy holds, but those that are in `known` too; the buoy is closed."""
    found: list[int] = []
    with socket.socket(fileno=buoy) as end:
        while True:
            try:
                _, ancillary, _, _ = end.recvmsg(1, _ANCILLARY, DONTWAIT | CLOEXEC)
            except BlockingIOError:
                break
            if not ancillary:
                break
            found.append(_DESCRIPTOR.unpack(ancillary[0][2])[0])
    if not found:
        return found
    inodes = {os.fstat(raw).st_ino for raw in known}
    for raw in [raw for raw in found if os.fstat(raw).st_ino in inodes]:
        found.remove(raw)
        os.close(raw)
    return found


# -- channels ---------------------------------------------------------------------------------------------------------


class Channel(Sendable):
    """One end of a private pipe between the master and a child; messages of a kind, a body and maybe a connection."""

    __slots__ = ()

    def tell(self, kind: str, body: bytes = b"", raw: int | None = None, *, keep: bool = False) -> None:
        """Send one message, of a kind of up to 4 characters; a connection in it is closed here, unless `keep`."""
        body = body[:MAX_BODY]
        rights = [] if raw is None else [(*_RIGHTS, _DESCRIPTOR.pack(raw))]
        self.sendmsg([_HEADER.pack(kind.encode(), len(body) | (_BRINGS if rights else 0)) + body], rights)
        if raw is not None and not keep:
            os.close(raw)

    def hear(self, wait: bool = True) -> tuple[str, bytes, int | None] | None:
        """The next message, or None at the end of the channel; `BlockingIOError` if not `wait` and none is there."""
        try:
            flags = CLOEXEC | (socket.MSG_WAITALL if wait else DONTWAIT)
            header, ancillary, _, _ = self.recvmsg(_HEADER.size, _ANCILLARY, flags)
            if len(header) < _HEADER.size:
                return None
            kind, size = _HEADER.unpack(header)
            size &= ~_BRINGS
            body = self.recv(size, socket.MSG_WAITALL) if size else b""
        except ConnectionResetError:  # the other side died with messages of ours unread
            return None
        raw = _DESCRIPTOR.unpack(ancillary[0][2])[0] if ancillary else None
        return kind.rstrip(b"\0").decode(), body, raw

    def brings_connection(self) -> bool | None:
        """Whether the next message does; None if there is none now.

        Its header says so, which is looked at without taking the descriptor.
        """
        try:
            header = self.recv(_HEADER.size, socket.MSG_PEEK | DONTWAIT)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            return False
        return len(header) == _HEADER.size and bool(_HEADER.unpack(header)[1] & _BRINGS)


def adopt_channel(raw: int) -> Channel:
    """An end of a channel that came with a message."""
    return Channel(fileno=raw)


def channel() -> tuple[Channel, Channel]:
    """The two ends of a new channel."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return Channel(fileno=ours.detach()), Channel(fileno=theirs.detach())


# -- waiting ----------------------------------------------------------------------------------------------------------


class _PollPoller:
    """`select.epoll`'s interface over `select.poll`, for systems without epoll."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self.register = self._poll.register
        self.modify = self._poll.modify
        self.unregister = self._poll.unregister

    def poll(self, timeout: float | None = None) -> list[tuple[int, int]]:
        return self._poll.poll(None if timeout is None else max(0.0, timeout * 1000))

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        """Nothing to close: poll(2) has no descriptor."""


def poller() -> Any:
    """A readiness poller with `select.epoll`'s interface."""
    return select.epoll() if hasattr(select, "epoll") else _PollPoller()


def accept_raw(listener: Listener) -> int:
    """The next connection of a listener, as a raw descriptor; `BlockingIOError` if none waits."""
    return listener.accept_raw()


def enlarge(connection: Connection, size: int) -> None:
    """Let one write take so many bytes, if the system's limit allows it."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)


def lifeline(descriptor: int) -> int:
    """What a poller waits for, to learn of the end of an anonymous pipe."""
    return descriptor


def close_raw(raw: int) -> None:
    """Close a connection that nobody has made a `Connection` of."""
    os.close(raw)


def backlog_depth(listener: Listener) -> int | None:
    """How many connections wait in the backlog (sock_diag(7), Linux), or None where that cannot be told."""
    if sys.platform != "linux":
        return None
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as kernel:
            inode = os.fstat(listener.fileno()).st_ino & 0xFFFFFFFF
            question = _UNIX_REQUEST.pack(socket.AF_UNIX, 0, 0, 0xFFFFFFFF, inode, _SHOW_QUEUES, 0xFFFFFFFF, 0xFFFFFFFF)
            kernel.send(_NETLINK_HEADER.pack(_NETLINK_HEADER.size + len(question), 20, 1, 1, 0) + question)
            return _queue_length(kernel.recv(4096))
    except OSError:
        return None


def _queue_length(answer: bytes) -> int | None:
    """The receive queue's length in an answer of sock_diag: among the attributes behind two headers of 16 bytes."""
    length, kind, *_ = _NETLINK_HEADER.unpack_from(answer)
    at = 32
    while kind == 20 and at < length:
        size, attribute = struct.unpack_from("=HH", answer, at)
        if attribute == _QUEUES_ATTRIBUTE:
            depth: int = struct.unpack_from("=I", answer, at + 4)[0]
            return depth
        at += (size + 3) & ~3
    return None
