"""Requests handled in the master's own process, for a debugger: `workers = 0`.

A worker process has no terminal, and a debugger that stops it has not stopped the others.  So here the one worker
runs in the main thread of the process that was started, where `breakpoint()` has standard input and Ctrl-C, and the
master in a second thread beside it.  Nothing else changes: the master supervises, holds idle connections and answers
`status`, and it passes connections as it always does; only its worker is not a process.

Timeouts, replacement, reload and kills of workers are off: they would disturb a person at a debugger's prompt.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING, Any

from ..config.handlers import Handler
from ..config.settings import Settings
from ..platform import logs
from ..platform import server as serving
from ..platform.job import Job
from ..platform.server import Channel
from ..supervision.messages import START_FAILED, Kind, pack_pair, parse_pair
from ..worker import main as worker_main

if TYPE_CHECKING:
    import queue

    from ..master.master import Master
    from ..master.spawner import Facts

log = logs.get("ipcsrv.worker")

_UNHURRIED = 365 * 86400.0  # seconds
INTERRUPTED = 130  # as the exit status of a process that Ctrl-C ended


@dataclass(frozen=True)
class Engagement:
    """A worker that the main thread is to run, and the channel that reports its end."""

    job: Job
    slot: int
    channel: Channel
    ending: Channel


class InlineSpawner:
    """Has the main thread run the worker, by way of `engagements`."""

    descriptors = 4  # both ends of two channels
    reports_late = False

    def __init__(self, job: Job, facts: Facts, engagements: queue.SimpleQueue[Engagement | None]) -> None:
        self.lost = False
        self._job, self._facts, self._engagements = job, facts, engagements

    def begin(self) -> None:
        """There is nothing to prepare: the worker imports the handler itself."""
        self._facts.generation_ready(self._job.generation)

    def spawn(self, number: int, slot: int, end: Channel) -> None:
        """Let the main thread have it; `end` is its to close."""
        ours, theirs = serving.channel()

        def ended() -> None:
            message = ours.hear()
            self._facts.unwatch(ours.fileno())
            ours.close()
            self._facts.dead(number, parse_pair(message[1])[1] if message is not None else None)

        self._facts.watch(ours.fileno(), ended)
        self._engagements.put(Engagement(self._job, slot, end, theirs))

    def dump_stacks(self) -> None:
        """There is no template."""

    def reopen_log(self) -> None:
        """There is no other process."""

    def kill(self) -> None:
        """There is no other process."""

    def pids(self) -> set[int]:
        """There is no other process."""
        return set()

    def end(self) -> None:
        """The worker leaves by itself."""

    def close(self) -> None:
        """Nothing is left."""


def run(settings: Settings, make: Callable[..., Master]) -> None:
    """Run the master that `make(settings, ...)` makes: beside its worker if there are to be none, else alone."""
    if settings.workers != 0:
        make(settings).run()
        return
    import queue

    engagements: queue.SimpleQueue[Engagement | None] = queue.SimpleQueue()
    patient = replace(settings, request_timeout=None, startup_timeout=_UNHURRIED, max_requests=None, max_rss=None)
    master = make(patient, spawner_for=lambda job, facts: InlineSpawner(job, facts, engagements))
    _run_beside(master, engagements)


def _run_beside(master: Master, engagements: queue.SimpleQueue[Engagement | None]) -> None:
    """The master in a thread; here, one worker after the other until it has stopped."""
    failures: list[BaseException] = []

    def run_master() -> None:
        try:
            master.run()
        except BaseException as error:
            failures.append(error)
        finally:
            engagements.put(None)

    thread = threading.Thread(target=run_master, name="ipcsrv-master")
    with _signals(master) as stop:
        thread.start()
        try:
            while (engagement := engagements.get()) is not None:
                _work(engagement)
        except BaseException:
            stop()
            raise
        finally:
            thread.join()
    if failures:
        raise failures[0]


def _work(engagement: Engagement) -> None:
    """Run the worker to its end."""
    status = 0
    with contextlib.closing(engagement.channel), contextlib.closing(engagement.ending):
        try:
            worker, stop = worker_main.prepare(engagement.job, engagement.slot, engagement.channel, None,
                                               _leaving_interrupts)
        except BaseException as error:
            worker_main.tell_failure(engagement.channel, error)
            status = START_FAILED
        else:
            try:
                worker_main.serve(worker, engagement.channel, stop)
            except KeyboardInterrupt:
                status = INTERRUPTED
            except BaseException:
                log.exception("the worker failed")
                status = 1
        engagement.ending.tell(Kind.EXIT, pack_pair(0, status))


def _leaving_interrupts(handler: Handler) -> Handler:
    """`handler`, after which Ctrl-C is the server's again: pdb's `continue` replaces the signal handler."""
    if threading.current_thread() is not threading.main_thread():
        return handler

    def handled(request: Any) -> Any:
        before = signal.getsignal(signal.SIGINT)
        try:
            return handler(request)
        finally:
            if signal.getsignal(signal.SIGINT) is not before:
                signal.signal(signal.SIGINT, before)

    return handled


@contextlib.contextmanager
def _signals(master: Master) -> Iterator[Callable[[], None]]:
    """Have signals mean what they mean with workers, in the main thread; yields a function that stops the master."""
    reader, writer = os.pipe()
    master.watch_lifeline(serving.lifeline(reader))
    ours = open(writer, "wb", buffering=0)  # noqa: SIM115
    in_main = threading.current_thread() is threading.main_thread()
    try:
        with _handled(master, ours) if in_main else contextlib.nullcontext():
            yield ours.close  # the end of the lifeline, which the master's thread sees
    finally:
        os.close(reader)
        ours.close()


@contextlib.contextmanager
def _handled(master: Master, lifeline: IO[bytes]) -> Iterator[None]:
    """The first Ctrl-C drains; the next ones, and SIGQUIT, are a `KeyboardInterrupt` for the handler or the debugger.

    The master's thread is told of the others.
    """
    import socket

    def interrupted(number: int, _: object) -> None:
        if not lifeline.closed:
            lifeline.close()
        elif number == signal.SIGINT:
            raise KeyboardInterrupt

    handlers: dict[int, Any] = {signal.SIGINT: interrupted, signal.SIGTERM: interrupted}
    others = {getattr(signal, name) for name in master.take_signals() if hasattr(signal, name)} - handlers.keys()
    with contextlib.ExitStack() as stack:
        if others:  # Windows has none
            reader, writer = map(stack.enter_context, socket.socketpair())
            writer.setblocking(False)

            def told(number: int, _: object) -> None:
                with contextlib.suppress(BlockingIOError):
                    writer.send(bytes([number]))
                if signal.Signals(number).name == "SIGQUIT":
                    raise KeyboardInterrupt

            handlers |= dict.fromkeys(others, told)
            master.watch(reader.fileno(),
                         lambda: master.obey_signals(signal.Signals(number).name for number in reader.recv(64)))
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
