"""The client for asyncio: the names of the blocking client, awaited.  Runs in the caller's event loop.

    response = await ipcsrv.aio.call(path, data)
    async with ipcsrv.aio.connect(path) as connection:
        response = await connection.call(data)
        async for piece in connection.stream(data): ...

Sending is a task of its own beside receiving wherever the request may not fit into the socket at once, for the same
reason for which the blocking client does both at the same time.  A call that is cancelled closes its connection.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterable
from contextlib import aclosing
from typing import TYPE_CHECKING

from ..errors import CallTimeout, ConnectionLost, LocalProtocolError, NotListening, Progress
from ..platform import client as platform
from ..platform.aio import AsyncStream
from ..platform.attempts import Attempts
from ..protocol.pktline import FLUSH, Assembly, encode_data
from .exchanging import RECEIVE_SIZE, PendingExchange, outgoing
from .pool import FIRST_LOOK, PoolBase
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
    """Send one request on a new connection and return the response.

    Args:
        path: Where the server listens.
        data: The request, any object with the buffer interface.
        timeout: Seconds for connecting, sending and receiving together; None for no limit.
        trust: As for `ipcsrv.call`.
        wait_if_busy: As for `ipcsrv.call`.
        wait_if_not_found: As for `ipcsrv.call`.
        max_response_size: As for `ipcsrv.call`.

    Returns:
        The response.

    Raises:
        IpcError: What `ipcsrv.call` raises.
        ValueError: `timeout` is negative or not a number; nothing was sent.

    Example:
        >>> await ipcsrv.aio.call("./z.sock", b"data", timeout=5)
    """
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
    """Connect to the server at `path` and verify its credentials.

    Either `async with connect(path) as connection`, or `connection = await connect(path)`.

    Args:
        path: Where the server listens.
        timeout: Seconds to connect; None as for `ipcsrv.connect`.
        trust: As for `ipcsrv.connect`.
        wait_if_busy: As for `ipcsrv.connect`.
        wait_if_not_found: As for `ipcsrv.connect`.
        max_response_size: As for `ipcsrv.connect`.

    Returns:
        An object to await, or to enter with `async with`.  It raises what `ipcsrv.connect` raises.

    Raises:
        ValueError: `timeout` is negative or not a number.

    Example:
        >>> async with ipcsrv.aio.connect("./z.sock") as connection:
        ...     await connection.call(b"data")
    """
    attempts = Attempts(os.fspath(path), deadline_of(timeout), wait_if_busy, wait_if_not_found)
    return Connecting(attempts, trust, max_response_size)


async def active_state(path: Path, timeout: float = 1.0) -> State:
    """Return what is at `path`; as `ipcsrv.active_state`, in a thread.

    Args:
        path: The path to probe.
        timeout: Seconds for the probe.

    Returns:
        A member of `ipcsrv.State`.

    Example:
        >>> await ipcsrv.aio.active_state("./z.sock") is ipcsrv.State.LISTENING
    """
    return await asyncio.to_thread(platform.probe, os.fspath(path), timeout)


async def wait_until_listening(path: Path, timeout: Timeout = None) -> None:
    """Wait until a server listens at `path`, such as one that a supervisor is starting.

    Args:
        path: Where the server will listen; nothing need be there yet.
        timeout: Seconds to wait; None for no limit.

    Raises:
        NotListening: No server listens there after `timeout` seconds.
        InvalidPath: What is at `path` is not a socket, or `path` cannot be one.
        ValueError: `timeout` is negative or not a number.

    Example:
        >>> await ipcsrv.aio.wait_until_listening("./z.sock", timeout=10)
    """
    (await _connected(Attempts(os.fspath(path), deadline_of(timeout), True, True))).close()


class Connecting:
    """A connection that is still to be made: awaited, or entered with `async with`."""

    def __init__(self, attempts: Attempts, trust: Trust, max_response_size: int | None) -> None:
        """Remember what to do; programs use `connect`.

        Args:
            attempts: Where to connect, and for how long to try.
            trust: Users besides the caller's own and root who may run the server.
            max_response_size: Bytes of a response beyond which `TooLarge` is raised; None for no limit.
        """
        self._attempts = attempts
        self._trust = trust
        self._max_response_size = max_response_size
        self._connection: Connection | None = None

    def __await__(self) -> Generator[object, None, Connection]:
        """Connect and return the connection."""
        return self._connect().__await__()

    async def __aenter__(self) -> Connection:
        """Connect and return the connection."""
        self._connection = await self._connect()
        return self._connection

    async def __aexit__(self, *_: object) -> None:
        """Close the connection."""
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
    """A connection for many exchanges, one after the other; see `ipcsrv.Connection`.

    Attributes:
        path: Where it leads.
        peer: The server's credentials, an `ipcsrv.Peer`.
        closed: Whether it is closed.
    """

    def __init__(self, path: str, stream: Stream, peer: Peer, max_response_size: int | None = None) -> None:
        """Wrap a connected stream; programs use `connect`.

        Args:
            path: Where it leads.
            stream: The connected stream, closed by `close`.
            peer: The server's credentials.
            max_response_size: Bytes of a response beyond which `TooLarge` is raised; None for no limit.
        """
        self.path = path
        self.peer = peer
        self.closed = False
        self._stream = AsyncStream(stream)
        self._max_response_size = max_response_size
        self._busy = False
        self._process = os.getpid()

    def __repr__(self) -> str:
        """Return the path, the server's pid and the state."""
        state = "closed" if self.closed else "in an exchange" if self._busy else "open"
        return f"<ipcsrv.aio.Connection to {self.path!r}, server pid {self.peer.pid}, {state}>"

    async def call(self, data: Buffer = b"", timeout: Timeout = None) -> bytes:
        """Send one request and return the response; a call that is cancelled closes the connection.

        Args:
            data: The request, any object with the buffer interface.
            timeout: Seconds for the whole exchange; None for no limit.

        Returns:
            The response.

        Raises:
            IpcError: What `ipcsrv.Connection.call` raises.
            ValueError: `timeout` is negative or not a number; nothing was sent.
        """
        response = Assembly()
        async for piece in self._pieces(data, deadline_of(timeout)):
            response.append(piece)
        return response.join()

    async def stream(self, data: Data = b"", timeout: Timeout = None) -> AsyncGenerator[bytes, None]:
        """Send one request and yield the response in pieces, as they arrive.

        A loop that stops before the end awaits `aclose()` of the iterator, which closes the connection.

        Args:
            data: The request, or its parts from an iterable or an asynchronous one.
            timeout: Seconds from now until the response is complete; None for no limit.

        Yields:
            Pieces of the response, none empty.

        Raises:
            IpcError: What `ipcsrv.Connection.call` raises.
            ValueError: `timeout` is negative or not a number; nothing was sent.
        """
        async with aclosing(self._pieces(data, deadline_of(timeout))) as pieces:
            async for piece in pieces:
                yield bytes(piece)

    async def _ended_within(self, seconds: float) -> bool:
        """Return whether the server closes this idle connection, or sends what was not asked for, within a time.

        Args:
            seconds: How long to wait.

        Returns:
            True where the connection cannot be used again.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._stream.recv(1)
        except TimeoutError:
            return False
        except OSError:
            pass
        return True

    def close(self) -> None:
        """Close the connection; a response that is under way is lost."""
        self.closed = True
        self._stream.close()

    async def __aenter__(self) -> Self:
        """Return the connection itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connection."""
        self.close()

    async def _pieces(self, data: Data, deadline: Deadline) -> AsyncGenerator[bytes | memoryview, None]:
        if self.closed or self._busy:
            state = "closed" if self.closed else "in the middle of an exchange"
            raise LocalProtocolError(f"the connection is {state}", self.path)
        if self._process != os.getpid():  # the parent's requests go over it too: each would read the other's responses
            raise LocalProtocolError("the connection belongs to the parent process; connect again after a fork",
                                     self.path)
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


class Pool(PoolBase):
    """Up to `size` kept connections to the server at `path`, shared by the tasks of one event loop.

    It behaves as `ipcsrv.Pool`; a call that is cancelled closes its connection and frees its place.

    Example:
        >>> async with ipcsrv.aio.Pool("./z.sock") as pool:
        ...     await pool.call(b"data")

    Attributes:
        path: Where the server listens.
        size: The largest number of connections.
    """

    _idle: list[Connection]

    def __repr__(self) -> str:
        """Return the path, the connections in use and idle, and the size."""
        state = "closed" if self._closed else f"{self._in_use} in use, {len(self._idle)} idle of {self.size}"
        return f"<ipcsrv.aio.Pool to {self.path!r}, {state}>"

    async def call(self, data: Buffer = b"", timeout: Timeout = None) -> bytes:
        """Send one request on a free connection and return the response.

        Args:
            data: The request, any object with the buffer interface.
            timeout: Seconds for all of it, the wait for a free connection included; None for no limit.

        Returns:
            The response.

        Raises:
            LocalProtocolError: The pool is closed.
            IpcError: What `ipcsrv.call` raises.
            ValueError: `timeout` is negative or not a number; nothing was sent.
        """
        deadline = deadline_of(timeout)
        try:
            async with asyncio.timeout(deadline.remaining()):
                await self._places.acquire()
        except TimeoutError:
            raise CallTimeout(self.path, deadline.timeout) from None
        self._in_use += 1
        try:
            response = None
            while response is None:
                response = await self._call(data, deadline)
            return response
        finally:
            self._in_use -= 1
            self._places.release()

    def close(self) -> None:
        """Close the idle connections now, and those in use as their calls end; waiting calls raise."""
        self._closed = True
        self._close_idle()

    async def __aenter__(self) -> Self:
        """Return the pool itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the pool."""
        self.close()

    def _start(self) -> None:
        self._idle = []
        self._places = asyncio.Semaphore(self.size)
        self._in_use = 0

    async def _call(self, data: Buffer, deadline: Deadline) -> bytes | None:
        """Make the call; None where its connection had been closed while idle, and nothing was sent."""
        if self._closed:
            raise LocalProtocolError("the pool is closed", self.path)
        connection = await self._idle_connection()
        kept = connection is not None
        if connection is None:
            connection = await connect(self.path, deadline, **self._options)
        try:
            response = await connection.call(data, deadline)
        except ConnectionLost as error:
            if not kept:
                raise
            self._note_closed()
            self._close_idle()
            if error.progress is not Progress.NOTHING_SENT:
                raise
            return None
        finally:
            self._give_back(connection)
        if kept:
            self._kept = True
        return response

    def _give_back(self, connection: Connection) -> None:
        if connection.closed or self._closed or self._kept is False:
            connection.close()
        else:
            self._idle.append(connection)

    async def _idle_connection(self) -> Connection | None:
        if not self._idle:
            return None
        connection = self._idle.pop()
        if self._kept is None:
            ended = True  # also where the look is cancelled
            try:
                ended = await connection._ended_within(FIRST_LOOK)
            finally:
                if ended:
                    connection.close()
            if ended:
                self._kept = False
                return None
        return connection

    def _close_idle(self) -> None:
        while self._idle:
            self._idle.pop().close()


class Exchange(PendingExchange):
    """One exchange on a stream: where the request does not fit at once, a task sends it while this one receives."""

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
            buffers.clear()  # the server takes no more, but may have sent the reason
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
                    await asyncio.sleep(0)  # other tasks run also while the server takes everything at once
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


async def _awaited(parts: Iterable[Buffers | None]) -> AsyncIterator[Buffers]:
    for part in parts:
        yield part or []
