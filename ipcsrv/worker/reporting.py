"""What a worker reports about requests that fail: to the log, the counters and the client. In the worker.

Every line about a request is one line, and quotes no byte of the request. What a client can cause without end is
limited, and what exceeds the limit is counted.

The handler's exceptions are not trusted (`exception_text`).
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, NoReturn

from ..exception_text import describe, trace_without, traceback_text
from ..peer import Peer
from ..platform import logs
from ..protocol.pktline import QUOTE
from ..supervision import scoreboard as board
from .failures import Failure

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
        if issubclass(type(error), Failure):  # not `isinstance`: `__class__` may be the user's own property
            assert isinstance(error, Failure)
            return error
        if self._words[board.PID] != os.getpid():
            end_forked_child(error)  # the answer to the client is the worker's
        self.last_error = describe(error)
        log_failure("handler failures", "the handler failed", error)
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
        log_failure("streamed responses that failed to close", "closing a streamed response failed", error)

    def _warn(self, kind: str, text: str, *values: Any) -> None:
        log.limited(kind, logs.WARNING, text, *values, burst=BURST)


def end_forked_child(error: BaseException | None = None) -> NoReturn:
    """End a process that the handler has forked and that has left the handler, by an exception if there is one."""
    status = 1
    if error is None:
        status = 0
        log.warning("a process that the handler forked has returned from the handler: it ends")
    elif (code := _exit_code(error)) is not None:
        status = code
    else:
        log.error("a process that the handler forked has failed: %s", traceback_of(error))
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status & 0xFF)


def _exit_code(error: BaseException) -> int | None:
    """Return the exit status that a `SystemExit` asks for; None if it has a message, or for another exception."""
    if not issubclass(type(error), SystemExit):
        return None
    code = SystemExit.__dict__["code"].__get__(error)
    return 0 if code is None else int.__int__(code) if issubclass(type(code), int) else None


def log_failure(kind: str, text: str, error: BaseException) -> None:
    """Log what the handler's code raised, with its traceback; of a kind, a limited number of times a second."""
    log.limited(kind, logs.ERROR, "%s: %s", text, traceback_of(error), burst=FAILURES)


def traceback_of(error: BaseException) -> str:
    """Return the exception with its traceback from the handler on; its end, if that is long."""
    text = traceback_text(error, trace_without(error, _LEADING), limit=50)
    return text if len(text) <= MOST_TRACEBACK else f"...\n{text[-MOST_TRACEBACK:]}"
