"""Sockets that travel between a server's processes, on Unix: into forked and spawned children, as arguments."""

from __future__ import annotations

import sys

assert sys.platform != "win32"

import contextlib
import socket
from collections.abc import Callable
from typing import Any, TypeVar

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
