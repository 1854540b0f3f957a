"""A worker's life: load what is not loaded, say that it is ready, serve, leave.  In the worker, however it started."""

from __future__ import annotations

import contextlib
import json
import os
import random
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from ..config.handlers import Handler
from ..config.values import show_hook
from ..errors import HandlerImportError, IpcError
from ..platform import logs
from ..platform import server as serving
from ..platform.job import Job
from ..platform.server import Channel
from ..platform.titles import set_title
from ..supervision import scoreboard as board
from ..supervision.messages import START_FAILED
from .access_log import worker_for
from .adapters import adapt, check_signature, not_here, on_executor, start_failures
from .hooks import Hook, between_hooks, worker_hooks
from .loop import Worker
from .relief import relievable


def work(job: Job, slot: int, channel: Channel, handler: Handler | None) -> None:
    """The whole life of a worker that has a process to itself."""
    set_title("worker", job.settings.name)
    try:
        gate = serving.handler_gate()
        worker, stop = hire(job, slot, channel, handler, lambda plain: relievable(plain, gate))
    except BaseException as error:
        tell_failure(channel, error)
        leave(START_FAILED)
        raise
    serving.answer_timeouts_with(worker.say_last_words, worker.relieve, logs.dump_stream())
    logs.reopen_on_hangup()
    serve(job, worker, channel, stop)


def hire(job: Job, slot: int, channel: Channel, handler: Handler | None,
         around: Callable[[Handler], Handler]) -> tuple[Worker, Hook]:
    """A worker ready to serve, and its stop hook; raises whatever the handler's module or the hooks raise.

    handler: what the template has loaded, if there is one; around: makes of the plain handler the one that is called.
    """
    if job.settings.receive_descriptors:
        serving.receive_descriptors()
    slots = board.Scoreboard(job.memory.buffer, job.slots)
    words = slots.words(slot)
    words[board.PID] = os.getpid()
    words[board.STARTED_NS] = time.monotonic_ns()
    settings = job.settings
    loaded = handler or load_handler(job)
    start, stop = worker_hooks(settings)
    if start is not None:
        with start_failures(f"on_worker_start {show_hook(settings.on_worker_start)}"):
            start()
    adapted = adapt(loaded, settings, job.path) if settings.executor is None else on_executor(job, slots, slot)
    words[board.GRACE_NS] = int(adapted.grace * 1e9)
    handler = between_hooks(around(adapted.handler), settings)
    worker = worker_for(settings)(settings, handler, job.queue, job.listener, channel, words, random.Random())
    worker.neighbours = [slots.words(number) for number in range(job.slots) if number != slot]
    return worker, adapted.stop_hook(stop)


def serve(job: Job, worker: Worker, channel: Channel, stop: Hook) -> None:
    """Say that it is ready, and serve until it is to leave."""
    channel.tell("rdy")
    if job.listener is not None:
        channel.hear()  # the doors open when the whole generation is ready, or the master is gone
    worker.run()
    if stop is not None:
        _run_stop_hook(stop)


def load_handler(job: Job) -> Handler:
    """What the handler's name leads to, from the folder that it is to be found in; `adapt` makes the handler of it."""
    if job.settings.chdir is not None:
        os.chdir(job.settings.chdir)
    if job.settings.executor is None:
        loaded = job.source.load()
        check_signature(job.source.target, loaded)
    else:
        loaded = not_here(job.source, job.settings.executor)
    worker_hooks(job.settings)  # a bad hook is told here, once, and not by every worker
    between_hooks(loaded, job.settings)
    return loaded


def tell_failure(channel: Channel, error: BaseException) -> None:
    """Tell the master why this worker cannot start."""
    known = isinstance(error, IpcError)
    text = getattr(error, "traceback_text", None) if known else "".join(traceback.format_exception(error))
    reason = str(error) if known else f"{type(error).__name__}: {error}"
    tell(channel, "fail", reason=reason, traceback=text, importing=isinstance(error, HandlerImportError))


def _run_stop_hook(stop: Callable[..., object]) -> None:
    try:
        stop()
    except Exception:
        logs.get("ipcsrv.worker").exception("on_worker_stop failed")


def tell(channel: Channel, kind: str, **content: Any) -> None:
    """Send the master a message with content."""
    text = content.get("traceback")
    if text and len(text) > 8000:  # a message has its limit; the end of a traceback says most
        content["traceback"] = "...\n" + text[-8000:]
    with contextlib.suppress(OSError):  # a dead master is noticed by reading
        channel.tell(kind, json.dumps(content).encode())


def leave(status: int) -> None:
    """End a forked process without running what its parent had registered to run at its own exit."""
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)
