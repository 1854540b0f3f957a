"""The template: a process of one generation that imports the handler and forks workers. In the template.

It does what the master says until the master says END or is gone, and then stays until its workers have left. If the
master is gone it also enforces the deadlines that the master would have enforced (`OrphanWatch`).
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import random
import threading
import time

from ..config import fingerprint
from ..config.handlers import Handler
from ..errors import IpcError
from ..platform import logs
from ..platform import server as serving
from ..platform.job import Job
from ..platform.server import Channel, SignalInbox
from ..platform.titles import set_title
from ..supervision import scoreboard as board
from ..supervision.messages import Kind, pack_fields, pack_pair, parse_pair
from ..supervision.scoreboard import Scoreboard
from . import main
from .orphans import OrphanWatch

log = logs.get("ipcsrv.template")


def run_template(job: Job, channel: Channel) -> None:
    """Be the template of a generation, and end this process."""
    status = 1
    try:
        keep = serving.announce_descriptors(channel, job.queue, job.memory, logs.dump_stream(), *job.inherited,
                                            *_parent_sentinel(), *([job.stacks.fileno()] if job.stacks else []))
        if job.settings.start_method == "fork":
            serving.child_hygiene(keep)
        else:
            serving.child_hygiene()
        logs.configure_worker(job.settings)
        set_title("template", job.settings.name)
        handler = _load(job, channel) if job.settings.preload else None
        gc.collect()
        gc.freeze()  # or the collector's marks would copy every page that workers share
        Template(job, channel, handler).run()
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        log.exception("the template failed")
    main.end(status)


def _load(job: Job, channel: Channel) -> Handler:
    """Import the handler; where that fails, tell the master and end."""
    if job.stacks is not None:
        serving.dump_stacks_on_request(job.stacks.fileno())
    try:
        with main.importing(job, channel):
            since = fingerprint.moment()
            handler = main.load_handler(job)
            main.tell_code(channel, since)
    except IpcError as error:
        fields = pack_fields(reason=str(error), traceback=getattr(error, "traceback_text", None))
        with contextlib.suppress(OSError):
            channel.tell(Kind.LOAD_FAILED, fields)
        serving.kill_family(os.getpid(), itself=False)  # what the handler's module has started
        raise SystemExit(0) from None
    _warn_about_threads()
    return handler


def _warn_about_threads() -> None:
    """Name the threads that the handler's module has started: fork(2) gives the workers none of them."""
    others = [thread.name for thread in threading.enumerate() if thread is not threading.current_thread()]
    if others:
        log.warning("importing the handler started threads, which the workers do not have: %s; start them in "
                    "on_worker_start, or import the handler in each worker with --no-preload", ", ".join(others))


class Template:
    """Forks workers when the master says so and tells it when they end."""

    def __init__(self, job: Job, channel: Channel, handler: Handler | None) -> None:
        self._job, self._channel, self._handler = job, channel, handler
        self._baseline = serving.open_descriptors() - {channel.fileno()}  # those of the server and of the handler
        self._signals = SignalInbox(("SIGCHLD",))
        self._children: dict[int, int] = {}  # worker number by pid
        self._watch: OrphanWatch | None = None

    def run(self) -> None:
        """Obey the master until it says END or is gone, and stay until all workers have left."""
        poller = serving.poller()
        poller.register(self._channel.fileno(), serving.READ)
        poller.register(self._signals.fileno(), serving.READ)
        self._tell(Kind.LOADED, pack_fields())
        obeying = True
        while obeying or self._children:
            pause = None if self._watch is None else self._watch.look(time.monotonic(), set(self._children))
            for key, _ in poller.poll(pause):
                if key == self._signals.fileno():
                    self._signals.receive()
                elif obeying and not self._obey():
                    obeying = False
                    poller.unregister(self._channel.fileno())
            self._reap()
        self._signals.restore()
        poller.close()

    def _tell(self, kind: Kind, body: bytes) -> None:
        with contextlib.suppress(OSError):  # a dead master is noticed by reading
            self._channel.tell(kind, body)

    def _obey(self) -> bool:
        """Carry out one order; False if there will be no more."""
        message = self._channel.hear()
        if message is None:
            slots = Scoreboard(self._job.memory.buffer, self._job.slots)
            self._watch = OrphanWatch(slots, self._job.settings, time.monotonic())
            return False
        kind, body, raw = message
        if kind is Kind.REOPEN_LOG:
            logs.reopen()
        elif kind is Kind.FORK and raw is not None:
            with contextlib.closing(serving.adopt_channel(raw)) as end:
                self._fork(*parse_pair(body), end)
        return kind is not Kind.END

    def _fork(self, number: int, slot: int, end: Channel) -> None:
        try:
            with serving.quiet_about_threads():  # a module that the handler imports may have started one
                pid = os.fork()  # type: ignore[attr-defined,unused-ignore]  # there is no template without it
        except OSError as error:
            self._tell(Kind.FORK_FAILED, pack_fields(worker=number, reason=str(error)))
            return
        if pid == 0:
            self._become_worker(number, slot, end)
        self._children[pid] = number
        self._tell(Kind.BORN, pack_pair(number, pid))

    def _become_worker(self, number: int, slot: int, end: Channel) -> None:
        """Run in the new worker; does not return."""
        try:
            serving.child_hygiene(self._baseline | {end.fileno(), *_parent_sentinel()})
            main.forget_exit_functions()
            random.seed()  # the standard library's generator would give each worker the same numbers
            main.work(self._job, slot, end, self._handler)
        except BaseException:
            log.exception("the worker failed")
        finally:
            main.end(1)

    def _reap(self) -> None:
        for pid, number in list(self._children.items()):
            found, status = os.waitpid(pid, os.WNOHANG)  # type: ignore[attr-defined,unused-ignore]
            if found:
                del self._children[pid]
                self._tell(Kind.DIED, pack_pair(number, os.waitstatus_to_exitcode(status)))


def _parent_sentinel() -> list[int]:
    """Return the descriptor by which multiprocessing lets a child watch its parent; the handler may use it."""
    parent = multiprocessing.parent_process()
    return [] if parent is None else [int(parent.sentinel)]


def run_fresh_worker(job: Job, number: int, slot: int, end: Channel) -> None:
    """Be a worker that is a fresh interpreter, and end this process."""
    if end.has_ended():
        main.end(1)  # the master died while this interpreter started
    serving.child_hygiene()
    logs.configure_worker(job.settings)
    main.work(job, slot, end, None)


def run_guard(job: Job, channel: Channel) -> None:
    """Be the process that outlives the master where there is no template, and end this process.

    It imports no handler. When the master is gone it enforces the deadlines of the workers, which are not its children.
    """
    serving.child_hygiene()
    logs.configure(job.settings)
    _wait_for_end(channel)
    slots = Scoreboard(job.memory.buffer, job.slots)
    watch = OrphanWatch(slots, job.settings, time.monotonic())
    while (pause := watch.look(time.monotonic(), _living(slots))) is not None:
        time.sleep(pause)
    main.end(0)


def _living(slots: Scoreboard) -> set[int]:
    """Return the pids of the workers that are alive."""
    known = [slots.words(slot) for slot in range(slots.slots)]
    return {words[board.PID] for words in known if serving.is_same_process(words[board.PID], words[board.START_TICKS])}


def _wait_for_end(channel: Channel) -> None:
    while (message := channel.hear()) is not None:
        if message[0] is Kind.REOPEN_LOG:
            logs.reopen()
        elif message[0] is Kind.END:
            main.end(0)
