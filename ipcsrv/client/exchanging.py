"""A client's exchange that needs more than one send and one receive.  Loaded for the first such exchange.

`PendingExchange` is what the blocking client and the asyncio one have in common: bytes that came go in, pieces of the
response or the error to raise come out. `Exchange` is the blocking client's. It sends and receives at the same time: a
server may answer, or give its reason for not answering, before it has read the whole request, and then neither side
may wait for the other; and when the server takes no more, what it has sent is still read.
"""

from __future__ import annotations

from ..errors import CallTimeout, ConnectionLost, IpcError, Progress, from_reply
from ..protocol.exchange import ClientExchange, Failed, Lost, ResponseData
from ..protocol.pktline import FLUSH, Assembly, encode, encode_data

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import TypeVar

    from typing_extensions import Buffer

    from ..deadline import Deadline
    from ..platform.client import Stream

    Buffers = list[bytes | memoryview]
    Parts = Iterator[Buffers | None]  # None for ANSWERED
    T = TypeVar("T")

RECEIVE_SIZE = 65536  # bytes
ANSWERED = object()  # a part of a request: there is no more yet, and the server has said something, or closed


def outgoing(data: Buffer | Iterable[Buffer]) -> tuple[Buffers, Parts | None]:
    """What to send for `data`: at once, and then as its parts come."""
    try:
        memoryview(data).release()  # type: ignore[arg-type]
    except TypeError:
        if isinstance(data, str):
            raise
        return [], _packets(iter(data))  # type: ignore[arg-type]
    return encode(data), None  # type: ignore[arg-type]


def _packets(parts: Iterator[Buffer]) -> Parts:
    for part in parts:
        yield None if part is ANSWERED else encode_data(part)
    yield [FLUSH]


class PendingExchange:
    """What an exchange has come to, from what was sent and received. No I/O."""

    def __init__(self, path: str, deadline: Deadline, max_response_size: int | None, *, sent: bool = False) -> None:
        """Begin; `sent`: something of the request has left already."""
        self._path = path
        self._deadline = deadline
        self._machine = ClientExchange(max_response_size)
        self._machine.begin_request()
        self.sent = sent  # anything of the request
        self.sending = True  # the request has not left whole
        self.spent = False  # more came than the response: nothing on this connection can be trusted any more

    def next_piece(self) -> bytes | memoryview | None:
        """The next piece of the response, empty at its end; None until more has been received. Raises the failure."""
        try:
            event = self._machine.next_event()
        except IpcError as error:
            error.path = self._path
            raise
        if event is None:
            return None
        if isinstance(event, ResponseData):
            return event.data
        if isinstance(event, Failed):
            raise from_reply(event.code, event.message, self._path)
        if isinstance(event, Lost):
            raise ConnectionLost(self._path, self._progress())
        self.spent = self._machine._decoder.buffered > 0
        return b""

    def receive(self, data: bytes) -> None:
        """Take what was received, nothing being the end."""
        if data:
            self._machine.receive_data(data)
        else:
            self._machine.receive_eof()

    def timed_out(self) -> CallTimeout:
        """The error for a deadline that passes now."""
        return CallTimeout(self._path, self._deadline.timeout, self._progress())

    def _progress(self) -> Progress:
        if self.sent and self.sending:  # a handler runs only when it has the whole request
            return Progress.REQUEST_SENT
        return self._machine.progress if self.sent else Progress.NOTHING_SENT


class Exchange(PendingExchange):
    """One exchange on a stream; the caller closes the stream if the exchange does not come to its end."""

    def attach(self, stream: Stream, buffers: Buffers, parts: Parts | None, received: bytes | None) -> None:
        """Go on from here: `buffers` and `parts` are still to be sent, `received` has come."""
        self._stream = stream
        self._buffers = buffers
        self._parts = parts
        self.sending = bool(buffers or parts)
        if received is not None:
            self.receive(received)

    def pieces(self) -> Iterator[bytes | memoryview]:
        """The response as it comes."""
        while (piece := self.next_piece()) != b"":
            if piece is None:
                self._receive_more()
            else:
                yield piece

    def join(self) -> bytes:
        """The whole response."""
        response = Assembly()
        for piece in self.pieces():
            response.append(piece)
        return response.join()

    def _receive_more(self) -> None:
        data = self._send() if self.sending else None
        if data is None:
            data = self._done(self._stream.receive, RECEIVE_SIZE)
        self.receive(data or b"")

    def _done(self, operation: Callable[[T, Deadline], bytes | None], argument: T) -> bytes | None:
        """Do this to the stream. What the parts of the request raise is not caught with it: it is not the server's."""
        try:
            return operation(argument, self._deadline)
        except TimeoutError:
            raise self.timed_out() from None
        except ConnectionError:
            return b""

    def _send(self) -> bytes | None:
        """Send the rest of the request; what came while that had to wait, or None when there is no more to send."""
        while self._buffers or self._next_part():
            data = self._done(self._transfer, self._buffers)
            if data is not None:
                return data
            if self._buffers:
                break  # the server takes no more: it may have sent the reason
        else:
            self.sending = self._parts is not None
        return None

    def _transfer(self, buffers: Buffers, deadline: Deadline) -> bytes | None:
        first = buffers[0]
        try:
            return self._stream.transfer(buffers, deadline)
        finally:
            self.sent = self.sent or not buffers or buffers[0] is not first

    def _next_part(self) -> bool:
        """Get something to send from the parts; False when there is no more, or not yet."""
        while not self._buffers and self._parts is not None:
            try:
                buffers = next(self._parts)
            except StopIteration:
                self._parts = None
                break
            if buffers is None:
                break
            self._buffers = buffers
        return bool(self._buffers)
