"""The request/response exchange as a state machine, one for either side (docs/protocol.md section 2).

Pure: bytes that were read go in, events come out; what to send comes back as buffers. Sockets, pipes, asyncio and
time belong to the shells around it (the client, the worker's slow path). A shell does three things:

1. `receive_data` with what it read, or `receive_eof`;
2. `next_event` until that gives None, which means "read more";
3. send the buffers that the other methods return, in order.

The states and what may happen in each are the two tables below, and nothing else decides: what a table does not hold
raises `LocalProtocolError`, for it is a fault in this program and not in the peer's bytes. The peer's faults are
events on the server's side, which answers them, and exceptions on the client's, whose caller needs to know.

**The server** takes one request at a time. What a client sends ahead (*pipelining*) stays undecoded until the
response in progress has ended, so responses are in order by construction and a client that only writes makes no
list of requests grow.

**The client** must tell a response from a failure reply, `ERR <code> <message>` in one packet, which differ only in
what follows: an end of file, where a response has a flush. So the data of a packet that might be a failure reply is
held back until what follows it has come. Such packets are short, and a server sends each in one write: holding one back
delays nothing that a reader could have used.

States and events' names are plain strings and plain classes: the client imports this on its way to its first byte.
"""

from __future__ import annotations

from ..errors import IpcError, LocalProtocolError, Progress, ProtocolError, TooLarge
from .pktline import Assembly, Decoder, encode, encode_data

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Buffer

# States. The server's:
READING = "reading"  # a request, or the wait for one
RESPONDING = "responding"  # to the request given out; the handler is at work or its response under way
REFUSING = "refusing"  # a request that cannot be read: all that may be sent is the reason
# The client's:
IDLE = "idle"  # no response is due
AWAITING = "awaiting"  # a response of which nothing has come
RECEIVING = "receiving"  # a response
# Either's:
CLOSED = "closed"

_SERVER_TABLE = {
    READING: {"request": RESPONDING, "peer closed": CLOSED, "refuse": REFUSING, "fail": CLOSED},
    RESPONDING: {"chunk": RESPONDING, "end": READING, "fail": CLOSED},
    REFUSING: {"fail": CLOSED},
    CLOSED: {},
}
_CLIENT_TABLE = {
    IDLE: {"send": AWAITING, "failed": CLOSED, "lost": CLOSED, "broken": CLOSED},
    AWAITING: {
        "send": AWAITING,
        "data": RECEIVING,
        "end": AWAITING,
        "last end": IDLE,
        "failed": CLOSED,
        "lost": CLOSED,
        "broken": CLOSED,
    },
    RECEIVING: {
        "send": RECEIVING,
        "data": RECEIVING,
        "end": AWAITING,
        "last end": IDLE,
        "failed": CLOSED,
        "lost": CLOSED,
        "broken": CLOSED,
    },
    CLOSED: {},
}

# Failure replies

_FAILURE_PREFIX = b"ERR "
#: Bytes of the message in a failure reply, at most (docs/protocol.md section 2).
MAX_FAILURE_MESSAGE = 1000
#: Bytes of a packet's data from which on it is no failure reply: the message, the prefix and a generous code.
_MAX_FAILURE = 1100


def failure_packet(code: str, message: str) -> bytes:
    """The packet `ERR <code> <message>`, after which the connection is closed without a flush.

    The message is made one line and cut to 1000 bytes, between characters.
    """
    text = " ".join(message.splitlines()).encode("utf-8", "backslashreplace")
    text = text[:MAX_FAILURE_MESSAGE].decode("utf-8", "ignore").encode("utf-8")
    return b"".join(encode_data(b"%b%b %b" % (_FAILURE_PREFIX, code.encode("ascii"), text)))


def parse_failure(data: bytes) -> tuple[str, str]:
    """Code and message of a failure reply's data."""
    code, _, message = data[len(_FAILURE_PREFIX) :].decode("utf-8", "replace").partition(" ")
    return code, message


# Events


class Event:
    """Something that came of what was received. Equal to another of the same kind with the same values."""

    __slots__: tuple[str, ...] = ()

    def _values(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name in self.__slots__)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._values() == other._values()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(_brief, self._values()))})"


def _brief(value: object) -> str:
    return repr(value) if isinstance(value, str) else f"{len(value)} bytes"  # type: ignore[arg-type]


class RequestReceived(Event):
    """Server: a whole request. Respond to it before the next one is given."""

    __slots__ = ("payload",)

    def __init__(self, payload: bytes) -> None:
        self.payload = payload


class PeerClosed(Event):
    """Server: the client closed between requests, which is a probe or a goodbye. Close quietly."""

    __slots__ = ()


class Truncated(Event):
    """Server: the client closed in the middle of a request. Nobody is left to answer."""

    __slots__ = ()


class Refused(Event):
    """Server: what came cannot be a request (`malformed`) or is more than is accepted (`too-large`).

    Answer with `fail(code, message)`, then close.
    """

    __slots__ = ("code", "message")

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        self.message = message


class ResponseData(Event):
    """Client: the next run of the response, as it came; perhaps a view of the bytes that were received."""

    __slots__ = ("data",)

    def __init__(self, data: bytes | memoryview) -> None:
        self.data = data


class ResponseEnd(Event):
    """Client: the response is whole; the connection takes the next request."""

    __slots__ = ()


class Failed(Event):
    """Client: the server answered with a failure and closed; `errors.from_reply(code, message)` is its error."""

    __slots__ = ("code", "message")

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        self.message = message


class Lost(Event):
    """Client: the server closed before its response was whole, without a word; `progress` says how far it got."""

    __slots__ = ("progress",)

    def __init__(self, progress: Progress) -> None:
        self.progress = progress


# Machines


class _Machine:
    """A decoder, a state, and the table that moves it."""

    _table: dict[str, dict[str, str]]

    def __init__(self, state: str, decoder: Decoder) -> None:
        self.state = state
        self._decoder = decoder
        self._eof = False

    def receive_data(self, data: Buffer) -> None:
        """Take bytes that were read. Empty bytes are not an end of file: that is `receive_eof`."""
        self._decoder.feed(data)

    def receive_eof(self) -> None:
        """Nothing will follow."""
        self._eof = True

    def _move(self, action: str) -> None:
        state = self._table[self.state].get(action)
        if state is None:
            raise LocalProtocolError(f"{action!r} is not possible in the state {self.state!r}")
        self.state = state


class ServerExchange(_Machine):
    """The server's side of one connection. Requests of more than `max_request_size` bytes are refused."""

    _table = _SERVER_TABLE

    def __init__(self, max_request_size: int | None = None, assembly: Assembly | None = None) -> None:
        super().__init__(READING, Decoder(max_request_size, "request", assembly))

    @property
    def assembly(self) -> Assembly:
        """Where the data of the request in progress is."""
        return self._decoder.assembly

    def snapshot(self) -> tuple[bytes, int, int, bool]:
        """Return the decoder's state inside a request (`Decoder.snapshot`)."""
        return self._decoder.snapshot()

    def restore(self, header: bytes, left: int, total: int, begun: bool) -> None:
        """Go on inside a request whose data so far is in the assembly."""
        self._decoder.restore(header, left, total, begun)

    def take_ahead(self) -> bytes:
        """Return what was read after the last request, undecoded; it is forgotten here."""
        return self._decoder.take_rest()

    @property
    def mid_request(self) -> bool:
        """True when a request has begun to come and is not whole: `read_timeout` applies."""
        return self.state == READING and self._decoder.mid_message

    @property
    def idle(self) -> bool:
        """True when nothing of a next request has come."""
        return not self._decoder.mid_message and not self._decoder.buffered

    @property
    def buffered(self) -> int:
        """Bytes held: of the request in progress, and of what was sent ahead."""
        return self._decoder.buffered

    def next_event(self) -> RequestReceived | PeerClosed | Truncated | Refused | None:
        """What came of the bytes so far; None until more come or, while responding, until the response has ended."""
        if self.state != READING:
            return None
        try:
            payload = self._decoder.next_message()
        except TooLarge as error:
            return self._refuse(error.code, error.message)
        except ProtocolError as error:
            return self._refuse("malformed", error.reason)
        if payload is not None:
            self._move("request")
            return RequestReceived(payload)
        return self._closed_by_peer() if self._eof else None

    def respond(self, data: Buffer) -> list[bytes | memoryview]:
        """The whole response, as buffers to send."""
        buffers = encode(data)
        self._move("chunk")
        self._move("end")
        return buffers

    def respond_chunk(self, data: Buffer) -> list[bytes | memoryview]:
        """A part of the response; no buffers for no data."""
        self._move("chunk")
        return encode_data(data)

    def end_response(self) -> list[bytes | memoryview]:
        """The end of a response sent in parts."""
        self._move("end")
        return encode(b"")

    def fail(self, code: str, message: str) -> list[bytes | memoryview]:
        """The failure reply, in place of a response or after a part of one. Close when it is sent."""
        self._move("fail")
        return [failure_packet(code, message)]

    def _refuse(self, code: str, message: str) -> Refused:
        self._move("refuse")
        return Refused(code, message)

    def _closed_by_peer(self) -> PeerClosed | Truncated:
        truncated = self._decoder.mid_message
        self._move("peer closed")
        return Truncated() if truncated else PeerClosed()


class ClientExchange(_Machine):
    """The client's side of one connection. Requests may be sent ahead; responses come in their order.

    A response of more than `max_response_size` bytes raises TooLarge, bytes that are no response ProtocolError;
    the connection is of no use after either.
    """

    _table = _CLIENT_TABLE

    def __init__(self, max_response_size: int | None = None) -> None:
        super().__init__(IDLE, Decoder(max_response_size, "response"))
        self._due = 0  # responses
        self._long = False  # within a packet that is too long for a failure reply
        self._part = b""  # of a shorter packet, as far as it has come
        self._held = b""  # a whole packet that may be a failure reply: what follows it decides
        self._ending = False  # the flush has been read, the end not yet been told

    @property
    def progress(self) -> Progress:
        """How far the exchange in progress has got."""
        if not self._due:
            return Progress.NOTHING_SENT
        begun = self.state == RECEIVING or self._decoder.mid_message
        return Progress.RESPONSE_BEGUN if begun else Progress.REQUEST_SENT

    def send_request(self, data: Buffer) -> list[bytes | memoryview]:
        """The request, as buffers to send."""
        buffers = encode(data)
        self.begin_request()
        return buffers

    def begin_request(self) -> None:
        """Say that a request is being sent whose packets the shell makes itself, as from a stream."""
        self._move("send")
        self._due += 1

    def next_event(self) -> ResponseData | ResponseEnd | Failed | Lost | None:
        """What came of the bytes so far; None until more come."""
        if self.state == CLOSED:
            return None
        try:
            return self._next_event()
        except IpcError:
            self._move("broken")
            raise

    def _next_event(self) -> ResponseData | ResponseEnd | Failed | Lost | None:
        while not self._ending and (piece := self._decoder.next_piece()) is not None:
            self._ending = not piece
            if data := self._released(piece):
                return self._data(data)
        if self._ending:
            return self._end()
        return self._closed_by_peer() if self._eof else None

    def _released(self, piece: bytes | memoryview) -> bytes | memoryview:
        """What may be given out now that this piece, or the flush, has come; the rest is kept."""
        left = self._decoder.packet_left
        if self._long or len(self._part) + len(piece) + left > _MAX_FAILURE:
            self._long = left > 0
            return b"".join((self._take_held(), piece)) if self._held else piece
        self._part += piece
        if left:
            return b""
        before = self._take_held()
        packet, self._part = self._part, b""
        if packet.startswith(_FAILURE_PREFIX):
            self._held = packet
            return before
        return before + packet

    def _take_held(self) -> bytes:
        held, self._held = self._held, b""
        return held

    def _data(self, data: bytes | memoryview) -> ResponseData:
        self._check_asked()
        self._move("data")
        return ResponseData(data)

    def _end(self) -> ResponseEnd:
        self._check_asked()
        self._ending = False
        self._due -= 1
        self._move("end" if self._due else "last end")
        return ResponseEnd()

    def _check_asked(self) -> None:
        if not self._due:
            raise ProtocolError("the server sent a response that no request asked for")

    def _closed_by_peer(self) -> Failed | Lost:
        if self._held and not self._decoder.mid_packet:
            self._move("failed")
            return Failed(*parse_failure(self._held))
        progress = self.progress
        self._move("lost")
        return Lost(progress)
