"""What a worker has to say of requests that went wrong: to the log, to the counters, to the client.  In the worker.

One line each, however bad the bytes were, and no byte of a request above DEBUG: who may read the log need not be who
may read the requests.  What others could cause without end is limited, and what exceeds the limit is counted.
"""

from __future__ import annotations

import time
import traceback
from types import TracebackType

from ..peer import Peer
from ..platform import logs
from ..platform.server import DONTWAIT, Connection
from ..protocol.pktline import QUOTE
from ..supervision import scoreboard as board
from .keeping import Keeping

log = logs.get("ipcsrv.worker")

_LEADING = ("ipcsrv.worker", "asyncio.")  # modules whose frames come before the handler's
BURST = 10  # lines a second of what a client can cause without end; the rest is counted
FAILURES = 100  # tracebacks a second
INTERVAL = 1.0  # seconds between two of what is said only now and then
VERDICTS = {
    "timeout": "the handler did not answer within request_timeout",
    "stopping": "the server stopped before the handler had answered",
}


class Failure(Exception):
    """What the client is answered in place of a response: `ERR code message`."""

    def __init__(self, code: str, message: str, counter: int) -> None:
        super().__init__(message)
        self.code, self.message, self.counter = code, message, counter


class Complaints:
    """Says and counts what went wrong; `words` is the worker's slot, `keeping` has its channel to the master."""

    def __init__(self, words: memoryview[int], keeping: Keeping, write_timeout: float) -> None:
        self._words, self._keeping, self._write_timeout = words, keeping, write_timeout
        self._said: dict[str, float] = {}

    def denied(self, connection: Connection) -> Peer:
        """A client may not ask; returns who it is."""
        self._words[board.DENIED] += 1
        peer = connection.peer()
        log.limited("denied connections", logs.WARNING, "denied a connection from pid %s, uid %s, gid %s", *peer)
        return peer

    def handler_failed(self, error: BaseException) -> Failure:
        """What the client is told of an exception of the handler's; the log gets its traceback.

        A `Failure` that was raised in the handler's place (a deadline, an executor) has been logged where it was made.
        """
        if isinstance(error, Failure):
            return error
        text = "".join(traceback.format_exception(type(error), error, _from_handler_on(error)))
        log.limited("handler failures", logs.ERROR, "the handler failed: %s", text.rstrip(), burst=FAILURES)
        message = f"{type(error).__name__}: {error}"
        if self._is_time_for("error"):
            self._keeping.tell("err", message.encode("utf-8", "backslashreplace")[:1000])
        return Failure("handler", message, board.HANDLER_ERRORS)

    def malformed(self, connection: Connection, reason: str) -> None:
        """A client's bytes are no request, and it has gone."""
        self._words[board.MALFORMED] += 1
        pid = connection.peer().pid
        log.limited("malformed requests", logs.WARNING, "malformed request from pid %s: %s", pid, reason, burst=BURST)

    def refused(self, connection: Connection, code: str, message: str) -> None:
        """A client's request was refused before the handler saw it."""
        self._words[{"too-large": board.TOO_LARGE, "timeout": board.TIMEOUTS}.get(code, board.MALFORMED)] += 1
        reason = message.partition(QUOTE)[0]  # what it sent is told to the client, and not to the log
        pid = connection.peer().pid
        log.limited("refused requests", logs.WARNING, "refused a request from pid %s: %s (%s)", pid, reason, code,
                    burst=BURST)

    def stalled(self, connection: Connection) -> None:
        """A client does not read its response."""
        self._words[board.LOST] += 1
        pid, limit = connection.peer().pid, self._write_timeout
        log.limited("dropped clients", logs.WARNING, "dropped pid %s: it did not read its response for %g s",
                    pid, limit, burst=BURST)

    def _is_time_for(self, what: str) -> bool:
        now = time.monotonic()
        if now - self._said.get(what, -INTERVAL) < INTERVAL:
            return False
        self._said[what] = now
        return True


def _from_handler_on(error: BaseException) -> TracebackType | None:
    """The error's traceback without the frames that lead to the handler: the worker's own and an event loop's."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith(_LEADING):
        trace = trace.tb_next
    return trace or error.__traceback__


def send_quietly(connection: Connection, data: bytes) -> None:
    """Send what goes out at once; whoever does not read cannot be told."""
    try:
        connection.send(data, DONTWAIT)
    except OSError:
        pass


def verdict(words: memoryview[int], request_timeout: float | None) -> str | None:
    """With which failure the request in hand is to end, as the master has it in our slot; None if it has ended,
    or is a later one that is still in time."""
    code = board.VERDICTS[words[board.VERDICT]]
    since = words[board.SINCE_NS]
    in_time = code == "timeout" and time.monotonic_ns() - since < (request_timeout or 0) * 1e9
    return code if since and not in_time else None
