"""A client's connection in an asyncio loop, on Unix.  Runs in that loop.

Not a transport: one that fails to send closes the socket at once, and with it the failure reply that says why.
"""

from __future__ import annotations

import sys

assert sys.platform != "win32"

import asyncio
from typing import TYPE_CHECKING

from .client import DONTWAIT

if TYPE_CHECKING:
    from collections.abc import Callable

    from .client import Stream


class AsyncStream:
    """A connected stream whose calls wait in the running loop (see the contract in `platform.client`)."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._loop = asyncio.get_running_loop()

    async def send(self, data: bytes | memoryview) -> None:
        """Send all of `data`."""
        view = memoryview(data)
        while view:
            try:
                view = view[self._stream.send(view, DONTWAIT) :]
            except BlockingIOError:
                await self._ready(self._loop.add_writer, self._loop.remove_writer)

    def send_now(self, data: bytes | memoryview) -> int:
        """Send what fits at once, perhaps nothing."""
        try:
            return self._stream.send(data, DONTWAIT)
        except BlockingIOError:
            return 0

    async def recv(self, size: int) -> bytes:
        """What has come, as soon as something has."""
        while True:
            try:
                return self._stream.recv(size, DONTWAIT)
            except BlockingIOError:
                await self._ready(self._loop.add_reader, self._loop.remove_reader)

    async def _ready(self, watch: Callable[..., object], forget: Callable[[int], bool]) -> None:
        descriptor = self._stream.fileno()
        ready = self._loop.create_future()
        watch(descriptor, _wake, ready)
        try:
            await ready
        finally:
            forget(descriptor)

    def close(self) -> None:
        """Close it; no task may be waiting in it."""
        self._stream.close()


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():  # it may have been cancelled, or woken already
        ready.set_result(None)
