"""A pipe for asyncio, over the proactor of the loop that runs: the same handle, waited for by the loop's own port.

The loop's public way, `create_pipe_connection`, opens the pipe itself, and lets the server act as the client; so the
handle that `windows.attempt` opened is given to the proactor that this way uses.
"""

from __future__ import annotations

import sys

assert sys.platform == "win32"

import asyncio

from .pipe import PEER_IS_GONE, PIECE, Pipe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .pipe import Buffer


class _OfLoop(Pipe):
    """A pipe that a proactor can remember without keeping it alive."""

    __slots__ = ("__weakref__",)


class AsyncStream:
    """A connection of the running loop's (see the contract in `platform.client`)."""

    def __init__(self, stream: Pipe) -> None:
        self._pipe = _OfLoop(stream.detach())
        loop = asyncio.get_running_loop()
        if not isinstance(loop, asyncio.ProactorEventLoop):
            self._pipe.close()
            raise NotImplementedError("named pipes need asyncio's ProactorEventLoop, which is the default on Windows")
        self._proactor: Any = loop._proactor  # type: ignore[attr-defined]

    def send_now(self, data: bytes | memoryview) -> int:
        """Nothing: what a proactor sends is under way, and not through, when it returns."""
        return 0

    async def send(self, data: Buffer) -> None:
        """Send all of `data`; ConnectionError where the peer takes no more."""
        view = memoryview(data)
        while view:
            sent = await self._proactor.send(self._pipe, bytes(view[:PIECE]))
            view = view[sent:]

    async def recv(self, size: int) -> bytes:
        """At most `size` bytes; b"" at the end."""
        try:
            data: bytes = await self._proactor.recv(self._pipe, size)
        except OSError as error:
            if error.winerror in PEER_IS_GONE:
                return b""
            raise
        return data

    def close(self) -> None:
        """Close the pipe; may be called twice."""
        self._pipe.close()
