"""The template: a process of one generation that imports the handler and forks workers.  In the template."""

from __future__ import annotations

import contextlib
import gc
import json
import multiprocessing
import os
from multiprocessing.process import BaseProcess
from typing import Any

from ..config.handlers import Handler
from ..errors import IpcError
from ..platform import logs
from ..platform import server as serving
from ..platform.job import Job
from ..platform.server import Channel, SignalInbox
from ..platform.titles import set_title
from ..supervision.messages import FORK_FAILED
from . import main as life

log = logs.get("ipcsrv.template")


def run_template(job: Job, channel: Channel) -> None:
    """The whole life of a template process."""
    listeners = [] if job.listener is None else [job.listener]
    keep = serving.announce_descriptors(channel, job.queue, *listeners, job.memory, logs.dump_stream(), *job.inherited,
                                        *_parent_sentinel())
    if job.settings.start_method == "fork":
        serving.child_hygiene(keep)
    else:
        serving.child_hygiene()
    logs.configure_worker(job.settings)
    set_title("template", job.settings.name)
    handler = None
    if job.settings.preload:
        try:
            handler = life.load_handler(job)
        except IpcError as error:
            life.tell(channel, "fail", reason=str(error), traceback=getattr(error, "traceback_text", None))
            life.leave(0)
    gc.collect()
    gc.freeze()  # or the collector's marks would copy every page that workers share
    Template(job, channel, handler).run()
    life.leave(0)


class Template:
    """Forks workers on the master's word and tells it when they die."""

    def __init__(self, job: Job, channel: Channel, handler: Handler | None) -> None:
        self._job, self._channel, self._handler = job, channel, handler
        self._baseline = serving.open_descriptors() - {channel.fileno()}  # ours and the handler's own
        self._signals = SignalInbox(("SIGCHLD",))
        self._children: dict[int, BaseProcess] = {}
        self._context: Any = multiprocessing.get_context("fork")  # which the stubs of one system do not have

    def run(self) -> None:
        """Serve the master until it says "end" or is gone, and our workers have left."""
        poller = serving.poller()
        poller.register(self._channel.fileno(), serving.READ)
        poller.register(self._signals.fileno(), serving.READ)
        life.tell(self._channel, "load")
        open_for_orders = True
        while open_for_orders or self._children:
            for key, _ in poller.poll():
                if key == self._signals.fileno():
                    self._signals.receive()
                elif open_for_orders and not self._obey():
                    open_for_orders = False
                    poller.unregister(self._channel.fileno())
            self._reap()
        self._signals.restore()
        poller.close()

    def _obey(self) -> bool:
        """Carry out one order; False if there will be no more."""
        message = self._channel.hear()
        if message is None and self._job.listener is not None:
            self._job.listener.refuse()  # the master is dead: or clients would queue with nobody in charge
        if message is None or message[0] == "end":
            return False
        kind, body, raw = message
        if kind == "log":
            logs.reopen()
            return True
        order = json.loads(body)
        assert raw is not None
        with contextlib.closing(serving.adopt_channel(raw)) as end:
            self._fork(order["number"], order["slot"], end)
        return True

    def _fork(self, number: int, slot: int, end: Channel) -> None:
        process = self._context.Process(target=self._worker, args=(number, slot, end), name=f"ipcsrv-worker-{number}")
        before = serving.open_descriptors()
        try:
            with serving.quiet_about_threads():  # a module that the handler imports may have started one
                process.start()
        except OSError as error:
            for leaked in serving.open_descriptors() - before:  # multiprocessing makes its pipes before it forks
                os.close(leaked)
            life.tell(self._channel, FORK_FAILED, number=number, reason=str(error))
            return
        self._children[number] = process
        life.tell(self._channel, "born", number=number, pid=process.pid)

    def _worker(self, number: int, slot: int, end: Channel) -> None:
        """Runs in the new worker."""
        serving.child_hygiene(self._baseline | {end.fileno(), *_parent_sentinel()})
        life.work(self._job, slot, end, self._handler)

    def _reap(self) -> None:
        for number, process in list(self._children.items()):
            status = process.exitcode
            if status is not None:
                del self._children[number]
                process.close()
                life.tell(self._channel, "dead", number=number, status=status)


def _parent_sentinel() -> list[int]:
    """The descriptor by which multiprocessing lets a child watch its parent; the handler may use it."""
    parent = multiprocessing.parent_process()
    return [] if parent is None else [int(parent.sentinel)]


# -- in a worker ------------------------------------------------------------------------------------------------------


def run_fresh_worker(job: Job, number: int, slot: int, end: Channel) -> None:
    """A worker that is a fresh interpreter."""
    serving.child_hygiene()
    logs.configure_worker(job.settings)
    with contextlib.closing(job.queue), contextlib.closing(end):  # this interpreter ends as others do, not by _exit
        life.work(job, slot, end, None)


