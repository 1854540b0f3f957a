"""A worker: takes a connection, reads a request, runs the handler, answers.

It is single-threaded towards its handler.  A request that comes whole in one read and whose response goes out in one
write, which is nearly every one, takes the straight path (`straight`); all else is a `Conversation`, resumed when its
connection is ready.

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

import os
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic_ns
from typing import Any

from ..config.handlers import Handler
from ..config.settings import Settings
from ..platform import logs
from ..platform import server as serving
from ..platform.server import DONTWAIT, Admission, Channel, Connection, Lifebuoy, Listener, QueueReader
from ..protocol.exchange import failure_packet
from ..protocol.pktline import MAX_DATA
from ..request import Request
from ..supervision import scoreboard as board
from ..supervision.messages import PACED, TIMED_OUT
from ..supervision.scoreboard import CURRENT, SINCE_NS
from . import fastpath as straight
from .exchange import Conversation, Stalled
from .failures import VERDICTS, Complaints, Failure, send_quietly, verdict
from .fastpath import ANSWERED, CONVERSE, ENDED, GONE, LIMIT, NOBODY, RAISED, SILENT, STRANGER
from .intake import Intake
from .keeping import CHATTY_NS, PATIENCE, Held, Keeping
from .limbo import AGE_NS, TIME, Limbo
from .limits import Limits
from .stats import Tally
from .streaming import Flusher

NEW_CLIENT_GRACE = 1.0  # seconds for a client that has connected as the server stops to ask for something
CHAT_TURNS = 64  # requests of a chatty client between two looks at whether others wait; fewer if they take long
FIRST_WORDS_PATIENCE = 0.001  # seconds; a client's first write follows its connect within microseconds
SILENT_CLIENTS = 32  # clients that are not waited for after one that stayed silent
CHAT_PATIENCE = 0.001  # seconds of waiting for a chatty client's next request alone
SWEEP_INTERVAL_NS = 5_000_000  # between looks at who has been silent for too long, while events keep coming
LONGEST_WAIT = 86400.0  # seconds; a poller takes milliseconds in 31 bits, which is 24 days

log = logs.get("ipcsrv.worker")


class Worker:
    """Serves connections with `handler` until there is no more to do.

    queue: its generation's; listener: the server's, or None where the master accepts; channel: its private pipe to the
    master; words: its slot of the scoreboard.
    """

    make_tally: Callable[[memoryview[int]], Tally] = Tally
    on_answered: Callable[[int, int, int], object] | None = None  # bytes in, bytes out, waited: of the straight path

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
        self._buoy = Lifebuoy()
        self._limbo = Limbo(self._buoy)
        self._keeping = Keeping(channel, self._poller, words, self._limbo)
        if listener is not None:
            self._keeping.tell("buoy", b"", self._buoy.fileno(), keep=True)
        self._silent = self._keeping.silent
        self._talks: dict[int, Conversation] = {}
        self._tell_busy = partial(self._keeping.tell, "busy")  # the master must look out for the request that begins
        self._intake = Intake(self, queue, listener, channel, self._poller, self._keeping, self.tally)
        self._taking = True
        self._not_waited_for = self._swept = 0
        self._hand: Connection | None = None
        self.neighbours: Sequence[memoryview[int]] = ()  # the other slots
        self.complaints = Complaints(words, self._keeping, settings.write_timeout)
        self._timeout = settings.request_timeout
        self._path = straight.straight_path(
            self.tally, handler, settings.max_request_size or MAX_DATA, settings.max_response_size or MAX_DATA,
            settings.request_timeout, self._tell_busy,
            self._secure_limbo, self.on_answered, pure=settings.receive_descriptors)
        self._most_talks = serving.descriptor_limit() // 3
        self._limits = Limits(settings, rng)
        self._path.next_check = self._limits.next_check

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
        self._buoy.close()

    def _attend(self) -> None:
        """Wait for everything together; serve what is ready.

        What comes from outside is taken first: we alone may have been woken for it.  An event is a hint, no more: its
        descriptor may be another connection's by the time it is looked at.
        """
        intake, silent, talks = self._intake, self._silent, self._talks
        events = self._poller.poll(self._patience())
        if self._limbo and monotonic_ns() - self._words[board.LAST_NS] > AGE_NS:
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
            return TIME
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
        if not idle:
            self._keeping.share(self.neighbours)
        seconds = self.clock()
        for talk in [talk for talk in self._talks.values() if talk.due <= seconds]:
            self._resume(talk, Stalled())
        if self._intake.again_at and seconds >= self._intake.again_at:
            self._intake.again_at = 0.0
            self._intake.watch(self._taking)

    # -- new connections ----------------------------------------------------------------------------------------------

    def welcome(self, listener: Listener) -> bool:
        """Serve the next client in the backlog, if it has said something; False if nobody waits there.

        Raises the `OSError` of accept(2).
        """
        self._hand = None
        path, others = self._path, self._limbo or self._silent
        outcome = path.receive(listener) if self.tally.slow else path.welcome(listener, others)
        if outcome == NOBODY:
            return False
        if outcome == STRANGER:
            self.begin(self._path.connection, 0, 0)
        else:
            self._begun(self._path.connection, outcome, 0, 0)
        return True

    def begin(self, connection: Connection, stamp: int, waited: int) -> None:
        """Serve a connection that has come to us, if it has said something; then keep it."""
        if not self._admission.admits(connection):
            self._deny(connection)
            return
        if self._path.learns and not stamp and (user := self._admission.user(connection)) is not None:
            self._path.know(*user)
        if (waited > straight.LONG_WAIT_NS or self.tally.slow) and self._has_left(connection):
            return
        self._begun(connection, self._run(connection, DONTWAIT, waited), stamp, waited)

    def _begun(self, connection: Connection, outcome: int, stamp: int, waited: int) -> None:
        """What became of the first request of a connection that has come to us."""
        if outcome == SILENT and self._first_words_come(connection):
            outcome = self._run(connection, 0, waited)
            if outcome == SILENT:
                self._not_waited_for = SILENT_CLIENTS
        if outcome == SILENT:
            self._keeping.hold(connection, "kept" if stamp & PACED else "new")
        elif outcome == ENDED:
            self.tally.count(board.PROBES)
            connection.close()
        elif outcome == ANSWERED or self._go_on(connection, outcome):
            if stamp & PACED or not self._taking:
                self._keeping.give_back(Held(connection, "kept"))  # its client is known to take its time
            elif stamp:
                self._keeping.hold(connection, "kept")  # it has come back: it is not one that closes
            elif self._limbo.add(connection):
                self._leave_limbo()
            else:
                self._path.unsecured = True

    def _has_left(self, connection: Connection) -> bool:
        """After a long wait: whether the client has given up, and with what it may have asked."""
        if self.tally.slow:
            self._keeping.give_back_all()
        if not connection.gone():
            return False
        self.tally.count(board.CANCELLED if connection.has_said() else board.PROBES)
        connection.close()
        return True

    def _first_words_come(self, connection: Connection) -> bool:
        """Whether to wait for what a client that has only just connected says next, for a moment.

        Half of all clients are taken between their connect and their first write.  To wait for one alone is
        quicker than to watch it, and for a silent one in vain; so after one of those the next ones are not waited for.
        """
        if self._not_waited_for:
            self._not_waited_for -= 1
            return False
        return connection.wait_at_most(FIRST_WORDS_PATIENCE)

    def _end_limbo(self) -> None:
        """Look at all in limbo; while one is served that has spoken, another may leave it."""
        while self._limbo:
            self._leave_limbo()

    def _leave_limbo(self) -> None:
        """See what the client that was answered longest ago has done since."""
        if (spoken := self._keeping.leave_limbo()) is not None:
            self._hear(spoken)

    def _secure_limbo(self) -> None:
        """Before a handler runs: whoever is in limbo must not go with us if it ends us."""
        self._path.unsecured = False
        self._keeping.secure_limbo()

    def _deny(self, connection: Connection) -> None:
        peer = self.complaints.denied(connection)
        send_quietly(connection, failure_packet("denied", f"user {peer.uid} may not use this server"))
        connection.close()

    # -- held connections ---------------------------------------------------------------------------------------------

    def _hear(self, held: Held) -> None:
        """A held connection may have something: its next request, or its end."""
        alone = len(self._silent) == 1
        if held.chatty and alone and not self._talks and not self._limbo:
            self._chat(held)
            return
        if self.tally.slow and not alone:
            self._keeping.give_back_all(but=held)
        self._heard(held, self._run(held.connection, DONTWAIT, 0, held))

    def _heard(self, held: Held, outcome: int) -> bool:
        """What became of what a held connection said; True if it is silent again, and held."""
        if outcome == SILENT:
            return True
        if outcome == ENDED:
            self._keeping.drop(held)
            return False
        words, silent_since = self._words, held.since
        whole = outcome == ANSWERED or self._go_on(held.connection, outcome, held)
        words[CURRENT] = 0
        if not whole:
            return False
        held.since, held.kind = words[board.LAST_NS], "kept"
        if not held.chatty and self.tally.began - silent_since < CHATTY_NS:
            held.chatty = held.connection.wait_at_most(CHAT_PATIENCE)
        return True

    def _chat(self, held: Held) -> None:
        """Serve one client in a loop: a read and a write a request, and now and then a look at who else waits."""
        connection, key, number, run = held.connection, held.key, held.number, self._path.run
        self._hand = connection
        while True:
            outcome = run(connection, key, 0, CHAT_TURNS, 0, number, False)  # reads for CHAT_PATIENCE at most
            if outcome != ANSWERED and (outcome == SILENT or not self._heard(held, outcome)):
                break
            if not self._taking or self._others_wait(held):
                break
        held.since = self._words[board.LAST_NS]

    def _others_wait(self, held: Held) -> bool:
        return any(ready != held.key for ready, _ in self._poller.poll(0))

    # -- one request --------------------------------------------------------------------------------------------------

    def _run(self, connection: Connection, flags: int, waited: int, held: Held | None = None) -> int:
        """Have a request answered by the straight path, as far as that goes; the outcome, as `straight` names it."""
        limbo = self._limbo
        self._hand = connection
        if held is None:
            return self._path.run(connection, connection.fileno(), flags, 1, waited, 0, limbo or self._silent)
        others = limbo or len(self._silent) > 1
        return self._path.run(connection, held.key, flags, 1, waited, held.number, others)

    def _go_on(self, connection: Connection, outcome: int, held: Held | None = None) -> bool:
        """Do what the straight path has left to do; True if the connection is silent again, and ours to hold."""
        if outcome == LIMIT:
            self._check_limits()
            return True
        data, response, unsent, error = self._path.rest()
        if outcome == CONVERSE:
            return self._converse(connection, data, held)
        if outcome == GONE:
            return self._end_badly(connection, board.CANCELLED, held)
        if outcome == RAISED:
            failure = self.complaints.handler_failed(error)
            send_quietly(connection, failure_packet(failure.code, failure.message))
            return self._end_badly(connection, failure.counter, held)
        return self._converse(connection, data, held, response, unsent, handled=self._path.size)

    @property
    def _current(self) -> Connection | None:
        """The connection in hand; what the path welcomes is in its hand first."""
        return self._hand or self._path.connection

    def _end_badly(self, connection: Connection, counter: int, held: Held | None) -> bool:
        self._handled(self._path.size)
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
        if self.tally.requests >= self._path.next_check:
            self._check_limits()

    # -- conversations: the long way ----------------------------------------------------------------------------------

    def _converse(self, connection: Connection, data: bytes, held: Held | None, response: Any = Failure,
                  unsent: bytes | None = None, handled: int = 0) -> bool:
        """Go on with this connection as a conversation, which begins with the bytes in `data`.

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
        self._hand = connection
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
        self._hand = talk.connection
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
        self._hand = connection
        began = self.tally.begin()
        request._context = (connection, began, self._timeout)
        self._expect_to_take_time()
        try:
            return self._handler(request)
        except BaseException as error:
            raise self.complaints.handler_failed(straight.without_own_frames(error)) from None
        finally:
            self._handled(len(request))

    def resume_handler(self, since: int) -> None:
        """The handler's code runs (again) in a stream; `since` is when it began, less what was not its own time."""
        self._words[SINCE_NS] = since
        self._expect_to_take_time()

    def _expect_to_take_time(self) -> None:
        if self._path.unsecured:
            self._secure_limbo()
        if (self._timeout is not None or self._silent or self._limbo) and not self._words[board.WATCHED]:
            self._tell_busy()

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
            outcome = self._run(held.connection, DONTWAIT, 0, held)
            if outcome == SILENT:
                self._keeping.drop(held)
            elif self._heard(held, outcome):
                self._keeping.give_back(held)

    def stop_taking(self) -> None:
        """Take no more connections."""
        self._taking = False
        self._intake.watch(False)

    def _check_limits(self) -> None:
        """max_requests or max_rss may be reached: then leave, between two requests."""
        reached = self._limits.reached(self.tally.requests)
        self._path.next_check = self._limits.next_check
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
        self._path.next_check = 0
