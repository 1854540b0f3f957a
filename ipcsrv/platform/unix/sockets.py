"""Sockets that travel between a server's processes, on Unix: into forked and spawned children, as arguments."""

from __future__ import annotations

import sys

assert sys.platform != "win32"

import contextlib
import os
import select
import socket
import struct
from collections.abc import Callable
from typing import Any, Final, TypeVar

DONTWAIT: Final = int(socket.MSG_DONTWAIT)
CLOEXEC: Final = int(getattr(socket, "MSG_CMSG_CLOEXEC", 0))  # so that a handler's subprocess does not hold a client
PEEK: Final = int(socket.MSG_PEEK)
RIGHTS: Final = (int(socket.SOL_SOCKET), int(socket.SCM_RIGHTS))
HAS_RECORDS: Final = hasattr(select, "epoll")  # Linux has socket pairs that keep messages apart and have an end
PAIR_TYPE: Final = socket.SOCK_SEQPACKET if HAS_RECORDS else socket.SOCK_STREAM
_SOCK_DIAG: Final = 4  # NETLINK_SOCK_DIAG (linux/netlink.h); the others are of linux/unix_diag.h
_SHOW_QUEUES: Final = 0x10
_QUEUES_ATTRIBUTE: Final = 4
_NETLINK_HEADER: Final = struct.Struct("=IHHII")
_UNIX_REQUEST: Final = struct.Struct("=BBHIIIII")

_S = TypeVar("_S", bound="Sendable")


def make_blocking(made: socket.SocketType) -> None:
    """Undo what `socket.setdefaulttimeout` does to every new socket object: it would wait no longer than that."""
    if socket.getdefaulttimeout() is not None:
        made.settimeout(None)


class Sendable(socket.SocketType):
    """A socket that can be an argument of a spawned process: the descriptor is duplicated into it."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        from multiprocessing.reduction import DupFd

        return _rebuild, (type(self), DupFd(self.fileno()))


def _rebuild(kind: type[Sendable], duplicate: Any) -> Sendable:
    return made(kind, duplicate.detach())


def made(kind: type[_S], descriptor: int) -> _S:
    """Return a descriptor as a socket object of this kind, in blocking mode."""
    found = kind(fileno=descriptor)
    make_blocking(found)
    return found


class Listener(Sendable):
    """A listening socket.  Its processes share one: what one of them does to it, it does for all."""

    __slots__ = ()

    def accept_raw(self) -> int:
        """The next connection, as a raw descriptor; `BlockingIOError` if none waits."""
        return self.accept_next()[0]

    # accept(2) itself: the raw descriptor and the peer's address; socket.accept() would build an object around them
    accept_next: Callable[..., tuple[int, Any]] = socket.SocketType._accept  # type: ignore[attr-defined]

    def refuse(self) -> None:
        """Refuse new clients from now on; those in the backlog can still be accepted (Linux, unix(7))."""
        with contextlib.suppress(OSError):
            self.shutdown(socket.SHUT_RDWR)

    def depth(self) -> int | None:
        """Return how many connections wait in the backlog (sock_diag(7), Linux), or None where that cannot be told."""
        if sys.platform != "linux":
            return None
        try:
            with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as kernel:
                inode = os.fstat(self.fileno()).st_ino & 0xFFFFFFFF
                none = 0xFFFFFFFF
                question = _UNIX_REQUEST.pack(socket.AF_UNIX, 0, 0, none, inode, _SHOW_QUEUES, none, none)
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
