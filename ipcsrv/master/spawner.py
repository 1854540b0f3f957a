"""Where workers come from: forked from a template that has imported the handler, or started fresh. In the master.

A **template** is a process of one generation. It imports the handler once, freezes what the garbage collector would
otherwise write to, and forks a worker whenever the master says so: workers share its memory, and a reload is a new
template. The master itself never imports the handler. With the start method `fork` the template is a fork of the
master; with `forkserver` a fresh interpreter, for a program whose own process must not be forked. With `spawn` there is
no template: every worker is a fresh interpreter, and a small process (the guard) outlives the master in its place.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from time import monotonic, sleep
from typing import Any, Protocol

from ..config import fingerprint
from ..platform import children, lifecycle
from ..platform import server as serving
from ..platform.job import Job
from ..platform.server import Channel, Process
from ..supervision.messages import FormatError, Kind, pack_pair, parse_fields, parse_pair

TEMPLATE_PATIENCE = 0.5  # seconds for a template that has nothing left to do; longer, and it was stopped
_LOOK = 0.002  # seconds between two looks whether it has ended


class Facts(Protocol):
    """What is told what happens to a generation's processes: the master's `WorkerProcesses`."""

    def code_loaded(self, generation: int, files: fingerprint.Files) -> None: ...
    def generation_ready(self, generation: int) -> None: ...
    def generation_failed(self, generation: int, reason: str, traceback_text: str | None) -> None: ...
    def template_gone(self, generation: int, *, expected: bool) -> None: ...
    def born(self, number: int, pid: int) -> None: ...
    def spawn_failed(self, number: int, reason: str) -> None: ...
    def dead(self, number: int, status: int | None) -> None: ...
    def watch(self, key: int, callback: Callable[[], None]) -> None: ...
    def unwatch(self, key: int) -> None: ...


class Spawner(Protocol):
    """Starts and reaps the workers of one generation."""

    lost: bool
    descriptors: int  # of the master, for each worker
    reports_late: bool  # how a worker ended is reported by another process, which may have been stopped

    def begin(self) -> None:
        """Get ready to spawn; `generation_ready` or `generation_failed` follows."""

    def spawn(self, number: int, slot: int, end: Channel) -> None:
        """Start worker `number`; `born`, and later `dead`, follow, or `spawn_failed`. Closes this copy of `end`."""

    def dump_stacks(self) -> None:
        """Have a template that is still importing write its stacks (`Job.stacks`)."""

    def reopen_log(self) -> None:
        """Tell of a rotated log file the processes that are neither the master nor a worker."""

    def kill(self) -> None:
        """End a template that does not react."""

    def pids(self) -> set[int]:
        """Return the children of the master that this spawner reaps."""

    def end(self) -> None:
        """No more will be spawned; what has been is still reaped."""

    def close(self) -> None:
        """Wait for what is left, when the workers have gone."""


def spawner_for(job: Job, facts: Facts) -> Spawner:
    """Return the spawner that the settings ask for."""
    return FreshSpawner(job, facts) if job.settings.start_method == "spawn" else TemplateSpawner(job, facts)


def _entry(name: str) -> Callable[..., None]:
    """Return a function of the worker's package by name: the master does not import that package for itself."""
    entry: Callable[..., None] = getattr(importlib.import_module("ipcsrv.worker.template"), name)
    return entry


def _start(process: BaseProcess, context: BaseContext) -> None:
    """Start a process, in which Ctrl-C is held back until it leaves signals to the master."""
    with serving.quiet_about_threads(), children.starting():
        if context.get_start_method() != "fork":
            serving.start_resource_tracker()  # which lets SIGINT through again in this process
        with lifecycle.held_interrupts():
            process.start()


class _Helper:
    """A process of a generation that is no worker, and the channel to it."""

    def __init__(self, job: Job, method: str, role: str) -> None:
        self.channel, theirs = serving.channel()
        context: Any = multiprocessing.get_context(method)  # its stubs differ from system to system
        self._process: BaseProcess = context.Process(target=_entry(f"run_{role}"), args=(job, theirs),
                                                     name=f"ipcsrv-{role}-{job.generation}")
        try:
            _start(self._process, context)
        except OSError:
            self.channel.close()
            raise
        finally:
            theirs.close()

    def tell(self, kind: Kind, body: bytes = b"", descriptor: int | None = None) -> None:
        """Send a message; raises `OSError` where that cannot be done now."""
        self.channel.tell(kind, body, descriptor, wait=False)

    def tell_quietly(self, kind: Kind) -> None:
        """Send a message if that can be done now."""
        with contextlib.suppress(OSError):
            self.tell(kind)

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid or 0

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def close(self) -> None:
        """Close the channel and wait for the process, which has nothing left to do."""
        self.channel.close()
        # Not `join` with a timeout: its sentinel is at its end at once where the child has closed the descriptors that
        # it inherited, as a forked template has, and then it waits for the process without a limit.
        until = monotonic() + TEMPLATE_PATIENCE
        while self._process.exitcode is None and monotonic() < until:
            sleep(_LOOK)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        _forget(self._process)


class TemplateSpawner:
    """Workers forked from a template process."""

    reports_late = serving.HAS_PIDFD
    descriptors = 2  # the channel and a pidfd

    def __init__(self, job: Job, facts: Facts) -> None:
        self.lost = False
        self._job, self._facts = job, facts
        self._loaded = self._ended = False
        self._template: _Helper | None = None

    def begin(self) -> None:
        """Start the template."""
        try:
            self._template = _Helper(self._job, "fork" if self._job.settings.start_method == "fork" else "spawn",
                                     "template")
        except OSError as error:
            self.lost = True
            self._facts.generation_failed(self._job.generation, f"its template cannot be started: {error}", None)
            return
        self._facts.watch(self._template.channel.fileno(), self._hear)

    def spawn(self, number: int, slot: int, end: Channel) -> None:
        """Tell the template to fork a worker."""
        try:
            if self._template is None:
                raise BrokenPipeError("its template is gone")
            self._template.tell(Kind.FORK, pack_pair(number, slot), end.fileno())
        except OSError as error:
            self._facts.spawn_failed(number, str(error))
        finally:
            end.close()

    def dump_stacks(self) -> None:
        """Ask the template for its stacks, if it is still importing."""
        if self._template is not None and not self._loaded:
            process = Process(self._template.pid)
            process.ask_for_stacks()
            process.close()

    def reopen_log(self) -> None:
        """Tell the template, which writes little and would keep the old file."""
        if self._template is not None:
            self._template.tell_quietly(Kind.REOPEN_LOG)

    def kill(self) -> None:
        """End a template that does not react, and what the handler's module has started if it is still imported."""
        if self._template is not None:
            if not self._loaded:
                serving.kill_family(self._template.pid)
            self._template.kill()

    def pids(self) -> set[int]:
        """Return the template's process."""
        return set() if self._template is None else {self._template.pid}

    def end(self) -> None:
        """Tell the template to go once its workers have gone; one that still imports has none, and may never listen."""
        self._ended = True
        if self._template is not None:
            if self._loaded:
                self._template.tell_quietly(Kind.END)
            else:
                self.kill()

    def close(self) -> None:
        """Wait for the template, which has nothing left to do."""
        if self._template is not None:
            self._close()

    def _hear(self) -> None:
        assert self._template is not None
        try:
            message = self._template.channel.hear(wait=False)
            if message is None:
                self._close()
                return
            self._heard(message[0], message[1])
        except BlockingIOError:
            pass
        except FormatError:
            self._template.kill()

    def _heard(self, kind: Kind, body: bytes) -> None:
        facts, generation = self._facts, self._job.generation
        if kind is Kind.CODE:
            facts.code_loaded(generation, parse_fields(body))
        elif kind is Kind.LOADED:
            self._loaded = True
            facts.generation_ready(generation)
        elif kind is Kind.LOAD_FAILED:
            fields = parse_fields(body)
            facts.generation_failed(generation, str(fields.get("reason")), fields.get("traceback"))
        elif kind is Kind.BORN:
            facts.born(*parse_pair(body))
        elif kind is Kind.DIED:
            facts.dead(*parse_pair(body))
        elif kind is Kind.FORK_FAILED:
            fields = parse_fields(body)
            facts.spawn_failed(int(fields.get("worker", 0)), str(fields.get("reason")))
        else:
            raise FormatError(f"kind {kind.name}")

    def _close(self) -> None:
        assert self._template is not None
        self._facts.unwatch(self._template.channel.fileno())
        self._template.close()
        self._template = None
        self.lost = True
        self._facts.template_gone(self._job.generation, expected=self._ended)


class FreshSpawner:
    """Workers that are fresh interpreters, children of the master."""

    reports_late = False
    descriptors = 5  # and another pidfd and two pipes of multiprocessing

    def __init__(self, job: Job, facts: Facts) -> None:
        self.lost = False
        self._job, self._facts = job, facts
        self._context = multiprocessing.get_context("spawn")
        self._living: dict[int, tuple[BaseProcess, Process, int]] = {}
        self._guard: _Helper | None = None

    def begin(self) -> None:
        """Start the guard; each worker imports the handler itself."""
        if serving.NEEDS_GUARD:
            with contextlib.suppress(OSError):  # without one, workers whose master is killed end by themselves alone
                self._guard = _Helper(self._job, "spawn", "guard")
        self._facts.generation_ready(self._job.generation)

    def spawn(self, number: int, slot: int, end: Channel) -> None:
        """Start an interpreter that becomes a worker."""
        process = self._context.Process(target=_entry("run_fresh_worker"), args=(self._job, number, slot, end),
                                        name=f"ipcsrv-worker-{number}")
        try:
            _start(process, self._context)
        except OSError as error:
            self._facts.spawn_failed(number, str(error))
            return
        finally:
            end.close()
        assert process.pid is not None
        # Not multiprocessing's sentinel: a child that the handler forks keeps that open.
        handle = Process(process.pid)
        key = handle.fileno() if handle.fileno() >= 0 else process.sentinel
        self._living[number] = process, handle, key
        self._facts.born(number, process.pid)
        self._facts.watch(key, lambda: self._reap(number))

    def _reap(self, number: int) -> None:
        process, handle, key = self._living.pop(number)
        self._facts.unwatch(key)
        handle.close()
        process.join()
        status = process.exitcode
        _forget(process)
        self._facts.dead(number, status)

    def dump_stacks(self) -> None:
        """There is no template."""

    def reopen_log(self) -> None:
        """Tell the guard."""
        if self._guard is not None:
            self._guard.tell_quietly(Kind.REOPEN_LOG)

    def kill(self) -> None:
        """There is no template."""

    def pids(self) -> set[int]:
        """Return the workers and the guard."""
        guard = set() if self._guard is None else {self._guard.pid}
        return guard | {process.pid or 0 for process, _, _ in self._living.values()}

    def end(self) -> None:
        """Nothing to end: the workers leave by themselves."""

    def close(self) -> None:
        """End the guard, and wait for what is left if the master fails while it has workers."""
        self.lost = True
        if self._guard is not None:
            self._guard.tell_quietly(Kind.END)
            self._guard.close()
            self._guard = None
        for process, handle, key in self._living.values():
            self._facts.unwatch(key)
            handle.close()
            process.join()
            _forget(process)
        self._living.clear()


def _forget(process: BaseProcess) -> None:
    """Release what this process holds of one that has ended."""
    with contextlib.suppress(ValueError):  # the caller of `serve` has reaped it: no status is known
        process.close()


def describe(status: int | None) -> str:
    """Return how a process ended, in words."""
    if status is None:
        return "ended with an unknown status"
    if status < 0:
        try:
            return f"was killed by {signal.Signals(-status).name}"
        except ValueError:
            return f"was killed by signal {-status}"
    return f"exited with status {status}"
