"""Moves connections between listener, workers and the set of silent ones. In the master.

`supervision.dispatch` decides, this acts: it has the descriptors, the selector and the queue. The master keeps its own
descriptor of every connection until that ends; what it passes to a worker is a copy.

    listener --accept--> peek --readable--> queue --> worker
                          |                    ^        |
                          '--silent--> watched-'        |   (returned by number, with the state of a stalled exchange)
                                         ^--------------'
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from ..config.settings import Settings
from ..peer import Peer
from ..platform import logs
from ..platform import server as serving
from ..platform.access_log import AccessLog, access_log
from ..platform.compiled import compiled_module
from ..platform.server import DONTWAIT, EDGE, HANGUP, READ, WRITE, AcceptedConnection, Admission, Rendezvous, adopt
from ..protocol.exchange import failure_packet
from ..supervision import scoreboard as board
from ..supervision.dispatch import MOST_READY, Act, Command, ConnectionState, Dispatch, Record, Timeouts
from ..supervision.messages import PING_NUMBER, Passed, Returned, Stage, pack_passed, parse_passed
from ..supervision.scoreboard import Phase, Scoreboard

if TYPE_CHECKING:
    from .worker_processes import GenerationProcesses as Target

log = logs.get("ipcsrv.master")

ACCEPTS_A_TURN = 64  # connections accepted before other events have their turn
FIRST_REQUEST_PATIENCE = 30_000  # ns to wait for the request of a client that has just connected
IMPATIENT_TURNS = 32  # turns without that, after one in which it was in vain
QUIET = object()  # returned by a callback after which nothing but what it did has changed
QUEUE_SPARE = 8  # connections in the queue beyond two for each worker
BACK_OFF = (0.1, 2.0)  # seconds, first and longest, without accepting when descriptors or memory ran out
CALM = 5.0  # seconds without want after which it is over
DISCARD_SIZE = 256 * 1024  # bytes of a refused client that are read in one turn
OUTPUT_SIZE = 128 * 1024  # bytes of a stalled response that are sent in one turn
DRAIN_LOOK = 0.01  # seconds between two looks at the rings of the workers while the server drains
DRAIN_AUDIT = 0.5  # seconds between two audits while the server drains
MOST_AUDITS = 20  # while a worker says that it takes something: then it was stopped there
AUDIT_PAUSE = 0.05  # seconds in which a worker that took a connection writes so into its slot
FIXED_DESCRIPTORS = 24  # of the master: streams, lock, listeners, signals, control connections
WORKER_DESCRIPTORS = 5  # channel, pidfd, and of a fresh interpreter the pipes of multiprocessing and its memory
FILES_BEYOND = 4  # of stalled exchanges, after no more connections are accepted
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, getattr(errno, "ETOOMANYREFS", -1)}
_PASSING = {errno.ECONNABORTED, errno.EPERM, errno.EPROTO}  # the client's own end, before it was accepted

_PASSED, _SILENT, _READY, _STRANGER = range(4)  # outcomes of `_passing.c`


class Host(Protocol):
    """What the dispatcher needs of the master around it."""

    def watch(self, key: int, callback: Callable[[], object], mask: int = READ) -> None: ...
    def unwatch(self, key: int) -> None: ...
    def set_timer(self, name: str, when: float) -> None: ...
    def connections_gone(self) -> None: ...
    def expect_overdue(self) -> None: ...
    def hear_workers(self) -> None: ...


class Dispatcher:
    """The connections of the master."""

    def __init__(self, host: Host, rendezvous: Rendezvous, settings: Settings, poller: Any) -> None:
        self._host, self._rendezvous, self._poller = host, rendezvous, poller
        self._settings = settings
        self._admission = Admission(settings.allow)
        timeouts = Timeouts(settings.read_timeout, settings.write_timeout, settings.max_buffered_size)
        self.dispatch = Dispatch(timeouts)
        # The master owns the descriptors of these two and of `_files`; `_close`, `reap` and `_forget_file` close them.
        self._connections: dict[int, AcceptedConnection] = {}  # by number
        self._raw: dict[int, int] = {}  # of connections that were passed at once, by number
        self._compiled = compiled_module("master._passing") if serving.PASSES_CREDENTIALS else None
        self._impatient = 0  # turns in which no new client is waited for
        self._files: dict[int, int] = {}  # of stalled exchanges, by the connection's number
        self._sent: dict[int, int] = {}  # bytes of a stalled response, by number
        self.watched: dict[int, int] = {}  # the number of each watched connection, by descriptor
        self._masks: dict[int, int] = {}
        self._target: Target | None = None
        self.scoreboard: Scoreboard | None = None
        self._workers: Callable[[], list[memoryview[int]]] = list
        self._room_watched = self._accepting = self._opened = self._miscounted = False
        self._backlog_open, self._paused = True, False
        self._limit = serving.descriptor_limit()
        self._exhausted_for = self._exhausted_at = 0.0  # seconds of the present back-off, 0 for none; when it began
        self._suspects: dict[int, float] = {}  # what no worker may have any more: number, when it was queued
        self._audits = 0
        self._drain_audit = 0.0  # when the next one is due in a drain
        self._access_log: AccessLog | None = None
        self.last_client = monotonic()

    def attach(self, scoreboard: Scoreboard, workers: Callable[[], list[memoryview[int]]]) -> None:
        """Use this scoreboard; `workers` returns the slots of the workers that are alive."""
        self.scoreboard, self._workers = scoreboard, workers

    # -- accepting ----------------------------------------------------------------------------------------------------

    def lead_to(self, target: Target) -> None:
        """Pass connections to this generation from now on."""
        self._watch_room(False)
        self._target = target
        self._suspects = {}  # `take_over` finds those of the generation before
        self.dispatch.lead_to(target.number)
        self.pump()

    def open(self) -> None:
        """Begin to accept."""
        self._opened = True
        self._access_log = access_log(self._settings)
        self._watch_listener(self._may_accept())

    def _connection(self, number: int) -> AcceptedConnection:
        """Return the connection of this number."""
        if (raw := self._raw.pop(number, None)) is not None:
            self._connections[number] = adopt(raw)
            self.dispatch.find(number)  # from now on it has a record
        return self._connections[number]

    def _has(self, number: int) -> bool:
        return number in self._connections or number in self._raw

    def _accept(self) -> object:
        """Accept what waits in the backlog, for one turn, and pass what has something to read."""
        self.reap()
        target = self._target
        if self._compiled is None or target is None or target.writer is None or self.dispatch.ready:
            self._accept_plainly()
            return None
        most = min(ACCEPTS_A_TURN, self._free_descriptors(), self._queue_limit() - self._in_queue(target))
        if most <= 0:
            self._accept_plainly()
            return None
        return self._accept_compiled(target, most)

    def _accept_compiled(self, target: Target, most: int) -> object:
        """Do what `_accept_plainly` does, without the interpreter for connections that have input."""
        dispatch, listener = self.dispatch, self._rendezvous.listener
        assert self._compiled is not None and listener is not None
        patience = 0 if self._impatient else FIRST_REQUEST_PATIENCE
        connections, probes, error = self._compiled.accept_and_pass(
            listener, target.writer, dispatch.next_number, most, self._admission.known_users, patience)
        now = monotonic()
        self.last_client = now if connections or probes else self.last_client
        self._count(board.CONNECTIONS, len(connections) + probes)
        quiet: object = QUIET
        passed = 0
        for outcome, raw in connections:
            if outcome == _PASSED:
                self._raw[dispatch.accept_passed(now)] = raw
                passed += 1
            else:
                quiet = None
                self._admit_rest(outcome, adopt(raw), now)
        target.passed += passed
        if patience and passed < len(connections):
            self._impatient = IMPATIENT_TURNS
        elif self._impatient:
            self._impatient -= 1
        if passed:
            self._host.expect_overdue()
        if probes:
            self._count(board.PROBES, probes)
        if error:
            self._accept_failed(OSError(error, os.strerror(error)))
            quiet = None
        if quiet is None:
            self.pump()
        return quiet

    def _admit_rest(self, outcome: int, connection: AcceptedConnection, now: float) -> None:
        """Take a connection that was accepted and not passed."""
        if outcome == _STRANGER and not self._admission.admits(connection):
            self._deny(connection, now)
            return
        readable = outcome == _READY or (outcome == _STRANGER and bool(connection.has_input()))
        number, commands = self.dispatch.accept(now, readable=readable)
        self._connections[number] = connection
        self._do(commands)

    def _accept_plainly(self) -> None:
        """Accept, check the peer, peek, and pass or watch: the specification of the compiled code."""
        raws = self._accept_batch()
        now = monotonic()
        for raw in raws:
            self._admit(adopt(raw), now)
        if raws:
            self.last_client = now
        self.pump()

    def _accept_batch(self) -> list[int]:
        accept = self._rendezvous.accept
        raws: list[int] = []
        most = min(ACCEPTS_A_TURN, self._free_descriptors())
        if most <= 0:
            self._exhausted(os.strerror(errno.EMFILE))
            return raws
        try:
            for _ in range(most):
                raws.append(accept())
        except BlockingIOError:
            pass
        except OSError as error:
            self._accept_failed(error)
        return raws

    def _accept_failed(self, error: OSError) -> None:
        if error.errno in _EXHAUSTED:
            self._miscounted |= error.errno == errno.EMFILE  # though `_unused_descriptors` had said that there was one
            self._exhausted(os.strerror(error.errno or 0))
        elif error.errno not in _PASSING:
            raise error

    def _admit(self, connection: AcceptedConnection, now: float) -> None:
        """Check the peer and look whether it has sent something."""
        self._count(board.CONNECTIONS)
        if not self._admission.admits(connection):
            self._deny(connection, now)
            return
        found = connection.has_input()
        if found is False:
            self._count(board.PROBES)
            connection.close()
            return
        number, commands = self.dispatch.accept(now, readable=bool(found))
        self._connections[number] = connection
        self._do(commands)

    def _deny(self, connection: AcceptedConnection, now: float) -> None:
        peer = connection.peer()
        self._count(board.DENIED)
        log.limited("denied connections", logs.WARNING, "denied a connection from pid %s, uid %s, gid %s", *peer)
        self._log_line(peer, "denied")
        number, commands = self.dispatch.refuse_new(now, "denied", f"user {peer.uid} may not use this server")
        self._connections[number] = connection
        self._do(commands)

    def _watch_listener(self, watch: bool) -> None:
        listener = self._rendezvous.listener
        if listener is None or watch == self._accepting:
            return
        self._accepting = watch
        if watch:
            self._host.watch(listener.fileno(), self._accept)
        else:
            self._host.unwatch(listener.fileno())

    # -- the queue ----------------------------------------------------------------------------------------------------

    def pump(self) -> None:
        """Pass what is ready, as far as there is room in the queue."""
        dispatch, target = self.dispatch, self._target
        if target is None or target.writer is None:
            return
        now = monotonic()
        while dispatch.ready:
            if self._in_queue(target) >= self._queue_limit():
                self._watch_room(True)
                break
            record = dispatch.next_ready()
            if record is None or not self._pass(target, record, now):
                break
        else:
            self._watch_room(False)
        self._watch_listener(self._may_accept())

    def _go_on(self) -> None:
        """Pass what an event has made ready; a server that drains may be done by it."""
        if self.dispatch.draining:
            self.go_on_draining()
        else:
            self.pump()

    def _pass(self, target: Target, record: Record, now: float) -> bool:
        assert target.writer is not None
        try:
            raw = self._connection(record.number).fileno()
            target.writer.put(raw, pack_passed(self.dispatch.passed(record)), self._files.get(record.number))
        except OSError as error:
            self.dispatch.not_queued(record)
            if isinstance(error, BlockingIOError):
                self._watch_room(True)
            elif error.errno in _EXHAUSTED:
                self._exhausted(os.strerror(error.errno or 0))
            elif error.errno not in (errno.EPIPE, errno.ECONNRESET):
                raise
            return False
        target.passed += 1
        self.dispatch.queued(record, now)
        self._host.expect_overdue()
        return True

    def _queue_limit(self) -> int:
        return 2 * len(self._workers()) + QUEUE_SPARE

    @staticmethod
    def _in_queue(target: Target) -> int:
        return target.passed - target.taken()

    def _watch_room(self, watch: bool) -> None:
        """Be called when a worker takes something from the queue (every change of a writable socket is an event)."""
        target = self._target
        if watch == self._room_watched or target is None or target.writer is None:
            return
        self._room_watched = watch
        if watch:
            self._host.watch(target.writer.fileno(), self.pump, WRITE | EDGE)
        else:
            self._host.unwatch(target.writer.fileno())

    def kick(self) -> None:
        """Wake a worker if anything is in the queue: the one that was woken for it may have left or died."""
        if (target := self._target) is not None and target.writer is not None and self._in_queue(target) > 0:
            self.ping(0)

    def ping(self, nonce: int) -> bool:
        """Put a message without a connection into the queue; the worker that takes it answers with PONG."""
        if (target := self._target) is None or target.writer is None:
            return False
        with contextlib.suppress(OSError):
            target.writer.put_plain(pack_passed(Passed(PING_NUMBER, nonce)))
            target.passed += 1
            return True
        return False

    def take_over(self, target: Target) -> None:
        """A generation's workers are gone: what they left in its queue goes to the next one."""
        left = {parse_passed(message).number for message in serving.taken_back(target.reader)}
        left.update(record.number for record in self.dispatch.in_queue(target.number))  # taken, and not yet said so
        for number in left:
            self._requeue(number)
        self.pump()  # no event may follow

    def _requeue(self, number: int) -> None:
        record = self.dispatch.find(number)
        if record is not None and record.status is ConnectionState.QUEUED:
            self._do(self.dispatch.requeue(record, monotonic()))

    # -- what workers report ------------------------------------------------------------------------------------------

    def returned(self, returned: Returned, file: int | None) -> None:
        """A worker gives a connection back; the file is this process's to close."""
        number = returned.number
        known = self._has(number)
        in_file = returned.state is not None and returned.state.in_file > 0
        if file is not None and not (known and in_file):
            os.close(file)
            file = None
        if not known:
            return
        if in_file and file is None:
            self._state_lost(returned)
        else:
            self._take_returned(returned, file)
        self._go_on()

    def _take_returned(self, returned: Returned, file: int | None) -> None:
        number = returned.number
        if returned.stage is not Stage.UNTOUCHED:  # which travels with the same file once more
            self._forget_file(number)
        if file is not None:
            self._files[number] = file
        self._do(self.dispatch.returned(returned, monotonic()))
        if returned.stage is Stage.LINGERING and number in self._connections:
            self._connections[number].linger()
        # The next exchange that stalls needs a descriptor too, and the kernel drops a file that finds none (unix(7)).
        if file is not None and self._unused_descriptors() <= -FILES_BEYOND:
            now = monotonic()
            self.exhausted(os.strerror(errno.EMFILE))
            self._do(self.dispatch.make_room(1, now) or self.dispatch.refuse_slowest(now))

    def _state_lost(self, returned: Returned) -> None:
        """There was no descriptor for the file with the state of an exchange, so that no process can go on with it."""
        self.exhausted(os.strerror(errno.EMFILE))
        self._count(board.LOST)
        self._do(self.dispatch.worker_died(
            returned.number, untouched=False, may_reply=returned.stage is not Stage.WRITING, code="busy",
            text="the server has no descriptor left; try again", now=monotonic()))

    def ended(self, number: int) -> None:
        """A worker has ended a connection."""
        self._do(self.dispatch.ended(number))
        self._go_on()

    def reap(self) -> None:
        """Close the copies of connections that workers have ended, as their rings say."""
        closing: list[int] = []
        for words in self._workers():
            if words[board.RING_HEAD] == words[board.RING_TAIL]:
                continue
            for number in board.take_ended(words):
                if self.dispatch.forget_passed(number):
                    closing.append(self._raw.pop(number))
                else:
                    self._do(self.dispatch.ended(number))
        if closing and self._compiled is not None:
            self._compiled.close_all(closing)
            return
        for raw in closing:
            serving.close_raw(raw)

    def worker_died(self, worker: int, words: memoryview[int], code: str, text: str, *, clean: bool) -> None:
        """A worker is gone: act for it on the connections that it had. Its slot says what it was doing."""
        for number in board.take_ended(words):  # first: a connection that it has ended is not its own any more
            self._do(self.dispatch.ended(number))
        number, phase = board.parse_lent(words[board.LENT])
        may_reply = phase in (Phase.READING, Phase.HANDLING, Phase.STREAMING)  # no part of a packet is out
        if words[board.SINCE_NS] or may_reply:
            self._count_lost(words, code)
        if self._has(number):
            untouched = phase in (Phase.TAKEN, Phase.BETWEEN)
            if not untouched:
                self._log_line(self._connection(number).peer(), code)
            self._do(self.dispatch.worker_died(number, untouched=untouched, may_reply=may_reply, code=code, text=text,
                                               served=phase is Phase.BETWEEN, now=monotonic()))
        self._do(self.dispatch.holder_died(worker))
        # It may have died between recvmsg(2) and the write into its slot: the connection is then in no place.
        if not clean:
            self._begin_audit()
        self.kick()
        self.pump()

    def _count_lost(self, words: memoryview[int], code: str) -> None:
        """Count the request that a worker died with."""
        if words[board.SINCE_NS]:
            self._count(board.REQUESTS)
        self._count(board.TIMEOUTS if code == "timeout" else board.LOST)

    def _begin_audit(self) -> None:
        if self._target is not None:
            self._suspects |= {record.number: record.passed for record in self.dispatch.passed_to(self._target.number)}
        if self._suspects:
            self._audits = 0
            self._host.set_timer("audit", monotonic() + AUDIT_PAUSE)

    def audit(self) -> None:
        """Find connections that no worker has, though they were passed and have not come back.

        Whatever was passed before and is neither in the queue, nor in a living worker's slot, nor returned or ended by
        now, was taken by a worker that died before it said so, or its end was written over by a handler. If no worker
        ever said that it had it, nothing of it was read, so another worker can have it. A worker says before it takes
        something that it does; while one says so, nothing is known, and the audit is repeated.
        """
        target, now = self._target, monotonic()
        if target is None or target.writer is None or not self._suspects:
            return
        # The queue cannot be looked into: all is taken out, and put in again in the same order. A worker that takes
        # meanwhile finds the queue empty for a moment, and is woken by the first message that is put again.
        messages = serving.taken_back(target.reader)
        target.passed = target.taken()  # exact from now on, whatever the dead worker has written into its slot
        queued = set()
        for message in messages:
            number = parse_passed(message).number
            queued.add(number)
            self._put_again(target, number, message)
        slots = self._read_slots(now)
        if board.TAKING in slots and self._audits < MOST_AUDITS:
            self._audits += 1
            self._host.set_timer("audit", now + AUDIT_PAUSE)
            return
        suspects, self._suspects = self._suspects, {}
        self._host.hear_workers()  # after the slots: a worker reports first and clears its slot then
        self.reap()
        found = queued | {board.parse_lent(word)[0] for word in slots}
        for record in list(self.dispatch.passed_to(target.number)):
            if record.number not in found and suspects.get(record.number) == record.passed:  # not queued again
                untouched = record.status is ConnectionState.QUEUED
                self._do(self.dispatch.worker_died(record.number, untouched=untouched, now=now))
        self.pump()

    def _read_slots(self, now: float) -> list[int]:
        """Note which connections the workers say that they have; returns what each has in LENT."""
        slots = [words[board.LENT] for words in self._workers()]
        for word in slots:
            self.dispatch.taken(board.parse_lent(word)[0], now)
        return slots

    def _put_again(self, target: Target, number: int, message: bytes) -> None:
        if not self._has(number) or target.writer is None:
            return
        try:
            target.writer.put(self._connection(number).fileno(), message, self._files.get(number))
            target.passed += 1
        except OSError:
            self._requeue(number)

    # -- carrying out -------------------------------------------------------------------------------------------------

    def _do(self, commands: list[Command]) -> None:
        for command in commands:
            _ACTS[command.act](self, command)

    def _register(self, number: int, mask: int) -> None:
        key = self._connection(number).fileno()  # the master's own copy; the number is not reused before `_unwatch`
        if key not in self._masks:
            self._poller.register(key, mask)
        elif self._masks[key] != mask:
            self._poller.modify(key, mask)
        self._masks[key] = mask
        self.watched[key] = number

    def _unwatch(self, command: Command) -> None:
        key = self._connection(command.number).fileno()
        if self._masks.pop(key, None) is not None:
            self._poller.unregister(key)
            del self.watched[key]

    def _check(self, command: Command) -> None:
        found = self._connection(command.number).has_input()
        self._do(self.dispatch.checked(command.number, found, monotonic()))

    def _hear_out(self, command: Command) -> None:
        found = self._connection(command.number).end_input()
        self._do(self.dispatch.heard_out(command.number, found, monotonic()))

    def _refuse(self, command: Command) -> None:
        """Send the failure reply; what does not go out at once is lost, since its client does not read."""
        connection = self._connection(command.number)
        with contextlib.suppress(OSError):
            connection.send(failure_packet(command.code, command.text), DONTWAIT)
        connection.end_output()
        connection.linger()
        self._forget_file(command.number)

    def _close(self, command: Command) -> None:
        self._connection(command.number)  # makes an object of a raw descriptor
        self._unwatch(command)  # before the close: epoll keeps what another process has a copy of (epoll(7))
        self._forget_file(command.number)
        connection = self._connections.pop(command.number)
        connection.end()  # on every copy, so that a child of the handler cannot keep it open
        connection.close()

    def _forget_file(self, number: int) -> None:
        self._sent.pop(number, None)
        if (file := self._files.pop(number, None)) is not None:
            os.close(file)

    # -- events of watched connections --------------------------------------------------------------------------------

    def on_event(self, key: int, mask: int) -> None:
        """A watched connection is ready."""
        number = self.watched[key]
        record = self.dispatch.records[number]
        if record.status is ConnectionState.LINGERING:
            self._discard(number)
        elif record.status is ConnectionState.STALLED and record.stage is Stage.WRITING:
            self._send_stalled(record, mask)
        elif mask & HANGUP:
            self._client_gone(record)
        else:
            self._do(self.dispatch.readable(number, monotonic()))
        self._go_on()

    def _client_gone(self, record: Record) -> None:
        """Both directions are closed: there is no reader left for a response."""
        if record.status is ConnectionState.STALLED or self._connection(record.number).has_input():
            self._count(board.CANCELLED)
        elif not record.served:
            self._count(board.PROBES)
        self._do(self.dispatch.ended(record.number))

    def _discard(self, number: int) -> None:
        connection = self._connection(number)
        try:
            size = len(connection.recv(DISCARD_SIZE, DONTWAIT))
        except BlockingIOError:
            return
        except OSError:
            size = 0
        self._do(self.dispatch.discarded(number, size))

    def _send_stalled(self, record: Record, mask: int) -> None:
        """Send more of a response that its client has not read, from memory or from its file."""
        state, number = record.state, record.number
        assert state is not None
        if mask & HANGUP:
            self._client_gone(record)
            return
        size, at = max(len(state.body), state.in_file) - state.ahead, self._sent.get(number, 0)
        end = min(size, at + OUTPUT_SIZE)
        data = serving.read_at(self._files[number], end - at, at) if state.in_file else state.body[at:end]
        try:
            at += self._connection(number).send(data, DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            self._client_gone(record)
            return
        self._sent[number] = at
        if at >= size:
            self._count(board.OK)
        self._do(self.dispatch.wrote(number, size - at, monotonic()))

    # -- time ---------------------------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """Return when `tick` must be called next."""
        return self.dispatch.next_deadline()

    def tick(self, now: float) -> None:
        """Time has passed."""
        commands = self.dispatch.tick(now)
        for number, stage in self.dispatch.overdue:
            self._report_overdue(number, stage)
        self._do(commands)
        self._go_on()

    def _report_overdue(self, number: int, stage: Stage) -> None:
        """Count and log a stalled exchange that is about to end since its client took too long."""
        pid = self._connection(number).peer().pid
        if stage is Stage.WRITING:
            self._count(board.LOST)
            log.warning("closed the connection of pid %s: it did not read its response for %g s", pid,
                        self._settings.write_timeout)
        else:
            self._count(board.TIMEOUTS)
            log.warning("refused a request from pid %s: it was not complete within read_timeout", pid)

    def _count(self, counter: int, number: int = 1) -> None:
        if self.scoreboard is not None:
            self.scoreboard.count(counter, number)

    def _log_line(self, peer: Peer, outcome: str) -> None:
        if self._access_log is not None:
            ended = int(monotonic() * 1e9)
            self._access_log.add((ended, self._access_log.peer(peer), 0, 0, 0, 0, outcome))
            self._access_log.write()

    # -- descriptors --------------------------------------------------------------------------------------------------

    def _free_descriptors(self) -> int:
        """Return how many more connections there are descriptors for, after making room if there are none."""
        free = self._unused_descriptors()
        if free <= 0:
            self._do(self.dispatch.make_room(ACCEPTS_A_TURN, monotonic()))
            free = self._unused_descriptors()
        return free

    def _unused_descriptors(self) -> int:
        reserved = FIXED_DESCRIPTORS + WORKER_DESCRIPTORS * len(self._workers())
        if self._limit < 4 * reserved or self._miscounted:  # so few that the exact number matters
            try:
                return self._limit - serving.SPARE_DESCRIPTORS - len(serving.open_descriptors())
            except OSError:  # there is none left to look with
                return 0
        return self._limit - reserved - len(self._connections) - len(self._raw) - len(self._files)

    def leaves_room(self, descriptors: int) -> bool:
        """Whether connections are possible beside so many more descriptors; those that there are can make room."""
        return self._unused_descriptors() + len(self._connections) + len(self._raw) + len(self._files) > descriptors

    def _exhausted(self, reason: str) -> None:
        """Out of descriptors or memory is a state: report it once, pause, try again; later if none was taken since."""
        self.exhausted(reason)
        longer = min(BACK_OFF[1], self._exhausted_for * 2)
        self._exhausted_for = BACK_OFF[0] if self.last_client > self._exhausted_at else longer
        self._exhausted_at = monotonic()
        self._paused = True
        self._watch_listener(False)
        self._host.set_timer("resume", self._exhausted_at + self._exhausted_for)

    def exhausted(self, reason: str) -> None:
        """Something has run out, here or in a worker."""
        if not self._exhausted_for:
            log.warning("cannot take connections for now: %s; clients wait", reason)
            self._exhausted_for = BACK_OFF[0] / 2
        self._host.set_timer("calm", monotonic() + CALM)

    def resume(self) -> None:
        """Try whether things are better."""
        self._paused = False
        self._do(self.dispatch.make_room(ACCEPTS_A_TURN, monotonic()) if self._unused_descriptors() <= 0 else [])
        self.pump()
        self._watch_listener(self._may_accept())

    def recover(self) -> None:
        """Nothing has run out for a while."""
        if self._exhausted_for:
            self._exhausted_for, self._miscounted = 0.0, False
            log.info("taking connections again")

    def _may_accept(self) -> bool:
        ready = self._target is not None and self._opened and not self._paused and not self.dispatch.draining
        return ready and self.dispatch.waiting < MOST_READY

    # -- stopping -----------------------------------------------------------------------------------------------------

    def begin_draining(self) -> None:
        """Take the path away and serve what has come; `connections_gone` is called when nothing is left to serve."""
        if self.scoreboard is not None:
            self.scoreboard.header[board.DRAINING] = 1
        self._rendezvous.withdraw()
        self._watch_listener(False)
        self._do(self.dispatch.drain(monotonic()))
        self._drain_audit = monotonic() + DRAIN_AUDIT
        self.go_on_draining()

    def go_on_draining(self) -> None:
        """See whether the backlog is empty and every connection has ended."""
        self._accept_rest()
        self.reap()
        self.pump()
        if not self._backlog_open and not self.dispatch.occupied:
            self._host.connections_gone()
            return
        now = monotonic()
        self._host.set_timer("drain_look", now + DRAIN_LOOK)
        if now >= self._drain_audit and not self._suspects:
            self._drain_audit = now + DRAIN_AUDIT
            self._begin_audit()

    def _accept_rest(self) -> None:
        """Accept what the backlog still holds: nothing can follow since the path was withdrawn."""
        now = monotonic()
        while self._backlog_open and self.dispatch.waiting < MOST_READY:
            try:
                raw = self._rendezvous.accept()
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self.exhausted(os.strerror(error.errno or 0))  # there may be more
                    self._do(self.dispatch.make_room(ACCEPTS_A_TURN, now))
                else:
                    self._backlog_open = False
                return
            self._admit(adopt(raw), now)

    def give_up(self) -> None:
        """drain_timeout is over: refuse what no worker has."""
        self._refuse_backlog()
        self._do(self.dispatch.give_up(monotonic()))

    def close_queue(self) -> None:
        """Pass nothing any more: the queue is about to be closed."""
        self._watch_room(False)
        self._watch_listener(False)
        self._target = None

    def refuse_all(self) -> None:
        """No worker is left: refuse every client that is still here, or in the backlog."""
        if self._rendezvous.listener is not None:
            self._refuse_backlog()
        self._do(self.dispatch.refuse_all(monotonic()))

    def _refuse_backlog(self) -> None:
        """Take a backlog that is this server's to empty; a supervisor's listener goes to the next server."""
        if not self.dispatch.draining or self._rendezvous.adopted:
            return
        with contextlib.suppress(OSError):
            while self._free_descriptors() > 0:
                self._admit(adopt(self._rendezvous.accept()), monotonic())

    @property
    def lingering(self) -> bool:
        """Whether refused clients are still reading the reason."""
        return self.dispatch.open

    def close(self) -> None:
        """Close every connection that is left."""
        for number in [*self._connections, *self._raw]:
            self._close(Command(Act.CLOSE, number))
        self.dispatch.forget_all()

    # -- facts --------------------------------------------------------------------------------------------------------

    @property
    def occupied(self) -> bool:
        """Whether a client is here."""
        return self.dispatch.occupied

    def facts(self) -> dict[str, Any]:
        """Return how many connections wait for a worker, since when the first does, and whether more are accepted."""
        self.reap()
        now = monotonic()
        self._read_slots(now)
        waiting = [record.since for record in self.dispatch.all()
                   if record.status in (ConnectionState.READY, ConnectionState.QUEUED)]
        backlog = (listener.depth() or 0) if (listener := self._rendezvous.listener) is not None else 0
        return {"depth": len(waiting) + backlog, "oldest_seconds": max(0.0, now - min(waiting, default=now)),
                "accepting": self._opened and not self.dispatch.draining and not self._exhausted_for}


_ACTS: dict[Act, Callable[[Dispatcher, Command], None]] = {
    Act.WATCH: lambda dispatcher, command: dispatcher._register(command.number, READ),
    Act.WATCH_OUTPUT: lambda dispatcher, command: dispatcher._register(command.number, WRITE),
    Act.UNWATCH: Dispatcher._unwatch,
    Act.CHECK: Dispatcher._check,
    Act.HEAR_OUT: Dispatcher._hear_out,
    Act.REFUSE: Dispatcher._refuse,
    Act.CLOSE: Dispatcher._close,
}
