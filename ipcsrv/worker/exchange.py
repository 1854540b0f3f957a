"""The long way through an exchange: what did not come in one read, or does not go out in one write.  In the worker.

Nearly every request is answered by `worker.Worker` in one stroke, without ever having to wait.  What is left over
comes here: requests in pieces or pipelined, long or streamed responses, clients that stall in the middle of either.
A `Conversation` runs until it would have to wait, then says for what and how long, so that its worker serves others
meanwhile; a stalled client costs a descriptor and a few kilobytes, not a worker.

It is a generator that yields `(mask, seconds)` and is resumed when the connection is ready, or has `Stalled` thrown
into it when the time is over.  It returns True if the connection is whole and silent, False if it is done for.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from ..platform.server import DONTWAIT, READ, WRITE, Connection, keep_freed_memory
from ..protocol.exchange import PeerClosed, RequestReceived, ServerExchange, Truncated, failure_packet
from ..request import QUIT, Request
from ..supervision import scoreboard
from .failures import Failure
from .streaming import Coalescer, Gone, drop_sent

if TYPE_CHECKING:
    from .loop import Worker

    Wait = Generator[tuple[int, float], None, bool]

RECEIVE_SIZE = 256 * 1024  # bytes; more than the kernel's buffer of a Unix socket holds
BULK = 32 * 1024  # bytes; a peer that moves so much at once is waited for in the kernel, which is quicker
LARGE = 1 << 20  # bytes of a request from which on it pays to keep freed memory
BULK_PATIENCE = 0.001  # seconds, for as long as it keeps that up
BUFFERS_A_CALL = 16  # half a MiB of packets: more than a send buffer takes
FIRST_REQUEST_PATIENCE = 1.0  # seconds that a worker on its way out gives a client that has just connected
READS_A_TURN = 8  # of a request that comes faster than it is read; after that the others of this worker have theirs
TURN = 16  # pipelined requests that are served before the others of this worker have theirs


class Stalled(Exception):
    """Thrown into a conversation that waited for too long."""


class Conversation:
    """A connection whose exchange takes longer than one stroke.

    `steps` is the generator; `mask` and `due` (monotonic seconds) are what it waits for and until when.
    """

    __slots__ = (
        "_complete_by", "_exchange", "_reading", "_reads", "_served", "_worker", "connection", "due", "mask", "steps",
    )  # fmt: skip

    def __init__(self, worker: Worker, connection: Connection, data: bytes) -> None:
        self._worker = worker
        self._exchange = ServerExchange(worker.settings.max_request_size)
        if data:
            self._exchange.receive_data(data)
        self._served = self._reads = 0
        self._reading = DONTWAIT  # flags of the next read: 0 in the middle of a bulk that comes quickly
        self._complete_by = 0.0  # monotonic seconds until which the request in progress must be complete; 0: none is
        self.connection = connection
        self.mask, self.due = READ, 0.0
        self.steps = self._run()

    def answer_first(self, response: Any) -> None:
        """Begin with the response to the request in the data given: it has been handled already."""
        self._exchange.next_event()
        self.steps = self._run(self._respond(response))

    def send_first(self, unsent: bytes) -> None:
        """Begin with what is left of that response's packets."""
        self._exchange.next_event()
        self._exchange.end_response()
        self.steps = self._run(self._send([unsent]))

    # -- the course of it -------------------------------------------------------------------------------------------

    def _run(self, response: Generator[tuple[int, float], None, None] | None = None) -> Wait:
        try:
            if response is not None:
                whole = yield from self._complete(response)
                if not whole or self._exchange.idle:
                    return whole
            while True:
                request = yield from self._read()
                if request is None or not (yield from self._answer(request)):
                    return False
                if self._exchange.idle:
                    return True
        except (Gone, ConnectionError):
            self._worker.tally.count(scoreboard.CANCELLED)
            return False

    def _complete(self, response: Generator[tuple[int, float], None, None]) -> Wait:
        """Send a response to its end; False if that failed, and with it the connection."""
        try:
            yield from response
        except Failure as failure:
            return (yield from self._fail(failure))
        except Stalled:
            return self._stalled_writing()
        self._worker.tally.ended_well()
        return True

    def _read(self) -> Generator[tuple[int, float], None, Request | None]:
        """The next request, or None when there is none to be had."""
        self._complete_by = 0.0
        while True:
            event = self._exchange.next_event()
            if event is not None:
                break
            try:
                data = yield from self._receive()
            except Stalled:
                yield from self._give_up_reading()
                return None
            if data:
                self._exchange.receive_data(data)
                if (size := self._exchange.buffered) > LARGE:
                    keep_freed_memory(size)
                del data  # the decoder's now, to let go when it has used it up
            else:
                self._exchange.receive_eof()
        if isinstance(event, RequestReceived):
            return Request(event.payload)  # and the payload goes with this frame: a large one is held once
        if isinstance(event, PeerClosed):
            return None
        if isinstance(event, Truncated):
            self._worker.complaints.malformed(self.connection, "the request ends in the middle")
            return None
        yield from self._refuse(event.code, event.message)
        return None

    def _give_up_reading(self) -> Generator[tuple[int, float], None, None]:
        if not self._exchange.idle:
            yield from self._refuse("timeout", "the request was not complete within read_timeout")
        else:
            yield from self._say("stopping", "the server has stopped")

    def _receive(self) -> Generator[tuple[int, float], None, bytes]:
        """What the client sends next; `read_timeout` is for the whole request, from when it began to arrive."""
        self._reads += 1
        if self._reads % READS_A_TURN == 0:
            yield READ, self._limit()
        while True:
            try:
                data = self.connection.recv(RECEIVE_SIZE, self._reading)
                if len(data) >= BULK and self._reading and self.connection.wait_at_most(BULK_PATIENCE):
                    self._reading = 0
                elif len(data) < BULK:
                    self._reading = DONTWAIT  # it is not in a hurry: it must not keep others waiting
                return data
            except BlockingIOError:
                self._reading = DONTWAIT
            yield READ, self._limit()

    def _limit(self) -> float:
        """Until when we wait for more; raises `Stalled` if that is over, though more may be there."""
        now = self._worker.clock()
        if self._exchange.idle:
            return now + FIRST_REQUEST_PATIENCE
        self._complete_by = self._complete_by or now + self._worker.settings.read_timeout
        if now >= self._complete_by:
            raise Stalled
        return self._complete_by

    def _answer(self, request: Request) -> Wait:
        worker = self._worker
        self._served += 1
        if self._served % TURN == 0:
            yield WRITE, worker.clock() + worker.settings.write_timeout  # writable at once: let the others have a turn
        try:
            response = worker.handle(self.connection, request)
        except Failure as failure:
            return (yield from self._fail(failure))
        return (yield from self._complete(self._respond(response)))

    # -- responses --------------------------------------------------------------------------------------------------

    def _respond(self, response: Any) -> Generator[tuple[int, float], None, None]:
        """Send a response and move the exchange on to the next request."""
        if response is None or response is QUIT:
            yield from self._send(self._exchange.respond(b""))
            if response is QUIT:
                self._worker.quit()
            return
        whole = as_bytes_like(response)
        if whole is not None:
            self._check_size(len(whole))
            self._worker.tally.count_out(len(whole))
            yield from self._send(self._exchange.respond(whole))
        elif isinstance(response, Iterable) and not isinstance(response, str):
            yield from self._stream(response)
        else:
            raise wrong_type("a handler", response)

    def _stream(self, chunks: Iterable[Any]) -> Generator[tuple[int, float], None, None]:
        iterator = iter(chunks)
        with self._worker.flusher.stream(self.connection) as stream:
            try:
                yield from self._gather(iterator, stream)
            except Failure:
                yield from self._finish(stream)  # so that the failure reply does not fall into a packet
                raise
            finally:
                close_iterator(iterator)
            self._worker.tally.count_out(stream.total)
            stream.add_packets(self._exchange.end_response())
            yield from self._finish(stream)

    def _gather(self, iterator: Iterator[Any], stream: Coalescer) -> Generator[tuple[int, float], None, None]:
        """Run the handler's iterator to its end, handing its chunks to the stream."""
        worker = self._worker
        worker.resume_handler(worker.tally.began)
        try:
            for chunk in iterator:
                if type(chunk) is not bytes:
                    chunk = chunk_bytes(chunk)  # noqa: PLW2901 - a stream may be of millions of them
                if stream.add(chunk):
                    stream.flush()
                    self._check_size(stream.total)
                    while stream.full:
                        used = worker.pause_handler()
                        yield from self._wait_writable()
                        worker.resume_handler(monotonic_ns() - used)
                        stream.flush()
        except (Gone, Stalled, Failure, GeneratorExit):
            raise
        except BaseException as error:
            raise worker.complaints.handler_failed(error) from None
        finally:
            worker.pause_handler()
        self._check_size(stream.total)

    def _finish(self, stream: Coalescer) -> Generator[tuple[int, float], None, None]:
        stream.flush()
        while stream.unsent:
            yield from self._wait_writable()
            stream.flush()

    def _check_size(self, size: int) -> None:
        limit = self._worker.settings.max_response_size
        if limit is not None and size > limit:
            raise Failure("too-large", f"a response of more than {limit} bytes", scoreboard.TOO_LARGE)

    # -- sending ----------------------------------------------------------------------------------------------------

    def _send(self, buffers: list[Any]) -> Generator[tuple[int, float], None, None]:
        """Send all of `buffers`, waiting (within write_timeout for any progress) where the client does not read."""
        connection, flags = self.connection, DONTWAIT
        while buffers:
            try:
                sent = connection.sendmsg(buffers[:BUFFERS_A_CALL], (), flags)
            except BlockingIOError:
                flags = DONTWAIT  # its client does not keep up: it must not keep others waiting
                yield from self._wait_writable()
            else:
                drop_sent(buffers, sent)
                if sent >= BULK and flags and buffers and connection.wait_at_most_to_send(BULK_PATIENCE):
                    flags = 0

    def _wait_writable(self) -> Generator[tuple[int, float], None, None]:
        yield WRITE, self._worker.clock() + self._worker.settings.write_timeout

    def _fail(self, failure: Failure) -> Wait:
        self._worker.tally.count(failure.counter)
        yield from self._say(failure.code, failure.message)
        return False

    def _refuse(self, code: str, message: str) -> Generator[tuple[int, float], None, None]:
        self._worker.complaints.refused(self.connection, code, message)
        yield from self._say(code, message)

    def _say(self, code: str, message: str) -> Generator[tuple[int, float], None, None]:
        """Send the failure reply, if the client takes it at once or soon."""
        try:
            yield from self._send([failure_packet(code, message)])
        except Stalled:
            self._stalled_writing()

    def _stalled_writing(self) -> bool:
        self._worker.complaints.stalled(self.connection)
        return False


def as_bytes_like(response: Any) -> Any:
    """`response` as something with a length in bytes that can be sent, or None if it is not bytes-like."""
    if isinstance(response, (bytes, bytearray)):
        return response
    try:
        view = memoryview(response)
    except TypeError:
        return None
    return view.cast("B") if view.contiguous else view.tobytes()


def chunk_bytes(chunk: Any) -> bytes:
    """A chunk of a streamed response as bytes; `TypeError` that says what a chunk must be."""
    data = as_bytes_like(chunk)
    if data is None:
        raise TypeError(f"a streamed response's chunks must be bytes-like, not {type(chunk).__name__}")
    return bytes(data)


def wrong_type(who: str, response: Any) -> Failure:
    """The failure for a response that is none."""
    hint = "; encode it" if isinstance(response, str) else ""
    text = f"TypeError: {who} must return bytes-like, an iterable of bytes-like, None or ipcsrv.QUIT"
    return Failure("handler", f"{text}, not {type(response).__name__}{hint}", scoreboard.HANDLER_ERRORS)


def close_iterator(iterator: Any) -> None:
    """Tell a generator that nobody wants more of it."""
    close = getattr(iterator, "close", None)
    if close is not None:
        close()
