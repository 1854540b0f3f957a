"""Servers, as a program starts, steers and stops them.  Runs in the caller's process.

`serve` makes the calling process the master, and returns when the server has stopped.  `Server` and `start_daemon`
start a process for it (`background`): a fresh one, so that a program with threads is never forked, unless the caller
says that it may be.  They return only when clients can connect; what went wrong over there is raised here.
"""

from __future__ import annotations

import functools
import io
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import IO, TYPE_CHECKING, Any

from ..client import control
from ..client import sync as client
from ..config.handlers import Handler, HandlerSource, source_of
from ..config.settings import Settings, load, make
from ..config.values import LOG_STREAMS
from ..deadline import Deadline
from ..errors import (
    AddressInUse,
    CallTimeout,
    ConnectionLost,
    IpcError,
    NotListening,
    PathNotFound,
    ServerError,
    SettingsError,
    StartError,
)
from ..folders import absolute, working_folder
from ..platform import children, lifecycle
from ..state import State

if TYPE_CHECKING:
    import subprocess

    from .background import Order

_POLL = 0.01  # seconds between looks at what has no event: a file that is to vanish
_LATE = object()  # in place of a report that did not come
_START_MARGIN = 5.0  # seconds that a start may take beyond startup_timeout


# -- in the foreground ------------------------------------------------------------------------------------------------


def serve(path: str | os.PathLike[str], handler: str | Handler, **settings: Any) -> None:
    """Serve `handler` at `path` until the server is stopped; this process is its master.

    handler: a callable, or `MODULE:NAME`; settings: see docs/settings.md (`IPCSRV_*` variables apply too).
    SIGTERM and SIGINT drain and stop it, if this is the main thread.  With the start method `fork` any callable will
    do; elsewhere it must be importable by name.  A process with several threads is not forked: its workers are forked
    from a fresh process.

    Raises `AddressInUse`, `InvalidPath`, `HandlerImportError`, `SettingsError`, `StartError`, and `SocketStolen` if
    its path was taken away.
    """
    chosen = _unforked(_chosen(settings))
    _run_master(os.fspath(path), handler, chosen, own_process=False)


def run_foreground(path: str, target: str, settings: Settings,
                   banner: Callable[[dict[str, Any]], None] | None = None) -> int:
    """Serve in this process for the command line; `banner` is called with what to print once clients can connect."""
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


def _chosen(settings: dict[str, Any]) -> Settings:
    return load(settings, environ=os.environ)[0]


def _quiet(settings: dict[str, Any]) -> Settings:
    """The chosen settings; a program that has a server of its own hears of it only what it must, unless it asks."""
    chosen, sources = load(settings, environ=os.environ)
    return replace(chosen, log_level="warning") if sources["log_level"].how == "default" else chosen


def _unforked(settings: Settings) -> Settings:
    """Settings under which this process is not forked while it has other threads."""
    from ..platform import server as serving

    method = settings.resolved(serving.default_start_method()).start_method
    if method == "fork" and threading.active_count() > 1:
        return replace(settings, start_method="forkserver")
    return settings


# -- in the background ------------------------------------------------------------------------------------------------


class Server:
    """A server in background processes, for as long as this object (or this process) wants it.

        with ipcsrv.Server("./z.sock", "zlib:compress", workers=4) as server:
            ...
            server.wait()

    The arguments are those of `serve`; the handler must be importable by name, or picklable.  `start` returns when
    clients can connect, and raises what kept the server from it.
    """

    def __init__(self, path: str | os.PathLike[str], handler: str | Handler, **settings: Any) -> None:
        self.path = absolute(path)
        self._source = source_of(handler)
        self._settings = _quiet(settings)
        self._process: subprocess.Popen[bytes] | None = None
        self.pid: int | None = None

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, timeout: float | None = None) -> None:
        """Start the server; returns when clients can connect.

        timeout: in seconds; `startup_timeout` and a little more if not given.  Raises as `serve` does, and
        `StartError` where it does not listen in time.
        """
        if self._process is not None:
            raise StartError("it runs already")
        self._process, record = _launch(self.path, self._source, self._settings, timeout, detached=False)
        self.pid = record["pid"]

    def stop(self, timeout: float | None = None, *, now: bool = False) -> None:
        """Drain (not if `now`) and stop; returns when every process, the socket and the lock are gone.

        timeout: in seconds, after which `CallTimeout` is raised; None waits as long as `drain_timeout` allows.
        """
        process = self._process
        if process is None:
            return
        if now:
            _stop_now(self.path, process)
        assert process.stdin is not None
        process.stdin.close()  # the server stops at the end of its lifeline
        self._await_end(process, timeout)
        self._forget()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the server has stopped by itself; raises what ended it, or `CallTimeout`."""
        process = self._process
        if process is None:
            return
        self._await_end(process, timeout)
        assert process.stdout is not None
        ending = _next_report(process.stdout)
        self._forget()
        if isinstance(ending, IpcError):
            raise ending

    def reload(self) -> None:
        """New workers with freshly imported code; returns when they serve, raises `ServerError` if they do not."""
        reload(self.path)

    def scale(self, workers: int) -> None:
        """Have so many workers."""
        scale(self.path, workers)

    def status(self) -> dict[str, Any]:
        """What the server says of itself (docs/control.md)."""
        return status(self.path)

    def _await_end(self, process: subprocess.Popen[bytes], timeout: float | None) -> None:
        from subprocess import TimeoutExpired

        try:
            process.wait(timeout)
        except TimeoutExpired:
            raise CallTimeout(self.path, timeout) from None

    def _forget(self) -> None:
        process, self._process = self._process, None
        self.pid = None
        if process is not None:
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()


def start_daemon(path: str, target: str | Handler, settings: Settings, *, timeout: float | None = None,
                 may_fork: bool = False, cwd: str | None = None) -> dict[str, Any]:
    """Start a server that outlives this process; returns what it says of itself (pid, log_file, ...) once it listens.

    Its standard streams are closed and its log goes to `log_file`, or to a file of the user's state folder.
    timeout: in seconds; `startup_timeout` and a little more if not given.
    may_fork: this process is short-lived and the caller's own: it may be forked (quicker than a fresh interpreter).
    cwd: the folder that it runs in, if not this process's.
    Raises as `Server.start` does.
    """
    if settings.log_file in LOG_STREAMS:
        raise SettingsError("a server in the background has no standard streams; name a file", name="log_file")
    log_file = default_log_file(path) if settings.log_file is None else absolute(settings.log_file)
    settings, path = replace(settings, log_file=log_file), absolute(path)
    if may_fork and cwd is None and lifecycle.fork_detached is not None and threading.active_count() == 1:
        return _launch_forked(path, source_of(target), settings, timeout)
    process, record = _launch(path, source_of(target), settings, timeout, detached=True, cwd=cwd)
    for stream in (process.stdin, process.stdout):
        assert stream is not None
        stream.close()
    process.returncode = 0  # it is nobody's child to wait for: no ResourceWarning that it still runs
    return record


def _launch_forked(path: str, source: HandlerSource, settings: Settings, timeout: float | None) -> dict[str, Any]:
    """Fork the server off, and wait for its first report."""
    assert lifecycle.fork_detached is not None

    def run(descriptor: int) -> int:
        from .background import Order, serve_forked

        return serve_forked(Order(path, source, settings, None, detached=True), descriptor)

    deadline = _start_deadline(settings, timeout)
    pid, descriptor = lifecycle.fork_detached(run, settings.log_file)
    with os.fdopen(descriptor, "rb") as reports:
        report = _report_within(deadline, reports, lambda: lifecycle.kill(pid))
    if not isinstance(report, dict):
        os.waitpid(pid, 0)
    return _good_report(report, deadline, settings)


def ensure_running(path: str | os.PathLike[str], target: str | Handler, *, timeout: float | None = 30.0,
                   **settings: Any) -> bool:
    """Start a server at `path` in the background unless one listens there; True if this call started it.

    Of any number of callers at the same time one starts it; all return when clients can connect.
    timeout: in seconds, for all of it.  Raises as `Server.start` does.
    """
    path, deadline = os.fspath(path), Deadline(timeout)
    while client.active_state(path) is not State.LISTENING:
        try:
            start_daemon(path, target, _chosen(settings), timeout=deadline.remaining())
            return True
        except AddressInUse:
            if deadline.expired:
                raise
        _wait_for_another(path, deadline)
    return False


def _wait_for_another(path: str, deadline: Deadline) -> None:
    """Another process is starting the server: wait until it listens, or has given up."""
    while not deadline.expired:
        if client.active_state(path) is State.LISTENING or not lifecycle.is_locked(path):
            return
        time.sleep(_POLL)


def default_log_file(path: str) -> str:
    """Where the log of a detached server goes unless `log_file` says otherwise: in a folder of the user's own."""
    from binascii import crc32

    folder = lifecycle.log_folder()
    path = absolute(path)
    digest = f"{crc32(os.fsencode(path)):08x}"  # no secret: only to tell paths with the same end apart
    return os.path.join(folder, f"{os.path.basename(path)[:64]}-{digest}.log")


def _launch(path: str, source: HandlerSource, settings: Settings, timeout: float | None,
            *, detached: bool, cwd: str | None = None) -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
    """Start the process, give it its order, and wait for its first report."""
    import pickle  # here: a server that is forked needs neither
    import subprocess

    order = pickle.dumps(_order(path, source, settings, detached, cwd))
    deadline = _start_deadline(settings, timeout)
    errors = lifecycle.open_log(settings.log_file) if detached else None
    try:
        process = subprocess.Popen(
            children.command("ipcsrv.server.background"),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, **lifecycle.detached() if detached else {},
        )
    finally:
        if errors is not None:
            os.close(errors)
    try:
        return process, _first_report(process, order, deadline, settings)
    except BaseException:
        _reap(process)
        raise


def _order(path: str, source: HandlerSource, settings: Settings, detached: bool, cwd: str | None) -> Order:
    from multiprocessing import spawn

    from .background import Order

    with children.starting():
        preparation = spawn.get_preparation_data("ipcsrv-master")
    preparation["dir"] = cwd or working_folder() or os.sep
    preparation.pop("authkey", None)  # a secret of the starter's own
    if source.pickled is None or b"__main__" not in source.pickled:
        preparation.pop("init_main_from_path", None)  # the handler is not in the main module: leave that alone
        preparation.pop("init_main_from_name", None)
    return Order(path, source, Settings.from_json(settings.to_json()), preparation, detached)  # hooks by their names


def _start_deadline(settings: Settings, timeout: float | None) -> Deadline:
    return Deadline(settings.startup_timeout + _START_MARGIN if timeout is None else timeout)


def _first_report(process: subprocess.Popen[bytes], order: bytes, deadline: Deadline,
                  settings: Settings) -> dict[str, Any]:
    """The record of the server that listens now; raises what it reported instead."""
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(order)  # it reads this before anything else
        process.stdin.flush()
    except OSError:
        pass  # it died: the report says why, or that there is none
    return _good_report(_report_within(deadline, process.stdout, process.kill), deadline, settings)


def _report_within(deadline: Deadline, stream: IO[bytes], kill: Callable[[], None]) -> Any:
    """The next report; `_LATE`, and a process that is killed, if none comes in time."""
    reports: list[Any] = []
    reader = threading.Thread(target=lambda: reports.append(_next_report(stream)), daemon=True)
    reader.start()
    reader.join(deadline.remaining())
    if reports:
        return reports[0]
    kill()
    reader.join()
    return _LATE


def _good_report(report: Any, deadline: Deadline, settings: Settings) -> dict[str, Any]:
    """`report`, if it is that the server listens; raises what it is otherwise."""
    if isinstance(report, dict):
        return report
    if isinstance(report, IpcError):
        raise report
    if report is _LATE:
        raise StartError(f"it did not listen within {deadline.timeout:g} s", settings.log_file)
    raise StartError("its process ended before it listened", settings.log_file)


def _next_report(stream: IO[bytes] | None) -> Any:
    """The next report: the record of a server that listens (JSON), how one ended (a pickle), or None at the end."""
    assert isinstance(stream, io.BufferedReader)
    try:
        if stream.peek(1).startswith(b"{"):
            return json.loads(stream.readline())
    except (OSError, ValueError):
        return None
    import pickle

    try:
        return pickle.load(stream)  # from our own child, over a private pipe
    except (EOFError, OSError, pickle.UnpicklingError):
        return None


def _reap(process: subprocess.Popen[bytes]) -> None:
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            try:
                stream.close()
            except OSError:
                pass  # unwritten bytes of the order
    process.wait()


def _stop_now(path: str, process: subprocess.Popen[bytes]) -> None:
    try:
        control.request(path, "stop", now=True)
    except IpcError:
        process.kill()  # no control socket, or no answer: its workers go by themselves


# -- steering a server, wherever it runs ------------------------------------------------------------------------------


def status(path: str | os.PathLike[str], timeout: float | None = 5.0) -> dict[str, Any]:
    """What the server at `path` says of itself (docs/control.md); raises `NotListening`, `CallTimeout`, ..."""
    return control.request(os.fspath(path), "status", timeout=timeout)


def reload(path: str | os.PathLike[str], timeout: float | None = None) -> dict[str, Any]:
    """Have new workers with freshly imported code; returns when they serve, raises `ServerError` if they do not."""
    return control.request(os.fspath(path), "reload", timeout=timeout)


def scale(path: str | os.PathLike[str], workers: int) -> dict[str, Any]:
    """Have so many workers; raises `ServerError` for a number that is not possible."""
    return control.request(os.fspath(path), "scale", workers=workers)


def stop(path: str | os.PathLike[str], *, now: bool = False, timeout: float | None = None,
         report: Callable[[str], None] | None = None) -> None:
    """Stop the server at `path`; returns when socket, lock and every process are gone.

    now: do not wait for requests in progress; a server that does not answer is killed.
    timeout: in seconds; if not given, the server's drain_timeout and a little more.
    report: told, a line at a time, what is being waited for.
    Raises `NotListening` if there is no server, `CallTimeout` if it is still there at the end.
    """
    path = absolute(path)
    record = lifecycle.record(path)
    if record is None:
        if client.active_state(path) is State.LISTENING:
            reason = "a server listens there that is not an ipcsrv of yours; stop it in its own way"
            raise ServerError("control", reason, path)
        raise (NotListening if os.path.lexists(path) else PathNotFound)(path)
    drain = record.get("settings", {}).get("drain_timeout") or 0.0
    deadline = Deadline((10.0 if now else drain + _START_MARGIN) if timeout is None else timeout)
    _ask_to_stop(path, record, now)
    if not lifecycle.wait_gone(path, record, deadline if not now else Deadline(2.0), _still_there(path, report)):
        if not now:
            raise CallTimeout(path, deadline.timeout)
        lifecycle.kill_all(path, record)
        if not lifecycle.wait_gone(path, record, deadline, None):
            raise CallTimeout(path, deadline.timeout)
    lifecycle.clean_up(path)


def _ask_to_stop(path: str, record: dict[str, Any], now: bool) -> None:
    """By the control socket; by a signal where it has none, or does not answer."""
    try:
        control.request(path, "stop", now=now, timeout=2.0)
    except ConnectionLost:
        pass  # it was quicker with stopping than with answering
    except IpcError:
        lifecycle.ask_to_stop(record, now)


def _still_there(path: str, report: Callable[[str], None] | None) -> Callable[[], None] | None:
    """What to do every few seconds while waiting: say what for."""
    if report is None:
        return None

    def say() -> None:
        try:
            workers = control.request(path, "status", timeout=1.0)["workers"]
        except IpcError:
            report(f"{path}: still waiting for the server to end")
            return
        busy = [f"{worker['pid']} (busy for {worker['busy_seconds']:.0f} s)"
                for worker in workers if worker["busy_seconds"]]
        report(f"{path}: waiting for workers {', '.join(busy) or 'to leave'}")

    return say


def restart(path: str | os.PathLike[str], timeout: float | None = None) -> dict[str, Any]:
    """Stop the server at `path` and start it again with the same handler, settings and working directory."""
    path, deadline = absolute(path), Deadline(timeout)
    record = lifecycle.record(path)
    if record is None:
        raise (NotListening if os.path.lexists(path) else PathNotFound)(path)
    if not os.path.isdir(record["cwd"]):  # before it is stopped, or there would be no server at all
        raise StartError(f"the folder it was started in, {record['cwd']}, is gone")
    os.close(lifecycle.open_log(record["log_file"]))  # the same for a log that cannot be opened
    stop(path, timeout=deadline.remaining())
    settings = make(**{**record["settings"], "log_file": record["log_file"]})
    return start_daemon(path, record["handler"], settings, timeout=deadline.remaining(), cwd=record["cwd"])
