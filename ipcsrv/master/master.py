"""The master: holds the path, supervises, parks, answers for the server.  It runs no handler code while it serves.

One thread, one selector.  The rendezvous holds the path, `worker_processes` the processes, the dispatcher the
connections, and the control server answers on the control socket; here
they are put together, with the time, the signals and the order of starting and stopping.

Signal handlers only enqueue (`SignalInbox`); what the signals mean is the table `_SIGNALS`.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from time import monotonic
from typing import Any

from .._version import __version__
from ..config.handlers import HandlerSource
from ..config.settings import Settings
from ..errors import HandlerImportError, SettingsError, SocketStolen
from ..folders import working_folder
from ..platform import logs
from ..platform import server as serving
from ..platform.job import Job
from ..platform.server import READ, QueueWriter, Rendezvous, SignalInbox
from ..platform.titles import set_title
from ..supervision import scoreboard as board
from ..supervision.supervisor import State
from .control_server import Controller
from .dispatcher import Doorway
from .spawner import Facts, Spawner, spawner_for
from .systemd import Notifier
from .watchdog import StackRound, Vigil
from .worker_processes import Crew

log = logs.get("ipcsrv.master")

NOT_WITHOUT_WORKERS = "workers is 0, so the handler is in the server's own process; restart it"
LONGEST_WAIT = 86400.0  # seconds; a poller takes milliseconds in 31 bits, which is 24 days
IDENTITY_INTERVAL = 4.0  # seconds between looks at whether the path is still ours: it is noticed within 5


class Master:
    """A server at `path`, in this process; `run` blocks until it has stopped.

    source: where its processes find the handler; inherited: descriptors that were open before, which children keep;
    on_listening: called once, when clients can connect; adopted: a listening socket from a supervisor;
    own_process: this process ends with the server; notifier: the supervisor that wants to hear of us; spawner_for: what
    starts workers, if not the settings' own (`inline`).
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
        notifier: Notifier | None = None,
        spawner_for: Callable[[Job, Facts], Spawner] = spawner_for,
    ) -> None:
        self.settings = resolved = settings.resolved(serving.default_start_method())
        if resolved.start_method not in serving.start_methods():
            raise SettingsError(f"{resolved.start_method} does not exist on this system: use one of "
                                f"{', '.join(serving.start_methods())}", name="start_method")
        serving.Admission(resolved.allow)  # a user that there is not is told before anything is started
        self.source = source
        self.started = monotonic()
        self.rendezvous = Rendezvous(path, mode=resolved.mode, backlog=resolved.backlog,
                                     insecure_dir=resolved.insecure_dir, control=resolved.control,
                                     allow=resolved.allow)
        self.crew = Crew(self, self.rendezvous.path, resolved, source, inherited, spawner_for)
        self._vigil = Vigil(self.crew, resolved.request_timeout)
        self._stacks = StackRound(self.crew)
        self.recent = board.Recent()
        self._adopted = adopted
        self._own_process = own_process
        self.detached = False  # started in the background, so that `restart` may start it again
        self._notifier = notifier or Notifier()
        self._on_listening = on_listening
        self._poller = serving.poller()
        self._callbacks: dict[int, Callable[[], object]] = {}
        self.doorway = Doorway(self, self.rendezvous, self.crew, self._poller)
        self._controller = Controller(self)
        self._timers: dict[str, float] = {}
        self._wake_at = math.inf
        self._later: list[Callable[[], None]] = []
        self._draining_until: float | None = None
        self._listening = False
        self._stolen = False
        self._claimed = self._finished = False
        self._interrupts = self._log_reopened = 0
        self.pid = os.getpid()
        self._folder = working_folder() or os.sep  # as it was: it may go
        self.last_error: dict[str, Any] | None = None

    # -- its life -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Start, serve, drain, stop.

        Raises what kept it from starting (`AddressInUse`, `InvalidPath`, `HandlerImportError`, `StartError`),
        `StartError` where its workers died too often, and `SocketStolen` where its path was taken away.
        """
        logs.configure(self.settings)
        if self._own_process:
            set_title("master", self.settings.name)
        # From before there is a file that a signal could make us leave behind.
        signals = SignalInbox(_SIGNALS) if threading.current_thread() is threading.main_thread() else None
        try:
            if signals is not None:
                self.watch(signals.fileno(), lambda: self._on_signals(signals))
            self._claim()
            self.crew.obey(self.crew.pool.start(monotonic()))
            self._tick()  # what has to happen by when
            self._loop()
        finally:
            self._close()
            if signals is not None:
                signals.restore()
        if self.crew.failure is not None:
            raise self.crew.failure
        if self._stolen:
            raise SocketStolen(self.rendezvous.path)

    def _claim(self) -> None:
        self.rendezvous.claim(self.record(), self._adopted)
        self._claimed = True
        # Without a template, nobody would refuse clients when we are killed.
        if self.settings.start_method != "spawn" and self.settings.workers:
            self.crew.listener = self.rendezvous.shared_listener

    def record(self) -> dict[str, Any]:
        """What the lock file and `status` say of this server."""
        return {
            "pid": os.getpid(),
            "version": __version__,
            "command": " ".join(sys.orig_argv),
            "handler": self.source.target,
            "settings": self.settings.to_dict(),
            "log_file": self.settings.log_file and os.path.join(self._folder, self.settings.log_file),
            "cwd": self._folder,
            "path": self.rendezvous.path,
            "lock_file": self.rendezvous.lock_path,
            "workers": self.crew.pids(),
            "own_process": self._own_process,
            "detached": self.detached,
        }

    def watch_lifeline(self, key: int) -> None:
        """Stop when `key` ends: the process that wanted this server is gone, or wants it no more."""

        def ended() -> None:
            self.unwatch(key)
            self.stop()

        self.watch(key, ended)

    def roster_changed(self) -> None:
        """Workers came or went: keep what the lock file says of them true, for whoever has to clean up after us."""
        with contextlib.suppress(OSError):  # a full disk is no reason to end
            self.rendezvous.write_record(self.record())

    def _loop(self) -> None:
        poll, callbacks, parked, unpark = self._poller.poll, self._callbacks, self.doorway.parked, self.doorway.unpark
        while not self._finished:
            for key, mask in poll(self._patience()):
                callback = callbacks.get(key)
                if callback is not None:
                    callback()
                elif key in parked:
                    unpark(key, mask)
            self._tick()

    def later(self, action: Callable[[], None]) -> None:
        """Do this after the events in hand, so that an answer to whoever asked for it goes out first."""
        self._later.append(action)
        self._wake_at = -math.inf

    def _close(self) -> None:
        self._controller.close()
        self.doorway.turn_away()
        self.rendezvous.close()
        self.crew.close()
        self._controller.hang_up()
        self._poller.close()
        self._notifier.close()
        if self._claimed and not isinstance(self.crew.failure, HandlerImportError):  # which its starter reports
            log.info("stopped")
        logs.unconfigure()

    # -- time ---------------------------------------------------------------------------------------------------------

    def _patience(self) -> float | None:
        """Seconds until there is something to do without an event; None if there never will be."""
        return None if self._wake_at == math.inf else min(LONGEST_WAIT, max(0.0, self._wake_at - monotonic()))

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
        if self._notifier.in_reload and not self.crew.pool.reloading:
            self._notifier.ready(self._state_line())
        self._wake_at = min([*self._timers.values(), math.inf if deadline is None else deadline])

    def _check_identity(self, now: float) -> None:
        """Look whether the path still leads to us; where it does not, no new client can come."""
        if self.rendezvous.still_ours():
            self.set_timer("identity", now + IDENTITY_INTERVAL)
            self.recent.push(now, self.crew.scoreboard.totals())
            self.look_after_log()
        elif self._draining_until is None:
            self._stolen = True
            log.error("the socket %s was removed or replaced: draining, then stopping", self.rendezvous.path)
            self.stop()

    def look_after_log(self) -> None:
        """Look whether the log was rotated; who is idle would keep the old file, and its room on the disk."""
        times = logs.reopen()
        if times != self._log_reopened:
            self._log_reopened = times
            self.crew.reopen_logs()

    def _check_overdue(self, now: float) -> None:
        """Find requests that have run for long, or for too long (request_timeout), and when the next one could have."""
        again = self._vigil.look(now)
        if again < math.inf:
            self.set_timer("overdue", again)

    def expect_overdue(self) -> None:
        """A worker has begun a request, and nobody is looking out for it: from now on we are."""
        when = monotonic() + self._vigil.begin()
        if self._timers.get("overdue", math.inf) > when:
            self.set_timer("overdue", when)

    def _check_idle(self, now: float) -> None:
        """idle_exit: stop if there has been no client for so long."""
        limit = self.settings.idle_exit
        assert limit is not None
        present = self.doorway.occupied or self.crew.anyone_busy()
        last = now if present else max(self.started, self.doorway.last_client, self.crew.last_request())
        if now - last >= limit:
            log.info("no client for %g s (idle_exit): stopping", limit)
            self.stop()
        else:
            self.set_timer("idle", last + limit)

    # -- events -------------------------------------------------------------------------------------------------------

    def watch(self, key: int, callback: Callable[[], object], mask: int = READ) -> None:
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

    # -- what the crew tells ------------------------------------------------------------------------------------------

    def park(self, raw: int, *, served: bool) -> None:
        """A worker gives back a silent connection."""
        self.doorway.park(raw, served=served)

    def requeue(self, raw: int) -> None:
        """A connection that was left in a queue."""
        self.doorway.take_back(raw)

    def take_stock(self) -> None:
        """We have been given a connection: are there descriptors for more?"""
        self.doorway.take_stock()

    def exhausted(self, reason: str) -> None:
        """A worker has no descriptor left."""
        self.doorway.exhausted(reason)

    def error_told(self, text: str) -> None:
        """A handler has failed."""
        self.last_error = {"when": time.time(), "text": text}

    def serving_changed(self, queue: QueueWriter) -> None:
        """A generation is ready: connections go to its queue.  The first one opens the doors."""
        self.doorway.lead_to(queue)
        if not self._listening:
            self._listening = True
            self._begin_listening()

    def _begin_listening(self) -> None:
        self.rendezvous.listen()
        if self.rendezvous.control_error is not None:
            log.warning("serving without a control socket: %s", self.rendezvous.control_error)
        self._controller.open(self.rendezvous.control)
        self.doorway.open()
        now = monotonic()
        self.set_timer("identity", now + IDENTITY_INTERVAL)
        if self.settings.idle_exit is not None:
            self.set_timer("idle", now + self.settings.idle_exit)
        size, target = self.crew.pool.size, self.source.target
        log.info("listening on %s: %d workers, handler %s", self.rendezvous.path, size, target)
        self._notifier.ready(self._state_line())
        self._show_life(now)
        if self._on_listening is not None:
            self._on_listening(self)
        self.recent.push(now, self.crew.scoreboard.totals())  # last: it reads every slot, and somebody waits for us

    def _state_line(self) -> str:
        return f"serving {self.source.target} at {self.rendezvous.path}, generation {self.crew.pool.generation}"

    def _show_life(self, now: float) -> None:
        if self._notifier.watchdog is not None:
            self._notifier.alive()
            self.set_timer("watchdog", now + self._notifier.watchdog)

    def quit_asked(self) -> None:
        """A handler returned QUIT."""
        log.info("the handler asked to quit")
        self.stop()

    @property
    def draining(self) -> bool:
        """Whether the server is on its way out."""
        return self._draining_until is not None

    def crew_gone(self) -> None:
        """Every worker has exited."""
        self._finished = True

    # -- stopping, reloading, scaling ---------------------------------------------------------------------------------

    def stop(self) -> None:
        """Unlink, accept what is in the backlog, drain, done."""
        if self._draining_until is not None:
            return
        log.info("draining")
        self._notifier.stopping()
        self._draining_until = monotonic() + self.settings.drain_timeout
        self._timers.pop("idle", None)
        self.set_timer("drained", self._draining_until)
        self.doorway.begin_draining()

    def nobody_waits(self) -> None:
        """Every client that has come is with the workers, or in a backlog that they empty: let them finish and go."""
        if self.crew.pool.state not in (State.RUNNING, State.STARTING):
            return
        assert self._draining_until is not None
        self.crew.announce_stop()  # from now on workers see off for themselves whom they would have given back
        self.crew.hear_all()
        if self.doorway.occupied:
            return  # somebody had come back before that
        self.doorway.close()
        now = monotonic()
        self.crew.obey(self.crew.pool.stop(now, max(0.0, self._draining_until - now)))

    def _drain_timed_out(self, now: float) -> None:
        """drain_timeout is over: who still waits is told so."""
        self.doorway.turn_away()
        self.nobody_waits()

    def _end_grace(self, _: float) -> None:
        self.doorway.end_grace()

    def _resume(self, _: float) -> None:
        self.doorway.resume()

    def _accept_control(self, _: float) -> None:
        self._controller.accept_again()

    def _check_calm(self, _: float) -> None:
        self.doorway.recover()

    def stop_now(self) -> None:
        """Stop without waiting for requests in progress."""
        self.stop()
        self.doorway.close()
        self.crew.obey(self.crew.pool.stop_now(monotonic()))

    def reload(self) -> None:
        """Replace the workers by new ones with freshly imported code; the old ones finish what they have."""
        if self.settings.workers == 0:
            log.warning("not reloading: %s", NOT_WITHOUT_WORKERS)
        elif self._draining_until is None:
            log.info("reloading")
            self._notifier.reloading()
            self.crew.obey(self.crew.pool.reload(monotonic()))

    def scale(self, size: int) -> None:
        """Have `size` workers."""
        if self._draining_until is None and self.settings.workers:
            self.settings = replace(self.settings, workers=size)
            self.crew.obey(self.crew.pool.scale(size, monotonic()))

    def dump_all_stacks(self) -> None:
        """Write the stacks of all workers into the log."""
        self._stacks.begin()
        self._take_stacks(monotonic())

    def _take_stacks(self, now: float) -> None:
        again = self._stacks.go_on(now)
        if again < math.inf:
            self.set_timer("stacks", again)


_SIGNALS: dict[str, Callable[[Master], None]] = {
    "SIGTERM": Master.stop,
    "SIGINT": Master.interrupt,
    "SIGQUIT": Master.stop_now,
    "SIGHUP": Master.reload,
    "SIGTTIN": lambda master: master.scale(master.crew.pool.size + 1),
    "SIGTTOU": lambda master: master.scale(master.crew.pool.size - 1),
    "SIGUSR1": Master.look_after_log,
    "SIGUSR2": Master.dump_all_stacks,
}

_TIMERS: dict[str, Callable[[Master, float], None]] = {
    "identity": Master._check_identity,
    "overdue": Master._check_overdue,
    "idle": Master._check_idle,
    "resume": Master._resume,
    "grace": Master._end_grace,
    "drained": Master._drain_timed_out,
    "watchdog": Master._show_life,
    "calm": Master._check_calm,
    "control": Master._accept_control,
    "stacks": Master._take_stacks,
}
