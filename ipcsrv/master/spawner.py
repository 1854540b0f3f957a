"""Where workers come from: forked from a template that has imported the handler, or started fresh.

A **template** is a process of one generation.  It imports the handler once, freezes what the garbage collector would
otherwise write to, and forks a worker whenever the master says so: the workers share its memory, and a reload is a
new template.  The master itself never imports the handler, so code that does not import cannot hurt it.  With the start
method `fork` the template is a fork of the master; with `forkserver` a fresh interpreter, for a program whose own
process must not be forked.  With `spawn` there is no template, and every worker is a fresh interpreter.

Each function's docstring says in which process it runs.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from ..platform import children
from ..platform import server as serving
from ..platform.job import Job
from ..platform.server import Channel
from ..supervision.messages import FORK_FAILED, TIMED_OUT

TEMPLATE_PATIENCE = 2.0  # seconds for a template that has nothing left to do; longer, and somebody has stopped it


class Facts(Protocol):
    """Who is told what happens to a generation's processes: the master."""

    def generation_ready(self, generation: int) -> None: ...
    def generation_failed(self, generation: int, reason: str, traceback_text: str | None) -> None: ...
    def generation_lost(self, generation: int) -> None: ...
    def born(self, number: int, pid: int) -> None: ...
    def spawn_failed(self, number: int, reason: str) -> None: ...
    def dead(self, number: int, status: int | None) -> None: ...
    def watch(self, key: int, callback: Callable[[], None]) -> None: ...
    def unwatch(self, key: int) -> None: ...


class Spawner(Protocol):
    """Starts and reaps the workers of one generation; runs in the master."""

    lost: bool

    def begin(self) -> None:
        """Get ready to spawn; `generation_ready` or `generation_failed` follows."""

    def spawn(self, number: int, slot: int, end: Channel) -> None:
        """Start worker `number`; `born`, and later `dead`, follow, or `spawn_failed`.  Closes our copy of `end`."""

    def reopen_log(self) -> None:
        """The log file was rotated: tell whoever is neither the master nor a worker."""

    def end(self) -> None:
        """No more will be spawned; what has been is still reaped."""

    def close(self) -> None:
        """Wait for what of it is left, when its workers have gone."""


def spawner_for(job: Job, facts: Facts) -> Spawner:
    """The spawner that the settings ask for."""
    if job.settings.start_method == "spawn":
        return FreshSpawner(job, facts)
    return TemplateSpawner(job, facts)


# -- in the master ----------------------------------------------------------------------------------------------------


class TemplateSpawner:
    """Workers forked from a template process (see above)."""

    def __init__(self, job: Job, facts: Facts) -> None:
        self.lost = False
        self._job, self._facts = job, facts
        self._loaded = self._ended = False
        self._channel: Channel | None = None
        self._process: BaseProcess | None = None

    def begin(self) -> None:
        """Start the template."""
        ours, theirs = serving.channel()
        method = "fork" if self._job.settings.start_method == "fork" else "spawn"
        self._channel = ours
        context: Any = multiprocessing.get_context(method)  # its stubs differ from system to system
        process: BaseProcess = context.Process(target=_entry("run_template"), args=(self._job, theirs),
                                               name=f"ipcsrv-template-{self._job.generation}")
        try:
            with serving.quiet_about_threads(), children.starting():
                process.start()
        except OSError as error:
            ours.close()
            self._channel = None
            self._facts.generation_failed(self._job.generation, f"its template cannot be started: {error}", None)
            return
        finally:
            theirs.close()
        self._process = process
        self._facts.watch(ours.fileno(), self._hear)

    def spawn(self, number: int, slot: int, end: Channel) -> None:
        """Tell the template to fork a worker."""
        order = json.dumps({"number": number, "slot": slot}).encode()
        try:
            if self._channel is None:
                raise BrokenPipeError("its template is gone")
            self._channel.tell("fork", order, end.fileno(), keep=True)
        except OSError as error:
            self._facts.spawn_failed(number, str(error))
        finally:
            end.close()

    def reopen_log(self) -> None:
        """Tell the template, which writes little and would keep the old file."""
        if self._channel is not None:
            with contextlib.suppress(OSError):
                self._channel.tell("log")

    def end(self) -> None:
        """Tell the template to go once its workers have gone; one that still imports has none, and may never listen."""
        self._ended = True
        if self._process is not None and not self._loaded and not self.lost:
            self._process.kill()
        if self._channel is not None:
            with contextlib.suppress(OSError):
                self._channel.tell("end")

    def close(self) -> None:
        """Wait for the template, which has nothing left to do."""
        if self._channel is not None:
            self._close()

    def _hear(self) -> None:
        assert self._channel is not None
        try:
            message = self._channel.hear(wait=False)
        except BlockingIOError:
            return
        if message is None:
            self._close()
            return
        kind, body, _ = message
        content = json.loads(body) if body else {}
        if kind == "load":
            self._loaded = True
            self._facts.generation_ready(self._job.generation)
        elif kind == "fail":
            self._facts.generation_failed(self._job.generation, content["reason"], content["traceback"])
        elif kind == "born":
            self._facts.born(content["number"], content["pid"])
        elif kind == "dead":
            self._facts.dead(content["number"], content["status"])
        elif kind == FORK_FAILED:
            self._facts.spawn_failed(content["number"], content["reason"])

    def _close(self) -> None:
        assert self._channel is not None and self._process is not None
        self._facts.unwatch(self._channel.fileno())
        self._channel.close()
        self._channel = None
        self._process.join(TEMPLATE_PATIENCE)  # its end of the channel is closed, so it is gone or going
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        self._process.close()
        self.lost = True
        if not self._ended:
            self._facts.generation_lost(self._job.generation)


class FreshSpawner:
    """Workers that are fresh interpreters, children of the master."""

    def __init__(self, job: Job, facts: Facts) -> None:
        self.lost = False
        self._job, self._facts = job, facts
        self._context = multiprocessing.get_context("spawn")
        self._living: dict[int, BaseProcess] = {}

    def begin(self) -> None:
        """There is nothing to prepare: each worker imports the handler itself."""
        self._facts.generation_ready(self._job.generation)

    def spawn(self, number: int, slot: int, end: Channel) -> None:
        """Start an interpreter that becomes a worker."""
        process = self._context.Process(target=_entry("run_fresh_worker"), args=(self._job, number, slot, end),
                                        name=f"ipcsrv-worker-{number}")
        try:
            with children.starting():
                process.start()
        except OSError as error:
            self._facts.spawn_failed(number, str(error))
            return
        finally:
            end.close()
        assert process.pid is not None
        self._living[number] = process
        self._facts.born(number, process.pid)
        self._facts.watch(process.sentinel, lambda: self._reap(number))

    def _reap(self, number: int) -> None:
        process = self._living.pop(number)
        self._facts.unwatch(process.sentinel)
        process.join()
        status = process.exitcode
        process.close()
        self._facts.dead(number, status)

    def reopen_log(self) -> None:
        """Nobody but the master and the workers has it."""

    def end(self) -> None:
        """Nothing to end: the workers leave by themselves."""

    def close(self) -> None:
        """Wait for what is left, if the master fails while it has workers."""
        for process in self._living.values():
            self._facts.unwatch(process.sentinel)
            process.join()
            process.close()
        self._living.clear()


def _entry(name: str) -> Callable[..., None]:
    """Return a function of the worker's package by name: the master does not import that package for itself."""
    entry: Callable[..., None] = getattr(importlib.import_module("ipcsrv.worker.template"), name)
    return entry


def describe(status: int | None) -> str:
    """How a process ended, in words."""
    if status is None:
        return "ended (its exit status is not known)"
    if status == TIMED_OUT:
        return "ended after request_timeout"
    if status < 0:
        try:
            return f"was killed by {signal.Signals(-status).name}"
        except ValueError:
            return f"was killed by signal {-status}"
    return f"exited with status {status}"
