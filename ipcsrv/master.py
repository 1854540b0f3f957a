"""The master: accepts, hands over, parks, supervises.  It runs no handler code while it serves.

One thread, one selector.  Its rendezvous holds the path (`_platform`), its crew the processes (`crew`), its controller
answers on the control socket (`controller`); what is left is the way of a connection:

    backlog -- accept --> queue of the serving generation --> a worker
                 ^                                              |
                 '--- readable again --- parked <-- silent -----'

The kernel is the queue.  When it is full the master stops accepting until there is room, so that the listen backlog,
and then the clients' own deadlines, hold the load back, and nothing is a list in memory.  Out of descriptors is the
same state with another way out of it.

Signal handlers only enqueue (`SignalInbox`); what the signals mean is the table `_SIGNALS`.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from time import monotonic, monotonic_ns
from typing import Any, NamedTuple

from . import logs
from . import scoreboard as board
from ._platform import serving
from ._platform.serving import HANGUP, READ, WRITE, QueueWriter, Rendezvous, SignalInbox
from ._version import __version__
from .controller import Controller
from .crew import Crew, Hand
from .errors import IpcError, SocketStolen
from .exchange import failure_packet
from .handlers import HandlerSource
from .pool import State
from .settings import Settings
from .worker import PACED

log = logging.getLogger("ipcsrv.master")

IDENTITY_INTERVAL = 4.0  # seconds between looks at whether the path is still ours: it is noticed within 5
PACED_NS = 2_000_000  # a client that was silent for 2 ms takes its time
NEW_CLIENT_GRACE = 1.0  # seconds after accept in which a stop waits for a client's first request
BACK_OFF = (0.1, 2.0)  # seconds, first and longest, without accepting when a descriptor or the memory ran out
SPARE_DESCRIPTORS = 16  # kept free for what must not fail: connections coming back, new workers
STAMPS = 1024  # connections; a queue of the kernel's holds fewer
ACCEPTS_A_TURN = 64  # connections accepted before the other events have theirs
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS}


class Parked(NamedTuple):
    """A silent connection: since when (monotonic ns), and whether it has been served before."""

    since: int
    served: bool


class Master:
    """A server at `path`, in this process; `run` blocks until it has stopped.

    source: where its processes find the handler; inherited: descriptors that were open before, which children keep;
    on_listening: called once, when clients can connect; adopted: a listening socket from a supervisor;
    own_process: this process ends with the server.
    """

    def __init__(
        self,
        path: str,
        source: HandlerSource,
        settings: Settings,
        *,
        inherited: frozenset[int] = frozenset(),
        on_listening: Callable[[Master], None] | None = None,
        adopted: Any = None,
        own_process: bool = True,
    ) -> None:
        self.settings = resolved = settings.resolved(serving.default_start_method())
        serving.Admission(resolved.allow)  # a user that there is not is told before anything is started
        self.source = source
        self.started = monotonic()
        self.rendezvous = Rendezvous(path, mode=resolved.mode, backlog=resolved.backlog,
                                     insecure_dir=resolved.insecure_dir, control=resolved.control,
                                     allow=resolved.allow)
        self.crew = Crew(self, resolved, source, inherited)
        self.recent = board.Recent()
        self._adopted = adopted
        self._own_process = own_process
        self._on_listening = on_listening
        self._poller = serving.poller()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._parked: dict[int, Parked] = {}
        self._waiting: deque[tuple[int, int]] = deque()  # accepted or readable again, and no room in the queue
        self._queue: QueueWriter | None = None
        self._controller = Controller(self)
        self._accepting = False
        self._room = serving.descriptor_limit() - SPARE_DESCRIPTORS
        self._exhausted_for = 0.0  # seconds of the present back-off, 0 if there is none
        self._timers: dict[str, float] = {}
        self._wake_at = math.inf
        self._draining_until: float | None = None
        self._stolen = False
        self._finished = False
        self._last_client = monotonic()
        self._interrupts = 0
        self._later: list[Callable[[], None]] = []
        self._stamps = [0] * STAMPS  # when the last so many connections were put into the queue, as a ring
        self._handed = 0  # connections put into queues
        self.accepted = 0
        self.pid = os.getpid()
        self.last_error: dict[str, Any] | None = None

    # -- its life -------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Start, serve, drain, stop.

        Raises what kept it from starting (`AddressInUse`, `InvalidPath`, `HandlerImportError`, `StartError`),
        `StartError` where its workers died too often, and `SocketStolen` where its path was taken away.
        """
        logs.configure(self.settings)
        self.rendezvous.claim(self.record(), self._adopted)
        if self.settings.start_method != "spawn":  # without a template, nobody would refuse clients when we are killed
            self.crew.listener = self.rendezvous.shared_listener
        signals = SignalInbox(_SIGNALS) if threading.current_thread() is threading.main_thread() else None
        try:
            if signals is not None:
                self.watch(signals.fileno(), lambda: self._on_signals(signals))
            self.crew.obey(self.crew.pool.start(monotonic()))
            self._loop()
        finally:
            self._close()
            if signals is not None:
                signals.restore()
        if self.crew.failure is not None:
            raise self.crew.failure
        if self._stolen:
            raise SocketStolen(self.rendezvous.path)

    def record(self) -> dict[str, Any]:
        """What the lock file and `status` say of this server."""
        return {
            "pid": os.getpid(),
            "version": __version__,
            "command": " ".join(sys.orig_argv),
            "handler": self.source.target,
            "settings": self.settings.to_dict(),
            "log_file": self.settings.log_file and os.path.abspath(self.settings.log_file),
            "cwd": os.getcwd(),
            "path": self.rendezvous.path,
            "lock_file": self.rendezvous.lock_path,
            "workers": self.crew.pids(),
            "own_process": self._own_process,
        }

    def watch_lifeline(self, key: int) -> None:
        """Stop when `key` ends: the process that wanted this server is gone, or wants it no more."""

        def ended() -> None:
            self.unwatch(key)
            self.stop()

        self.watch(key, ended)

    def roster_changed(self) -> None:
        """Workers came or went: keep what the lock file says of them true, for whoever has to clean up after us."""
        self.rendezvous.write_record(self.record())

    def _loop(self) -> None:
        poll, callbacks, parked = self._poller.poll, self._callbacks, self._parked
        accept = self._accept
        while not self._finished:
            supervised = False
            for key, mask in poll(self._patience()):
                callback = callbacks.get(key)
                if callback is not None:
                    callback()
                    supervised = supervised or callback != accept
                elif key in parked:
                    self._unpark(key, mask)
            if supervised or monotonic() >= self._wake_at:
                self._tick()

    def later(self, action: Callable[[], None]) -> None:
        """Do this after the events in hand, so that an answer to whoever asked for it goes out first."""
        self._later.append(action)
        self._wake_at = -math.inf

    def _close(self) -> None:
        self._controller.close()
        for raw in [*self._parked, *(raw for raw, _ in self._waiting)]:
            self._say_farewell(raw)
        self._refuse_rest()
        self.rendezvous.close()
        self.crew.close()
        self._controller.hang_up()
        self._poller.close()
        log.info("stopped")
        logs.unconfigure()

    # -- time -------------------------------------------------------------------------------------------------------------

    def _patience(self) -> float | None:
        """Seconds until there is something to do without an event; None if there never will be."""
        return None if self._wake_at == math.inf else max(0.0, self._wake_at - monotonic())

    def set_timer(self, name: str, when: float) -> None:
        """Call `_on_<name>` at `when` (monotonic seconds), instead of when it was to be called before."""
        self._timers[name] = when
        self._wake_at = min(self._wake_at, when)

    def _tick(self) -> None:
        """Whatever is due, and whatever follows from what has happened."""
        actions, self._later = self._later, []
        for action in actions:
            action()
        now = monotonic()
        deadline = self.crew.pool.next_deadline()
        if deadline is not None and deadline <= now:
            self.crew.obey(self.crew.pool.tick(now))
            deadline = self.crew.pool.next_deadline()
        for name in [name for name, when in self._timers.items() if when <= now]:
            del self._timers[name]
            _TIMERS[name](self, now)
        self._controller.after_events()
        self._wake_at = min([*self._timers.values(), math.inf if deadline is None else deadline])

    def _check_identity(self, now: float) -> None:
        """Look whether the path still leads to us; where it does not, no new client can come."""
        if self.rendezvous.still_ours():
            self.set_timer("identity", now + IDENTITY_INTERVAL)
            self.recent.push(now, self.crew.scoreboard.totals())
        elif self._draining_until is None:
            self._stolen = True
            log.error("the socket %s was removed or replaced: draining, then stopping", self.rendezvous.path)
            self.stop()

    def _check_overdue(self, now: float) -> None:
        """request_timeout: find requests that have run for too long, and when the next one could have."""
        limit = self.settings.request_timeout
        assert limit is not None
        earliest = min((self._watch_request(hand, now, limit) for hand in list(self.crew.hands.values())), default=math.inf)
        if earliest < math.inf:
            self.set_timer("overdue", earliest)

    def _watch_request(self, hand: Hand, now: float, limit: float) -> float:
        """When this worker's present request would be overdue; infinity if it has none, and will tell us of the next."""
        words = self.crew.scoreboard.words(hand.slot)
        words[board.WATCHED] = 0  # before we look: whoever begins a request from now on tells us
        since = words[board.SINCE_NS]
        if not since:
            return math.inf
        words[board.WATCHED] = 1
        age = (monotonic_ns() - since) / 1e9
        if age < limit:
            return now + limit - age
        log.warning("worker %d has been at one request for %.1f s (request_timeout)", hand.number, age)
        self.crew.obey(self.crew.pool.overdue(hand.number, now))
        return now + limit

    def expect_overdue(self) -> None:
        """A worker has begun a request, and nobody is looking out for it: from now on we are."""
        limit = self.settings.request_timeout
        for hand in self.crew.hands.values():
            self.crew.scoreboard.words(hand.slot)[board.WATCHED] = 1
        if limit is not None and "overdue" not in self._timers:
            self.set_timer("overdue", monotonic() + limit)

    def _check_idle(self, now: float) -> None:
        """idle_exit: stop if there has been no client for so long."""
        limit = self.settings.idle_exit
        assert limit is not None
        if self._parked or self._waiting or self._anyone_busy():
            self._last_client = now
        last = [self.crew.scoreboard.words(hand.slot)[board.LAST_NS] for hand in self.crew.hands.values()]
        self._last_client = max([self._last_client, *(nanoseconds / 1e9 for nanoseconds in last)])
        if now - self._last_client >= limit:
            log.info("no client for %g s (idle_exit): stopping", limit)
            self.stop()
        else:
            self.set_timer("idle", self._last_client + limit)

    def _anyone_busy(self) -> bool:
        slots = [self.crew.scoreboard.words(hand.slot) for hand in self.crew.hands.values()]
        return any(words[board.SINCE_NS] or words[board.HELD] for words in slots)

    # -- events ---------------------------------------------------------------------------------------------------------

    def watch(self, key: int, callback: Callable[[], None], mask: int = READ) -> None:
        """Call `callback` whenever `key` is ready."""
        self._callbacks[key] = callback
        self._poller.register(key, mask)

    def unwatch(self, key: int) -> None:
        """Stop that; before the key is closed."""
        if self._callbacks.pop(key, None) is not None:
            self._poller.unregister(key)

    def _on_signals(self, signals: SignalInbox) -> None:
        for name in signals.receive():
            if name in _SIGNALS:
                log.info("received %s", name)
                _SIGNALS[name](self)

    def interrupt(self) -> None:
        """Ctrl-C: drain; at the second one, do not wait any longer."""
        self._interrupts += 1
        if self._interrupts == 1:
            self.stop()
        else:
            self.stop_now()

    # -- connections ----------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        """Accept what waits in the backlog and hand it over, for one turn."""
        accept = self.rendezvous.accept
        for _ in range(ACCEPTS_A_TURN):
            try:
                raw = accept()
            except BlockingIOError:
                break
            except OSError as error:
                self._accept_failed(error)
                break
            self.accepted += 1
            if not self._hand_over(raw, monotonic_ns()):
                break
        if self._exhausted_for:
            self._recovered()
        self._last_client = monotonic()
        if self._draining_until is not None:
            self._go_on_draining()

    def _hand_over(self, raw: int, stamp: int) -> bool:
        """Put a connection into the queue; if that cannot be done now, it waits here and False is returned."""
        assert self._queue is not None
        try:
            self._queue.put(raw, stamp)
        except OSError as error:
            self._waiting.append((raw, stamp))
            self._no_room(error)
            return False
        handed = self._handed
        self._stamps[handed & STAMPS - 1] = stamp
        self._handed = handed + 1
        return True

    def _accept_failed(self, error: OSError) -> None:
        if error.errno in _EXHAUSTED:
            self._back_off(error)
        elif error.errno == errno.EINVAL and self._draining_until is not None:
            self._watch_listener(False)  # shut down, and its backlog is empty
        elif error.errno not in (errno.ECONNABORTED, errno.EPERM, errno.EPROTO):
            raise error

    def _no_room(self, error: OSError) -> None:
        """The queue is full, or the kernel holds too many descriptors in flight: stop accepting until there is room."""
        self._watch_listener(False)
        if isinstance(error, BlockingIOError):
            self._watch_room(True)
        else:
            self._back_off(error)

    def _watch_room(self, watch: bool) -> None:
        queue = self._queue
        if queue is None:
            return
        if watch and queue.fileno() not in self._callbacks:
            self.watch(queue.fileno(), self._refill, WRITE)
        elif not watch:
            self.unwatch(queue.fileno())

    def _refill(self) -> None:
        """There is room in the queue again: hand over what waits, then accept again."""
        self.crew.send_retirements()
        while self._waiting:
            raw, stamp = self._waiting.popleft()
            if not self._hand_over(raw, stamp):
                self._waiting.rotate(1)  # it was put at the end, and is the first
                return
        self._watch_room(False)
        self._watch_listener(True)
        if self._draining_until is not None:
            self._go_on_draining()

    def _back_off(self, error: OSError) -> None:
        """Out of descriptors or memory is a state: say so once, pause, try again."""
        if not self._exhausted_for:
            log.warning("cannot take connections for now: %s; clients wait", os.strerror(error.errno or 0))
        self._exhausted_for = min(BACK_OFF[1], self._exhausted_for * 2 or BACK_OFF[0])
        self._watch_listener(False)
        self.set_timer("resume", monotonic() + self._exhausted_for)

    def _resume(self, _: float) -> None:
        self._refill()

    def _recovered(self) -> None:
        self._exhausted_for = 0.0
        log.info("taking connections again")

    def _watch_listener(self, watch: bool) -> None:
        listener = self.rendezvous.listener
        if listener is None or watch == self._accepting or self.crew.listener is not None:
            return
        self._accepting = watch
        if watch:
            self.watch(listener.fileno(), self._accept)
        else:
            self.unwatch(listener.fileno())

    def park(self, raw: int, *, served: bool) -> None:
        """Keep a silent connection until it has something to say."""
        if self._draining_until is not None and not self._worth_waiting(monotonic_ns(), served):
            self._say_farewell(raw)
            return
        self._parked[raw] = Parked(monotonic_ns(), served)
        self._poller.register(raw, READ)
        if len(self._parked) >= self._room and self._accepting:
            self._back_off(OSError(errno.EMFILE, ""))

    def _unpark(self, key: int, mask: int) -> None:
        parked = self._parked.pop(key)
        self._poller.unregister(key)
        now = monotonic_ns()
        if mask & HANGUP:
            serving.close_raw(key)  # gone, with whatever it may have said: there is nobody to answer
        elif now - parked.since > PACED_NS and parked.served:
            self.requeue(key, now | PACED)
        else:
            self.requeue(key, now)
        if self._draining_until is not None:
            self._go_on_draining()

    def requeue(self, raw: int, stamp: int | None = None) -> None:
        """Hand over a connection that was accepted before."""
        stamp = monotonic_ns() if stamp is None else stamp
        if self._queue is None:
            self._say_farewell(raw)
        elif self._waiting:
            self._waiting.append((raw, stamp))
        else:
            self._hand_over(raw, stamp)

    # -- what the crew tells ------------------------------------------------------------------------------------------

    def serving_changed(self, queue: QueueWriter) -> None:
        """A generation is ready: connections go to its queue.  The first one opens the doors."""
        first = self._queue is None
        self._watch_room(False)
        self._queue = queue
        if not first:
            self._refill()
            return
        self.rendezvous.listen()
        if self.rendezvous.control_error is not None:
            log.warning("serving without a control socket: %s", self.rendezvous.control_error)
        self._controller.open(self.rendezvous.control)
        self._watch_listener(True)
        now = monotonic()
        self.set_timer("identity", now + IDENTITY_INTERVAL)
        if self.settings.idle_exit is not None:
            self.set_timer("idle", now + self.settings.idle_exit)
        log.info("listening on %s: %d workers, handler %s", self.rendezvous.path, self.crew.pool.size, self.source.target)
        if self._on_listening is not None:
            self._on_listening(self)

    def quit_asked(self) -> None:
        """A handler returned QUIT."""
        log.info("the handler asked to quit")
        self.stop()

    @property
    def draining(self) -> bool:
        """Whether the server is on its way out."""
        return self._draining_until is not None

    @property
    def parked(self) -> int:
        """Silent connections in our keeping."""
        return len(self._parked)

    def queue_facts(self) -> dict[str, Any]:
        """How many connections no worker has taken yet, for how long the first has waited, and whether more can come.

        Where workers accept themselves nobody sees when a client came: then it is for how long none has been taken.
        """
        now = monotonic_ns()
        queued = max(0, self._handed - self.crew.scoreboard.totals().queued)
        since = self._stamps[self._handed - queued & STAMPS - 1] & ~PACED if queued else now
        backlog = self._backlog_depth()
        if backlog:
            words = [self.crew.scoreboard.words(hand.slot) for hand in self.crew.hands.values()]
            taken = [max(slot[board.LAST_NS], slot[board.SINCE_NS]) for slot in words]
            since = min(since, max(taken, default=now) or now)
        return {"depth": queued + len(self._waiting) + backlog, "oldest_seconds": max(0.0, (now - since) / 1e9),
                "accepting": self._accepts() and not self._exhausted_for}

    def _backlog_depth(self) -> int:
        listener = self.rendezvous.listener
        return 0 if listener is None else serving.backlog_depth(listener) or 0

    def _accepts(self) -> bool:
        return self._draining_until is None and (self._accepting or self.crew.listener is not None)

    def error_told(self, text: str) -> None:
        """A handler has failed."""
        self.last_error = {"when": time.time(), "text": text}

    def exhausted(self, reason: str) -> None:
        """A worker has no descriptor left for new clients: say so once for all of them, until it is over."""
        if not self._exhausted_for:
            log.warning("cannot take connections for now: %s; clients wait", reason)
        self._exhausted_for = BACK_OFF[1]
        self.set_timer("recovered", monotonic() + self._exhausted_for)

    def _check_recovered(self, _: float) -> None:
        self._recovered()

    def crew_gone(self) -> None:
        """Every worker has exited."""
        self._finished = True

    # -- stopping, reloading, scaling -----------------------------------------------------------------------------------

    def stop(self) -> None:
        """Unlink, accept what is in the backlog, drain, done."""
        if self._draining_until is not None:
            return
        now = monotonic()
        self._draining_until = now + self.settings.drain_timeout
        self.rendezvous.withdraw()
        self._timers.pop("idle", None)
        self.set_timer("drained", self._draining_until)
        log.info("draining")
        for raw, parked in list(self._parked.items()):
            if not self._worth_waiting(parked.since, parked.served):
                self._poller.unregister(raw)
                del self._parked[raw]
                self._say_farewell(raw)
        self._go_on_draining()

    def _worth_waiting(self, since: int, served: bool) -> bool:
        """Whether a silent client may be about to ask: it has just connected."""
        return not served and monotonic_ns() - since < NEW_CLIENT_GRACE * 1e9

    def _go_on_draining(self) -> None:
        """Once the backlog is empty and nobody is about to ask, let the workers empty the queue and go."""
        if self.crew.pool.state not in (State.RUNNING, State.STARTING):
            return
        if self._queue is not None:
            self._accept_rest()
        if self._waiting and self._queue is not None:
            return
        if self._parked:
            newest = max(parked.since for parked in self._parked.values())
            self.set_timer("grace", newest / 1e9 + NEW_CLIENT_GRACE)
            return
        self._end_crew(monotonic())

    def _accept_rest(self) -> None:
        """What the backlog still holds: nobody new can come since the path was withdrawn."""
        while self._accepting:
            try:
                raw = self.rendezvous.accept()
            except OSError:
                self._watch_listener(False)
                return
            self.accepted += 1
            self._hand_over(raw, monotonic_ns())  # where it cannot, it stops the accepting

    def _end_grace(self, _: float) -> None:
        for raw in list(self._parked):
            self._poller.unregister(raw)
            del self._parked[raw]
            self._say_farewell(raw)
        self._go_on_draining()

    def _end_crew(self, now: float) -> None:
        assert self._draining_until is not None
        self._watch_listener(False)
        self._watch_room(False)
        self._queue = None
        left = max(0.0, self._draining_until - now)
        self.crew.obey(self.crew.pool.stop(now, left))

    def _drain_timed_out(self, now: float) -> None:
        """drain_timeout is over: what waits is told so."""
        for raw, _ in self._waiting:
            self._say_farewell(raw)
        self._waiting.clear()
        self._refuse_rest()
        self._end_grace(now)
        if self.crew.pool.state in (State.RUNNING, State.STARTING):
            self._end_crew(now)

    def _refuse_rest(self) -> None:
        """Tell those who are still in the backlog, where it is ours to empty."""
        if self._draining_until is None or self._adopted is not None:
            return
        try:
            while True:
                self._say_farewell(self.rendezvous.accept())
        except OSError:
            pass  # there is none left

    def _say_farewell(self, raw: int) -> None:
        """Close a connection that will not be served, telling its client that nothing was done."""
        connection = serving.Connection(raw)
        try:
            connection.send(failure_packet("stopping", "the server has stopped"), serving.DONTWAIT)
        except OSError:
            pass  # gone, or it does not read
        connection.close()

    def stop_now(self) -> None:
        """Stop without waiting for requests in progress."""
        self.stop()
        self._watch_listener(False)
        self._watch_room(False)
        self._queue = None
        self.crew.obey(self.crew.pool.stop_now(monotonic()))

    def reload(self) -> None:
        """Replace the workers by new ones with freshly imported code; the old ones finish what they have."""
        if self._draining_until is None:
            log.info("reloading")
            self.crew.obey(self.crew.pool.reload(monotonic()))

    def scale(self, size: int) -> None:
        """Have `size` workers."""
        if self._draining_until is None:
            self.settings = replace(self.settings, workers=size)
            self.crew.obey(self.crew.pool.scale(size, monotonic()))

    def dump_all_stacks(self) -> None:
        """Write the stacks of all workers into the log."""
        for number in list(self.crew.hands):
            self.crew.dump_stacks(number)


_SIGNALS: dict[str, Callable[[Master], None]] = {
    "SIGTERM": Master.stop,
    "SIGINT": Master.interrupt,
    "SIGQUIT": Master.stop_now,
    "SIGHUP": Master.reload,
    "SIGTTIN": lambda master: master.scale(master.crew.pool.size + 1),
    "SIGTTOU": lambda master: master.scale(master.crew.pool.size - 1),
    "SIGUSR2": Master.dump_all_stacks,
}

_TIMERS: dict[str, Callable[[Master, float], None]] = {
    "identity": Master._check_identity,
    "overdue": Master._check_overdue,
    "idle": Master._check_idle,
    "resume": Master._resume,
    "recovered": Master._check_recovered,
    "grace": Master._end_grace,
    "drained": Master._drain_timed_out,
}
