"""What a handler receives and what it may return.  Runs in the worker.

A request *is* its bytes, so that any function from bytes to bytes is a handler as it stands; its context (the
client's credentials, whether the client is gone, the deadline) is looked up only when a handler asks for it.
"""

from __future__ import annotations

import enum
import time
from typing import TYPE_CHECKING, Final, Protocol

from .peer import Peer

if TYPE_CHECKING:
    from collections.abc import Iterable

    Response = bytes | bytearray | memoryview | Iterable[bytes | bytearray | memoryview] | None | "Quit"


class Connected(Protocol):
    """What a request asks of the connection that it came over (implemented by the platform seam)."""

    def peer(self) -> Peer:
        """The client's credentials, as the kernel tells them."""

    def gone(self) -> bool:
        """True once the client has closed its end."""


class Quit(enum.Enum):
    """The type of `QUIT`."""

    QUIT = "quit"

    def __repr__(self) -> str:
        """Return the public name."""
        return "ipcsrv.QUIT"


QUIT: Final = Quit.QUIT
"""Returned by a handler: the client gets the empty response, then the server drains and stops."""


class Request(bytes):
    """The bytes of one request, with its context.

    A `Request` that did not come from a server (a test's own) has no peer, no deadline and is never cancelled.  Its
    copies, also in another process, are plain bytes.

    Example:
        >>> def handle(request: ipcsrv.Request) -> bytes:
        ...     return b"" if request.cancelled else str(request.peer).encode()
    """

    _context: tuple[Connected, int, float | None] | None = None

    def __reduce__(self) -> tuple[type[bytes], tuple[bytes]]:
        """Copy and pickle as plain bytes: the connection stays in its worker."""
        return bytes, (bytes(self),)

    @property
    def peer(self) -> Peer | None:
        """The client's process, user and group (docs/protocol.md section 5); None outside a server."""
        return None if self._context is None else self._context[0].peer()

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The file descriptors that came with the request (SCM_RIGHTS), with the setting `receive_descriptors`.

        They are close-on-exec, and the handler's own from now on: it closes them, and a second look finds none.
        """
        take = None if self._context is None else getattr(self._context[0], "take_descriptors", None)
        return () if take is None else take()

    @property
    def cancelled(self) -> bool:
        """Whether the client is gone, so that the response would not be read."""
        return self._context is not None and self._context[0].gone()

    @property
    def deadline(self) -> float | None:
        """The `time.monotonic()` second at which `request_timeout` ends this request; None without one."""
        if self._context is None or self._context[2] is None:
            return None
        return self._context[1] / 1e9 + self._context[2]

    @property
    def remaining(self) -> float | None:
        """Seconds left until `deadline` (never below 0), or None where there is none."""
        deadline = self.deadline
        return None if deadline is None else max(0.0, deadline - time.monotonic())
