"""Servers as a program starts and stops them: `serve` and `Server`.  Runs in the caller's process.

`serve` makes the calling process the master, and returns when the server has stopped.  `Server` starts a process for
it (`starting`), and returns only when clients can connect; what went wrong in that process is raised here.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .. import standard_streams
from ..client import control
from ..config.handlers import source_of
from ..config.settings import load
from ..deadline import Deadline
from ..errors import CallTimeout, IpcError, StartError, from_fields
from ..folders import absolute
from ..platform import lifecycle
from .ensure import ensure_running
from .starting import check_program, check_unpatched, default_log_file, start, start_daemon
from .steering import reload, restart, scale, status, stop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Self, Unpack

    from ..config.handlers import Handler
    from ..config.keywords import SettingsDict
    from ..config.settings import Settings
    from ..master.master import Master
    from .starting import Start

__all__ = [
    "Server",
    "default_log_file",
    "ensure_running",
    "reload",
    "restart",
    "run_foreground",
    "scale",
    "serve",
    "start_daemon",
    "status",
    "stop",
]


# -- in the foreground ------------------------------------------------------------------------------------------------


def serve(path: str | os.PathLike[str], handler: str | Handler, **settings: Unpack[SettingsDict]) -> None:
    """Serve `handler` at `path` until the server is stopped; this process is its master.

    SIGTERM and SIGINT drain and stop it, if this is the main thread.  With the start method `fork` any callable will
    do; otherwise it must be importable by name, and the program needs `if __name__ == "__main__":` around this call
    (multiprocessing's programming guidelines).  A process with several threads is not forked: its workers are forked
    from a fresh process.

    Args:
        path: Where clients connect.
        handler: A callable, or `MODULE:NAME`.
        **settings: See docs/settings.md; `IPCSRV_*` variables apply too.

    Raises:
        AddressInUse: Another server has the path.
        InvalidPath: A server cannot be at `path`.
        HandlerImportError: The handler cannot be imported.
        SettingsError: A setting is wrong.
        StartError: The server could not start for another reason, or its workers died too often.
        SocketStolen: Its socket was removed or replaced.

    Example:
        >>> ipcsrv.serve("./z.sock", "zlib:compress", workers=4)
    """
    serve_telling(None, path, handler, settings)


def serve_telling(listening: Callable[[dict[str, Any]], None] | None, path: str | os.PathLike[str],
                  handler: str | Handler, settings: Mapping[str, Any]) -> None:
    """Serve as `serve` does.

    Args:
        listening: Called with the server's record once clients can connect.
        path: Where that is.
        handler: A callable, or `MODULE:NAME`.
        settings: As `serve` takes them.

    Raises:
        IpcError: As for `serve`.
    """
    check_unpatched()
    standard_streams.open_closed()
    chosen = _unforked(load(settings, environ=os.environ)[0])
    with lifecycle.unblocked_signals(), _as_parent():
        _run_master(os.fspath(path), handler, chosen, listening, own_process=False)


def run_foreground(path: str, target: str, settings: Settings,
                   banner: Callable[[dict[str, Any]], None] | None = None) -> int:
    """Serve in this process for the command line.

    Args:
        path: Where clients connect.
        target: `MODULE:NAME`.
        settings: The server's settings.
        banner: Called with the server's record once clients can connect.

    Returns:
        The exit status, 0.

    Raises:
        IpcError: As for `serve`.
    """
    standard_streams.open_closed()
    lifecycle.use_known_state(umask=False)
    _run_master(path, target, settings, banner)
    return 0


def _run_master(path: str, handler: str | Handler, settings: Settings,
                banner: Callable[[dict[str, Any]], None] | None = None, own_process: bool = True) -> None:
    from ..master import systemd
    from ..master.master import Master
    from ..platform import server as serving
    from . import inline, registry

    path = absolute(path)
    method = settings.resolved(serving.default_start_method()).start_method
    source = source_of(handler, inherit=method == "fork" or settings.workers == 0)
    if method != "fork" and settings.workers != 0:  # fresh interpreters, which import the main module of `serve` again
        check_program(None if own_process else source, needs_main=not own_process)

    def listening(master: Master) -> None:
        register(master.record())
        if banner is not None:
            banner(master.record())

    adopted = systemd.take_listener(path, os.environ, strict=own_process)
    inherited = frozenset(serving.open_descriptors() - ({adopted.fileno()} if adopted is not None else set()))
    make = functools.partial(Master, path, source, inherited=inherited, on_listening=listening, adopted=adopted,
                             own_process=own_process, notifier=systemd.take_notifier(os.environ))
    with registry.registration() as register:
        inline.run(settings, make)


def _unforked(settings: Settings) -> Settings:
    """Return settings under which this process is not forked while it has other threads."""
    from ..platform import server as serving

    method = settings.resolved(serving.default_start_method()).start_method
    if method == "fork" and threading.active_count() > 1:
        return replace(settings, start_method="forkserver")
    return settings


@contextlib.contextmanager
def _as_parent() -> Iterator[None]:
    """In a `multiprocessing.Process(daemon=True)`, which may have no children by default, allow them meanwhile.

    The default keeps such children from being left behind when their parent is ended; a master sees to its own.
    """
    processes = sys.modules.get("multiprocessing.process")
    current = processes.current_process() if processes is not None else None
    if current is None or not current.daemon:
        yield
        return
    current.daemon = False
    try:
        yield
    finally:
        current.daemon = True


# -- in the background ------------------------------------------------------------------------------------------------


class Server:
    """A server in background processes, for as long as this object (or this process) wants it.

    The handler must be importable by name, or picklable.  A program that passes a function of its own main module
    needs `if __name__ == "__main__":` around what starts the server.

    Example:
        >>> with ipcsrv.Server("./z.sock", "zlib:compress", workers=4) as server:
        ...     server.wait()

    Attributes:
        path: Where clients connect, absolute.
        pid: The master; None while it does not run.
    """

    def __init__(self, path: str | os.PathLike[str], handler: str | Handler, **settings: Unpack[SettingsDict]) -> None:
        """Describe a server; `start`, or a `with` block, starts it.

        Args:
            path: Where clients connect.
            handler: A callable that can be imported by name, or `MODULE:NAME`.
            **settings: See docs/settings.md; `IPCSRV_*` variables apply too.  Unless it is given, `log_level` is
                "warning": the server's log is this program's standard error.

        Raises:
            HandlerImportError: The handler cannot be found by another process.
            SettingsError: A setting is wrong.
        """
        self.path = absolute(path)
        self._source = source_of(handler)
        self._settings = _quiet(settings)
        self._started: Start | None = None
        self.pid: int | None = None

    def __repr__(self) -> str:
        """Return the path, the handler and the master's pid."""
        state = "not running" if self.pid is None else f"pid {self.pid}"
        return f"<ipcsrv.Server at {self.path!r}, handler {self._source.target}, {state}>"

    def __enter__(self) -> Self:
        """Start the server."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Drain and stop the server."""
        self.stop()

    def start(self, timeout: float | None = None) -> None:
        """Start the server; return when clients can connect.  A start that fails or times out leaves nothing.

        Args:
            timeout: Seconds; None for `startup_timeout` and 5 s.

        Raises:
            AddressInUse: Another server has the path.
            InvalidPath: A server cannot be at `path`.
            HandlerImportError: The handler cannot be imported.
            StartTimeout: It did not listen in time.
            StartError: It runs already, or could not start for another reason.
        """
        if self._started is not None:
            raise StartError("it runs already")
        deadline = Deadline(timeout)
        self._started, record = start(self.path, self._source, self._settings, deadline, detached=False)
        self.pid = record["pid"]

    def stop(self, timeout: float | None = None, *, now: bool = False) -> None:
        """Drain and stop the server; return when every process, the socket and the lock are gone.

        Args:
            timeout: Seconds; None for as long as `drain_timeout` allows.
            now: Do not wait for requests in progress.

        Raises:
            CallTimeout: It was still there after `timeout` seconds.
        """
        started = self._started
        if started is None:
            return
        if now:
            self._stop_now(started)
        assert started.process is not None and started.process.stdin is not None
        with contextlib.suppress(OSError):
            started.process.stdin.close()  # the server stops at the end of its lifeline
        self._await_end(started, timeout)
        self._forget()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the server has stopped by itself.

        Args:
            timeout: Seconds; None for no limit.

        Raises:
            CallTimeout: It runs after `timeout` seconds.
            IpcError: What ended it, such as `SocketStolen`, or `StartError` where its workers died too often.
        """
        started = self._started
        if started is None:
            return
        self._await_end(started, timeout)
        try:
            ending = started.next_report(Deadline(0))
        except TimeoutError:
            ending = {}
        self._forget()
        if "error" in ending:
            raise from_fields(ending["error"])

    def reload(self) -> None:
        """Start new workers with freshly imported code; return when they serve.

        Raises:
            ServerError: They did not start; the old workers go on.
        """
        reload(self.path)

    def scale(self, workers: int) -> None:
        """Change the number of workers.

        Args:
            workers: How many there are to be.

        Raises:
            ServerError: The number is not possible.
        """
        scale(self.path, workers)

    def status(self) -> dict[str, Any]:
        """Return what the server says of itself.

        Returns:
            The figures that docs/control.md describes.
        """
        return status(self.path)

    def _await_end(self, started: Start, timeout: float | None) -> None:
        from subprocess import TimeoutExpired

        assert started.process is not None
        try:
            started.process.wait(Deadline(timeout).remaining())
        except TimeoutExpired:
            raise CallTimeout(self.path, timeout) from None

    def _stop_now(self, started: Start) -> None:
        try:
            control.request(self.path, "stop", now=True)
        except IpcError:
            assert started.process is not None
            started.process.kill()  # no control socket, or no answer: its workers exit by themselves

    def _forget(self) -> None:
        started, self._started = self._started, None
        self.pid = None
        if started is not None:
            started.close()


def _quiet(settings: SettingsDict) -> Settings:
    """Return the settings; the log of a program's own server has what it must, unless the program asks for more."""
    chosen, sources = load(settings, environ=os.environ)
    return replace(chosen, log_level="warning") if sources["log_level"].how == "default" else chosen
