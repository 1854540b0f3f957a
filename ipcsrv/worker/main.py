"""The life of a worker: load what is not loaded, report, serve, leave. In the worker, however it was started."""

from __future__ import annotations

import atexit
import contextlib
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator

from ..config import fingerprint
from ..config.handlers import Handler, HandlerSource
from ..config.settings import Settings
from ..config.values import show_hook
from ..errors import HandlerImportError, IpcError, SettingsError
from ..exception_text import describe, is_interrupt, trace_of, traceback_text
from ..platform import logs
from ..platform import server as serving
from ..platform.job import Job
from ..platform.server import Channel
from ..platform.titles import set_title
from ..supervision import scoreboard as board
from ..supervision.messages import MAX_BODY, START_FAILED, Kind, pack_fields
from .access_log import observe
from .adapters import adapt, check_signature, not_here, on_executor, start_failures
from .hooks import Hook, between_hooks, worker_hooks
from .loop import Worker

log = logs.get("ipcsrv.worker")

LATE = 1.0  # seconds after which a process ends that the master should have killed


def work(job: Job, slot: int, channel: Channel, handler: Handler | None) -> None:
    """Be a worker that has a process to itself, and end that process."""
    status = START_FAILED
    set_title("worker", job.settings.name)
    try:
        serving.dump_stacks_on_request(logs.dump_stream())
        with importing(job, channel):
            worker, stop = prepare(job, slot, channel, handler)
        if channel.has_ended():
            end(1)  # the master has given it up, with a template that died
        status = 1
        serving.protect_children(job.queue, channel)
        logs.reopen_on_hangup()
        serve(worker, channel, stop)
        status = 0
    except BaseException as error:
        if status == START_FAILED:
            tell_failure(channel, error)
            serving.kill_family(os.getpid(), itself=False)  # what the handler's module has started
        else:
            log.exception("the worker failed")
    leave(status)


@contextlib.contextmanager
def importing(job: Job, channel: Channel) -> Iterator[None]:
    """While the handler's code is imported: end with the parent process, and soon after `startup_timeout` in any case.

    Code that is being imported may hold the interpreter's lock, so that no thread of this process could watch.
    """
    serving.end_with_parent(True)
    if channel.has_ended():
        end(1)  # the master had died before
    serving.end_after(job.settings.startup_timeout + LATE, logs.dump_stream())
    try:
        yield
    finally:
        serving.end_after(None, -1)
        serving.end_with_parent(False)


def prepare(job: Job, slot: int, channel: Channel, handler: Handler | None,
            around: Callable[[Handler], Handler] = lambda plain: plain) -> tuple[Worker, Hook]:
    """Return a worker ready to serve, and its stop hook; raises whatever the handler's module or the hooks raise.

    handler: what the template has loaded, if there is one; around: makes of the plain handler the one that is called.
    """
    if job.settings.receive_descriptors:
        serving.receive_descriptors()
    slots = board.Scoreboard(job.memory.buffer, job.slots)
    words = slots.words(slot)
    words[board.STARTED_NS] = time.monotonic_ns()
    words[board.START_TICKS] = serving.start_ticks(os.getpid())
    words[board.PID] = os.getpid()  # last: from then on the master can end it (`WorkerProcesses._end_orphan`)
    settings = job.settings
    loaded = handler
    if loaded is None:
        since = fingerprint.moment()
        loaded = load_handler(job)
        tell_code(channel, since)
    start, stop = worker_hooks(settings)
    if start is not None:
        with start_failures(f"on_worker_start {show_hook(settings.on_worker_start)}"):
            start()
    on_engine = settings.executor is not None
    adapted = on_executor(job, slots, slot, loaded) if on_engine else adapt(loaded, settings, job.path)
    words[board.GRACE_NS] = int(adapted.grace * 1e9)
    handler = between_hooks(around(adapted.handler), settings)
    worker = Worker(settings, handler, job.queue, channel, slots, slot, random.Random())
    observe(worker)
    return worker, adapted.stop_hook(stop)


def serve(worker: Worker, channel: Channel, stop: Hook) -> None:
    """Report that the worker is ready, and serve until it is to leave."""
    channel.tell(Kind.READY)
    worker.run()
    if stop is not None:
        try:
            stop()
        except BaseException as error:
            if is_interrupt(error):
                raise
            log.exception("on_worker_stop failed")


def load_handler(job: Job) -> Handler:
    """Return what the handler's name leads to, imported from its folder; `adapt` makes the handler of it."""
    return load_checked(job.source, job.settings)


def load_checked(source: HandlerSource, settings: Settings) -> Handler:
    """Import handler and hooks from the server's folder and check them; also for `--check-config`."""
    if settings.chdir is not None:
        try:
            os.chdir(settings.chdir)
        except OSError as error:
            reason = f"cannot change to the folder {settings.chdir}: {error.strerror}"
            raise SettingsError(reason, name="chdir") from None
    if settings.executor is None:
        loaded = source.load()
        check_signature(source.target, loaded)
    else:
        loaded = not_here(source, settings)
    worker_hooks(settings)  # a bad hook is reported here, once, and not by every worker
    between_hooks(loaded, settings)
    return loaded


def tell_code(channel: Channel, since: int) -> None:
    """Tell the master which files were imported; since: when that began, by `fingerprint.moment`."""
    files = fingerprint.fingerprint_of_modules(list(sys.modules.values()), since)
    with contextlib.suppress(OSError):  # a dead master is noticed by reading
        for part in fingerprint.pieces(files, MAX_BODY):
            channel.tell(Kind.CODE, pack_fields(**part))


def tell_failure(channel: Channel, error: BaseException) -> None:
    """Tell the master why this worker cannot start."""
    known = issubclass(type(error), IpcError)  # not `isinstance`: `__class__` may be the user's own property
    text = getattr(error, "traceback_text", None) if known else traceback_text(error, trace_of(error))
    reason = str(error) if known else describe(error)
    with contextlib.suppress(OSError):  # a dead master is noticed by reading
        channel.tell(Kind.START_FAILED, pack_fields(reason=reason, traceback=text,
                                                    importing=issubclass(type(error), HandlerImportError)))


def leave(status: int) -> None:
    """End this process as a Python program ends: its own threads are joined and its own exit functions run.

    What its parent has registered to run at exit is the parent's. A worker whose threads do not end is killed by the
    master after `drain_timeout`.
    """
    with contextlib.suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]  # joins threads that are no daemons, as at any exit
    with contextlib.suppress(BaseException):
        atexit._run_exitfuncs()
    end(status)


def end(status: int) -> None:
    """End this process at once, with what it has printed."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status)


def forget_exit_functions() -> None:
    """In a new worker: drop what the template's modules registered for its exit, but for what each process needs."""
    atexit._clear()
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        atexit.register(util._exit_function)
