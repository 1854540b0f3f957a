"""The loop of a worker: take a connection from the queue, serve it, give it back. In the worker.

A worker holds one active connection and nothing else, but for streams whose generators are suspended. It takes the
next one when the last has ended or was returned to the master, which keeps all that are silent or stalled. What it does
with its connection stands in its slot of the scoreboard (`Phase`), so that the master can act for it if it dies.

It leaves when the queue has ended, when the master says so, or when it has served its number of requests.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from time import monotonic_ns
from typing import Any, Protocol

from ..config.handlers import Handler
from ..config.settings import Settings
from ..deadline import LONGEST
from ..platform import logs
from ..platform import server as serving
from ..platform.server import DONTWAIT, READ, SHARED, AcceptedConnection, Channel, QueueReader, adopt
from ..protocol.exchange import failure_packet
from ..protocol.pktline import MAX_DATA
from ..request import Request
from ..supervision import scoreboard as board
from ..supervision.messages import PING_NUMBER, Kind, Passed, Returned, Stage, pack_number, pack_returned, parse_passed
from ..supervision.scoreboard import LENT, Phase, Scoreboard, push_ended
from .exchange import Exchange
from .fastpath import (
    CLOSED,
    DONE,
    EMPTY,
    ENDED,
    FORKED,
    GONE,
    LIMIT,
    OTHER,
    PARTIAL,
    RAISED,
    SILENT,
    TURN_OVER,
    UNSENT,
    fast_path,
    without_own_frames,
)
from .limits import Limits
from .reporting import Reporter, end_forked_child
from .stats import Stats
from .streaming import Flusher

MOST_PATIENCE_NS = 1_000_000  # to wait for the next request of a connection before it is returned
LEAST_PATIENCE_NS = 50_000  # after several in a row have stayed silent
LINGER_PATIENCE = 0.001  # seconds to see a refused client leave before the master takes it over
LINGER_SIZE = 256 * 1024
LINGER_READS = 4
MEMORY_KEPT = 1.0  # seconds after a large request or response in which its memory is kept for the next one
EXHAUSTED_PAUSE = 0.1  # seconds before a worker that has no descriptor left leaves

log = logs.get("ipcsrv.worker")


class Observer(Protocol):
    """What is told of every request that ends (the access log)."""

    def answered(self, bytes_in: int, bytes_out: int, waited: int) -> None:
        """A request was answered on the fast path; `waited` in nanoseconds."""

    def exchange_ended(self, exchange: Exchange, outcome: str) -> None:
        """A longer exchange has ended, one way or another."""

    def failed(self, size: int, outcome: str) -> None:
        """A request of the fast path has failed."""

    def flush(self) -> float | None:
        """Write what is old enough; returns seconds until it wants to be called again, None if it need not be."""

    def close(self) -> None:
        """Write all that is left."""


class Worker:
    """Serves connections with `handler` until there is no more to do.

    queue: its generation's; channel: its private pipe to the master; slot: its own of the scoreboard.
    """

    observer: Observer | None = None
    forked = False  # this is a process that the handler has forked
    _release_at: float | None = None  # when freed memory goes back to the kernel

    def __init__(self, settings: Settings, handler: Handler, queue: QueueReader, channel: Channel,
                 scoreboard: Scoreboard, slot: int, rng: random.Random) -> None:
        self.settings, self.clock = settings, time.monotonic
        self.words = words = scoreboard.words(slot)
        self.stats = Stats(words)
        self.reporter = Reporter(words, settings.write_timeout)
        self.flusher = Flusher()
        self._scoreboard, self._header = scoreboard, scoreboard.header
        self._handler, self._queue, self._channel = handler, queue, channel
        self._limits = Limits(settings, rng)
        self._timeout = settings.request_timeout
        self._taking = True
        self._patience_ns = MOST_PATIENCE_NS
        self._suspended: dict[int, Exchange] = {}
        self._poller = serving.poller()
        self._queue_key, self._channel_key = queue.fileno(), channel.fileno()

    def run(self) -> None:
        """Serve until the queue has ended or the worker is to leave, and no stream is suspended."""
        settings = self.settings
        answered = None if self.observer is None else self.observer.answered
        self._path = fast_path(self.stats, self._handler, settings.max_request_size or MAX_DATA,
                               settings.max_response_size or MAX_DATA, self._timeout, self._tell_busy, answered,
                               pure=settings.receive_descriptors)
        self._path.next_check = self._limits.next_check
        self._poller.register(self._channel_key, READ)
        self._poller.register(self._queue_key, READ | SHARED)
        with contextlib.closing(self._poller), serving.call_in_forked_children(self._note_fork):
            while self._taking or self._suspended:
                if not (self._taking and self._take()):
                    self._wait()
        if self.observer is not None:
            self.observer.close()

    @property
    def connection(self) -> AcceptedConnection | None:
        """The connection that is being served, or the last one."""
        return self._path.connection

    # -- what comes next ----------------------------------------------------------------------------------------------

    def _wait(self) -> None:
        """Wait for the queue, the master's orders and the clients of suspended streams."""
        pause = None if self.observer is None else self.observer.flush()
        dues = [exchange.due - self.clock() for exchange in self._suspended.values()]
        dues += [] if pause is None else [pause]
        dues += [] if self._release_at is None else [self._release_at - self.clock()]
        events = self._poller.poll(max(0.0, min([*dues, LONGEST])) if dues else None)
        keys = [key for key, _ in events]
        if self._channel_key in keys:
            self._obey()
        for key in keys:
            if (exchange := self._suspended.get(key)) is not None:  # else it was resumed for an event before this one
                self._resume(exchange)
        now = self.clock()
        if self._release_at is not None and self._release_at <= now:
            self._release_at = None
            serving.release_freed_memory()
        for exchange in [exchange for exchange in self._suspended.values() if exchange.due <= now]:
            self._release(exchange)
            exchange.give_up()

    def _obey(self) -> None:
        """Carry out what the master has told this worker; its end is noticed by the end of the queue."""
        try:
            message = self._channel.hear(wait=False)
        except BlockingIOError:
            return
        if message is None:  # the master is dead; what is left in the queue is still served
            self._poller.unregister(self._channel_key)
        elif message[0] is Kind.LEAVE:
            self.leave()
        elif message[0] is Kind.REOPEN_LOG:
            logs.reopen()

    def _take(self) -> bool:
        """Take one message of the queue and serve its connection; False if there was none."""
        path, draining = self._path, self._header[board.DRAINING] == 1
        # The ring is read when the master does something else. A drain waits for the last end, which is a message then.
        outcome = path.take(self._queue, 0 if draining else self._patience_ns, not draining)
        if outcome == DONE:
            self._patience_ns = MOST_PATIENCE_NS
        elif outcome == EMPTY:
            return False
        elif outcome == CLOSED:
            self._stop_taking()
        elif outcome == OTHER:
            assert path.message is not None
            self._take_other(*path.message)
        else:
            assert path.connection is not None
            self._serve_next(path.connection, path.number, path.waited, outcome)
        return True

    def _take_other(self, message: bytes, raw: int | None, file: int | None) -> None:
        """Serve a stalled exchange, or answer a message that brings no connection."""
        passed = parse_passed(message)
        in_file = passed.state is not None and passed.state.in_file > 0
        if raw is not None and (file is not None or not in_file):
            self._serve_stalled(passed, adopt(raw), file)
        elif raw is not None:  # there was one descriptor left, for the connection
            serving.close_raw(raw)
            self._no_descriptor(passed)
        elif passed.number == PING_NUMBER:
            self.stats.leave()
            self.stats.taken(None)
            self.tell(Kind.PONG, pack_number(passed.queued_ns))
        else:
            self._no_descriptor(passed)

    def _no_descriptor(self, passed: Passed) -> None:
        """The kernel dropped the connection or its file (unix(7)); the master has both, for another worker."""
        self.stats.enter(passed.number, Phase.TAKEN)
        self.stats.taken(None)
        self.tell(Kind.RETURNED, pack_returned(Returned(passed.number, Stage.UNTOUCHED)))
        self.stats.leave()
        time.sleep(EXHAUSTED_PAUSE)
        self.exhausted("a worker has no descriptor left; raise its limit (ulimit -n)")

    # -- one connection -----------------------------------------------------------------------------------------------

    def _serve_stalled(self, passed: Passed, connection: AcceptedConnection, file: int | None) -> None:
        """Go on with an exchange that has stalled before, until its connection is returned or ended."""
        number = passed.number
        self.stats.enter(number, Phase.TAKEN)
        self.stats.taken(None)
        self._path.connection = connection
        if Exchange(self, connection, number, 0).resume(passed, file):
            self._go_on(connection, number)

    def _go_on(self, connection: AcceptedConnection, number: int) -> None:
        """Serve the next requests of a connection that has just been answered."""
        if self._taking and not self.others_wait():
            self._serve_next(connection, number, 0, self._run_path(connection, number))
        else:
            self.give_back(connection, Returned(number, Stage.BETWEEN), None)

    def _run_path(self, connection: AcceptedConnection, number: int) -> int:
        patience = 0 if self._header[board.DRAINING] == 1 else self._patience_ns
        return self._path.run(connection, number, 0, patience, True)

    def _serve_next(self, connection: AcceptedConnection, number: int, waited: int, outcome: int) -> None:
        """Go on from an outcome of the fast path, while the client asks again and nothing else waits."""
        while True:
            if outcome == SILENT:
                self._patience_ns = max(LEAST_PATIENCE_NS, self._patience_ns // 2)
                break
            if outcome == ENDED:
                self._client_ended(connection, number)
                return
            if outcome == LIMIT:
                self._check_limits()
            elif outcome != TURN_OVER and not self._leave_fast_path(connection, number, outcome, waited):
                return
            self._patience_ns = min(MOST_PATIENCE_NS, self._patience_ns * 2)
            waited = 0
            if not self._taking or self.others_wait():
                break
            outcome = self._run_path(connection, number)
        self.give_back(connection, Returned(number, Stage.BETWEEN), None)

    def _leave_fast_path(self, connection: AcceptedConnection, number: int, outcome: int, waited: int) -> bool:
        """Do what the fast path has left to do; True if the worker still has the connection, between two requests."""
        path = self._path
        if outcome == FORKED:
            end_forked_child()
        data, response, unsent, error = path.rest()
        if outcome == PARTIAL:
            return Exchange(self, connection, number, waited).receive(data)
        self._handled(path.size, waited)
        if outcome == GONE:
            self.stats.count(board.CANCELLED)
            self._log_failed(path.size, "cancelled")
            self.end(connection, number)
            return False
        if outcome == RAISED:
            failure = self.reporter.handler_failed(error)
            self._tell_error()
            self.stats.count(failure.counter)
            self._log_failed(path.size, failure.code)
            self.refuse(connection, number, failure.code, failure.message)
            return False
        exchange = Exchange(self, connection, number, waited)
        exchange.handler_ns = self.words[board.LAST_NS] - self.stats.began
        return exchange.send(data, len(response), unsent) if outcome == UNSENT else exchange.answer(data, response)

    def _log_failed(self, size: int, outcome: str) -> None:
        if self.observer is not None:
            self.observer.failed(size, outcome)

    def _handled(self, size: int, waited: int = 0) -> None:
        self.stats.handled(size, waited=waited)
        if self.stats.requests >= self._path.next_check:
            self._check_limits()

    def handle(self, connection: AcceptedConnection, number: int, request: Request) -> Any:
        """Run the handler on a request of an exchange; raises `Failure` where it raises."""
        self.stats.enter(number, Phase.HANDLING)
        began = self.stats.begin()
        request._context = (connection, began, self._timeout)
        self._expect_to_take_time()
        try:
            response = self._handler(request)
            self.end_if_forked()
            return response
        except BaseException as error:
            failure = self.reporter.handler_failed(without_own_frames(error))
            self._tell_error()
            raise failure from None
        finally:
            self._handled(len(request))

    def _note_fork(self) -> None:
        self.forked = self._path.forked = True

    def end_if_forked(self) -> None:
        """End a process that the handler has forked, and that leaves the handler's code."""
        if self.forked:
            end_forked_child()

    def resume_handler(self, number: int) -> None:
        """The handler's code runs (again), in a stream."""
        self.stats.enter(number, Phase.STREAMING)
        self.words[board.SINCE_NS] = monotonic_ns()
        self._expect_to_take_time()

    def pause_handler(self) -> int:
        """The handler's code waits for its client; return for how many nanoseconds it has run."""
        since = self.words[board.SINCE_NS]
        self.words[board.SINCE_NS] = 0
        return monotonic_ns() - since if since else 0

    def _expect_to_take_time(self) -> None:
        if self._timeout is not None and not self.words[board.WATCHED]:
            self._tell_busy()

    def others_wait(self) -> bool:
        """Return whether a connection waits in the queue, a suspended stream can go on, or the master has an order."""
        return bool(self._poller.poll(0))

    def keep_memory(self) -> None:
        """Keep the memory of a large request or response for a moment, since the next one would need it again."""
        self._release_at = self.clock() + MEMORY_KEPT

    def too_much_buffered(self) -> bool:
        """Return whether all requests that are being received take more memory than `max_buffered_size`."""
        limit = self.settings.max_buffered_size
        if limit is None:
            return False
        receiving = sum(self._scoreboard.words(slot)[board.BUFFERED] for slot in range(self._scoreboard.slots))
        return receiving + self._header[board.STALLED_BYTES] > limit

    # -- giving it back, ending it ------------------------------------------------------------------------------------

    def give_back(self, connection: AcceptedConnection, returned: Returned, file: int | None) -> None:
        """Return a connection to the master, with the file that holds its state, if there is one."""
        if not self.tell(Kind.RETURNED, pack_returned(returned), file):
            connection.end()  # the master is dead: no other process could go on
        if file is not None:
            os.close(file)  # the message holds a copy, as of the connection
        # After the message: a connection that is neither in a slot nor reported counts as taken by a dead worker.
        self.stats.leave()
        connection.close()

    def _client_ended(self, connection: AcceptedConnection, number: int) -> None:
        """The client has ended its side between two requests."""
        if self.words[LENT] & 7 == Phase.TAKEN and not self._path.hung_up:
            self.stats.count(board.PROBES)
        if self._path.hung_up:  # both directions: there is no reader left to be told
            self._forget(connection, number)
        else:
            self.end(connection, number)

    def end(self, connection: AcceptedConnection, number: int) -> None:
        """End a connection, on every copy of it."""
        connection.end()
        self._forget(connection, number)

    def _forget(self, connection: AcceptedConnection, number: int) -> None:
        """Close this copy and let the master know that it can close its own."""
        if self._header[board.DRAINING] == 1 or not push_ended(self.words, number):
            self.tell(Kind.ENDED, pack_number(number))
        self.stats.leave()
        connection.close()

    def refuse(self, connection: AcceptedConnection, number: int, code: str, message: str) -> None:
        """Send a failure reply and end the connection, once its client has had the time to read it.

        docs/protocol.md, failure reply: a close at once would reset the connection while the client still writes. If
        the client does not leave within a moment, the master reads and discards what it still sends.
        """
        self.stats.enter(number, Phase.WRITING)
        with contextlib.suppress(OSError):  # it does not read, or has gone
            connection.send(failure_packet(code, message), DONTWAIT)
        connection.end_output()
        try:
            for _ in range(LINGER_READS):
                if not connection.wait_readable(LINGER_PATIENCE):
                    break
                if not connection.recv(LINGER_SIZE, DONTWAIT):
                    self.end(connection, number)
                    return
        except BlockingIOError:
            pass
        except OSError:
            self.end(connection, number)
            return
        self.give_back(connection, Returned(number, Stage.LINGERING), None)

    # -- suspended streams --------------------------------------------------------------------------------------------

    def held_bytes(self) -> int:
        """Return the bytes of the requests that are held while they arrive."""
        return sum(exchange.received for exchange in self._suspended.values())

    def hold(self, exchange: Exchange, mask: int) -> None:
        """Keep an exchange whose client does not go on; others are served meanwhile."""
        key = exchange.connection.fileno()
        self._suspended[key] = exchange
        self.words[board.SUSPENDED] = len(self._suspended)
        self._poller.register(key, mask)
        self.tell(Kind.HELD, pack_number(exchange.number))
        self.stats.leave()  # after HELD, by which the master finds the stream if this worker dies

    def _release(self, exchange: Exchange) -> None:
        key = exchange.connection.fileno()
        del self._suspended[key]
        self.words[board.SUSPENDED] = len(self._suspended)
        self._poller.unregister(key)

    def _resume(self, exchange: Exchange) -> None:
        """A held exchange's client goes on."""
        self._release(exchange)
        self.stats.enter(exchange.number, Phase.WRITING)
        self._path.connection = exchange.connection
        if exchange.go_on():
            self._go_on(exchange.connection, exchange.number)

    # -- the master ---------------------------------------------------------------------------------------------------

    def tell(self, kind: Kind, body: bytes = b"", descriptor: int | None = None) -> bool:
        """Send the master a message; False if it is dead."""
        try:
            self._channel.tell(kind, body, descriptor)
        except OSError:
            return False
        return True

    def _tell_busy(self) -> None:
        """The watchdog must look out for the request that begins; it then says so in this worker's slot."""
        self.tell(Kind.BUSY)

    def _tell_error(self) -> None:
        self.tell(Kind.HANDLER_ERROR, self.reporter.last_error.encode("utf-8", "backslashreplace")[:1000])

    def quit(self) -> None:
        """The handler returned QUIT: the server drains and stops."""
        self.tell(Kind.QUIT)

    # -- leaving ------------------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """Take no more connections; a replacement is started while this worker finishes what it has."""
        if self._taking:
            self.tell(Kind.LEAVING)
            self._stop_taking()

    def exhausted(self, reason: str) -> None:
        """Report what has run out, and leave: a new worker has what this one's handler has used up."""
        self.tell(Kind.EXHAUSTED, reason.encode())
        self.leave()

    def _stop_taking(self) -> None:
        if self._taking:
            self._taking = False
            self._poller.unregister(self._queue_key)  # it stays readable, for others or for ever

    def _check_limits(self) -> None:
        """max_requests or max_rss may be reached: then leave, between two requests."""
        reached = self._limits.reached(self.stats.requests)
        self._path.next_check = self._limits.next_check
        if reached is not None:
            log.info("leaving %s", reached)
            self.leave()
