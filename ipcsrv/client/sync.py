"""The blocking client: connect to a server and call it.  Runs in the client's process.

An exchange takes one of two ways.  The usual one is short: the request is one packet that the kernel takes at once,
and the first read returns the whole response; that is one send, one receive and no state machine.  Anything else
(large messages, failures, silence, bytes one at a time) continues in `exchanging`, which sends and receives at the
same time.

A `timeout` is one budget for all the steps of what it was given to: connecting, sending and receiving.
Nothing is sent before the server's credentials have been read and found to be trusted (docs/protocol.md section 5).
"""

from __future__ import annotations

import os

from ..deadline import Deadline
from ..errors import LocalProtocolError, Untrusted
from ..platform import client as platform
from ..platform.client import DONTWAIT
from ..protocol.pktline import MAX_DATA, decode_exact, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from typing import Self, TypedDict

    from typing_extensions import Buffer

    from ..peer import Peer
    from ..platform.client import Stream
    from ..state import State
    from .exchanging import Buffers, Exchange, Parts

    Path = str | os.PathLike[str]
    Timeout = float | Deadline | None
    Trust = int | str | Iterable[int | str]

    class CallOptions(TypedDict, total=False):
        """The keywords of `call` and `connect` besides `timeout`."""

        trust: Trust
        wait_if_busy: bool
        wait_if_not_found: bool
        max_response_size: int | None

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
    """Send one request on a new connection and return the response.

    Args:
        path: Where the server listens.
        data: The request, any object with the buffer interface.
        timeout: Seconds for connecting, sending and receiving together; None for no limit.
        trust: Users (uids or names) besides the caller's own and root who may run the server.
        wait_if_busy: Try again while the server refuses connections or its backlog is full.
        wait_if_not_found: Try again while nothing is at the path, for a server that is just starting.
        max_response_size: Bytes of a response beyond which `TooLarge` is raised; None for no limit.

    Returns:
        The response.

    Raises:
        NotListening: No server listens at `path` (`PathNotFound` where nothing is there at all).
        InvalidPath: What is at `path` is not a socket, or `path` cannot be one.
        Untrusted: Another user runs the server; nothing was sent (docs/protocol.md section 5).
        CallTimeout: The time is over; `progress` says what is safe to repeat.
        ConnectionLost: The server closed the connection before the response was complete; `progress` as above.
        ServerError: The server answered with a failure; `HandlerError` and the others name the kind.
        ProtocolError: The server sent bytes that are not a response.
        TooLarge: The response is longer than `max_response_size`.
        ValueError: `timeout` is negative or not a number; nothing was sent.

    Example:
        >>> ipcsrv.call("./z.sock", b"data", timeout=5)
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
    """Connect to the server at `path` and verify its credentials; nothing is sent yet.

    Args:
        path: Where the server listens.
        timeout: Seconds to connect; None for no limit where the backlog is full, 1 s for a socket that refuses.
        trust: Users (uids or names) besides the caller's own and root who may run the server.
        wait_if_busy: Try again while the server refuses connections or its backlog is full.
        wait_if_not_found: Try again while nothing is at the path, for a server that is just starting.
        max_response_size: Bytes of a response beyond which `TooLarge` is raised; None for no limit.

    Returns:
        A `Connection`, which is a context manager.

    Raises:
        NotListening: No server listens at `path` (`PathNotFound` where nothing is there at all).
        InvalidPath: What is at `path` is not a socket, or `path` cannot be one.
        Denied: The system does not let this user connect.
        CallTimeout: The backlog stayed full for `timeout` seconds.
        Untrusted: Another user runs the server (docs/protocol.md section 5).
        ValueError: `timeout` is negative or not a number.

    Example:
        >>> with ipcsrv.connect("./z.sock") as connection:
        ...     for data in (b"one", b"two"):
        ...         connection.call(data)
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
    """Return what is at `path` (docs/protocol.md section 3): connects, sends nothing, raises nothing.

    Args:
        path: The path to probe.
        timeout: Seconds for the probe.

    Returns:
        A member of `State`.

    Example:
        >>> ipcsrv.active_state("./z.sock") is ipcsrv.State.LISTENING
    """
    return platform.probe(os.fspath(path), timeout)


def wait_until_listening(path: Path, timeout: Timeout = None) -> None:
    """Wait until a server listens at `path`, such as one that a supervisor is starting.

    Args:
        path: Where the server will listen; nothing need be there yet.
        timeout: Seconds to wait; None for no limit.

    Raises:
        NotListening: No server listens there after `timeout` seconds.
        InvalidPath: What is at `path` is not a socket, or `path` cannot be one.
        ValueError: `timeout` is negative or not a number.

    Example:
        >>> ipcsrv.wait_until_listening("./z.sock", timeout=10)
    """
    platform.connect(os.fspath(path), deadline_of(timeout), wait_if_busy=True, wait_if_not_found=True).close()


def check_trust(path: str, peer: Peer, trust: Trust) -> Peer:
    """Return the server's credentials, or raise `Untrusted`.

    Args:
        path: Where the server listens, for the error.
        peer: The server's credentials.
        trust: Users besides the caller's own and root who may run it.

    Returns:
        `peer`.

    Raises:
        Untrusted: The server's user is none of them.
    """
    if not platform.trusted(peer, trust):
        named = (trust,) if isinstance(trust, (int, str)) else tuple(trust)
        raise Untrusted(path, peer, " or ".join(("you", "root", *map(str, named))))
    return peer


def deadline_of(timeout: Timeout) -> Deadline:
    """Return the deadline `timeout` seconds from now; a `Deadline` is returned as it is.

    Args:
        timeout: Seconds, a `Deadline`, or None for no limit.

    Returns:
        The deadline.

    Raises:
        ValueError: `timeout` is negative or not a number.
    """
    if timeout is None:
        return NEVER
    return timeout if isinstance(timeout, Deadline) else Deadline(timeout)


class Connection:
    """A connection for many exchanges, one after the other; for one thread (`Pool` is for several).

    Any failure closes it, because the bytes that the server sends next could not be told from the next response.  It
    belongs to the process that made it: after a fork the child makes its own.

    Attributes:
        path: Where it leads.
        peer: The server's credentials, a `Peer`.
        closed: Whether it is closed.
    """

    __slots__ = ("_busy", "_max_response_size", "_one_read", "_process", "_stream", "closed", "path", "peer")

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
        self._stream = stream
        self._busy = False
        self._process = os.getpid()
        self._max_response_size = max_response_size
        self._one_read = max_response_size is None or max_response_size >= MAX_DATA

    def __repr__(self) -> str:
        """Return the path, the server's pid and the state."""
        state = "closed" if self.closed else "in an exchange" if self._busy else "open"
        return f"<ipcsrv.Connection to {self.path!r}, server pid {self.peer.pid}, {state}>"

    def call(self, data: Buffer = b"", timeout: Timeout = None) -> bytes:
        """Send one request and return the response.

        Args:
            data: The request, any object with the buffer interface.
            timeout: Seconds for the whole exchange; None for no limit.

        Returns:
            The response.

        Raises:
            CallTimeout: The time is over; `progress` says what is safe to repeat.
            ConnectionLost: The server closed the connection before the response was complete; `progress` as above.
            ServerError: The server answered with a failure; `HandlerError` and the others name the kind.
            ProtocolError: The server sent bytes that are not a response.
            TooLarge: The response is longer than `max_response_size`.
            LocalProtocolError: The connection is closed, in an exchange, or of another process.
            ValueError: `timeout` is negative or not a number; nothing was sent.
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
        """Send one request and yield the response in pieces, as they arrive; neither need fit into memory.

        The exchange begins when the first piece is asked for.  An iterator that is closed before its end closes the
        connection.

        Args:
            data: The request, or an iterable of its parts; each is sent before the next is asked for.
            timeout: Seconds from now until the response is complete; None for no limit.

        Returns:
            An iterator of pieces of bytes, none empty.  It raises what `call` raises.

        Raises:
            ValueError: `timeout` is negative or not a number; nothing was sent.
        """
        from .exchanging import outgoing

        buffers, parts = outgoing(data)
        return self._streamed(buffers, parts, deadline_of(timeout))

    def _ended_within(self, seconds: float) -> bool:
        """Return whether the server closes this idle connection, or sends what was not asked for, within a time.

        Args:
            seconds: How long to wait; 0 to look only.

        Returns:
            True where the connection cannot be used again.
        """
        try:
            self._stream.receive(1, Deadline(seconds))
        except TimeoutError:
            return False
        except OSError:
            pass
        return True

    def close(self) -> None:
        """Close the connection; a response that is under way is lost."""
        self.closed = True
        self._stream.close()

    def __enter__(self) -> Self:
        """Return the connection itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self.close()

    def _begin(self) -> None:
        if self.closed:
            raise LocalProtocolError("the connection is closed", self.path)
        if self._busy:
            raise LocalProtocolError("the connection is in the middle of an exchange", self.path)
        if self._process != os.getpid():  # the parent's requests go over it too: each would read the other's responses
            raise LocalProtocolError("the connection belongs to the parent process; connect again after a fork",
                                     self.path)
        self._busy = True

    def _send_and_receive(self, buffers: Buffers, deadline: Deadline) -> bytes | None:
        """Send and receive once; None where that was not enough, or failed: `exchanging` then finds out why."""
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
        """Finish: the response is complete; so is the request, unless the server answered before it had read it."""
        if exchange.sending or exchange.spent:
            self.close()
        self._busy = False
