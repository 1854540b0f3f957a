"""An accepted connection on Unix, and who may use the server.

Sockets stay in blocking mode: `O_NONBLOCK` belongs to the open file description, which the master and a worker share.
Where a call must not wait, `DONTWAIT` says so for that call.
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
from typing import Final

from ...errors import SettingsError
from ...peer import Peer
from .client import CREDENTIALS_SIZE, credentials, credentials_of
from .sockets import CLOEXEC, DONTWAIT, PEEK, make_blocking

MOST_DESCRIPTORS: Final = 16  # that a client may send with one request
_HAS_XUCRED: Final = sys.platform == "darwin" or sys.platform.startswith(("freebsd", "dragonfly"))
PASSES_CREDENTIALS: Final = sys.platform == "linux"  # SO_PEERCRED is what the compiled code knows
MOST_KNOWN: Final = 64  # bytes of known users
MOST_GROUPS: Final = 256  # supplementary groups of a client: what Python's getsockopt has room for
_CREDENTIALS_LEVEL, _CREDENTIALS_OPTION, _CREDENTIALS_BYTES = CREDENTIALS_SIZE
_VARIABLE_BYTES: Final = 4 if hasattr(select, "epoll") else 0  # Linux' answer begins with the pid, others' do not
_HANGUP: Final = select.POLLHUP | select.POLLERR
_DESCRIPTORS: Final = struct.Struct(f"{MOST_DESCRIPTORS}i")


class AcceptedConnection(socket.SocketType):
    """A connected client: the C socket itself.

    `recv`, `send`, `sendmsg` and `close` are the C methods: a request passes through no Python layer on its way.
    """

    __slots__ = ()

    def credentials(self) -> bytes:
        """Return the peer's credentials as the kernel packs them: of the process that connected."""
        return self.getsockopt(*CREDENTIALS_SIZE)

    def peer(self) -> Peer:
        """Return the process, user and group that connected (SO_PEERCRED, unix(7))."""
        return credentials(self)

    def wait_readable(self, seconds: float) -> bool:
        """Wait until there is input, or the end; False if there is neither within `seconds`."""
        return bool(_poll(self, select.POLLIN, seconds))

    def wait_writable(self, seconds: float) -> bool:
        """Wait until output is taken again, or the client is gone; False if neither is so within `seconds`."""
        return bool(_poll(self, select.POLLOUT, seconds))

    def has_input(self) -> bool | None:
        """Return True if there is something to read, False at the client's end, None if it is silent."""
        try:
            return bool(self.recv(1, PEEK | DONTWAIT))
        except BlockingIOError:
            return None
        except OSError:
            return False

    def end_input(self) -> bool:
        """Let the client send no more (EPIPE at its side); return whether it has sent something before."""
        with contextlib.suppress(OSError):
            self.shutdown(socket.SHUT_RD)
        return bool(self.has_input())

    def keeps_descriptors(self) -> bool:
        """Whether this copy has descriptors of the client's that would be lost with it."""
        return False

    def end_output(self) -> None:
        """Tell the client that nothing more comes: for it this is the end of file."""
        with contextlib.suppress(OSError):
            self.shutdown(socket.SHUT_WR)

    def linger(self) -> None:
        """Nothing: the client has found the end of file, and finds the end of the connection when it is closed."""

    def end(self) -> None:
        """End the connection for the client too, whichever process still holds a copy of it (shutdown(2))."""
        with contextlib.suppress(OSError):
            self.shutdown(socket.SHUT_RDWR)

    def gone(self) -> bool:
        """Return True once the peer has closed both directions; one that only finished writing still reads."""
        return bool(_poll(self, 0, 0))  # POLLHUP and POLLERR are always reported


def _poll(connection: AcceptedConnection, mask: int, seconds: float) -> int:
    poll = select.poll()
    poll.register(connection, mask)
    events = poll.poll(seconds * 1000)
    return events[0][1] if events else 0


class DescriptorConnection(AcceptedConnection):
    """A connection that keeps the descriptors that come with a request, until the handler takes them."""

    __slots__ = ("_received",)
    _received: tuple[int, ...]

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """Receive as recv(2) does; descriptors come with the first bytes of what they were sent with (unix(7))."""
        if flags & socket.MSG_PEEK:
            return super().recv(size, flags)
        data, ancillary, _, _ = self.recvmsg(size, socket.CMSG_SPACE(_DESCRIPTORS.size), flags | CLOEXEC)
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                found = array.array("i", content[: len(content) - len(content) % struct.calcsize("i")])
                self._keep((*self.take_descriptors(), *found))
        return data

    def _keep(self, received: tuple[int, ...]) -> None:
        """Keep the last of them; those before came with requests that have been answered."""
        self._received = received[-MOST_DESCRIPTORS:]
        for descriptor in received[:-MOST_DESCRIPTORS]:
            os.close(descriptor)

    def keeps_descriptors(self) -> bool:
        """Whether this copy has descriptors of the client's that would be lost with it."""
        return bool(getattr(self, "_received", ()))

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


_kind: type[AcceptedConnection] = AcceptedConnection


def adopt(raw: int) -> AcceptedConnection:
    """Return a raw descriptor as a connection; given all that the constructor could ask the kernel for."""
    connection = _kind(socket.AF_UNIX, socket.SOCK_STREAM, 0, raw)
    make_blocking(connection)
    return connection


def receive_descriptors() -> None:
    """Have the connections of this process, a worker, keep the descriptors that come with requests."""
    global _kind
    _kind = DescriptorConnection


def close_raw(raw: int) -> None:
    """Close a connection of which only the descriptor is known."""
    os.close(raw)


class Admission:
    """The users who are served (docs/protocol.md section 5): the server's own, root, and those that `allow` adds.

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
        self.known_users = b""  # pairs of uid and gid that are known to be admitted, 4 bytes each

    def admits(self, connection: AcceptedConnection) -> bool:
        """Whether this client may ask; remembers users, so that most clients cost one system call and a look-up."""
        raw = connection.getsockopt(_CREDENTIALS_LEVEL, _CREDENTIALS_OPTION, _CREDENTIALS_BYTES)
        # the process differs each time, the user and group do not
        return self._known.get(raw[_VARIABLE_BYTES:]) or self._considered(connection, raw)

    def _considered(self, connection: AcceptedConnection, raw: bytes) -> bool:
        peer = credentials_of(raw)
        admitted = peer.uid in self._users or peer.gid in self._groups
        if admitted and len(self._known) < 1024:
            self._known[raw[_VARIABLE_BYTES:]] = True
            if PASSES_CREDENTIALS and len(self.known_users) < MOST_KNOWN:
                self.known_users += raw[_VARIABLE_BYTES : _VARIABLE_BYTES + 8]
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


def _supplementary_groups(connection: AcceptedConnection) -> set[int]:
    """The peer's other groups, where the kernel tells them (SO_PEERGROUPS, Linux 4.13; struct xucred); else none."""
    if _HAS_XUCRED:
        return groups_in(connection.credentials())
    try:
        return set(array.array("I", connection.getsockopt(socket.SOL_SOCKET, 59, MOST_GROUPS * 4)))
    except OSError:  # not on this system, or of more groups than fit: being denied is the safe answer
        return set()


def enlarge(connection: AcceptedConnection, size: int) -> None:
    """Let one write take so many bytes, if the system's limit allows it."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)


def lifeline(descriptor: int) -> int:
    """What a poller waits for, to learn of the end of an anonymous pipe."""
    return descriptor
