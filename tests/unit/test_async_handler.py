"""An async handler as a plain one: what it leaves behind in its process."""

from __future__ import annotations

import asyncio
import contextvars
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from ipcsrv import Request
from ipcsrv.peer import Peer
from ipcsrv.worker.async_handlers import AsyncHandler
from ipcsrv.worker.failures import Failure

WORD = contextvars.ContextVar("WORD", default="")


class Client:
    """A client that has not left, or has."""

    left = False

    def peer(self) -> Peer:
        """Nobody."""
        return Peer(0, 0, 0)

    def gone(self) -> bool:
        """Whether it has left."""
        return self.left


def request_with(seconds: float | None) -> Request:
    """A request that has so many seconds left."""
    request = Request(b"x")
    request._context = (Client(), time.monotonic_ns(), seconds)
    return request


@pytest.fixture
def wakeup() -> Iterator[int]:
    """The process's own signal wake-up descriptor."""
    ours, other = socket.socketpair()
    with ours, other:
        ours.setblocking(False)
        before = signal.set_wakeup_fd(ours.fileno(), warn_on_full_buffer=False)
        yield ours.fileno()
        signal.set_wakeup_fd(before)


@pytest.mark.skipif(not hasattr(signal, "SIGUSR2"), reason="raises SIGUSR2")
def test_wakeup_descriptor_is_restored(wakeup: int) -> None:
    async def handle(request: bytes) -> bytes:
        came = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, came.set)
        signal.raise_signal(signal.SIGUSR2)
        await asyncio.wait_for(came.wait(), 10)
        return b"came"

    before = signal.getsignal(signal.SIGUSR2)
    handler = AsyncHandler(handle)
    for _ in range(2):
        assert handler(request_with(None)) == b"came"
        assert signal.set_wakeup_fd(wakeup) == wakeup
    handler.close()
    signal.signal(signal.SIGUSR2, before)


def test_handler_runs_in_another_thread_than_the_main_one() -> None:
    async def handle(request: bytes) -> bytes:
        return threading.current_thread().name.encode()

    answers: list[bytes] = []
    handler = AsyncHandler(handle)
    thread = threading.Thread(target=lambda: answers.append(handler(request_with(None))), name="other")
    thread.start()
    thread.join()
    assert answers == [b"other"]
    handler.close()


def test_response_after_the_deadline_is_a_timeout() -> None:
    async def handle(request: bytes) -> bytes:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass
        return b"too late"

    handler = AsyncHandler(handle)
    with pytest.raises(Failure) as caught:
        handler(request_with(0.01))
    assert caught.value.code == "timeout"
    handler.close()


def test_time_of_the_client_is_not_the_streams() -> None:
    async def handle(request: bytes) -> AsyncIterator[bytes]:
        for _ in range(3):
            await asyncio.sleep(0.01)
            yield b"chunk"

    handler = AsyncHandler(handle)
    chunks = handler(request_with(0.5))
    assert next(chunks) == b"chunk"
    time.sleep(0.6)  # what the client takes to read it: longer than the deadline
    assert list(chunks) == [b"chunk"] * 2
    handler.close()


def test_stream_keeps_its_context_variables() -> None:
    async def handle(request: bytes) -> AsyncIterator[bytes]:
        WORD.set("kept")
        yield b"first"
        yield WORD.get().encode()

    handler = AsyncHandler(handle)
    assert list(handler(request_with(None))) == [b"first", b"kept"]
    assert WORD.get() == ""
    handler.close()


def test_close_cancels_what_still_runs() -> None:
    ended: list[str] = []

    async def background() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("background")

    tasks: list[asyncio.Task[None]] = []

    async def handle(request: bytes) -> bytes:
        tasks.append(asyncio.create_task(background()))
        await asyncio.sleep(0)
        return b""

    handler = AsyncHandler(handle)
    handler(request_with(None))
    handler.close()
    assert ended == ["background"]
