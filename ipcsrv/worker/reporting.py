"""What a worker reports about requests that fail: to the log, the counters and the client. In the worker.

Every line about a request is one line, and quotes no byte of the request. What a client can cause without end is
limited, and what exceeds the limit is counted.

The handler's objects are not trusted: an exception may raise when it is printed, a class may lie about its name
(`describe`, `traceback_of`).
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from types import TracebackType
from typing import Any, NoReturn

from ..peer import Peer
from ..platform import logs
from ..protocol.pktline import QUOTE
from ..supervision import scoreboard as board
from .failures import Failure, describe

log = logs.get("ipcsrv.worker")

_LEADING = ("ipcsrv.worker", "asyncio.")  # modules whose frames come before the handler's
BURST = 10  # lines a second of what a client can cause without end; the rest is counted
FAILURES = 100  # tracebacks a second
MOST_TRACEBACK = 64 * 1024  # characters of a traceback that go into the log


class Reporter:
    """Logs and counts what goes wrong; `words` is the worker's slot."""

    def __init__(self, words: memoryview[int], write_timeout: float) -> None:
        self._words, self._write_timeout = words, write_timeout
        self.last_error = ""

    def handler_failed(self, error: BaseException) -> Failure:
        """Return what the client is told of an exception of the handler; log its traceback.

        A `Failure` that was raised in the handler's place (a deadline, an executor) was logged where it was made.
        """
        if isinstance(error, Failure):
            return error
        if self._words[board.PID] != os.getpid():
            end_forked_child(error)  # the answer to the client is the worker's
        self.last_error = describe(error)
        log.limited("handler failures", logs.ERROR, "the handler failed: %s", traceback_of(error), burst=FAILURES)
        return Failure("handler", self.last_error, board.HANDLER_ERRORS)

    def malformed(self, peer: Peer, reason: str) -> None:
        """A client's bytes are no request, and it has gone."""
        self._words[board.MALFORMED] += 1
        self._warn("malformed requests", "malformed request from pid %s: %s", peer.pid, reason)

    def refused(self, peer: Peer, code: str, message: str) -> None:
        """A request was refused before the handler saw it."""
        counters = {"too-large": board.TOO_LARGE, "timeout": board.TIMEOUTS, "busy": board.LOST}
        self._words[counters.get(code, board.MALFORMED)] += 1
        reason = message.partition(QUOTE)[0]  # the client is told what it sent, the log is not
        self._warn("refused requests", "refused a request from pid %s: %s (%s)", peer.pid, reason, code)

    def stalled(self, peer: Peer) -> None:
        """A client does not read its response."""
        self._words[board.LOST] += 1
        self._warn("stalled clients", "closed the connection of pid %s: it did not read its response for %g s",
                   peer.pid, self._write_timeout)

    def close_failed(self, error: BaseException) -> None:
        """Closing the iterator of a streamed response has failed; the response is made all the same."""
        log.error("closing a streamed response failed: %s", traceback_of(error))

    def _warn(self, kind: str, text: str, *values: Any) -> None:
        log.limited(kind, logs.WARNING, text, *values, burst=BURST)


def end_forked_child(error: BaseException | None = None) -> NoReturn:
    """End a process that the handler has forked and that has left the handler, by an exception if there is one."""
    status = 1
    if error is None:
        status = 0
        log.warning("a process that the handler forked has returned from the handler: it ends")
    elif isinstance(error, SystemExit) and (error.code is None or isinstance(error.code, int)):
        status = error.code or 0
    else:
        log.error("a process that the handler forked has failed: %s", traceback_of(error))
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status & 0xFF)


def _from_handler_on(error: BaseException) -> TracebackType | None:
    """Return the traceback without the frames that lead to the handler: the worker's own and an event loop's."""
    trace = error.__traceback__
    while trace is not None and str(trace.tb_frame.f_globals.get("__name__", "")).startswith(_LEADING):
        trace = trace.tb_next
    return trace or error.__traceback__


def traceback_of(error: BaseException) -> str:
    """Return the traceback as text, its end if it is long; only the description if it cannot be made."""
    try:
        text = "".join(traceback.format_exception(type(error), error, _from_handler_on(error), limit=50)).rstrip()
    except BaseException:
        return describe(error)
    return text if len(text) <= MOST_TRACEBACK else f"...\n{text[-MOST_TRACEBACK:]}"
