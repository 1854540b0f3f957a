"""Sockets that travel between a server's processes, on Unix: into forked and spawned children, as arguments."""

from __future__ import annotations

import sys

assert sys.platform != "win32"

import contextlib
import select
import socket
from collections.abc import Callable
from typing import Any


class Sendable(socket.SocketType):
    """A socket that can be an argument of a spawned process: the descriptor is duplicated into it."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        from multiprocessing.reduction import DupFd

        return _rebuild, (type(self), DupFd(self.fileno()))


def _rebuild(kind: type[Sendable], duplicate: Any) -> Sendable:
    return kind(fileno=duplicate.detach())


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

    def refuses(self) -> bool:
        """Whether `refuse` has been called, by whichever process."""
        poll = select.poll()
        poll.register(self, 0)
        return any(mask & select.POLLHUP for _, mask in poll.poll(0))
