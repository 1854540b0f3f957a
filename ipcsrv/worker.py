"""A worker: takes a connection, reads a request, runs the handler, answers.

It is single-threaded towards its handler.  A request that comes whole in one read and whose response goes out in one
write, which is nearly every one, takes a straight path of as few steps as Python allows; all else is a `Conversation`,
resumed when its connection is ready.

**Where connections come from.**  New ones from the listener, where the system can wake one of the workers that wait
for it: the backlog is the one queue of new clients, and an idle worker takes the next.  Where it cannot, the master
accepts and puts them into the generation's queue.  From that queue come, in either case, the connections that were
silent for a while and speak again, and the word to leave; and its end, which is the end of the work.

**What it holds** between two requests is `keeping`'s matter.  A silent connection costs a descriptor, here or in the
master, and no request ever waits behind a slow one in a worker while another worker is free.

**If it dies**, the request in its hands fails, and no other may.  So of each silent connection that it watches the
master is given a copy under a number, and while one is read or answered its number stands in the scoreboard
(`CURRENT`).  If we die, the master closes that one and takes the others back.

**When it leaves**, because the queue has ended, it was told to, or it has served its number of requests, it gives back
what is silent, finishes what is not, and goes; at the end of the server's life it serves the backlog first.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable
from time import monotonic_ns
from typing import Any

from . import scoreboard as board
from ._platform import serving
from ._platform.serving import DONTWAIT, Admission, Channel, Connection, Listener, QueueReader
from .complaints import VERDICTS, Complaints, Failure, send_quietly, verdict
from .conversation import Conversation, Stalled
from .exchange import failure_packet
from .handlers import Handler
from .intake import PACED, Intake
from .keeping import CHATTY_NS, LIMBO, LIMBO_AGE_NS, LIMBO_TIME, PATIENCE, Held, Keeping
from .limits import Limits
from .pktline import FLUSH, MAX_DATA, decode_exact
from .request import Request
from .scoreboard import CURRENT, SINCE_NS
from .settings import Settings
from .streaming import Flusher
from .tally import Tally

RECEIVE_SIZE = 65536  # bytes; any message that is one packet
LONG_WAIT_NS = 1_000_000  # a client that waited so long may have given up: worth a system call to know
NEW_CLIENT_GRACE = 1.0  # seconds for a client that has connected as the server stops to ask for something
CHAT_TURNS = 8  # requests of a chatty client between two looks at whether others wait
FIRST_WORDS_PATIENCE = 0.001  # seconds; a client's first write follows its connect within microseconds
SILENT_CLIENTS = 32  # clients that are not waited for after one that stayed silent
CHAT_PATIENCE = 0.001  # seconds of waiting for a chatty client's next request alone
SWEEP_INTERVAL_NS = 5_000_000  # between looks at who has been silent for too long, while events keep coming
LONGEST_WAIT = 86400.0  # seconds; a poller takes milliseconds in 31 bits, which is 24 days
TIMED_OUT = 75  # exit status after ERR timeout

log = logging.getLogger("ipcsrv.worker")


class Worker:
    """Serves connections with `handler` until there is no more to do.

    queue: its generation's; listener: the server's, or None where the master accepts; channel: its private pipe to the
    master; words: its slot of the scoreboard.
    """

    make_tally: Callable[[memoryview[int]], Tally] = Tally

    def __init__(self, settings: Settings, handler: Handler, queue: QueueReader, listener: Listener | None,
                 channel: Channel, words: memoryview[int], rng: random.Random) -> None:
        self.settings = settings
        self.clock = time.monotonic
        self.flusher = Flusher()
        self.tally = self.make_tally(words)
        self._handler = handler
        self._words = words
        self._admission = Admission(settings.allow)
        self._poller = serving.poller()
        self._keeping = Keeping(channel, self._poller, words)
        self._silent, self._limbo = self._keeping.silent, self._keeping.limbo
        self._talks: dict[int, Conversation] = {}
        self._intake = Intake(self, queue, listener, channel, self._poller, self._keeping, self.tally)
        self._taking = True
        self._not_waited_for = 0
        self._swept = 0
        self._current: Connection | None = None
        self.complaints = Complaints(words, self._keeping, settings.write_timeout)
        self._small_response = min(MAX_DATA, settings.max_response_size or MAX_DATA)
        self._small_request = min(MAX_DATA, settings.max_request_size or MAX_DATA)
        self._timeout = settings.request_timeout
        self._most_talks = serving.descriptor_limit() // 3
        self._limits = Limits(settings, rng)
        self._next_check = self._limits.next_check

    # -- the loop ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until the queue has ended or we leave, and what is in hand is done."""
        self._intake.watch(True)
        while self._taking or self._talks or self._silent:
            self._attend()
            if not self._taking:
                self._keeping.give_back_all()
            if self._keeping.last:
                self._serve_the_last()

    def _attend(self) -> None:
        """Wait for everything together; serve what is ready.

        What comes from outside is taken first: we alone may have been woken for it.  An event is a hint, no more: its
        descriptor may be another connection's by the time it is looked at.
        """
        intake, silent, talks = self._intake, self._silent, self._talks
        events = self._poller.poll(self._patience())
        if self._limbo and monotonic_ns() - self._words[board.LAST_NS] > LIMBO_AGE_NS:
            self._end_limbo()
        keys = [key for key, _ in events]
        if intake.queue_key in keys:
            intake.take()
        if intake.listener_key in keys:
            intake.accept() if self._taking else intake.pass_on()
        for key in keys:
            if (held := silent.get(key)) is not None:
                self._hear(held)
            elif key in talks:
                self._resume(talks[key])
        if not events or self.tally.began - self._swept > SWEEP_INTERVAL_NS:
            self._sweep(idle=not events)

    def _patience(self) -> float | None:
        if self._limbo:
            return LIMBO_TIME
        if self._silent:
            return PATIENCE
        dues = [talk.due for talk in self._talks.values()]
        if self._intake.again_at:
            dues.append(self._intake.again_at)
        return max(0.0, min(*dues, self.clock() + LONGEST_WAIT) - self.clock()) if dues else None

    def _sweep(self, *, idle: bool) -> None:
        """Look after what has been silent or has stalled for too long; `idle`: nothing has come for a while."""
        if idle:
            self._end_limbo()
        self._swept = now = monotonic_ns()
        self._keeping.give_back_silent(older_than=now - int(PATIENCE * 1e9))
        seconds = self.clock()
        for talk in [talk for talk in self._talks.values() if talk.due <= seconds]:
            self._resume(talk, Stalled())
        if self._intake.again_at and seconds >= self._intake.again_at:
            self._intake.again_at = 0.0
            self._intake.watch(self._taking)

    # -- new connections ----------------------------------------------------------------------------------------------

    def begin(self, connection: Connection, stamp: int, waited: int) -> None:
        """Serve a connection that has come to us, if it has said something; then keep it."""
        if not self._admission.admits(connection):
            self._deny(connection)
            return
        data: bytes | None
        try:
            data = connection.recv(RECEIVE_SIZE, DONTWAIT)
        except BlockingIOError:
            if (data := self._first_words(connection)) is None:
                self._keeping.hold(connection, "kept" if stamp & PACED else "new")
                return
        except OSError:
            data = b""
        tally = self.tally
        if not data:
            tally.count(board.PROBES)
            connection.close()
        elif (waited > LONG_WAIT_NS or tally.slow) and connection.gone():
            tally.count(board.CANCELLED)
            connection.close()
        else:
            if tally.slow:
                self._keeping.give_back_all()
            if not self._serve(connection, data, waited):
                return
            if stamp & PACED or not self._taking:
                self._keeping.give_back(Held(connection, "kept"))  # its client is known to take its time
            elif stamp:
                self._keeping.hold(connection, "kept")  # it has come back: it is not one that closes
            else:
                self._limbo.append(connection)
                if len(self._limbo) > LIMBO:
                    self._leave_limbo(self._limbo.popleft())

    def _first_words(self, connection: Connection) -> bytes | None:
        """What a client that has only just connected says next; None if it stays silent for a moment.

        Half of all clients are taken between their connect and their first write.  To wait for one alone is
        quicker than to watch it, and for a silent one in vain; so after one of those the next ones are not waited for.
        """
        if self._not_waited_for:
            self._not_waited_for -= 1
            return None
        if connection.wait_at_most(FIRST_WORDS_PATIENCE):
            try:
                return connection.recv(RECEIVE_SIZE)
            except BlockingIOError:
                self._not_waited_for = SILENT_CLIENTS
            except OSError:
                return b""
        return None

    def _end_limbo(self) -> None:
        """Look at all that are in limbo now."""
        for _ in range(len(self._limbo)):
            self._leave_limbo(self._limbo.popleft())

    def _leave_limbo(self, connection: Connection) -> None:
        """See what a client has said since it was answered; most have closed."""
        try:
            data = connection.recv(RECEIVE_SIZE, DONTWAIT)
        except BlockingIOError:
            self._keeping.hold(connection, "kept")
            return
        except OSError:
            data = b""
        if not data:
            connection.close()
        elif self._serve(connection, data, 0):
            self._keeping.hold(connection, "kept")

    def _deny(self, connection: Connection) -> None:
        peer = self.complaints.denied(connection)
        send_quietly(connection, failure_packet("denied", f"user {peer.uid} may not use this server"))
        connection.close()

    # -- held connections ---------------------------------------------------------------------------------------------

    def _hear(self, held: Held) -> None:
        """A held connection may have something: its next request, or its end."""
        if held.chatty and len(self._silent) == 1 and not self._talks and not self._limbo:
            self._chat(held)
            return
        words = self._words
        words[board.CURRENT] = held.number
        try:
            data = held.connection.recv(RECEIVE_SIZE, DONTWAIT)
        except BlockingIOError:
            words[board.CURRENT] = 0
            return
        except OSError:
            data = b""
        self._heard(held, data)

    def _heard(self, held: Held, data: bytes) -> bool:
        """Serve what a held connection said; True if it is silent again, and held."""
        words = self._words
        if not data:
            words[board.CURRENT] = 0
            self._keeping.drop(held)
            return False
        if self.tally.slow and len(self._silent) > 1:
            self._keeping.give_back_all(but=held)
        silent_since = held.since
        whole = self._serve(held.connection, data, 0, held)
        words[board.CURRENT] = 0
        if not whole:
            return False
        held.since, held.kind = words[board.LAST_NS], "kept"
        if not held.chatty and self.tally.began - silent_since < CHATTY_NS:
            held.chatty = held.connection.wait_at_most(CHAT_PATIENCE)
        return True

    def _chat(self, held: Held) -> None:
        """Serve one client in a loop: a read and a write a request, and now and then a look at who else waits."""
        connection, words, number, serve = held.connection, self._words, held.number, self._serve
        receive = connection.recv
        turns = 0
        while True:
            words[CURRENT] = number
            try:
                data = receive(RECEIVE_SIZE)  # for CHAT_PATIENCE at most
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                self._keeping.drop(held)
                break
            if not serve(connection, data, 0, held):
                break
            turns += 1
            if turns % CHAT_TURNS == 0 and (not self._taking or self._others_wait(held)):
                break
        words[CURRENT] = 0
        held.since = words[board.LAST_NS]

    def _others_wait(self, held: Held) -> bool:
        key = held.connection.fileno()
        return any(ready != key for ready, _ in self._poller.poll(0))

    # -- one request: the straight path -------------------------------------------------------------------------------

    def _serve(self, connection: Connection, data: bytes, waited: int, held: Held | None = None) -> bool:
        """Answer the request in `data`; True if the connection is silent again, False if it is not ours to hold now."""
        payload = decode_exact(data)
        if payload is None or len(payload) > self._small_request:
            return self._converse(connection, data, held)
        tally = self.tally
        self._current = connection
        tally.words[SINCE_NS] = tally.began = began = monotonic_ns()
        request = Request(payload)
        request._context = (connection, began, self._timeout)
        others = self._limbo or len(self._silent) > (held is not None)
        if (others or self._timeout is not None) and not tally.words[board.WATCHED]:
            self._keeping.tell("busy")
        try:
            response = self._handler(request)
        except BaseException as error:
            failure = self.complaints.handler_failed(error)
            send_quietly(connection, failure_packet(failure.code, failure.message))
            return self._end_badly(connection, len(payload), failure.counter, held)
        kind = type(response)
        if (kind is not bytes and kind is not Request) or len(response) > self._small_response:
            return self._converse(connection, data, held, response, handled=len(payload))
        reply = b"%04x%b0000" % (len(response) + 4, response) if response else FLUSH
        try:
            sent = connection.send(reply, DONTWAIT)
        except BlockingIOError:
            sent = 0
        except OSError:
            return self._end_badly(connection, len(payload), board.CANCELLED, held)
        if sent != len(reply):
            return self._converse(connection, data, held, response, handled=len(payload), unsent=reply[sent:])
        tally.answered(len(payload), len(response), waited)
        if tally.requests >= self._next_check:
            self._check_limits()
        return True

    def _end_badly(self, connection: Connection, size: int, counter: int, held: Held | None) -> bool:
        self._handled(size)
        self.tally.count(counter)
        return self._close(connection, held)

    def _close(self, connection: Connection, held: Held | None) -> bool:
        if held is not None:
            self._keeping.drop(held)
        else:
            connection.close()
        return False

    def _handled(self, size: int) -> None:
        """Count the request in hand as handled, and see whether we have served enough."""
        self.tally.handled(size)
        if self.tally.requests >= self._next_check:
            self._check_limits()

    # -- conversations: the long way ----------------------------------------------------------------------------------

    def _converse(self, connection: Connection, data: bytes, held: Held | None, response: Any = Failure,
                  handled: int = 0, unsent: bytes | None = None) -> bool:
        """Go on with this connection as a conversation.

        response: what the handler has returned, if it has, to a request of `handled` bytes; unsent: what is left of it.
        """
        talk = Conversation(self, connection, data)
        if unsent is not None:
            self._handled(handled)
            self.tally.count_out(len(response))
            talk.send_first(unsent)
        elif response is not Failure:
            self._handled(handled)
            talk.answer_first(response)
        self._current = connection
        try:
            talk.mask, talk.due = next(talk.steps)
        except StopIteration as stop:  # it did not have to wait
            return bool(stop.value) or self._close(connection, held)
        if held is not None:
            self._keeping.forget(connection)
            self._keeping.release(held)
        self._talks[connection.fileno()] = talk
        if len(self._talks) >= self._most_talks:
            self._intake.watch(False)
        self._words[board.HELD] += 1
        self._poller.register(connection.fileno(), talk.mask)
        return False

    def _resume(self, talk: Conversation, stalled: Stalled | None = None) -> None:
        """Run a conversation until it waits or ends."""
        key = talk.connection.fileno()
        self._current = talk.connection
        try:
            mask, talk.due = talk.steps.throw(stalled) if stalled is not None else next(talk.steps)
        except StopIteration as stop:
            self._end_talk(talk, key, whole=stop.value)
            return
        if mask != talk.mask:
            self._poller.modify(key, mask)
            talk.mask = mask

    def _end_talk(self, talk: Conversation, key: int, *, whole: bool) -> None:
        self._poller.unregister(key)
        del self._talks[key]
        self._words[board.HELD] -= 1
        if self._taking and not self._intake.again_at:
            self._intake.watch(True)
        if not whole:
            talk.connection.close()
        elif self._taking:
            self._keeping.hold(talk.connection, "kept")
        else:
            self._keeping.give_back(Held(talk.connection, "kept"))

    def handle(self, connection: Connection, request: Request) -> Any:
        """Run the handler on one request of a conversation; raises `Failure` where it raised."""
        self._current = connection
        began = self.tally.begin()
        request._context = (connection, began, self._timeout)
        if (self._timeout is not None or self._silent or self._limbo) and not self._words[board.WATCHED]:
            self._keeping.tell("busy")
        try:
            return self._handler(request)
        except BaseException as error:
            raise self.complaints.handler_failed(error) from None
        finally:
            self._handled(len(request))

    def resume_handler(self, since: int) -> None:
        """The handler's code runs (again) in a stream; `since` is when it began, less what was not its own time."""
        self._words[SINCE_NS] = since
        if (self._timeout is not None or self._silent or self._limbo) and not self._words[board.WATCHED]:
            self._keeping.tell("busy")

    def pause_handler(self) -> int:
        """It does not: its client is waited for.  How long it has run, in nanoseconds."""
        used = monotonic_ns() - self._words[SINCE_NS]
        self._words[SINCE_NS] = 0
        return used

    # -- leaving ------------------------------------------------------------------------------------------------------

    def quit(self) -> None:
        """The handler returned QUIT: the server drains and stops."""
        self._keeping.tell("quit")

    def leave(self) -> None:
        """Take no more connections; a replacement is started while we finish what we have."""
        if self._taking:
            self._keeping.tell("bye")
        self.stop_taking()

    def _serve_the_last(self) -> None:
        """The server stops: who has asked in time is served, and who has just connected has a moment to ask."""
        while self._keeping.last:
            held = self._keeping.last.pop()
            if held.kind == "new":
                if self._converse(held.connection, b"", held):
                    self._keeping.give_back(held)
                elif (talk := self._talks.get(held.connection.fileno())) is not None:
                    talk.due = min(talk.due, self.clock() + NEW_CLIENT_GRACE)
                continue
            self._words[CURRENT] = held.number
            try:
                data = held.connection.recv(RECEIVE_SIZE, DONTWAIT)
            except OSError:
                data = b""
            if self._heard(held, data):
                self._keeping.give_back(held)

    def stop_taking(self) -> None:
        """Take no more connections."""
        self._taking = False
        self._intake.watch(False)

    def _check_limits(self) -> None:
        """max_requests or max_rss may be reached: then leave, between two requests."""
        reached = self._limits.reached(self.tally.requests)
        self._next_check = self._limits.next_check
        if reached is not None:
            log.info("leaving %s", reached)
            self.leave()

    def relieve(self) -> None:
        """On the master's word, in a signal handler: this request takes long, others can serve who else is here."""
        if self._words[SINCE_NS] and self._current is not None:
            self._keeping.give_back_all(but=self._silent.get(self._current.fileno()))

    def say_last_words(self) -> None:
        """On the master's word, in a signal handler: answer the client in hand with the verdict, and die.

        If the request has ended in the meantime, the next one need not suffer: leave in good order.
        """
        code = verdict(self._words, self._timeout)
        if code is not None and self._current is not None:
            send_quietly(self._current, failure_packet(code, VERDICTS[code]))
            os._exit(TIMED_OUT)
        self._limits.set_reached()
        self._next_check = 0
