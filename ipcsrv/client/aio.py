"""The client for asyncio: the same names as `ipcsrv.client`, awaited.  Runs in the caller's loop.

    response = await ipcsrv.aio.call(path, data)
    async with ipcsrv.aio.connect(path) as connection:
        response = await connection.call(data)
        async for piece in connection.stream(data): ...

Sending is a task of its own beside receiving wherever the request may not fit into the socket at once, for the same
reason for which the waiting client does both at the same time. A call that is cancelled closes its connection.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterable
from contextlib import aclosing
from typing import TYPE_CHECKING

from ..errors import LocalProtocolError, NotListening
from ..platform import client as platform
from ..platform.aio import AsyncStream
from ..platform.attempts import Attempts
from ..protocol.pktline import FLUSH, Assembly, encode_data
from .exchanging import RECEIVE_SIZE, PendingExchange, outgoing
from .sync import check_trust, deadline_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterable
    from typing import Self

    from typing_extensions import Buffer

    from ..deadline import Deadline
    from ..peer import Peer
    from ..platform.client import Stream
    from ..state import State
    from .exchanging import Buffers
    from .sync import Path, Timeout, Trust

    Data = Buffer | Iterable[Buffer] | AsyncIterable[Buffer]


async def call(
    path: Path,
    data: Buffer = b"",
    timeout: Timeout = None,
    *,
    trust: Trust = (),
    wait_if_busy: bool = True,
    wait_if_not_found: bool = False,
    max_response_size: int | None = None,
) -> bytes:
    """One exchange on a connection of its own; see `ipcsrv.call`."""
    deadline = deadline_of(timeout)
    connecting = connect(
        path,
        deadline,
        trust=trust,
        wait_if_busy=wait_if_busy,
        wait_if_not_found=wait_if_not_found,
        max_response_size=max_response_size,
    )
    async with connecting as connection:
        return await connection.call(data, deadline)


def connect(
    path: Path,
    timeout: Timeout = None,
    *,
    trust: Trust = (),
    wait_if_busy: bool = True,
    wait_if_not_found: bool = False,
    max_response_size: int | None = None,
) -> Connecting:
    """Connect to `path`: `async with connect(path) as connection`, or `connection = await connect(path)`.

    See `ipcsrv.connect`.
    """
    attempts = Attempts(os.fspath(path), deadline_of(timeout), wait_if_busy, wait_if_not_found)
    return Connecting(attempts, trust, max_response_size)


async def active_state(path: Path, timeout: float = 1.0) -> State:
    """What is at `path`; see `ipcsrv.active_state`."""
    return await asyncio.to_thread(platform.probe, os.fspath(path), timeout)


class Connecting:
    """A connection that is still to be made: awaited, or entered with `async with`."""

    def __init__(self, attempts: Attempts, trust: Trust, max_response_size: int | None) -> None:
        self._attempts = attempts
        self._trust = trust
        self._max_response_size = max_response_size
        self._connection: Connection | None = None

    def __await__(self) -> Generator[object, None, Connection]:
        return self._connect().__await__()

    async def __aenter__(self) -> Connection:
        self._connection = await self._connect()
        return self._connection

    async def __aexit__(self, *_: object) -> None:
        if self._connection is not None:
            self._connection.close()

    async def _connect(self) -> Connection:
        path = self._attempts.path
        stream = await _connected(self._attempts)
        try:
            peer = check_trust(path, stream.peer(), self._trust)
            return Connection(path, stream, peer, self._max_response_size)
        except BaseException:
            stream.close()
            raise


async def _connected(attempts: Attempts) -> Stream:
    while True:
        try:
            return platform.attempt(attempts.path)
        except (BlockingIOError, NotListening) as error:
            pause = attempts.pause_after(error)
        await asyncio.sleep(pause)


class Connection:
    """A connection that is kept for many exchanges, one after the other; see `ipcsrv.client.Connection`."""

    def __init__(self, path: str, stream: Stream, peer: Peer, max_response_size: int | None = None) -> None:
        self.path = path
        self.peer = peer
        self.closed = False
        self._stream = AsyncStream(stream)
        self._max_response_size = max_response_size
        self._busy = False

    async def call(self, data: Buffer = b"", timeout: Timeout = None) -> bytes:
        """Send `data` and return the response; see `ipcsrv.client.Connection.call`."""
        response = Assembly()
        async for piece in self._pieces(data, deadline_of(timeout)):
            response.append(piece)
        return response.join()

    async def stream(self, data: Data = b"", timeout: Timeout = None) -> AsyncGenerator[bytes, None]:
        """Send `data`, which may come in parts from an iterable or an asynchronous one; give the response in pieces.

        See `ipcsrv.client.Connection.stream`. Whoever stops before the end awaits `aclose()` of the iterator.
        """
        async with aclosing(self._pieces(data, deadline_of(timeout))) as pieces:
            async for piece in pieces:
                yield bytes(piece)

    def close(self) -> None:
        """Close the connection; a response that is under way is lost."""
        self.closed = True
        self._stream.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    async def _pieces(self, data: Data, deadline: Deadline) -> AsyncGenerator[bytes | memoryview, None]:
        if self.closed or self._busy:
            state = "closed" if self.closed else "in the middle of an exchange"
            raise LocalProtocolError(f"the connection is {state}", self.path)
        buffers, parts = _outgoing(data)
        exchange = Exchange(self.path, deadline, self._max_response_size)
        self._busy = True
        try:
            exchange.attach(self._stream, buffers, parts)
            while (piece := await exchange.next_or_wait()) != b"":
                yield piece
        finally:
            await exchange.finish()
            self._busy = False
            if not exchange.ended or exchange.sending or exchange.spent:
                self.close()


class Exchange(PendingExchange):
    """One exchange on a stream: where the request does not fit at once, a task sends while we receive."""

    ended = False  # the response has been given out whole
    _sender: asyncio.Task[None] | None = None
    _receiver: asyncio.Task[bytes] | None = None

    def attach(self, stream: AsyncStream, buffers: Buffers, parts: AsyncIterator[Buffers] | None) -> None:
        """Begin to send."""
        self._stream = stream
        if parts is None and len(buffers) == 1:
            self._send_now(buffers)
        if buffers or parts:
            self._sender = asyncio.create_task(self._send(buffers, parts))

    async def next_or_wait(self) -> bytes | memoryview:
        """The next piece of the response, empty at its end."""
        while (piece := self.next_piece()) is None:
            try:
                self.receive(await self._received())
            except TimeoutError:
                raise self.timed_out() from None
            except ConnectionError:
                self.receive(b"")
        self.ended = piece == b""
        return piece

    async def finish(self) -> None:
        """Wait until nothing uses the stream any more."""
        tasks = {task for task in (self._sender, self._receiver) if task is not None}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _send_now(self, buffers: Buffers) -> None:
        try:
            count = self._stream.send_now(buffers[0])
        except ConnectionError:
            buffers.clear()  # it takes no more, but may have said why
            return
        self.sent = count > 0
        if count < len(buffers[0]):
            buffers[0] = memoryview(buffers[0])[count:]
        else:
            buffers.clear()
            self.sending = False

    async def _send(self, buffers: Buffers, parts: AsyncIterator[Buffers] | None) -> None:
        try:
            await self._send_each(buffers)
            if parts is not None:
                async for part in parts:
                    await self._send_each(part)
                    await asyncio.sleep(0)  # a server that keeps up must not make us keep the loop
            self.sending = False
        except ConnectionError:
            pass  # as above

    async def _send_each(self, buffers: Buffers) -> None:
        for buffer in buffers:
            await self._stream.send(buffer)
            self.sent = True

    async def _received(self) -> bytes:
        remaining = self._deadline.remaining()
        if remaining == 0:
            raise TimeoutError
        if self._sender is not None or self._receiver is not None:
            return await self._received_while_sending(remaining)
        if remaining is None:
            return await self._stream.recv(RECEIVE_SIZE)
        async with asyncio.timeout(remaining):
            return await self._stream.recv(RECEIVE_SIZE)

    async def _received_while_sending(self, remaining: float | None) -> bytes:
        """Receive, unless sending fails for a reason of its own (the caller's parts raised)."""
        if self._receiver is None:
            self._receiver = asyncio.create_task(self._stream.recv(RECEIVE_SIZE))
        waiting = {task for task in (self._sender, self._receiver) if task is not None}
        done, _ = await asyncio.wait(waiting, timeout=remaining, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            raise TimeoutError
        if self._sender in done:
            sender, self._sender = self._sender, None
            sender.result()
        if self._receiver in done:
            receiver, self._receiver = self._receiver, None
            return receiver.result()
        return await self._received()


def _outgoing(data: Data) -> tuple[Buffers, AsyncIterator[Buffers] | None]:
    """What to send for `data`: at once, and then as its parts come."""
    if isinstance(data, AsyncIterable):
        return [], _packets(data)
    buffers, parts = outgoing(data)
    return buffers, None if parts is None else _awaited(parts)


async def _packets(parts: AsyncIterable[Buffer]) -> AsyncIterator[Buffers]:
    async for part in parts:
        yield encode_data(part)
    yield [FLUSH]


async def _awaited(parts: Iterable[Buffers]) -> AsyncIterator[Buffers]:
    for part in parts:
        yield part
