"""The exchanges that take longer than one read and one write. In the worker.

Nearly every request is answered on the fast path. The others come here: requests in pieces or pipelined, long or
streamed responses, clients that stall. A worker has one active connection, so this is plain sequential code. Where it
would have to wait for more than a moment, the exchange goes back to the master with all that is known of it
(`messages.ExchangeState`), and whichever worker takes it later goes on. Only a stream whose generator is suspended
stays in its worker, and an exchange with descriptors that no handler has taken yet: they are this process's.

Every object of the handler's (its response, the response's iterator and chunks) is touched inside `_guarded` or
`_gather`: whatever such an object does, short of ending the process, is a failure of the handler.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, NoReturn

from ..buffers import discard
from ..exception_text import type_name
from ..platform.server import (
    DONTWAIT,
    INLINE_LIMIT,
    PASSES_OUTPUT,
    READ,
    WRITE,
    AcceptedConnection,
    anonymous_file,
    keep_freed_memory,
)
from ..protocol.exchange import PeerClosed, RequestReceived, ServerExchange, Truncated
from ..request import QUIT, Request
from ..supervision import scoreboard as board
from ..supervision.messages import ExchangeState, Passed, Returned, Stage
from ..supervision.scoreboard import Phase
from .assembly import FileAssembly, read_file, request_assembly
from .failures import Failure, Gone
from .fastpath import without_own_frames
from .streaming import Coalescer

if TYPE_CHECKING:
    from .loop import Worker

RECEIVE_SIZE = 256 * 1024  # bytes; more than the kernel's buffer of a Unix socket holds
BULK = 256 * 1024  # bytes moved in a turn from which on a client is waited for a little longer
LARGE = 1 << 20  # bytes of a request from which on it pays to keep freed memory
PATIENCE = 0.001  # seconds to wait for a client in the middle of an exchange
BULK_PATIENCE = 0.01
SPAN_NS = 20_000_000  # a client that sends less than SPAN_BYTES in this time stalls
SPAN_BYTES = 1 << 20
TURNS = 64  # pipelined requests that are served before other connections have their turn
TURN_NS = 500_000
BUFFERS_A_CALL = 16  # half a MiB of packets: more than a send buffer takes
LATE = "the request was not complete within read_timeout"
LAST_PATIENCE = 0.02  # seconds to get the packets before a failure reply out


class HandedOver(Exception):
    """The worker no longer has the connection: it was returned, ended, or its stream is held."""


class Exchange:
    """The exchanges of one connection, from where the fast path left off.

    Each method that serves returns True when the last response is out and nothing of a next request has come;
    otherwise it returns False, and the worker no longer has the connection.
    """

    def __init__(self, worker: Worker, connection: AcceptedConnection, number: int, waited: int) -> None:
        self._worker = worker
        self.connection, self.number = connection, number
        self._server = ServerExchange(worker.settings.max_request_size, request_assembly())
        self._began_ns = 0  # when the request that is being received began to arrive
        self._received = self._moved = 0  # bytes of that request, and bytes of this turn
        self._turn_ns = 0
        self._checked = 0
        self._iterator: Iterator[Any] | None = None
        self._stream: Coalescer | None = None
        self._pending: list[Any] = []
        self.due = 0.0  # monotonic seconds until which the client of a held exchange must go on
        self._receiving = False  # held while its request arrives
        self.waited, self.bytes_in, self.bytes_out, self.handler_ns = waited, 0, 0, 0

    # -- ways in ------------------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> bool:
        """Go on with what was read."""
        return self._run(lambda: self._take(data))

    def answer(self, data: bytes, response: Any) -> bool:
        """Go on with the handler's response to the first request in `data`."""
        return self._run(lambda: self._answer_first(data, response))

    def send(self, data: bytes, size: int, unsent: bytes) -> bool:
        """Go on with what is left of a response of `size` bytes to the first request in `data`."""
        return self._run(lambda: self._send_first(data, size, unsent))

    def resume(self, passed: Passed, file: int | None) -> bool:
        """Go on with an exchange that has stalled in another worker."""
        return self._run(lambda: self._restore(passed, file))

    @property
    def received(self) -> int:
        """Bytes of the request that is being received."""
        return self._received

    def go_on(self) -> bool:
        """Go on with a held exchange whose client reads or sends again."""
        return self._run(self._send_held)

    def _run(self, begin: Callable[[], None]) -> bool:
        self._turn_ns = monotonic_ns()
        self._moved = 0
        try:
            begin()
            self._serve()
        except HandedOver:
            return False
        except (Gone, ConnectionError):
            self._ended("cancelled", board.CANCELLED)
            self._worker.end(self.connection, self.number)
            return False
        finally:
            self._worker.words[board.BUFFERED] = self._worker.held_bytes()  # max_buffered_size adds them up
        return True

    def _take(self, data: bytes) -> None:
        self._server.receive_data(data)
        self._began_ns = monotonic_ns()

    def _take_first(self, data: bytes) -> None:
        """Take data whose first request the handler has had; when a next one began to arrive is not known."""
        self._server.receive_data(data)
        event = self._server.next_event()
        assert isinstance(event, RequestReceived)
        self.bytes_in = len(event.payload)

    def _answer_first(self, data: bytes, response: Any) -> None:
        self._take_first(data)
        try:
            self._respond(response)
        except Failure as failure:
            self._fail(failure)

    def _send_first(self, data: bytes, size: int, unsent: bytes) -> None:
        self._take_first(data)
        self.bytes_out = size
        self._server.end_response()
        self._send([unsent])
        self._ended_well()

    def _restore(self, passed: Passed, file: int | None) -> None:
        state = passed.state or ExchangeState()
        self._began_ns = passed.began_ns
        if passed.stage is not Stage.READING:
            data = state.body if file is None else read_file(file, state.in_file)
            if file is not None:
                os.close(file)
            self._server.receive_data(data[len(data) - state.ahead :] if state.ahead else data)
            return
        # The assembly owns the file from here on: `join` closes it, or `give_back`, when the request stalls again.
        assembly = request_assembly() if file is None else FileAssembly(file, state.in_file)
        if file is None:
            assembly.append(state.body)
        self._server = ServerExchange(self._worker.settings.max_request_size, assembly)
        self._server.restore(state.header, state.left, state.total, state.begun)

    # -- one request after the other ----------------------------------------------------------------------------------

    def _serve(self) -> None:
        """Serve until nothing of a next request is buffered."""
        served = 0
        while not self._server.idle or self._server.mid_request:
            request = self._read()
            self._handle(request)
            served += 1
            over = served >= TURNS or monotonic_ns() - self._turn_ns > TURN_NS
            if over and not self._server.idle and self._worker.others_wait():
                self._return_ahead()

    def _handle(self, request: Request) -> None:
        worker = self._worker
        self.bytes_in, self.bytes_out = len(request), 0
        try:
            self._respond(worker.handle(self.connection, self.number, request))
        except Failure as failure:
            self._fail(failure)
        finally:
            self.waited = 0

    def _read(self) -> Request:
        """Return the next request; `HandedOver` when there is none to be had now."""
        while True:
            event = self._server.next_event()
            if isinstance(event, RequestReceived):
                self._began_ns = self._received = 0
                payload = event.payload
                return payload if isinstance(payload, Request) else Request(payload)
            if event is None:
                self._receive_more()
            elif isinstance(event, PeerClosed):
                self._worker.end(self.connection, self.number)
                raise HandedOver
            elif isinstance(event, Truncated):
                self._truncated()
            else:
                self._refuse(event.code, event.message)

    def _receive_more(self) -> None:
        """Read what the client sends next, if it comes soon."""
        worker = self._worker
        self._began_ns = self._began_ns or monotonic_ns()
        worker.stats.enter(self.number, Phase.READING)
        data = None
        while data is None:
            self._check_time()
            try:
                data = self.connection.recv(RECEIVE_SIZE, DONTWAIT)
            except BlockingIOError:
                if not self.connection.wait_readable(BULK_PATIENCE if self._moved >= BULK else PATIENCE):
                    self._stall_reading()
        if not data:
            self._server.receive_eof()
            return
        self._moved += len(data)
        self._received += len(data)
        worker.words[board.BUFFERED] = worker.held_bytes() + self._received
        self._server.receive_data(data)
        if self._received > LARGE:
            self._check_memory()

    def _check_time(self) -> None:
        now = monotonic_ns()
        if now - self._began_ns > self._worker.settings.read_timeout * 1e9:
            self._refuse("timeout", LATE)
        if now - self._turn_ns > SPAN_NS:
            if self._moved < SPAN_BYTES:
                self._stall_reading()
            self._turn_ns, self._moved = now, BULK  # the next span begins, with the patience of the last

    def _check_memory(self) -> None:
        """Refuse the request if all requests together take more memory than `max_buffered_size` allows."""
        if self._received - self._checked < LARGE:
            return
        self._checked = self._received
        keep_freed_memory(self._received)
        self._worker.keep_memory()
        if self._worker.too_much_buffered():
            self._refuse("busy", "too much is being received from all clients; try again")

    # -- giving the connection back -----------------------------------------------------------------------------------

    def _stall_reading(self) -> None:
        """The client does not send: another worker goes on when there is more."""
        if self.connection.keeps_descriptors():
            self._receiving = True
            self._hold(self._began_ns / 1e9 + self._worker.settings.read_timeout, READ)
        header, left, total, begun = self._server.snapshot()
        assembly = self._server.assembly
        file: int | None
        if isinstance(assembly, FileAssembly) and assembly.file >= 0:
            state, file = ExchangeState(in_file=assembly.size), assembly.file
        else:
            state, file = self._state_with(assembly.join(), Stage.READING)
        self._give_back(Stage.READING, state._replace(header=header, left=left, total=total, begun=begun), file)

    def _return_ahead(self) -> None:
        """The client has had its turn: a worker goes on with its next requests when it is its turn again."""
        if self.connection.keeps_descriptors():
            self._hold(self._worker.clock() + self._worker.settings.write_timeout)
        self._give_back(Stage.AHEAD, *self._state_with(self._server.take_ahead(), Stage.AHEAD))

    def _return_output(self, buffers: list[Any]) -> None:
        """The client does not read: the master sends the rest."""
        ahead = self._server.take_ahead()
        state, file = self._state_with(b"".join((*buffers, ahead)), Stage.WRITING)
        self._log("ok")  # the master counts it when the client has read it
        self._worker.stats.sent(self.bytes_out)
        self._give_back(Stage.WRITING, state._replace(ahead=len(ahead)), file)

    def _state_with(self, body: bytes, stage: Stage) -> tuple[ExchangeState, int | None]:
        """Return a state that carries `body`, and its file; where there can be no file, end the exchange."""
        try:
            return state_with(body)
        except OSError as error:
            self._worker.exhausted(f"a worker cannot keep a stalled exchange: {error.strerror}")
            if stage is not Stage.WRITING:
                self._refuse("busy", "the server cannot keep a request that stalls; try again")
            self._ended("stalled", board.LOST)  # a failure reply would fall into a packet
            self._worker.end(self.connection, self.number)
            raise HandedOver from None

    def _give_back(self, stage: Stage, state: ExchangeState, file: int | None) -> NoReturn:
        """Return the connection with this state; `give_back` of the worker closes the file here."""
        began = self._began_ns if stage is Stage.READING else 0
        self._worker.give_back(self.connection, Returned(self.number, stage, began, state), file)
        raise HandedOver

    # -- responses ----------------------------------------------------------------------------------------------------

    def _respond(self, response: Any) -> None:
        """Send a response and move the exchange on to the next request."""
        if response is None or response is QUIT:
            self._send(self._server.respond(b""))
            self._ended_well()
            if response is QUIT:
                self._worker.quit()
            return
        whole = self._guarded(as_bytes_like, response)
        if whole is None:
            self._respond_streamed(self._guarded(iterator_of, response))
            return
        self._check_size(len(whole))
        self.bytes_out = len(whole)
        if len(whole) > LARGE:
            self._worker.keep_memory()
        self._send(self._server.respond(whole))
        self._ended_well()

    def _guarded(self, touch: Callable[[Any], Any], response: Any) -> Any:
        """Touch an object of the handler's; what that raises is a failure of the handler."""
        try:
            return touch(response)
        except BaseException as error:
            raise self._worker.reporter.handler_failed(without_own_frames(error)) from None

    def _respond_streamed(self, iterator: Iterator[Any]) -> None:
        self._iterator = iterator
        self._stream = Coalescer(self.connection, self._worker.words, self.number)
        self._iterate()

    def _iterate(self) -> None:
        """Run the handler's iterator to its end, or until the stream is held."""
        iterator, stream, worker = self._iterator, self._stream, self._worker
        assert iterator is not None and stream is not None
        worker.flusher.watch(stream)
        try:
            self._gather(iterator, stream)
        except HandedOver:
            raise
        except Failure:
            self._close_iterator(iterator)
            self._send_last(stream.finish([]))  # so that the failure reply does not fall into a packet
            raise
        except BaseException:
            self._close_iterator(iterator)
            raise
        finally:
            worker.flusher.forget(stream)  # its thread sends nothing of this stream from here on
        self._close_iterator(iterator)
        self.bytes_out = stream.total
        self._send(stream.finish(self._server.end_response()))
        self._ended_well()

    def _gather(self, iterator: Iterator[Any], stream: Coalescer) -> None:
        """Hand the iterator's chunks to the stream."""
        worker = self._worker
        worker.resume_handler(self.number)
        try:
            for chunk in iterator:
                worker.end_if_forked()
                if type(chunk) is not bytes:
                    chunk = chunk_bytes(chunk)  # noqa: PLW2901 - a stream may be of millions of them
                if stream.add(chunk):
                    stream.flush()
                    self._check_size(stream.total)
                    if stream.full:
                        self._wait_for_reader(stream)
            worker.end_if_forked()
        except (Gone, Failure, HandedOver):
            raise
        except BaseException as error:
            raise worker.reporter.handler_failed(without_own_frames(error)) from None
        finally:
            self.handler_ns += worker.pause_handler()
        self._check_size(stream.total)

    def _wait_for_reader(self, stream: Coalescer) -> None:
        """The client does not keep up: wait a moment, then hold the stream and let the worker serve others."""
        worker = self._worker
        self.handler_ns += worker.pause_handler()
        while stream.full:
            if not self.connection.wait_writable(PATIENCE):
                worker.flusher.forget(stream)
                self._hold(worker.clock() + worker.settings.write_timeout)
            stream.flush()
        worker.resume_handler(self.number)

    def _hold(self, due: float, mask: int = WRITE) -> NoReturn:
        """Keep the exchange in this worker until its client goes on, until the second `due` at the latest."""
        self.due = due
        self._worker.hold(self, mask)
        raise HandedOver

    def _send_held(self) -> None:
        self._receiving = False
        pending, self._pending = self._pending, []
        try:
            if pending:
                self._send(pending)
                self._ended_well()
            elif self._stream is not None:
                self._stream.flush()
                if self._stream.full:
                    self._wait_for_reader(self._stream)
                self._iterate()
        except Failure as failure:
            self._fail(failure)

    def give_up(self) -> None:
        """The client of a held exchange has not read for `write_timeout`, or not sent all within `read_timeout`."""
        if self._receiving:
            with contextlib.suppress(HandedOver):
                self._refuse("timeout", LATE)
            return
        if self._iterator is not None:
            self._close_iterator(self._iterator)
        self._worker.reporter.stalled(self.connection.peer())
        self._log("stalled")
        self._worker.end(self.connection, self.number)

    def _close_iterator(self, iterator: Iterator[Any]) -> None:
        """Tell a generator that nothing more is wanted of it; what that raises is logged, no more."""
        self._iterator = self._stream = None
        try:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()
        except BaseException as error:
            self._worker.reporter.close_failed(error)

    def _check_size(self, size: int) -> None:
        limit = self._worker.settings.max_response_size
        if limit is not None and size > limit:
            raise Failure("too-large", f"a response of more than {limit} bytes", board.TOO_LARGE)

    # -- sending ------------------------------------------------------------------------------------------------------

    def _send(self, buffers: list[Any]) -> None:
        """Send all of `buffers`; where the client does not read, the master goes on with the rest."""
        self._worker.stats.enter(self.number, Phase.WRITING)
        moved = 0
        while buffers:
            try:
                sent = self.connection.sendmsg(buffers[:BUFFERS_A_CALL], (), DONTWAIT)
            except BlockingIOError:
                if not self.connection.wait_writable(BULK_PATIENCE if moved >= BULK else PATIENCE):
                    self._leave_output(buffers)
            else:
                moved += sent
                discard(buffers, sent)
        self._worker.stats.enter(self.number, Phase.BETWEEN if self._server.idle else Phase.READING)

    def _leave_output(self, buffers: list[Any]) -> None:
        if PASSES_OUTPUT and not self.connection.keeps_descriptors():
            self._return_output(buffers)
        self._pending = buffers
        self._hold(self._worker.clock() + self._worker.settings.write_timeout)

    def _send_last(self, buffers: list[Any]) -> None:
        """Send the whole packets before a failure reply, or end the connection."""
        while buffers:
            try:
                discard(buffers, self.connection.sendmsg(buffers[:BUFFERS_A_CALL], (), DONTWAIT))
            except BlockingIOError:
                if not self.connection.wait_writable(LAST_PATIENCE):
                    self._worker.end(self.connection, self.number)
                    raise HandedOver from None

    # -- ends ---------------------------------------------------------------------------------------------------------

    def _ended_well(self) -> None:
        stats = self._worker.stats
        stats.count(board.OK)
        stats.sent(self.bytes_out)
        self._log("ok")

    def _ended(self, outcome: str, counter: int) -> None:
        if self._iterator is not None:
            self._close_iterator(self._iterator)
        self._worker.stats.count(counter)
        self._log(outcome)

    def _log(self, outcome: str) -> None:
        if self._worker.observer is not None:
            self._worker.observer.exchange_ended(self, outcome)
        self.handler_ns = 0

    def _fail(self, failure: Failure) -> NoReturn:
        """The handler has failed."""
        self._worker.stats.count(failure.counter)
        self._reply_failure(failure.code, failure.message)

    def _truncated(self) -> NoReturn:
        """The client has ended its side in the middle of a request; one that only ended its output can still read."""
        text = "the request ends in the middle"
        self._worker.reporter.malformed(self.connection.peer(), text)
        self._reply_failure("malformed", text)

    def _refuse(self, code: str, message: str) -> NoReturn:
        """Answer a request that cannot be read."""
        self._worker.reporter.refused(self.connection.peer(), code, message)
        self._reply_failure(code, message)

    def _reply_failure(self, code: str, message: str) -> NoReturn:
        """Answer with a failure reply, which ends the connection."""
        self._log(code)
        self._worker.refuse(self.connection, self.number, code, message)
        raise HandedOver


def state_with(body: bytes) -> tuple[ExchangeState, int | None]:
    """Return a state that carries `body`, and the new anonymous file that holds it if it is too long for a message."""
    if len(body) <= INLINE_LIMIT:
        return ExchangeState(body=body), None
    file = anonymous_file("ipcsrv-stalled")
    view = memoryview(body)
    while view:
        view = view[os.write(file, view) :]
    return ExchangeState(in_file=len(body)), file


def as_bytes_like(response: Any) -> Any:
    """Return `response` as something with a length in bytes that can be sent, or None if it is not bytes-like."""
    if type(response) in (bytes, bytearray):  # a subclass can have a `__len__` of its own, its buffer cannot
        return response
    try:
        view = memoryview(response)
    except TypeError:
        return None
    return view.cast("B") if view.c_contiguous else view.tobytes()


def iterator_of(response: Any) -> Iterator[Any]:
    """Return the iterator of a streamed response; a `Failure` for what is no response at all."""
    kind = type(response)
    if issubclass(kind, str) or not hasattr(kind, "__iter__"):
        raise wrong_type(response)
    found: Iterator[Any] = iter(response)
    return found


def chunk_bytes(chunk: Any) -> bytes:
    """Return a chunk of a streamed response as bytes; `TypeError` that says what a chunk must be."""
    data = as_bytes_like(chunk)
    if data is None:
        raise TypeError(f"a streamed response's chunks must be bytes-like, not {type_name(chunk)}")
    return bytes(data)


def wrong_type(response: Any) -> Failure:
    """Return the failure for a response that is none."""
    hint = "; encode it" if issubclass(type(response), str) else ""
    text = "TypeError: a handler must return bytes-like, an iterable of bytes-like, None or ipcsrv.QUIT"
    return Failure("handler", f"{text}, not {type_name(response)}{hint}", board.HANDLER_ERRORS)


