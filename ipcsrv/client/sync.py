"""The client: connect, ask, be answered.  Runs in whatever process asks; short-lived commands above all.

Two ways lead through an exchange.  The usual one is short: the request is one packet that the kernel takes at once,
and the first read brings the whole response; that is one send, one receive and no state machine.  Whatever else
happens (large messages, failures, silence, bytes one at a time) continues in `_exchanging`, which sends and listens
at the same time.

A `timeout` is one budget for all the steps of what it was given to: connecting, sending and receiving.
Nothing is sent before the server's credentials have been read and found to be trusted (PROTOCOL.md section 5).
"""

from __future__ import annotations

import os

from ..deadline import Deadline
from ..errors import CallTimeout, ConnectionLost, LocalProtocolError, Progress, Untrusted
from ..platform import client as platform
from ..platform.client import DONTWAIT
from ..protocol.pktline import MAX_DATA, decode_exact, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from threading import Condition
    from typing import Self

    from typing_extensions import Buffer

    from ..peer import Peer
    from ..platform.client import Stream
    from ..state import State
    from .exchanging import Buffers, Exchange, Parts

    Path = str | os.PathLike[str]
    Timeout = float | Deadline | None
    Trust = int | str | Iterable[int | str]

RECEIVE_SIZE = 65536  # bytes; one packet, and what a Unix socket gives in one read
NEVER = Deadline(None)


def call(
    path: Path,
    data: Buffer = b"",
    timeout: Timeout = None,
    *,
    trust: Trust = (),
    wait_if_busy: bool = True,
    wait_if_not_found: bool = False,
    max_response_size: int | None = None,
) -> bytes:
    """One exchange on a connection of its own: send `data`, return the response.

    timeout: seconds for all of it (None: no limit). The other arguments and errors are those of `connect` and of
    `Connection.call`.
    """
    deadline = deadline_of(timeout)
    connection = connect(
        path,
        deadline,
        trust=trust,
        wait_if_busy=wait_if_busy,
        wait_if_not_found=wait_if_not_found,
        max_response_size=max_response_size,
    )
    with connection:
        return connection.call(data, deadline)


def connect(
    path: Path,
    timeout: Timeout = None,
    *,
    trust: Trust = (),
    wait_if_busy: bool = True,
    wait_if_not_found: bool = False,
    max_response_size: int | None = None,
) -> Connection:
    """Connect to the server at `path` and make sure that it is one to be trusted; nothing is sent yet.

    timeout: seconds to connect (None: no limit for a server whose queue is full, 1 s for a socket that refuses).
    trust: users (uids or names) beside oneself and root who may run the server.
    wait_if_busy: try again while connections are refused or the server's queue is full.
    wait_if_not_found: try again while there is nothing at the path, for a server that is just starting.
    max_response_size: bytes of a response beyond which `TooLarge` is raised.

    Raises `NotListening`, `PathNotFound`, `InvalidPath`, `Denied`, `CallTimeout` or `Untrusted`.
    """
    path = os.fspath(path)
    stream = platform.connect(
        path, deadline_of(timeout), wait_if_busy=wait_if_busy, wait_if_not_found=wait_if_not_found
    )
    try:
        return Connection(path, stream, check_trust(path, stream.peer(), trust), max_response_size)
    except BaseException:
        stream.close()
        raise


def active_state(path: Path, timeout: float = 1.0) -> State:
    """What is at `path` (PROTOCOL.md section 3): connects, sends nothing, raises nothing."""
    return platform.probe(os.fspath(path), timeout)


def check_trust(path: str, peer: Peer, trust: Trust) -> Peer:
    """Return the server's credentials, or raise `Untrusted`."""
    if not platform.trusted(peer, trust):
        named = (trust,) if isinstance(trust, (int, str)) else tuple(trust)
        raise Untrusted(path, peer, " or ".join(("you", "root", *map(str, named))))
    return peer


def deadline_of(timeout: Timeout) -> Deadline:
    """The deadline `timeout` seconds from now; one that is running already stays as it is."""
    if timeout is None:
        return NEVER
    return timeout if isinstance(timeout, Deadline) else Deadline(timeout)


class Connection:
    """A connection that is kept for many exchanges, one after the other; for one thread (`Pool` is for several).

    `path` is where it leads, `peer` who listens there. A failure of any kind closes it, since what the server would
    send next could not be told from the answer to the next request.
    """

    __slots__ = ("_busy", "_max_response_size", "_one_read", "_stream", "closed", "path", "peer")

    def __init__(self, path: str, stream: Stream, peer: Peer, max_response_size: int | None = None) -> None:
        self.path = path
        self.peer = peer
        self.closed = False
        self._stream = stream
        self._busy = False
        self._max_response_size = max_response_size
        self._one_read = max_response_size is None or max_response_size >= MAX_DATA

    def call(self, data: Buffer = b"", timeout: Timeout = None) -> bytes:
        """Send `data` and return the response.

        timeout: seconds for the whole exchange (None: no limit).
        Raises `CallTimeout` or `ConnectionLost`, whose `progress` says what is safe to repeat; the `ServerError`
        that the server answered with; `ProtocolError` for bytes that are no answer; `TooLarge`.
        """
        deadline = deadline_of(timeout)
        buffers = encode(data)
        self._begin()
        try:
            packet = buffers[0]
            received = self._send_and_receive(buffers, deadline) if len(buffers) == 1 else None
            response = decode_exact(received) if received and self._one_read else None
            if response is None:
                sent = not buffers or buffers[0] is not packet
                exchange = self._exchange(buffers, deadline, received, sent=sent)
                response = exchange.join()
                self._end(exchange)
        except BaseException:
            self.close()
            raise
        self._busy = False
        return response

    def stream(self, data: Buffer | Iterable[Buffer] = b"", timeout: Timeout = None) -> Generator[bytes, None, None]:
        """Send `data` and give the response in pieces, as they come; neither need fit into memory.

        data: the request, or an iterable of its parts (each is sent before the next is asked for).
        timeout: seconds until the response is whole, from now on. Raises what `call` does, when it comes to it.
        The exchange begins with the first piece asked for; an iterator that is closed before its end closes the
        connection.
        """
        from .exchanging import outgoing

        buffers, parts = outgoing(data)
        return self._streamed(buffers, parts, deadline_of(timeout))

    def close(self) -> None:
        """Close the connection; a response that is under way is lost."""
        self.closed = True
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self) -> None:
        if self.closed:
            raise LocalProtocolError("the connection is closed", self.path)
        if self._busy:
            raise LocalProtocolError("the connection is in the middle of an exchange", self.path)
        self._busy = True

    def _send_and_receive(self, buffers: Buffers, deadline: Deadline) -> bytes | None:
        """The short way: one send, one receive. None where that was not enough, or failed: the long way says why."""
        packet = buffers[0]
        stream = self._stream
        try:
            sent = stream.send(packet, DONTWAIT)
            if sent < len(packet):
                buffers[0] = memoryview(packet)[sent:]
                return None
            del buffers[0]
            return stream.recv(RECEIVE_SIZE) if deadline is NEVER else stream.receive(RECEIVE_SIZE, deadline)
        except OSError:
            return None

    def _exchange(
        self,
        buffers: Buffers,
        deadline: Deadline,
        received: bytes | None = None,
        *,
        sent: bool = False,
        parts: Parts | None = None,
    ) -> Exchange:
        from .exchanging import Exchange  # most calls end without

        exchange = Exchange(self.path, deadline, self._max_response_size, sent=sent)
        exchange.attach(self._stream, buffers, parts, received)
        return exchange

    def _streamed(self, buffers: Buffers, parts: Parts | None, deadline: Deadline) -> Generator[bytes, None, None]:
        self._begin()
        try:
            exchange = self._exchange(buffers, deadline, parts=parts)
            for piece in exchange.pieces():
                yield bytes(piece)
            self._end(exchange)
        finally:
            if self._busy:
                self.close()

    def _end(self, exchange: Exchange) -> None:
        """The response is whole; so is the request, unless the server answered before it had read it."""
        if exchange.sending or exchange.spent:
            self.close()
        self._busy = False


class Pool:
    """Up to `size` kept connections to the server at `path`, shared by the threads of this process.

    A thread takes the connection used last, so that no more are open than are needed at the same time, and waits for
    one while all are in use. Where the server closed a connection that lay idle, the call is repeated on another:
    nothing had been sent. The other arguments are those of `connect`. A forked child starts with no connections.
    """

    def __init__(
        self,
        path: Path,
        size: int = 8,
        *,
        trust: Trust = (),
        wait_if_busy: bool = True,
        wait_if_not_found: bool = False,
        max_response_size: int | None = None,
    ) -> None:
        if size < 1:
            raise ValueError(f"a pool's size must be at least 1, not {size}")
        self.path = os.fspath(path)
        self.size = size
        self._trust = trust
        self._wait_if_busy = wait_if_busy
        self._wait_if_not_found = wait_if_not_found
        self._max_response_size = max_response_size
        self._closed = False
        self._idle: list[Connection]
        self._start()

    def call(self, data: Buffer = b"", timeout: Timeout = None) -> bytes:
        """Send `data` on a connection that is free and return the response; see `Connection.call`.

        timeout: seconds for all of it, the wait for a connection included.
        """
        deadline = deadline_of(timeout)
        while True:
            connection, kept = self._take(deadline)
            try:
                return connection.call(data, deadline)
            except ConnectionLost as error:
                if not kept or error.progress is not Progress.NOTHING_SENT:
                    raise
            finally:
                self._give_back(connection)

    def close(self) -> None:
        """Close the idle connections now, and those in use as their calls end."""
        with self._changed:
            self._closed = True
            idle, self._idle = self._idle, []
            self._changed.notify_all()
        for connection in idle:
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        from threading import Condition  # whoever needs a pool has imported it already

        self._changed: Condition = Condition()
        self._idle = []
        self._in_use = 0
        self._process = os.getpid()

    def _take(self, deadline: Deadline) -> tuple[Connection, bool]:
        """A connection of one's own, and whether it has been used before."""
        kept = self._take_slot(deadline)
        if kept is not None:
            return kept, True
        try:
            return self._connect(deadline), False
        except BaseException:
            self._give_back(None)
            raise

    def _take_slot(self, deadline: Deadline) -> Connection | None:
        if self._process != os.getpid():
            self._start()  # the parent goes on using the connections that we inherited
        with self._changed:
            while self._in_use == self.size and not self._closed:
                if not self._changed.wait(deadline.remaining()):
                    raise CallTimeout(self.path, deadline.timeout)
            if self._closed:
                raise LocalProtocolError("the pool is closed", self.path)
            self._in_use += 1
            return self._idle.pop() if self._idle else None

    def _connect(self, deadline: Deadline) -> Connection:
        return connect(
            self.path,
            deadline,
            trust=self._trust,
            wait_if_busy=self._wait_if_busy,
            wait_if_not_found=self._wait_if_not_found,
            max_response_size=self._max_response_size,
        )

    def _give_back(self, connection: Connection | None) -> None:
        with self._changed:
            self._in_use -= 1
            keep = connection is not None and not connection.closed and not self._closed
            if connection is not None and keep:
                self._idle.append(connection)
            self._changed.notify()
        if connection is not None and not keep:
            connection.close()
