"""A server in a process of its own: what the new process runs, and the order that it is given.

The starter (`starting`) writes one pickled `Order` to its standard input and reads its reports, lines of JSON, from
its standard output, both private pipes: first that it listens or why it does not, last how it ended.  What handlers
print goes to standard error.  Unless it is detached, the server stops when its standard input ends, so it does not
outlive a starter that was killed.

The process is a fresh interpreter, because its starter may have threads; or, where the starter is a short-lived command
of ipcsrv, a fork of it (`serve_forked`), which has nothing to read and little left to import.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from dataclasses import dataclass, replace
from typing import IO, Any

from .. import standard_streams
from ..config.handlers import HandlerSource, unpickled
from ..config.settings import Settings
from ..errors import IpcError, StartError, to_fields
from ..master.master import Master
from ..platform import lifecycle
from ..platform import server as serving
from ..worker.main import load_checked
from . import inline, registry


@dataclass(frozen=True)
class Order:
    """What to serve, and the surroundings in which the handler is found."""

    path: str
    source: HandlerSource
    settings: Settings
    hooks: dict[str, tuple[str, bytes]]  # of settings that are callables: what each is called, and pickled
    preparation: dict[str, Any] | None  # multiprocessing's: the starter's sys.path and main module; None after a fork
    detached: bool
    only_check: bool = False  # import what would be served and look at the path, but do not serve


def main() -> None:
    """Serve as ordered on standard input."""
    import pickle

    lifecycle.use_known_state()
    standard_streams.open_closed()
    order_stream, reports = _private_pipes()
    with order_stream, reports:
        try:
            order = pickle.load(order_stream)
        except EOFError:  # the starter was interrupted
            raise SystemExit(1) from None
        raise SystemExit(_carry_out(order, None if order.detached else order_stream, reports))


def serve_forked(order: Order, descriptor: int) -> int:
    """Serve in a process that was forked for it, reporting to a pipe; returns the exit status."""
    with os.fdopen(descriptor, "wb", buffering=0) as reports:
        return _carry_out(order, None, reports)


def _carry_out(order: Order, lifeline: IO[bytes] | None, reports: IO[bytes]) -> int:
    """Serve, report how it ended, and return the exit status."""
    try:
        _prepare(order.preparation)
        hooks: dict[str, Any] = {name: unpickled(target, data, name) for name, (target, data) in order.hooks.items()}
        order = replace(order, settings=replace(order.settings, **hooks))
        if order.only_check:
            _check(order)
            _send(reports, {"checked": True})
        else:
            _serve(order, lifeline, reports)
    except IpcError as error:
        _send(reports, {"error": to_fields(error)})
        return error.exit_code
    except Exception as error:  # a fault of ipcsrv: its starter, or the log, must have it
        text = traceback.format_exc()
        _send(reports, {"error": to_fields(StartError(f"{type(error).__name__}: {error}", traceback_text=text))})
        sys.stderr.write(text)
        return 1
    _send(reports, {})
    return 0


def _private_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """The order's and the reports' pipes, moved away from where handlers and their children would find them."""
    order = os.fdopen(os.dup(0), "rb")
    reports = os.fdopen(os.dup(1), "wb", buffering=0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return order, reports


def _prepare(preparation: dict[str, Any] | None) -> None:
    """Take over the starter's `sys.path`, folder and, if the handler is in it, main module."""
    if preparation is None:
        return
    from multiprocessing import process, spawn

    current: Any = process.current_process()
    current._inheriting = True  # as multiprocessing itself does it; `starting.check_program` looks for it
    try:
        spawn.prepare(preparation)
    finally:
        del current._inheriting


def _check(order: Order) -> None:
    """Raise what would keep a server from starting, except that another one has the path."""
    settings = order.settings
    serving.Rendezvous(order.path, mode=settings.mode, insecure_dir=settings.insecure_dir, allow=settings.allow).check()
    serving.Admission(settings.allow)
    load_checked(order.source, settings)


def _serve(order: Order, lifeline: IO[bytes] | None, reports: IO[bytes]) -> None:
    def listening(master: Master) -> None:
        record = master.record()
        register(record)
        record.pop("files", None)  # of large programs more than a pipe takes at once; they are in the lock file
        _send(reports, {"listening": record})

    def make(settings: Settings, **more: Any) -> Master:
        master = Master(order.path, order.source, settings, inherited=frozenset({0, 1, 2}), on_listening=listening,
                        **more)
        master.detached = order.detached
        if lifeline is not None:
            master.watch_lifeline(serving.lifeline(lifeline.fileno()))
        return master

    with registry.registration() as register:
        inline.run(order.settings, make)


def _send(reports: IO[bytes], report: dict[str, Any]) -> None:
    """Report to the starter; one that has gone need not know."""
    with contextlib.suppress(OSError):
        reports.write(json.dumps(report, default=str).encode() + b"\n")
