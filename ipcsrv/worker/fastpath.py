"""The fast path: a request that comes whole in one read and is answered by one write. In the worker.

Nearly every request is of this kind, so each step counts in nanoseconds. What is not goes to `exchange`: a path that
meets a request in pieces, a long or streamed response, or a client that does not read, says so by its outcome and
leaves what it has in `rest`.

There are two of one kind: `PurePath`, which is the specification and runs everywhere, and the compiled one
(`_fastpath.c`), which is taken where it was compiled. tests/contract/test_fastpath.py runs one routine on both.
`IPCSRV_PURE_PYTHON=1` leaves the compiled one out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from time import monotonic_ns
from typing import Any, Final, Protocol

from ..config.handlers import Handler
from ..exception_text import module_of, trace_of
from ..platform.compiled import compiled_module
from ..platform.server import DONTWAIT, AcceptedConnection, QueueReader, adopt, busy_poll_ns
from ..protocol.pktline import FLUSH, MAX_DATA, decode_exact
from ..request import Request
from ..supervision import scoreboard as board
from ..supervision.messages import FormatError, Passed, Stage, parse_passed
from ..supervision.scoreboard import LENT, Phase, push_ended
from .stats import Stats

RECEIVE_SIZE: Final = 65536  # bytes; any message that is one packet
LONG_WAIT_NS: Final = 1_000_000  # a client that waited so long may have given up: worth a system call to know
TURNS: Final = 64  # requests of one client before the queue is looked at
SPAN_NS: Final = 500_000  # ... and for no longer than that
NEVER: Final = (1 << 63) - 1  # requests

# Outcomes; the numbers are those of `_fastpath.c`.
TURN_OVER: Final = 0  #: all that was read is answered, and the client has had its turn
SILENT: Final = 1  #: there is nothing (more) to read now
ENDED: Final = 2  #: the client has ended its side; `hung_up` says whether it has closed both
GONE: Final = 3  #: the client went away before its response was out
RAISED: Final = 4  #: the handler raised `error`
PARTIAL: Final = 5  #: `data` was read, and is not one whole request in one packet, or not all of it was answered
RESPONSE: Final = 6  #: the handler has returned `response` to the first request in `data`: not one small packet
UNSENT: Final = 7  #: the same, and of its packets `unsent` did not go out
LIMIT: Final = 8  #: as TURN_OVER, and `next_check` requests are reached
# ... and of `take` alone:
EMPTY: Final = 9  #: there is no message in the queue now
CLOSED: Final = 10  #: the queue has ended
OTHER: Final = 11  #: `message` was taken, and is not a connection of which nothing was read
DONE: Final = 12  #: a connection was taken, served and ended
FORKED: Final = 13  #: of both: the handler has returned in a process that it has forked

LAYOUT: Final = (
    board.LENT, board.SINCE_NS, board.BEGAN_NS, board.LAST_NS, board.WATCHED, board.REQUESTS, board.OK,
    board.BYTES_IN, board.BYTES_OUT, board.BUSY_NS, board.HANDLER, board.WHOLE, board.CANCELLED, board.PROBES,
    board.TAKEN, board.QUEUE_WAIT, board.RING_HEAD, board.RING_TAIL, board.RING, board.RING_SIZE,
)  # fmt: skip

_CALLERS: Final = ("ipcsrv.worker.fastpath", "ipcsrv.worker.loop", "ipcsrv.worker.exchange")  # of handlers

Rest = tuple[Any, Any, Any, Any]
"""`(data, response, unsent, error)`, each None where the outcome does not speak of it."""


class FastPath(Protocol):
    """What both are.

    forked: set in a process that the handler has forked; size: bytes of the last request; next_check: requests after
    which `LIMIT` is the outcome; hung_up: whether the client of the outcome `ENDED` has closed both directions.
    connection, number, waited: what was taken last from the queue, and for how long (ns) that had waited; message: what
    was taken where that is no plain connection.
    """

    forked: bool
    size: int
    next_check: int
    hung_up: bool
    connection: AcceptedConnection | None
    number: int
    waited: int
    message: tuple[bytes, int | None, int | None] | None

    def take(self, queue: QueueReader, patience: int, ring: bool) -> int:
        """Take the next message of the queue without waiting, and serve its connection as `run` does.

        ring: whether a connection that has ended may be reported through the ring of the slot. Returns the outcome.
        """

    def run(self, connection: AcceptedConnection, number: int, waited: int, patience: int, asked: bool) -> int:
        """Read and answer, for `TURNS` requests or `SPAN_NS`; returns the outcome.

        number: of the connection, for the slot; waited: ns in the queue; patience: ns to wait for a request that is
        not there; asked: whether the client has been served in this turn, so that what comes next is waited for first.
        """

    def rest(self) -> Rest:
        """Return what the last outcome leaves to do; it is forgotten here."""


class PurePath:
    """The fast path in Python: the specification of the compiled one, which takes the same arguments.

    tell_busy: called before a request that the watchdog must look out for; on_answered: called with bytes in, bytes
    out and `waited` after each answer.
    """

    def __init__(self, stats: Stats, handler: Handler, most_in: int, most_out: int, timeout: float | None,
                 tell_busy: Callable[[], object], on_answered: Callable[[int, int, int], object] | None) -> None:
        self._stats, self._words = stats, stats.words
        self._handler, self._timeout = handler, timeout
        self._most_in, self._most_out = most_in, most_out
        self._tell_busy, self._on_answered = tell_busy, on_answered
        self._rest: Rest = (None, None, None, None)
        self.size = 0
        self.next_check = NEVER
        self.forked = self.hung_up = False
        self.connection: AcceptedConnection | None = None
        self.number = self.waited = 0
        self.message: tuple[bytes, int | None, int | None] | None = None

    def take(self, queue: QueueReader, patience: int, ring: bool) -> int:
        """As `FastPath.take`."""
        self._words[LENT] = board.TAKING
        try:
            item = queue.get(DONTWAIT)
        except BlockingIOError:
            self._stats.leave()
            return EMPTY
        if isinstance(item, str):
            self._stats.leave()
            return CLOSED
        message, raw, file = item
        with contextlib.suppress(FormatError):
            passed = parse_passed(message)
            if raw is not None and passed.stage is Stage.BETWEEN:
                return self._take_connection(passed, raw, patience, ring)
        self.message = message, raw, file
        return OTHER

    def _take_connection(self, passed: Passed, raw: int, patience: int, ring: bool) -> int:
        self._stats.enter(passed.number, Phase.TAKEN)
        self.number, self.waited = passed.number, max(0, monotonic_ns() - passed.queued_ns)
        self._stats.taken(self.waited if passed.accepted else None)
        self.connection = connection = adopt(raw)
        outcome = self.run(connection, self.number, self.waited, patience, False)
        return self._finish(connection) if outcome == ENDED and ring else outcome

    def _finish(self, connection: AcceptedConnection) -> int:
        """The client has ended between two requests: end this copy, and let the master know that it can too."""
        if not push_ended(self._words, self.number):
            return ENDED
        if self._words[LENT] & 7 == Phase.TAKEN and not self.hung_up:
            self._stats.count(board.PROBES)
        if not self.hung_up:
            connection.end()
        self._stats.leave()
        self.connection = None
        connection.close()
        return DONE

    def run(self, connection: AcceptedConnection, number: int, waited: int, patience: int, asked: bool) -> int:
        """As `FastPath.run`."""
        words, until = self._words, 0
        if waited > LONG_WAIT_NS and connection.gone():
            self._stats.count(board.CANCELLED if connection.has_input() else board.PROBES)
            self.hung_up = True
            return ENDED
        for _ in range(TURNS):
            if asked:
                if not connection.wait_readable(patience / 1e9):
                    return SILENT
                if connection.gone():  # both directions: there is no reader left
                    if connection.has_input():
                        self._stats.count(board.CANCELLED)
                    self.hung_up = True
                    return ENDED
            between = words[LENT]
            words[LENT] = number << 3 | Phase.READING  # before it is read: no other process could read it again
            try:
                data = connection.recv(RECEIVE_SIZE, DONTWAIT)
            except BlockingIOError:
                words[LENT] = between
                if asked:
                    return SILENT
                asked = True
                continue
            except OSError:
                data = b""
            if not data:
                words[LENT] = between
                self.hung_up = connection.gone()
                return ENDED
            asked = True
            outcome = self._answer(connection, number, data, waited)
            if outcome != TURN_OVER:
                return outcome
            waited = 0
            until = until or words[board.BEGAN_NS] + SPAN_NS
            if words[board.LAST_NS] > until:
                break
        return TURN_OVER

    def _answer(self, connection: AcceptedConnection, number: int, data: bytes, waited: int) -> int:
        payload = decode_exact(data)
        if payload is None or len(payload) > self._most_in:
            self._rest = (data, None, None, None)
            return PARTIAL
        stats, words = self._stats, self._words
        words[LENT] = number << 3 | Phase.HANDLING
        began = stats.begin()
        self.size = size = len(payload)
        request = Request(payload)
        request._context = (connection, began, self._timeout)
        if self._timeout is not None and not words[board.WATCHED]:
            self._tell_busy()
        try:
            response = self._handler(request)
        except BaseException as error:
            self._rest = (None, None, None, without_own_frames(error))
            return RAISED
        if self.forked:  # the answer to the client is the worker's
            return FORKED
        kind = type(response)
        if (kind is not bytes and kind is not Request) or len(response) > self._most_out:
            self._rest = (data, response, None, None)
            return RESPONSE
        reply = b"%04x%b0000" % (len(response) + 4, response) if response else FLUSH
        words[LENT] = number << 3 | Phase.WRITING
        try:
            sent = connection.send(reply, DONTWAIT)
        except BlockingIOError:
            sent = 0
        except OSError:
            return GONE
        if sent != len(reply):
            self._rest = (data, response, reply[sent:], None)
            return UNSENT
        words[LENT] = number << 3 | Phase.BETWEEN
        stats.answered(size, len(response), waited)
        if self._on_answered is not None:
            self._on_answered(size, len(response), waited)
        return LIMIT if words[board.REQUESTS] >= self.next_check else TURN_OVER

    def rest(self) -> Rest:
        """As `FastPath.rest`."""
        rest, self._rest = self._rest, (None, None, None, None)
        return rest


def without_own_frames(error: BaseException) -> BaseException:
    """Return `error` with a traceback that begins in the handler, and not in the code that called it."""
    trace = trace_of(error)
    while trace is not None and module_of(trace.tb_frame) in _CALLERS:
        trace = trace.tb_next
    return BaseException.with_traceback(error, trace)  # the class may have another method of that name


def compiled_path() -> Any:
    """Return the type of the compiled path (`_fastpath.c`), None where there is none."""
    module = compiled_module("worker._fastpath")
    return None if module is None else module.CompiledPath


def fast_path(stats: Stats, handler: Handler, most_in: int, most_out: int, timeout: float | None,
              tell_busy: Callable[[], object],
              on_answered: Callable[[int, int, int], object] | None = None, *, pure: bool) -> FastPath:
    """Return the fastest path that there is here.

    most_in, most_out: bytes of a request and of a response beyond which they go through `exchange`; at most
    `MAX_DATA`. timeout: `request_timeout`; pure: not the compiled one, which does not receive descriptors.
    """
    most_in, most_out = min(most_in, MAX_DATA), min(most_out, MAX_DATA)
    compiled = None if pure else compiled_path()
    if compiled is None:
        return PurePath(stats, handler, most_in, most_out, timeout, tell_busy, on_answered)
    path: FastPath = compiled(stats.words, LAYOUT, handler, Request, most_in, most_out, timeout, tell_busy, on_answered,
                              adopt, LONG_WAIT_NS, TURNS, SPAN_NS, busy_poll_ns())
    return path


