"""The master: holds the path, accepts, passes connections to workers, supervises. It runs no handler code.

One thread, one selector. The rendezvous holds the path, `WorkerProcesses` the processes, the dispatcher the
connections, the control server answers on the control socket; here they are put together, with the time, the signals
and the order of starting and stopping. Signal handlers only enqueue (`SignalInbox`); `_SIGNALS` says what they mean.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any

from .._version import __version__
from ..config.handlers import HandlerSource
from ..config.settings import Settings
from ..deadline import LONGEST
from ..errors import HandlerImportError, SettingsError, SocketStolen, to_fields
from ..folders import working_folder
from ..platform import lifecycle, logs
from ..platform import server as serving
from ..platform.job import Job
from ..platform.server import READ, Rendezvous, SignalInbox
from ..platform.titles import set_title
from ..supervision import scoreboard as board
from ..supervision.supervisor import PoolState
from .control_server import ControlServer
from .dispatcher import QUIET, Dispatcher
from .spawner import Facts, Spawner, spawner_for
from .systemd import Notifier
from .watchdog import StackRound, Watchdog
from .worker_processes import GenerationProcesses, WorkerProcesses

log = logs.get("ipcsrv.master")

NOT_WITHOUT_WORKERS = "workers is 0, so the handler is in the server's own process; restart it"
REAP_AGAIN = 0.1  # seconds until orphans are looked for again
IDENTITY_INTERVAL = 4.0  # seconds between checks of the path: that it is lost is noticed within 5


class Master:
    """A server at `path`, in this process; `run` blocks until it has stopped.

    source: where its processes find the handler; inherited: descriptors that were open before, which children keep;
    on_listening: called once, when clients can connect; adopted: a listening socket from a supervisor such as systemd;
    own_process: this process ends with the server; notifier: tells that supervisor; spawner_for: what starts workers,
    if not the settings' own (`server.inline`).
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
        self.source = source
        self.started = monotonic()
        self.rendezvous = Rendezvous(path, mode=resolved.mode, backlog=resolved.backlog,
                                     insecure_dir=resolved.insecure_dir, control=resolved.control,
                                     allow=resolved.allow)
        self._poller = serving.poller()
        self._callbacks: dict[int, Callable[[], object]] = {}
        self._fresh: set[int] = set()  # keys that were registered since the last poll
        self._timers: dict[str, float] = {}
        self._wake_at = math.inf
        self._later: list[Callable[[], None]] = []
        self.dispatcher = Dispatcher(self, self.rendezvous, resolved, self._poller)
        self.processes = WorkerProcesses(self, self.dispatcher, self.rendezvous.path, resolved, source, inherited,
                                         spawner_for)
        self._watchdog = Watchdog(self.processes, resolved.request_timeout)
        self._stacks = StackRound(self.processes)
        self._control = ControlServer(self)
        self.recent = board.Recent()
        self._adopted = adopted
        self._own_process = own_process
        self.detached = False  # started in the background, so that `restart` may start it again
        self._notifier = notifier or Notifier()
        self._on_listening = on_listening
        self._draining_until: float | None = None
        self._listening = self._stolen = self._claimed = False
        self._workers_gone = self._finished = False
        self._has_terminal = own_process and serving.has_controlling_terminal()
        self._interrupts = self._log_reopened = 0
        self.pid = os.getpid()
        self._folder = working_folder() or os.sep  # as it was: it may go
        self.last_error: dict[str, Any] | None = None

    # -- from start to stop -------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Start, serve, drain, stop.

        Raises what kept it from starting (`AddressInUse`, `InvalidPath`, `HandlerImportError`, `StartError`),
        `StartError` where its workers died too often, and `SocketStolen` where its path was taken away.
        """
        logs.configure(self.settings)
        if self._own_process:
            set_title("master", self.settings.name)
        # From before there is a file that a signal could make this process leave behind.
        signals = self._signal_inbox() if threading.current_thread() is threading.main_thread() else None
        try:
            if signals is not None:
                self.watch(signals.fileno(), lambda: self.obey_signals(signals.receive()))
            self.rendezvous.claim(self.record(), self._adopted)
            self._claimed = True
            self.processes.obey(self.processes.supervisor.start(monotonic()))
            self._tick()  # what has to happen by when
            self._loop()
        finally:
            self._close()
            serving.wake_resource_tracker()
            if signals is not None:
                if self._own_process:
                    serving.ignore(_SIGNALS)  # the end of the interpreter would set the default actions
                    signals.close()
                else:
                    signals.restore()
        if self.processes.failure is not None:
            raise self.processes.failure
        if self._stolen:
            raise SocketStolen(self.rendezvous.path)

    def _signal_inbox(self) -> SignalInbox:
        names = self.take_signals()
        if self.pid == 1:
            names.add("SIGCHLD")
        return SignalInbox(sorted(names))

    def take_signals(self) -> set[str]:
        """Return the names of the signals that mean something here, and ignore those that are the terminal's alone."""
        if not self._has_terminal:
            return set(_SIGNALS)
        serving.ignore(serving.TERMINAL_SIGNALS)
        return set(_SIGNALS) - serving.TERMINAL_SIGNALS

    def record(self) -> dict[str, Any]:
        """Return what the lock file and `status` say of this server."""
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
            "workers": self.processes.pids(),
            "own_process": self._own_process,
            "detached": self.detached,
            **lifecycle.identity(),
            **self.processes.code_facts(),
        }

    def watch_lifeline(self, key: int) -> None:
        """Stop when `key` ends: the process that wanted this server is gone, or wants it no more."""

        def ended() -> None:
            self.unwatch(key)
            self.stop()

        self.watch(key, ended)

    def workers_changed(self) -> None:
        """Workers came or went: keep the lock file true, for the command that has to clean up if this process dies."""
        with contextlib.suppress(OSError):  # a full disk is no reason to end
            self.rendezvous.write_record(self.record())

    def _loop(self) -> None:
        poll = serving.eager_poll(self._poller)
        callbacks, fresh = self._callbacks, self._fresh
        watched, on_event = self.dispatcher.watched, self.dispatcher.on_event
        while not self._finished:
            quiet = True
            events = poll(self._patience())
            fresh.clear()
            for key, mask in events:
                if (callback := callbacks.get(key)) is not None:
                    if key not in fresh:  # else the event is of what had this number before, in this same round
                        quiet = callback() is QUIET and quiet
                elif key in watched:
                    on_event(key, mask)
                    quiet = False
            if not quiet or monotonic() >= self._wake_at:
                self._tick()

    def later(self, action: Callable[[], None]) -> None:
        """Do this after the events at hand, so that the answer to the command that asked for it goes out first."""
        self._later.append(action)
        self._wake_at = -math.inf

    def _close(self) -> None:
        self._control.close()
        self.dispatcher.close()
        self._leave_failure()
        self.rendezvous.close()
        self.processes.close()
        self._control.hang_up()
        self._poller.close()
        self._notifier.close()
        if self._claimed and not isinstance(self.processes.failure, HandlerImportError):  # which its starter reports
            log.info("stopped")
        logs.unconfigure()

    def _leave_failure(self) -> None:
        """Tell the processes that wait for this server to listen why it does not: they keep the lock file open."""
        if self.processes.failure is not None and self._claimed and not self._listening:
            with contextlib.suppress(OSError):
                self.rendezvous.write_record({**self.record(), "failure": to_fields(self.processes.failure)})

    # -- time ---------------------------------------------------------------------------------------------------------

    def _patience(self) -> float | None:
        """Return seconds until there is something to do without an event; None if there never will be."""
        return None if self._wake_at == math.inf else min(LONGEST, max(0.0, self._wake_at - monotonic()))

    def set_timer(self, name: str, when: float) -> None:
        """Call the function of this name in `_TIMERS` at `when` (monotonic seconds), and not when it was due before."""
        self._timers[name] = when
        self._wake_at = min(self._wake_at, when)

    def _tick(self) -> None:
        """Do what is due, and what follows from what has happened."""
        actions, self._later = self._later, []
        for action in actions:
            action()
        now, supervisor, dispatcher = monotonic(), self.processes.supervisor, self.dispatcher
        deadline = supervisor.next_deadline()
        if deadline is not None and deadline <= now:
            self.processes.obey(supervisor.tick(now))
            deadline = supervisor.next_deadline()
        due = dispatcher.next_deadline()
        if due is not None and due <= now:
            dispatcher.tick(now)
            due = dispatcher.next_deadline()
        for name in [name for name, when in self._timers.items() if when <= now]:
            del self._timers[name]
            _TIMERS[name](self, now)
        self._control.after_events()
        if self._notifier.in_reload and not supervisor.reloading:
            self._notifier.ready(self._state_line())
        if self._workers_gone and not dispatcher.lingering:
            self._finished = True
        times = [when for when in (deadline, due) if when is not None]
        self._wake_at = -math.inf if self._later else min([*self._timers.values(), *times, math.inf])

    def _check_identity(self, now: float) -> None:
        """Look whether the path still leads to this server; where it does not, no new client can come."""
        if self.rendezvous.still_ours():
            self.set_timer("identity", now + IDENTITY_INTERVAL)
            self.dispatcher.reap()
            self.recent.push(now, self.processes.scoreboard.totals())
            self.look_after_log()
            if self.rendezvous.restore_lock_file():
                self.workers_changed()
        elif self._draining_until is None:
            self._stolen = True
            log.error("the socket %s was removed or replaced: draining, then stopping", self.rendezvous.path)
            self.stop()

    def look_after_log(self) -> None:
        """Look whether the log was rotated; an idle process would keep the old file, and its room on the disk."""
        times = logs.reopen()
        if times != self._log_reopened:
            self._log_reopened = times
            self.processes.reopen_logs()

    def _check_overdue(self, now: float) -> None:
        """Find requests that have run for too long (request_timeout), and when the next one could have."""
        again = self._watchdog.look(now)
        if again < math.inf:
            self.set_timer("overdue", again)

    def expect_overdue(self) -> None:
        """A worker has begun a request while the watchdog sleeps: from now on it looks."""
        if self.settings.request_timeout is None:
            return
        if "overdue" not in self._timers:
            self.set_timer("overdue", monotonic() + self._watchdog.begin())

    def _check_idle(self, now: float) -> None:
        """idle_exit: stop if there has been no client for so long."""
        limit = self.settings.idle_exit
        assert limit is not None
        self.dispatcher.reap()
        present = self.dispatcher.occupied or self.processes.anyone_busy()
        last = now if present else max(self.started, self.dispatcher.last_client, self.processes.last_request())
        if now - last >= limit:
            log.info("no client for %g s (idle_exit): stopping", limit)
            self.stop()
        else:
            self.set_timer("idle", last + limit)

    # -- events -------------------------------------------------------------------------------------------------------

    def watch(self, key: int, callback: Callable[[], object], mask: int = READ) -> None:
        """Call `callback` whenever `key` is ready."""
        self._callbacks[key] = callback
        self._fresh.add(key)
        self._poller.register(key, mask)

    def unwatch(self, key: int) -> None:
        """Stop that; before the key is closed."""
        if self._callbacks.pop(key, None) is not None:
            self._poller.unregister(key)

    def obey_signals(self, names: Iterable[str]) -> None:
        """Do what these signals ask for."""
        for name in names:
            if name == "SIGCHLD":
                self._reap_orphans(monotonic())
            elif name in _SIGNALS:
                log.info("received %s", name)
                _SIGNALS[name](self)

    def _reap_orphans(self, now: float) -> None:
        """As the first process of a container, reap what handlers have left behind."""
        if serving.reap_orphans(self.processes.child_pids()):
            self.set_timer("orphans", now + REAP_AGAIN)

    def interrupt(self) -> None:
        """Ctrl-C: drain; at the second one, do not wait any longer."""
        self._interrupts += 1
        if self._interrupts == 1:
            self.stop()
        else:
            self.stop_now()

    def hang_up(self) -> None:
        """SIGHUP: the terminal that this server is attached to is gone; without one it asks for a reload."""
        if self._has_terminal:
            self.stop()
        else:
            self.reload()

    # -- what the processes report ------------------------------------------------------------------------------------

    def hear_workers(self) -> None:
        """Read what all workers have reported until now."""
        self.processes.hear_all()

    def error_told(self, text: str) -> None:
        """A handler has failed."""
        self.last_error = {"when": time.time(), "text": text}

    def ponged(self, nonce: int) -> None:
        """A worker has answered a ping."""
        self._control.ponged(nonce)

    def serving_changed(self, target: GenerationProcesses) -> None:
        """A generation is ready: connections go to its queue. At the first one, the server begins to listen."""
        self.dispatcher.lead_to(target)
        if not self._listening:
            self._listening = True
            self._begin_listening()

    def _begin_listening(self) -> None:
        self.workers_changed()  # a client that can connect finds the fingerprint in the lock file
        self.rendezvous.listen()
        if self.rendezvous.control_error is not None:
            log.warning("serving without a control socket: %s", self.rendezvous.control_error)
        self._control.open(self.rendezvous.control)
        self.dispatcher.open()
        now = monotonic()
        self.set_timer("identity", now + IDENTITY_INTERVAL)
        if self.settings.idle_exit is not None:
            self.set_timer("idle", now + self.settings.idle_exit)
        size, target = self.processes.supervisor.size, self.source.target
        workers = f"{size} worker{'' if size == 1 else 's'}"
        log.info("listening on %s: %s, handler %s", self.rendezvous.path, workers, target)
        self._notifier.ready(self._state_line())
        self._report_life(now)
        if self._on_listening is not None:
            self._on_listening(self)
        self.recent.push(now, self.processes.scoreboard.totals())  # last: it reads every slot, and a starter waits

    def _state_line(self) -> str:
        generation = self.processes.supervisor.generation
        return f"serving {self.source.target} at {self.rendezvous.path}, generation {generation}"

    def _report_life(self, now: float) -> None:
        if self._notifier.watchdog is not None:
            self._notifier.alive()
            self.set_timer("watchdog", now + self._notifier.watchdog)

    def quit_asked(self) -> None:
        """A handler returned QUIT."""
        log.info("the handler asked to quit")
        self.stop()

    @property
    def draining(self) -> bool:
        """Whether the server is stopping."""
        return self._draining_until is not None

    def workers_gone(self) -> None:
        """Every worker has exited: tell the clients that are left, and end when they have read it."""
        self._workers_gone = True
        self.dispatcher.close_queue()
        self.dispatcher.refuse_all()

    # -- stopping, reloading, scaling ---------------------------------------------------------------------------------

    def stop(self) -> None:
        """Unlink, accept what is in the backlog, drain, end."""
        if self._draining_until is not None:
            return
        log.info("draining")
        self._notifier.stopping()
        self._draining_until = monotonic() + self.settings.drain_timeout
        self._timers.pop("idle", None)
        self.set_timer("drained", self._draining_until)
        self.dispatcher.begin_draining()

    def connections_gone(self) -> None:
        """Every connection has ended: let the workers go."""
        if self.processes.supervisor.state in (PoolState.RUNNING, PoolState.STARTING):
            assert self._draining_until is not None
            now = monotonic()
            self.dispatcher.close_queue()
            self.processes.obey(self.processes.supervisor.stop(now, max(0.0, self._draining_until - now)))

    def _drain_timed_out(self, _: float) -> None:
        """drain_timeout is over: tell the clients that still wait, and end the workers."""
        self.dispatcher.give_up()
        self.connections_gone()

    def stop_now(self) -> None:
        """Stop without waiting for requests in progress."""
        self.stop()
        self.dispatcher.close_queue()
        self.processes.obey(self.processes.supervisor.stop_now(monotonic()))

    def reload(self) -> None:
        """Replace the workers by new ones with freshly imported code; the old ones finish what they have."""
        if self.settings.workers == 0:
            log.warning("not reloading: %s", NOT_WITHOUT_WORKERS)
        elif self._draining_until is None:
            log.info("reloading")
            self._notifier.reloading()
            self.processes.obey(self.processes.supervisor.reload(monotonic()))

    def scale(self, size: int) -> None:
        """Have `size` workers, as far as that is possible."""
        if self._draining_until is None and self.settings.workers:
            self.processes.obey(self.processes.supervisor.scale(size, monotonic()))
            self.dispatcher.pump()

    def accept_control(self) -> None:
        """There may be a descriptor for a control connection now."""
        self._control.accept_again()

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
    "SIGHUP": Master.hang_up,
    "SIGTTIN": lambda master: master.scale(master.processes.supervisor.size + 1),
    "SIGTTOU": lambda master: master.scale(master.processes.supervisor.size - 1),
    "SIGUSR1": Master.look_after_log,
    "SIGUSR2": Master.dump_all_stacks,
}

_TIMERS: dict[str, Callable[[Master, float], None]] = {
    "identity": Master._check_identity,
    "overdue": Master._check_overdue,
    "idle": Master._check_idle,
    "resume": lambda master, _: master.dispatcher.resume(),
    "calm": lambda master, _: master.dispatcher.recover(),
    "audit": lambda master, _: master.dispatcher.audit(),
    "drain_look": lambda master, _: master.dispatcher.go_on_draining(),
    "drained": Master._drain_timed_out,
    "exited": lambda master, _: master.processes.settle_exited(),
    "watchdog": Master._report_life,
    "control": lambda master, _: master.accept_control(),
    "orphans": Master._reap_orphans,
    "stacks": Master._take_stacks,
}
