"""Start a server in a process of its own and wait until it listens.  Runs in the caller's process.

One way for `Server`, `start_daemon` and `ensure_running`: a fresh interpreter, because a program with threads must not
be forked; or, for a short-lived command whose process is its own, a fork.  The new process (`background`) reports once
that it listens, or why it does not, and once how it ended.

No thread waits here and nothing waits for a detached process: Ctrl-C, and the end of the interpreter, must work at
every moment.  A start that fails, or that is given up with its server, leaves no process.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .. import standard_streams
from ..config.handlers import pickled, source_of
from ..config.settings import TABLE, Settings
from ..config.values import LOG_STREAMS, NO_STREAMS, name_of
from ..deadline import Deadline
from ..errors import HandlerImportError, IpcError, SettingsError, StartError, StartTimeout, from_fields
from ..folders import absolute, working_folder
from ..platform import children, lifecycle
from ..platform import client as platform
from ..platform.log_file import open_log

if TYPE_CHECKING:
    import subprocess

    from ..config.handlers import Handler, HandlerSource
    from .background import Order

START_MARGIN = 5.0  # seconds that a start may take beyond startup_timeout
END_PATIENCE = 0.5  # seconds for a start that is given up to end by itself, before it is killed
_READ_SIZE = 65536
_MAIN = b"__main__"  # in what is pickled, if it is found by way of the main module

_NO_GUARD = """\
an attempt has been made to start a server before the current process has finished its bootstrapping phase. \
This means that the program's main module is imported again by the server's processes, and starts a server when it is \
imported; use the idiom `if __name__ == "__main__":` around what starts the server"""
_FROZEN = (
    "this program is frozen, so its interpreter cannot be started again for a server's process; "
    "start the server with the command `ipcsrv start`, or call `serve` with start_method fork"
)
_NOT_IMPORTABLE = (
    "it is defined in a program from -c, from standard input or in an interactive session, which another process "
    "cannot import; put it into a module"
)


def check_unpatched() -> None:
    """Raise where a library has replaced the waiting of this process by its own, which forked processes do not have.

    Raises:
        StartError: gevent or eventlet has patched the standard library.
    """
    for library, module, name in (("gevent", "gevent.monkey", "is_module_patched"),
                                  ("eventlet", "eventlet.patcher", "is_monkey_patched")):  # fmt: skip
        is_patched = getattr(sys.modules.get(module), name, None)
        if is_patched is not None and is_patched("select"):
            raise StartError(f"{library} has patched this process; use `ipcsrv.Server` or `ipcsrv.ensure_running`, "
                             "which start a process for the server")


def check_program(source: HandlerSource | None = None, *, needs_main: bool = True) -> None:
    """Raise the one clear error where this program cannot start a server's processes.

    Args:
        source: The handler that they will have to find; None where it is inherited.
        needs_main: Whether they import the main module again.

    Raises:
        StartError: The main module is being imported by such a process, or would start another server in it
            (multiprocessing's programming guidelines, "Safe importing of main module"); or the program is frozen.
        HandlerImportError: The handler is in a main module that cannot be imported.
    """
    processes = sys.modules.get("multiprocessing.process")
    if processes is not None and getattr(processes.current_process(), "_inheriting", False):
        raise StartError(_NO_GUARD)
    if getattr(sys, "frozen", False):
        raise StartError(_FROZEN)
    if source is not None and in_main(source):
        _require_main_file(source.target)
    if needs_main and _starts_in_bare_main():
        raise StartError(_NO_GUARD)


def in_main(source: HandlerSource | None) -> bool:
    """Return whether a handler is found by way of the program's main module."""
    return source is not None and source.pickled is not None and _MAIN in source.pickled


def _require_main_file(target: str, what: str = "handler") -> None:
    if not _main_file():
        raise HandlerImportError(target, reason=_NOT_IMPORTABLE, what=what)


def _main_file() -> str | None:
    """Return the file that another process can import the main module from."""
    main = sys.modules.get("__main__")
    file = getattr(main, "__file__", None)
    return file if isinstance(file, str) and os.path.isfile(file) else None


def _starts_in_bare_main() -> bool:
    """Whether a server is being started by a main module as it is imported, with no look at its `__name__`."""
    file, frame = _main_file(), sys._getframe(1)
    if file is None or getattr(sys.modules["__main__"], "__spec__", None) is not None:
        return False
    while frame.f_back is not None:
        frame = frame.f_back
    if frame.f_code.co_name != "<module>" or frame.f_globals.get("__name__") != "__main__":
        return False
    try:
        with open(file, "rb") as source:
            return b"__name__" not in source.read()
    except OSError:
        return False


class Start:
    """A server's process, from its start until it has listened and, for a `Server`, until it has ended."""

    def __init__(self, settings: Settings, pid: int, reports: int, process: subprocess.Popen[bytes] | None) -> None:
        """Take over a process that was just started.

        Args:
            settings: The server's settings.
            pid: The process.
            reports: The descriptor that it writes its reports to; closed by `close`.
            process: The same, if it is a fresh interpreter; its standard input is the lifeline of a `Server`.
        """
        self.pid = pid
        self._settings = settings
        self._reports = reports
        self.process = process
        self._buffer = b""
        self._left = False

    def wait_until_listening(self, caller: Deadline, *, abandon: bool) -> dict[str, Any]:
        """Wait for the first report.

        Args:
            caller: How long the caller can wait; the start itself has `startup_timeout` and a margin.
            abandon: Leave the start to itself when the caller's time is over, and not end it.

        Returns:
            The record of the server (docs/control.md).

        Raises:
            IpcError: What kept the server from listening.
            StartTimeout: It did not listen in time.
        """
        own = Deadline(self._settings.startup_timeout + START_MARGIN)
        remaining = caller.remaining()
        is_callers = remaining is not None and remaining < (own.remaining() or 0.0)
        deadline = caller if is_callers else own
        try:
            report = self.next_report(deadline)
        except TimeoutError:
            if is_callers and abandon:
                self.leave()
                raise StartTimeout(caller.timeout, self._settings.log_file, goes_on=True) from None
            raise StartTimeout(deadline.timeout, self._settings.log_file) from None
        if "listening" not in report:
            raise self.failure(report)
        record: dict[str, Any] = report["listening"]
        return record

    def failure(self, report: dict[str, Any]) -> IpcError:
        """Return the error in a report, or that there was none.

        Args:
            report: What came in place of the one that was expected.
        """
        if isinstance(report.get("error"), dict):
            return from_fields(report["error"])
        return StartError("its process ended before it listened", self._settings.log_file)

    def next_report(self, deadline: Deadline) -> dict[str, Any]:
        """Return the next report: `{"listening": record}`, `{"error": fields}` or `{}` for a good end.

        Args:
            deadline: How long to wait.

        Raises:
            TimeoutError: None came in time.
        """
        while b"\n" not in self._buffer:
            data = platform.read_within(self._reports, _READ_SIZE, deadline)
            if not data:  # its end
                return {}
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        report: dict[str, Any] = json.loads(line)
        return report

    def leave(self) -> None:
        """Let a detached server live on by itself."""
        self._left = True
        lifecycle.leave_alone(self.pid)
        self.close()
        if self.process is not None:
            self.process.returncode = 0  # it is left alone on purpose: no ResourceWarning that it still runs

    def end(self) -> None:
        """End the process and everything that it has started, unless it was left; returns when it is gone."""
        if self._left:
            return
        try:
            self.close()  # the end of its lifeline, too
        finally:
            lifecycle.end_start(self.pid, END_PATIENCE)
            if self.process is not None:
                self.process.returncode = -1

    def close(self) -> None:
        """Close the pipes."""
        if self.process is not None:
            for stream in (self.process.stdin, self.process.stdout):
                if stream is not None:
                    try:
                        stream.close()
                    except OSError:
                        pass  # a part of the order was not written
        elif self._reports >= 0:
            os.close(self._reports)
        self._reports = -1


def start(path: str, source: HandlerSource, settings: Settings, caller: Deadline, *, detached: bool,
          may_fork: bool = False, abandon: bool = False, cwd: str | None = None) -> tuple[Start, dict[str, Any]]:
    """Start a server and wait until it listens.

    Args:
        path: Where it is to listen, absolute.
        source: Its handler.
        settings: Its settings.
        caller: How long the caller can wait.
        detached: It outlives this process; else it ends with it.
        may_fork: This process is short-lived and the caller's own, and may be forked.
        abandon: As for `Start.wait_until_listening`.
        cwd: The folder that it runs in, if not this process's.

    Returns:
        The started server and its record.

    Raises:
        IpcError: What kept it from listening.
    """
    check_program(source, needs_main=in_main(source))
    standard_streams.open_closed()
    lifecycle.reap_left_alone()
    started: Start | None = None
    try:
        with lifecycle.held_interrupts():  # or Ctrl-C could come between the start and the note of it
            if may_fork and cwd is None and threading.active_count() == 1:
                started = _fork(path, source, settings)
            if started is None:
                started = _spawn(path, source, settings, detached=detached, cwd=cwd)
        return started, started.wait_until_listening(caller, abandon=abandon)
    except BaseException:
        if started is not None:
            started.end()
        raise


def _fork(path: str, source: HandlerSource, settings: Settings) -> Start | None:
    """Fork a detached server off; None where that cannot be done."""
    def run(descriptor: int) -> int:
        from .background import Order, serve_forked

        return serve_forked(Order(path, source, settings, {}, None, detached=True), descriptor)

    forked = lifecycle.fork_detached(run, settings.log_file)
    return None if forked is None else Start(settings, *forked, None)


def _spawn(path: str, source: HandlerSource, settings: Settings, *, detached: bool, cwd: str | None,
           only_check: bool = False) -> Start:
    """Start a fresh interpreter and give it its order."""
    import pickle  # here: a server that is forked needs neither
    import subprocess

    order = pickle.dumps(replace(_order(path, source, settings, detached, cwd), only_check=only_check))
    errors = open_log(settings.log_file) if detached else None
    try:
        process = subprocess.Popen(
            children.command("ipcsrv.server.background"),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
            env=os.environ.copy(),  # exec(2) without one reads what another thread may be changing
            **lifecycle.detached() if detached else {},
        )
    finally:
        if errors is not None:
            os.close(errors)
    assert process.stdin is not None and process.stdout is not None
    started = Start(settings, process.pid, process.stdout.fileno(), process)
    try:
        process.stdin.write(order)  # it reads this before anything else
        process.stdin.flush()
    except OSError:
        pass  # it died: its report says why, or that there is none
    except BaseException:
        started.end()
        raise
    return started


def _order(path: str, source: HandlerSource, settings: Settings, detached: bool, cwd: str | None) -> Order:
    from multiprocessing import spawn

    from .background import Order

    with children.starting():
        preparation = spawn.get_preparation_data("ipcsrv-master")
    preparation["dir"] = cwd or working_folder() or os.sep
    preparation.pop("authkey", None)  # a secret of the starter's own
    values = {setting.name: getattr(settings, setting.name) for setting in TABLE}
    hooks = {name: (name_of(value), pickled(value, name)) for name, value in values.items() if callable(value)}
    needs_main = in_main(source)
    for name, (target, data) in hooks.items():
        if _MAIN in data:
            needs_main = True
            _require_main_file(target, name)
    if not needs_main:
        preparation.pop("init_main_from_path", None)  # nothing is in the main module: leave that alone
        preparation.pop("init_main_from_name", None)
    without: dict[str, Any] = dict.fromkeys(hooks)
    return Order(path, source, replace(settings, **without), hooks, preparation, detached)


def check_daemon(path: str, target: str, settings: Settings, *, timeout: float | None, cwd: str) -> None:
    """Raise what would keep a detached server from starting, except that another one has the path.

    The handler is imported in a process of its own, whose output goes to the log.

    Args:
        path: Where it is to listen, absolute.
        target: Its handler.
        settings: Its settings, with a log.
        timeout: Seconds to wait; None for `startup_timeout` and 5 s.
        cwd: The folder that it runs in.

    Raises:
        IpcError: As for `start_daemon`.
    """
    import subprocess

    source = source_of(target)
    check_program(source, needs_main=in_main(source))
    standard_streams.open_closed()
    deadline = Deadline(settings.startup_timeout + START_MARGIN if timeout is None else timeout)
    with lifecycle.held_interrupts():
        started = _spawn(path, source, settings, detached=True, cwd=cwd, only_check=True)
    assert started.process is not None
    try:
        report = started.next_report(deadline)
        with contextlib.suppress(subprocess.TimeoutExpired):  # threads of the handler's module may keep it
            started.process.wait(END_PATIENCE)
    except TimeoutError:
        raise StartTimeout(deadline.timeout, settings.log_file) from None
    finally:
        if started.process.returncode is None:
            started.end()
        else:
            started.close()
    if "checked" not in report:
        raise started.failure(report)


def start_daemon(path: str, target: str | Handler, settings: Settings, *, timeout: float | None = None,
                 may_fork: bool = False, abandon: bool = False, cwd: str | None = None) -> dict[str, Any]:
    """Start a server that outlives this process; return its record once it listens.

    Its standard streams are closed and its log goes to `log_file`, or to a file in the user's state folder.

    Args:
        path: Where it is to listen.
        target: Its handler.
        settings: Its settings.
        timeout: Seconds to wait for it; None for `startup_timeout` and 5 s.
        may_fork: This process is short-lived and the caller's own, and may be forked, which is quicker.
        abandon: Leave the start to itself after `timeout`, and not end it.
        cwd: The folder that it runs in, if not this process's.

    Returns:
        The record of the server: pid, log_file, ... (docs/control.md).

    Raises:
        IpcError: What kept it from listening, as for `Server.start`.
    """
    if settings.log_file in LOG_STREAMS:
        raise SettingsError(NO_STREAMS, name="log_file")
    log_file = default_log_file(path) if settings.log_file is None else absolute(settings.log_file)
    settings, path = replace(settings, log_file=log_file), absolute(path)
    started, record = start(path, source_of(target), settings, Deadline(timeout), detached=True, may_fork=may_fork,
                            abandon=abandon, cwd=cwd)
    started.leave()
    return record


def default_log_file(path: str) -> str:
    """Return where the log of a detached server goes unless `log_file` says otherwise: a folder of the user's own.

    Args:
        path: Where the server listens.

    Returns:
        The log's absolute path; its folder exists.
    """
    from binascii import crc32

    folder = lifecycle.log_folder()
    path = absolute(path)
    digest = f"{crc32(os.fsencode(path)):08x}"  # no secret: only to tell paths with the same end apart
    return os.path.join(folder, f"{os.path.basename(path)[:64]}-{digest}.log")
