"""Readiness on Unix, with `select.epoll`'s interface."""

from __future__ import annotations

import sys

assert sys.platform != "win32"

import select
from typing import Any, Final

READ: Final = select.POLLIN
WRITE: Final = select.POLLOUT
HANGUP: Final = select.POLLHUP | select.POLLERR
SHARED: Final = int(getattr(select, "EPOLLEXCLUSIVE", 0))  # wake one of the processes that wait for the same queue
EDGE: Final = int(getattr(select, "EPOLLET", 0))  # report every change and not the state


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
