"""What the access log is told of a worker's requests. In the worker."""

from __future__ import annotations

from time import monotonic_ns
from typing import TYPE_CHECKING

from ..peer import Peer
from ..platform.access_log import AccessLog, access_log
from ..supervision.scoreboard import BEGAN_NS, LAST_NS

if TYPE_CHECKING:
    from ..platform.server import AcceptedConnection
    from .exchange import Exchange
    from .loop import Worker

_UNKNOWN = Peer(None, "")


class AccessLogObserver:
    """Makes a line of each request of `worker`."""

    def __init__(self, worker: Worker, lines: AccessLog) -> None:
        self._worker, self._log = worker, lines
        self._known: AcceptedConnection | None = None
        self._peer = ""

    def answered(self, bytes_in: int, bytes_out: int, waited: int) -> None:
        """A request was answered on the fast path; `waited` in nanoseconds."""
        words = self._worker.words
        now = words[LAST_NS]
        self._log.add((now, self._peer_in_hand(), bytes_in, bytes_out, waited, now - words[BEGAN_NS], "ok"))

    def exchange_ended(self, exchange: Exchange, outcome: str) -> None:
        """A longer exchange has ended, one way or another."""
        self._log.add((monotonic_ns(), self._peer_of(exchange.connection), exchange.bytes_in, exchange.bytes_out,
                       exchange.waited, exchange.handler_ns, outcome))

    def failed(self, size: int, outcome: str) -> None:
        """A request of the fast path has failed."""
        words = self._worker.words
        took = words[LAST_NS] - words[BEGAN_NS]
        self._log.add((monotonic_ns(), self._peer_in_hand(), size, 0, 0, took, outcome))

    def flush(self) -> float | None:
        """Write what is old enough; returns seconds until there is more to write."""
        return self._log.flush()

    def close(self) -> None:
        """Write all that is left."""
        self._log.write()

    def _peer_in_hand(self) -> str:
        connection = self._worker.connection
        return self._log.peer(_UNKNOWN) if connection is None else self._peer_of(connection)

    def _peer_of(self, connection: AcceptedConnection) -> str:
        if connection is not self._known:
            self._known, self._peer = connection, self._log.peer(connection.peer())
        return self._peer


def observe(worker: Worker) -> None:
    """Have the worker tell the access log, if its settings ask for one."""
    lines = access_log(worker.settings)
    if lines is not None:
        worker.observer = AccessLogObserver(worker, lines)
