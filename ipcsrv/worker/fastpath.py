"""The straight path: a request that came whole in one read and is answered by one write.  In the worker.

That is nearly every request, so each step counts in nanoseconds.  All else is a `conversation`'s: a path that meets a
request in pieces, a long response, a client that does not read, says so, and leaves what it has to be taken from there.

There are two of one kind: `PurePath`, which is the specification and runs everywhere, and `CompiledPath`
(`_platform/_straight.c`), which does the same without the interpreter's share of each request and is taken where it was
compiled.  tests/contract/test_straight.py runs one routine on both.  `IPCSRV_PURE_PYTHON=1` leaves it out.

A path knows neither limbo nor the master: it reads, has the handler run, answers, counts.  What becomes of the
connection after that is its worker's to decide, by the outcome.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final, Protocol

from ..config.handlers import Handler
from ..platform import server as serving
from ..platform.server import DONTWAIT, Connection, Listener
from ..protocol.pktline import FLUSH, MAX_DATA, decode_exact
from ..request import Request
from ..supervision import scoreboard as board
from .stats import SLOW_MEMORY, SLOW_NS, Tally

RECEIVE_SIZE: Final = 65536  # bytes; any message that is one packet
LONG_WAIT_NS: Final = 1_000_000  # a client that waited so long may have given up: worth a system call to know
SPAN_NS: Final = 500_000  # turns do not go on for longer: somebody else may wait
NEVER: Final = (1 << 63) - 1  # requests

# What came of it; the numbers are those of `_straight.c`, plain because they are compared with each request.
ANSWERED: Final = 0  #: all that was read is answered, and the turns are over
SILENT: Final = 1  #: there is nothing (more) to read now
ENDED: Final = 2  #: the client has closed its end, or is lost
GONE: Final = 3  #: the client went away before its response was out
RAISED: Final = 4  #: the handler raised `error`
CONVERSE: Final = 5  #: `data` was read and is not one whole request in one packet, or not all of it was answered
RESPONSE: Final = 6  #: the handler has given `response` to the first request in `data`; it is not one small packet
UNSENT: Final = 7  #: the same, and of its packets `unsent` did not go out
LIMIT: Final = 8  #: as ANSWERED, and `next_check` requests are reached
NOBODY: Final = 9  #: of `welcome`: nobody waits in the backlog
STRANGER: Final = 10  #: of `welcome`: whether this client may ask is yet to be found out, and nothing was read

LAYOUT: Final = (
    board.SINCE_NS, board.BEGAN_NS, board.LAST_NS, board.CURRENT, board.WATCHED, board.SLOW, board.REQUESTS, board.OK,
    board.BYTES_IN, board.BYTES_OUT, board.BUSY_NS, board.HANDLER, board.WHOLE, board.CONNECTIONS,
)  # fmt: skip

_CALLERS: Final = ("ipcsrv.worker.fastpath", "ipcsrv.worker.loop", "ipcsrv.worker.relief")  # of handlers

Rest = tuple[Any, Any, Any, Any]
"""`(data, response, unsent, error)`, each None where the outcome does not speak of it."""


class StraightPath(Protocol):
    """What both are.

    size: bytes of the last request; next_check: requests after which `LIMIT` is said; unsecured: whether `secure` is to
    be called before the next handler; connection: the one that was welcomed last; learns: whether `know` is of use.
    """

    size: int
    next_check: int
    unsecured: int
    connection: Connection
    learns: bool

    def receive(self, listener: Listener) -> int:
        """Accept the next client and no more: `STRANGER`, with its `connection`, or `NOBODY`."""

    def welcome(self, listener: Listener, others: object) -> int:
        """Accept the next client and go on with its first request as `run` does; the outcome, with its `connection`.

        Raises the `OSError` of accept(2), but `NOBODY` where that would wait.
        """

    def know(self, uid: int, gid: int) -> None:
        """A user may ask: `welcome` need not make a stranger of it again."""

    def run(self, connection: Connection, descriptor: int, flags: int, turns: int, waited: int, number: int,
            others: object) -> int:
        """Read and answer, `turns` times at most and for no longer than `SPAN_NS`; the outcome.

        flags: `DONTWAIT`, or 0 for a read that waits as long as `Connection.wait_at_most` said; waited: for how long
        (ns) the connection was queued; number: of the master's copy of it, 0 if there is none; others: whether
        somebody else is held by this worker, who would have to wait.
        """

    def rest(self) -> Rest:
        """What the last outcome leaves to do; it is forgotten here."""


class PurePath:
    """The straight path in Python: the specification of `CompiledPath`, which takes the same arguments.

    tell_busy: called once before a request that the master must look out for; secure: called before a handler runs
    while `unsecured`; on_answered: called with bytes in, bytes out and `waited` after each answer.
    """

    connection: Connection
    learns = False

    def __init__(self, tally: Tally, handler: Handler, most_in: int, most_out: int, timeout: float | None,
                 tell_busy: Callable[[], object], secure: Callable[[], object],
                 on_answered: Callable[[int, int, int], object] | None) -> None:
        self._tally, self._words = tally, tally.words
        self._handler, self._timeout = handler, timeout
        self._most_in, self._most_out = most_in, most_out
        self._tell_busy, self._secure, self._on_answered = tell_busy, secure, on_answered
        self._rest: Rest = (None, None, None, None)
        self.size = 0
        self.next_check = NEVER
        self.unsecured = 0

    def welcome(self, listener: Listener, others: object) -> int:
        """As `StraightPath.welcome`; everybody is a stranger here, each time."""
        return self.receive(listener)

    def receive(self, listener: Listener) -> int:
        """As `StraightPath.receive`."""
        try:
            raw = listener.accept_raw()
        except BlockingIOError:
            return NOBODY
        self._tally.count(board.CONNECTIONS)
        self.connection = serving.adopt(raw)
        return STRANGER

    def know(self, uid: int, gid: int) -> None:
        """As `StraightPath.know`: to no effect."""

    def run(self, connection: Connection, descriptor: int, flags: int, turns: int, waited: int, number: int,
            others: object) -> int:
        """As `StraightPath.run`."""
        words, until = self._words, 0
        for _ in range(turns):
            words[board.CURRENT] = number  # from before it is read: a request that was read has no other owner
            try:
                data = connection.recv(RECEIVE_SIZE, flags)
            except BlockingIOError:
                words[board.CURRENT] = 0
                return SILENT
            except OSError:
                data = b""
            if not data:
                words[board.CURRENT] = 0
                return ENDED
            outcome = self._answer(connection, data, waited, others)
            if outcome != ANSWERED:
                return outcome
            waited = 0
            until = until or words[board.BEGAN_NS] + SPAN_NS
            if words[board.LAST_NS] > until:
                break
        return ANSWERED

    def _answer(self, connection: Connection, data: bytes, waited: int, others: object) -> int:
        payload = decode_exact(data)
        if payload is None or len(payload) > self._most_in:
            self._rest = (data, None, None, None)
            return CONVERSE
        tally, words = self._tally, self._words
        began = tally.begin()
        self.size = size = len(payload)
        if (waited > LONG_WAIT_NS or words[board.SLOW]) and connection.gone():
            return GONE  # which some systems tell only when all that it sent was read, so that its worker did not know
        request = Request(payload)
        request._context = (connection, began, self._timeout)
        if self.unsecured:
            self._secure()
        if (others or self._timeout is not None) and not words[board.WATCHED]:
            self._tell_busy()
        try:
            response = self._handler(request)
        except BaseException as error:
            self._rest = (None, None, None, without_own_frames(error))
            return RAISED
        kind = type(response)
        if (kind is not bytes and kind is not Request) or len(response) > self._most_out:
            self._rest = (data, response, None, None)
            return RESPONSE
        reply = b"%04x%b0000" % (len(response) + 4, response) if response else FLUSH
        try:
            sent = connection.send(reply, DONTWAIT)
        except BlockingIOError:
            sent = 0
        except OSError:
            return GONE
        if sent != len(reply):
            self._rest = (data, response, reply[sent:], None)
            return UNSENT
        tally.answered(size, len(response), waited)
        if self._on_answered is not None:
            self._on_answered(size, len(response), waited)
        return LIMIT if words[board.REQUESTS] >= self.next_check else ANSWERED

    def rest(self) -> Rest:
        """As `StraightPath.rest`."""
        rest, self._rest = self._rest, (None, None, None, None)
        return rest


def without_own_frames(error: BaseException) -> BaseException:
    """`error` with a traceback that begins in the handler, and not in whoever called it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals.get("__name__") in _CALLERS:
        trace = trace.tb_next
    return error.with_traceback(trace)


def compiled_path() -> Any:
    """Return the type of the compiled path (`_fastpath.c`), or None where it is not compiled or not wanted."""
    if os.environ.get("IPCSRV_PURE_PYTHON"):
        return None
    try:
        from . import _fastpath
    except ImportError:
        return None
    return _fastpath.CompiledPath


def straight_path(tally: Tally, handler: Handler, most_in: int, most_out: int, timeout: float | None,
                  tell_busy: Callable[[], object], secure: Callable[[], object],
                  on_answered: Callable[[int, int, int], object] | None = None, *, pure: bool) -> StraightPath:
    """The quickest path that there is here.

    most_in, most_out: bytes of a request and of a response beyond which they go the long way; at most `MAX_DATA`.
    timeout: `request_timeout`; pure: not the compiled one, which does not receive descriptors.
    """
    most_in, most_out = min(most_in, MAX_DATA), min(most_out, MAX_DATA)
    compiled = None if pure else compiled_path()
    if compiled is None:
        return PurePath(tally, handler, most_in, most_out, timeout, tell_busy, secure, on_answered)
    path: StraightPath = compiled(tally.words, LAYOUT, handler, Request, most_in, most_out, timeout, tell_busy,
                                  secure, on_answered, serving.adopt, SLOW_NS, SLOW_MEMORY, SPAN_NS)
    return path
