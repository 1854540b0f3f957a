"""A worker: takes connections from the queue, reads a request, runs the handler, answers.

It is single-threaded towards its handler.  A request that comes whole in one read and whose response goes out in one
write, which is nearly every one, takes a straight path through `_take`/`_attend` and `_serve`, of as few steps as
Python allows; all else is a `Conversation`, resumed when its connection is ready.

**What it holds.**  With nothing in hand a worker sleeps in the queue itself, where the kernel wakes one sleeper a
connection.  After a response the connection may bring another request, so the worker holds it, *silent*, together with
the queue, for as long as that costs nobody anything: one that stays silent for `PATIENCE` goes back to the
master; and where requests take long, all silent ones go back before the next request is begun, so that another worker
can serve them.  What a silent connection costs is a descriptor, here or in the master.

**If it dies.**  The request in its hands fails, and no other may.  So before a held connection is read a second time,
the master is given a copy of it under a number, and while one is read or answered its number stands in the scoreboard
(`CURRENT`).  If we die, the master closes that one and takes the others back.

**When it leaves**: the queue has ended (the master closed it, or died), it was told to retire, or it has served its
number of requests.  It gives back what is silent, finishes what is not, and goes.
"""

from __future__ import annotations

import logging
import os
import random
import time
import traceback
from time import monotonic_ns
from typing import Any

from . import scoreboard as board
from ._platform.serving import (
    DONTWAIT, END, HANGUP, LOST, READ, RETIRE, SHARED, Admission, Channel, Connection, QueueReader, close_raw,
    descriptor_limit, poller, resident_bytes,
)
from .conversation import Conversation, Failure, Stalled
from .exchange import failure_packet
from .handlers import Handler
from .pktline import FLUSH, MAX_DATA, decode_exact
from .request import Request
from .settings import Settings
from .streaming import Flusher

PACED = 1 << 63  # in a stamp: the connection was parked, and its client is known to take its time
RECEIVE_SIZE = 65536  # bytes; any message that is one packet
PATIENCE = 0.002  # seconds for which a silent connection is held; clients in a loop come back within microseconds
SLOW_NS = 1_000_000  # a handler of more than 1 ms makes other connections wait noticeably
SLOW_MEMORY = 32  # requests for which a worker remembers that it had a slow one
LONG_WAIT_NS = 1_000_000  # a client that waited so long may have given up: worth a system call to know
MAX_SILENT = 64  # connections held silent at a time
RSS_INTERVAL = 64  # requests between two looks at max_rss
TIMED_OUT = 75  # exit status after ERR timeout
_NEVER = 1 << 62  # requests

_VERDICTS = {
    "timeout": "the handler did not answer within request_timeout",
    "stopping": "the server stopped before the handler had answered",
}

log = logging.getLogger("ipcsrv.worker")


class Held:
    """A silent connection, the number under which the master knows it (0: not at all), since when it is silent, and

    whether it has been served ("kept") or has not asked for anything yet ("new").
    """

    __slots__ = ("connection", "kind", "number", "since")

    def __init__(self, connection: Connection, kind: str, since: int = 0) -> None:
        self.connection, self.kind, self.since = connection, kind, since
        self.number = 0


class Worker:
    """Serves connections from `queue` with `handler` until there is no more to do.

    words: this worker's slot of the scoreboard; channel: its private pipe to the master, which it only writes.
    """

    def __init__(self, settings: Settings, handler: Handler, queue: QueueReader, channel: Channel,
                 words: memoryview[int], rng: random.Random) -> None:
        self.settings = settings
        self.clock = time.monotonic
        self.flusher = Flusher()
        self._handler = handler
        self._queue, self._channel, self._words = queue, channel, words
        self._admission = Admission(settings.allow)
        self._poller = poller()
        self._poller.register(queue.fileno(), READ | SHARED)
        self._queue_key = queue.fileno()
        self._silent: dict[int, Held] = {}
        self._talks: dict[int, Conversation] = {}
        self._taking = True
        self._slow = 0
        self._numbers = 0
        self._swept = 0
        self._current: Connection | None = None
        self._began = 0
        self._denied_logged = 0.0
        small = min(MAX_DATA, settings.max_response_size or MAX_DATA)
        self._small_response = small
        self._small_request = min(MAX_DATA, settings.max_request_size or MAX_DATA)
        self._most_silent = min(MAX_SILENT, descriptor_limit() // 4)
        self._most_talks = descriptor_limit() // 2
        self._watching = True
        self._leave_soon = False
        jitter = rng.randint(0, settings.max_requests_jitter)
        self._last_request = settings.max_requests + jitter if settings.max_requests is not None else _NEVER
        self._next_check = min(self._last_request, RSS_INTERVAL if settings.max_rss is not None else _NEVER)

    # -- the loop ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until the queue has ended or we leave, and what is in hand is done."""
        silent, talks, take = self._silent, self._talks, self._take
        get = self._queue.get
        while self._taking or talks:
            if silent or talks:
                self._attend()
            else:
                take(get())

    def _attend(self) -> None:
        """Wait for the queue and all held connections together; serve what is ready, the queue first."""
        events = self._poller.poll(self._patience())
        for key, _ in events:
            if key == self._queue_key:
                self._take_if_any()
        for key, mask in events:
            held = self._silent.get(key)
            if held is not None:
                self._hear(held, mask)
            elif key in self._talks:
                self._resume(self._talks[key])
        if not events or monotonic_ns() - self._swept > 5_000_000:
            self._sweep()

    def _patience(self) -> float | None:
        if self._silent:
            return PATIENCE
        due = min(talk.due for talk in self._talks.values())
        return max(0.0, due - self.clock())

    def _take_if_any(self) -> None:
        try:
            item = self._queue.get(DONTWAIT)
        except BlockingIOError:
            return  # another worker was quicker
        self._take(item)

    # -- connections from the queue -----------------------------------------------------------------------------------

    def _take(self, item: Any) -> None:
        """Serve what came out of the queue: a connection, or the word to leave."""
        if item.__class__ is str:
            self._told(item)
            return
        raw, stamp = item
        words = self._words
        connection = Connection(raw)
        words[board.CONNECTIONS] += 1
        waited = monotonic_ns() - (stamp & ~PACED)
        words[board.QUEUE_WAIT + board.bucket(waited)] += 1
        if not self._admission.admits(connection):
            self._deny(connection)
            return
        try:
            data = connection.recv(RECEIVE_SIZE, DONTWAIT)
        except BlockingIOError:
            self._hold(connection, "new")
            return
        except OSError:
            data = b""
        if not data:
            self.count(board.PROBES)
            connection.close()
        elif waited > LONG_WAIT_NS and connection.gone():
            self.count(board.CANCELLED)
            connection.close()
        else:
            if self._slow:
                self._give_back_all()
            if self._serve(connection, data, waited):
                self._keep(connection, stamp)

    def _keep(self, connection: Connection, stamp: int) -> None:
        """After the response: hold the connection, or give it back at once if its client is known to take its time."""
        if stamp & PACED or not self._taking or len(self._silent) >= self._most_silent:
            self._give_back(Held(connection, "kept"))
        else:
            self._hold(connection, "kept")

    def _told(self, word: str) -> None:
        if word == END:
            self._stop_taking()
        elif word == RETIRE:
            self.leave()
        elif word == LOST:
            self.count(board.LOST)
            log.error("lost a connection: this worker has no descriptor left for it; raise its limit (ulimit -n)")

    def _deny(self, connection: Connection) -> None:
        self.count(board.DENIED)
        peer = connection.peer()
        if self.clock() - self._denied_logged > 1.0:  # a line a second at most: the log is not the stranger's to fill
            self._denied_logged = self.clock()
            log.warning("denied a connection from pid %s, uid %s, gid %s", *peer)
        self._last_word(connection, "denied", f"user {peer.uid} may not use this server")

    # -- held connections ---------------------------------------------------------------------------------------------

    def _hold(self, connection: Connection, kind: str) -> None:
        key = connection.fileno()
        self._silent[key] = Held(connection, kind, monotonic_ns())
        self._words[board.HELD] += 1
        self._poller.register(key, READ)

    def _hear(self, held: Held, mask: int) -> None:
        """A held connection has something: its next request, or its end."""
        connection = held.connection
        if mask & HANGUP:
            self._drop(held)
            return
        if not held.number:
            self._entrust(held)
        words = self._words
        words[board.CURRENT] = held.number
        try:
            data = connection.recv(RECEIVE_SIZE, DONTWAIT)
        except BlockingIOError:
            words[board.CURRENT] = 0
            return
        except OSError:
            data = b""
        if not data:
            words[board.CURRENT] = 0
            self._drop(held)
            return
        if self._slow and len(self._silent) > 1:
            self._give_back_all(but=held)
        if self._serve(connection, data, 0, held):
            held.since, held.kind = self._began, "kept"
        words[board.CURRENT] = 0

    def _entrust(self, held: Held) -> None:
        """Give the master a copy of a connection that has proved to be kept, against our death."""
        self._numbers += 1
        held.number = self._numbers
        self._tell("keep", b"%d" % held.number, held.connection.fileno(), keep=True)

    def _drop(self, held: Held) -> None:
        """Close a held connection, and the master's copy with it."""
        self._forget(held.connection)
        if held.number:
            held.connection.shutdown_both()
            self._tell("drop", b"%d" % held.number)
        held.connection.close()

    def _forget(self, connection: Connection) -> None:
        key = connection.fileno()
        if self._silent.pop(key, None) is not None:
            self._words[board.HELD] -= 1
            self._poller.unregister(key)

    def _give_back(self, held: Held) -> None:
        """Give a silent connection to the master, who parks it."""
        if held.number:
            self._tell("back", b"%d" % held.number)
            held.connection.close()
        else:
            self._tell(held.kind, b"", held.connection.detach())

    def _give_back_all(self, but: Held | None = None) -> None:
        for held in [held for held in self._silent.values() if held is not but]:
            self._forget(held.connection)
            self._give_back(held)

    def _sweep(self) -> None:
        """Give back what has been silent for too long; end what has stalled for too long."""
        self._swept = now = monotonic_ns()
        limit = now - int(PATIENCE * 1e9)
        for held in [held for held in self._silent.values() if held.since < limit]:
            self._forget(held.connection)
            self._give_back(held)
        seconds = self.clock()
        for talk in [talk for talk in self._talks.values() if talk.due <= seconds]:
            self._resume(talk, Stalled())

    # -- one request: the straight path -------------------------------------------------------------------------------

    def _serve(self, connection: Connection, data: bytes, waited: int, held: Held | None = None) -> bool:
        """Answer the request in `data`; True if the connection is silent again, False if it is not ours to hold now."""
        payload = decode_exact(data)
        if payload is None or len(payload) > self._small_request:
            return self._converse(connection, data, held)
        words = self._words
        self._current = connection
        self._began = words[board.SINCE_NS] = began = monotonic_ns()
        request = Request(payload)
        request._context = (connection, began, self.settings.request_timeout)
        try:
            response = self._handler(request)
        except BaseException as error:
            return self._failed(connection, error, held)
        if type(response) is bytes and len(response) <= self._small_response:
            reply = b"%04x%b0000" % (len(response) + 4, response) if response else FLUSH
            try:
                sent = connection.send(reply, DONTWAIT)
            except BlockingIOError:
                sent = 0
            except OSError:
                return self._gone(connection, held)
            if sent != len(reply):
                return self._converse(connection, data, held, unsent=reply[sent:])
        else:
            return self._converse(connection, data, held, response)
        took = monotonic_ns() - began
        words[board.SINCE_NS] = 0
        words[board.OK] += 1
        words[board.BYTES_OUT] += len(response)
        self._account(len(payload), took, waited)
        return True

    def _account(self, size: int, took: int, waited: int) -> None:
        """Count a request that was handled."""
        words = self._words
        words[board.REQUESTS] += 1
        words[board.BYTES_IN] += size
        words[board.BUSY_NS] += took
        words[board.HANDLER + board.bucket(took)] += 1
        words[board.WHOLE + board.bucket(took + waited)] += 1
        if took > SLOW_NS:
            self._slow = SLOW_MEMORY
        elif self._slow:
            self._slow -= 1
        if words[board.REQUESTS] >= self._next_check:
            self._check_limits()

    def _failed(self, connection: Connection, error: BaseException, held: Held | None) -> bool:
        failure = self.handler_failed(error)
        self._account_since()
        self.count(failure.counter)
        self._close(connection, held, failure)
        return False

    def _gone(self, connection: Connection, held: Held | None) -> bool:
        self._account_since()
        self.count(board.CANCELLED)
        self._close(connection, held)
        return False

    def _close(self, connection: Connection, held: Held | None, failure: Failure | None = None) -> None:
        if failure is not None:
            _send_quietly(connection, failure_packet(failure.code, failure.message))
        if held is not None:
            self._drop(held)
        else:
            connection.close()

    def _last_word(self, connection: Connection, code: str, message: str) -> None:
        _send_quietly(connection, failure_packet(code, message))
        connection.close()

    def _account_since(self) -> None:
        """Count the request in hand, of which the size no longer matters, as handled until now."""
        self._words[board.SINCE_NS] = 0
        self._account(0, monotonic_ns() - self._began, 0)

    # -- conversations: the long way ----------------------------------------------------------------------------------

    def _converse(self, connection: Connection, data: bytes, held: Held | None, response: Any = Failure,
                  unsent: bytes | None = None) -> bool:
        """Go on with this connection as a conversation; `response` is what the handler has returned, if it has."""
        if held is not None:
            self._forget(connection)
            self._tell("drop", b"%d" % held.number)
        talk = Conversation(self, connection, data)
        if unsent is not None:
            self._account_since()
            talk.send_first(unsent)
        elif response is not Failure:
            self._account_since()
            talk.answer_first(response)
        self._talks[connection.fileno()] = talk
        if len(self._talks) >= self._most_talks:
            self._watch_queue(False)
        self._words[board.HELD] += 1
        self._resume(talk, started=False)
        return False

    def _resume(self, talk: Conversation, stalled: Stalled | None = None, started: bool = True) -> None:
        """Run a conversation until it waits or ends."""
        key = talk.connection.fileno()
        self._current = talk.connection
        try:
            mask, talk.due = talk.steps.throw(stalled) if stalled is not None else next(talk.steps)
        except StopIteration as stop:
            self._end_talk(talk, key, started, whole=stop.value)
            return
        if not started:
            self._poller.register(key, mask)
        elif mask != talk.mask:
            self._poller.modify(key, mask)
        talk.mask = mask

    def _end_talk(self, talk: Conversation, key: int, started: bool, *, whole: bool) -> None:
        if started:
            self._poller.unregister(key)
        del self._talks[key]
        if self._taking:
            self._watch_queue(True)
        self._words[board.HELD] -= 1
        if not whole:
            talk.connection.close()
        elif self._taking:
            self._hold(talk.connection, "kept")
        else:
            self._give_back(Held(talk.connection, "kept"))

    def handle(self, connection: Connection, request: Request) -> Any:
        """Run the handler on one request of a conversation; raises `Failure` where it raised."""
        self._current = connection
        self._began = began = monotonic_ns()
        self._words[board.SINCE_NS] = began
        request._context = (connection, began, self.settings.request_timeout)
        try:
            response = self._handler(request)
        except BaseException as error:
            raise self.handler_failed(error) from None
        finally:
            self._words[board.SINCE_NS] = 0
            self._account(len(request), monotonic_ns() - began, 0)
        return response

    def handler_failed(self, error: BaseException) -> Failure:
        """What the client is told of an exception of the handler's; the log gets its traceback."""
        frames = error.__traceback__.tb_next if error.__traceback__ else None
        text = "".join(traceback.format_exception(type(error), error, frames))
        log.error("the handler failed: %s", text.rstrip())
        return Failure("handler", f"{type(error).__name__}: {error}", board.HANDLER_ERRORS)

    def count(self, counter: int) -> None:
        """Add one to a counter of the scoreboard."""
        self._words[counter] += 1

    def count_out(self, size: int) -> None:
        """Add to the bytes of responses."""
        self._words[board.BYTES_OUT] += size

    def note_malformed(self, connection: Connection, reason: str) -> None:
        """A client's bytes are no request: one line, and no effect on anyone else."""
        self.count(board.MALFORMED)
        log.warning("malformed request from pid %s: %s", connection.peer().pid, reason)

    def note_refused(self, connection: Connection, code: str, message: str) -> None:
        """A client's request was refused before the handler saw it."""
        self.count({"too-large": board.TOO_LARGE, "timeout": board.TIMEOUTS}.get(code, board.MALFORMED))
        log.warning("refused a request from pid %s: %s (%s)", connection.peer().pid, message, code)

    def note_stalled(self, connection: Connection) -> None:
        """A client does not read its response."""
        self.count(board.LOST)
        log.warning("dropped pid %s: it did not read its response for %g s", connection.peer().pid,
                    self.settings.write_timeout)

    # -- leaving ------------------------------------------------------------------------------------------------------

    def quit(self) -> None:
        """The handler returned QUIT: the server drains and stops."""
        self._tell("quit")

    def leave(self) -> None:
        """Take no more connections; a replacement is started while we finish what we have."""
        if self._taking:
            self._tell("bye")
        self._stop_taking()

    def _stop_taking(self) -> None:
        self._taking = False
        self._watch_queue(False)
        self._give_back_all()

    def _watch_queue(self, watch: bool) -> None:
        """Whether to take from the queue: not when leaving, nor with most of our descriptors in stalled clients."""
        if watch != self._watching:
            self._watching = watch
            if watch:
                self._poller.register(self._queue_key, READ | SHARED)
            else:
                self._poller.unregister(self._queue_key)

    def _check_limits(self) -> None:
        """max_requests or max_rss may be reached: then leave, between two requests."""
        served = self._words[board.REQUESTS]
        if self._leave_soon or served >= self._last_request:
            log.info("leaving after %d requests", served)
            self.leave()
            return
        self._next_check = min(self._last_request, served + RSS_INTERVAL)
        resident, limit = resident_bytes(), self.settings.max_rss
        if limit is not None and resident > limit:
            log.info("leaving with %d MiB resident (max_rss)", resident >> 20)
            self.leave()

    def say_last_words(self) -> None:
        """On the master's word, in a signal handler: answer the client in hand with the verdict, and die.

        If the request has ended in the meantime, the next one need not suffer: leave in good order.
        """
        code = board.VERDICTS[self._words[board.VERDICT]]
        since, limit = self._words[board.SINCE_NS], self.settings.request_timeout
        in_time = code == "timeout" and monotonic_ns() - since < (limit or 0) * 1e9
        if since and not in_time and self._current is not None:
            _send_quietly(self._current, failure_packet(code, _VERDICTS[code]))
            os._exit(TIMED_OUT)
        self._leave_soon, self._next_check = True, 0

    def _tell(self, kind: str, body: bytes = b"", raw: int | None = None, *, keep: bool = False) -> None:
        """Send the master a message; with a dead master there is nobody to give anything to."""
        try:
            self._channel.tell(kind, body, raw, keep=keep)
        except OSError:
            if raw is not None and not keep:
                close_raw(raw)


def _send_quietly(connection: Connection, data: bytes) -> None:
    try:
        connection.send(data, DONTWAIT)
    except OSError:
        pass  # whoever does not read cannot be told
