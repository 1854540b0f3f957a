"""Status, reload, scale, stop and restart of a server by its path, wherever it runs.  Runs in the caller's process."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NoReturn

from ..client import control
from ..client import sync as client
from ..deadline import Deadline
from ..errors import (
    CallTimeout,
    ConnectionLost,
    IpcError,
    NotListening,
    ServerError,
    SettingsError,
    StartError,
)
from ..folders import absolute
from ..platform import lifecycle
from ..platform.log_file import open_log
from ..state import State

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..client.sync import Path
    from ..config.settings import Settings

STOP_MARGIN = 5.0  # seconds that a stop may take beyond drain_timeout
NOW_PATIENCE = 2.0  # seconds for a server to stop at once by itself, before it is killed


def status(path: Path, timeout: float | None = 5.0) -> dict[str, Any]:
    """Return what the server at `path` says of itself; it answers also when every worker is busy.

    Args:
        path: Where the server listens.
        timeout: Seconds to wait for the answer; None for no limit.

    Returns:
        The figures that docs/control.md describes.

    Raises:
        NotListening: No server listens at `path`.
        CallTimeout: It did not answer in time.
        Untrusted: Another user runs it.
        ServerError: It has no control socket.

    Example:
        >>> ipcsrv.status("./z.sock")["totals"]["requests"]
    """
    return control.request(os.fspath(path), "status", timeout=timeout)


def reload(path: Path, timeout: float | None = None) -> dict[str, Any]:
    """Start new workers with freshly imported code; return when they serve.

    Requests that are being handled end in the old workers.  If the import fails, the old workers go on.

    Args:
        path: Where the server listens.
        timeout: Seconds to wait; None for as long as the server takes, which `startup_timeout` bounds.

    Returns:
        The server's answer; `generation` is the number of the new generation.

    Raises:
        NotListening: No server listens at `path`.
        CallTimeout: It did not answer in time; the reload goes on.
        ServerError: The new workers did not start; the text says why.

    Example:
        >>> ipcsrv.reload("./z.sock")
    """
    return control.request(os.fspath(path), "reload", timeout=timeout)


def scale(path: Path, workers: int, timeout: float | None = 5.0) -> dict[str, Any]:
    """Change the number of workers; return when the server has taken note.

    Args:
        path: Where the server listens.
        workers: How many workers there are to be.
        timeout: Seconds to wait for the answer; None for no limit.

    Returns:
        The server's answer; `workers` is the number.

    Raises:
        NotListening: No server listens at `path`.
        CallTimeout: It did not answer in time.
        ServerError: The number is not possible; the text says which are.

    Example:
        >>> ipcsrv.scale("./z.sock", 4)
    """
    return control.request(os.fspath(path), "scale", workers=workers, timeout=timeout)


def stop(path: Path, *, now: bool = False, timeout: float | None = None,
         report: Callable[[str], None] | None = None) -> None:
    """Stop the server at `path`; return when its socket, its lock and every process are gone.

    Where a killed server has left files, they are removed, and the error says so.

    Args:
        path: Where the server listens.
        now: Do not wait for requests in progress; a server that does not react is killed.
        timeout: Seconds to wait; None for the server's `drain_timeout` and 5 s.
        report: Called with a line of text, every few seconds with what is being waited for.

    Raises:
        NotListening: No server is there.
        CallTimeout: It was still there at the end.
        ServerError: The server is not an ipcsrv of this user, or cannot be ended from here.

    Example:
        >>> ipcsrv.stop("./z.sock")
    """
    _stop(absolute(path), now, timeout, report)


def stop_if(path: str, pid: int | None, timeout: float | None) -> None:
    """Stop the server at `path` if it is the one with this pid; do nothing if it is another by now.

    Args:
        path: Where the server listens, absolute.
        pid: The master.
        timeout: Seconds to wait; None as for `stop`.

    Raises:
        IpcError: As for `stop`.
    """
    _stop(path, False, timeout, None, pid)


def _stop(path: str, now: bool, timeout: float | None, report: Callable[[str], None] | None,
          only_pid: int | None = None) -> None:
    record = find_record(path)
    if record is None:
        _remove_remains(path)
    if only_pid is not None and record.get("pid") != only_pid:
        return
    drain = record.get("settings", {}).get("drain_timeout") or 0.0
    deadline = Deadline((10.0 if now else drain + STOP_MARGIN) if timeout is None else timeout)
    if not _ask_to_stop(path, record, now, deadline, only_pid):
        return
    first = Deadline(min(NOW_PATIENCE, deadline.remaining() or NOW_PATIENCE)) if now else deadline
    if not lifecycle.wait_gone(path, record, first, _still_there(path, report)):
        if lifecycle.is_elsewhere(record):
            reason = "it does not stop, and its processes are in another pid namespace; stop it in its container"
            raise ServerError("control", reason, path)
        if not now:
            raise CallTimeout(path, deadline.timeout)
        lifecycle.kill_all(path, record)
        if not lifecycle.wait_gone(path, record, deadline, None):
            raise CallTimeout(path, deadline.timeout)
    lifecycle.clean_up(path)


def find_record(path: str) -> dict[str, Any] | None:
    """Return the record of the server at `path`: from its lock file, or, where a cleaner removed that, from the server.

    Args:
        path: Where the server listens, absolute.

    Returns:
        The record (docs/control.md); None if no server of this user, or of root, is there.
    """
    record = lifecycle.record(path)
    if record is not None:
        return record
    try:
        answer = control.request(path, "status", timeout=2.0)
    except (IpcError, OSError):
        return None
    return {**answer, "workers": [worker.get("pid") for worker in answer.get("workers", ())]}


def no_server(path: str) -> IpcError:
    """Return the error for a path without a server.

    Args:
        path: The path.

    Returns:
        What a client that connects is told: `PathNotFound`, `NotListening`, `InvalidPath`.
    """
    return control.fault_of(path) or NotListening(path)


def _remove_remains(path: str) -> NoReturn:
    if client.active_state(path) is State.LISTENING:
        reason = "the server there is not an ipcsrv of yours; stop it in its own way"
        raise ServerError("control", reason, path)
    removed = lifecycle.clean_up(path) if lifecycle.remains(path) else []
    if removed:
        names = ", ".join(map(os.path.basename, removed))
        raise NotListening(path, f"it was killed, and its files were removed ({names})")
    raise no_server(path)


def _ask_to_stop(path: str, record: dict[str, Any], now: bool, deadline: Deadline, only_pid: int | None) -> bool:
    """Ask by the control socket, by a signal where it has none or does not answer; False if it is another server."""
    remaining = deadline.remaining()
    patience = 2.0 if remaining is None else min(2.0, remaining)
    try:
        control.request(path, "stop", now=now, timeout=patience, **({} if only_pid is None else {"if_pid": only_pid}))
    except ConnectionLost:
        pass  # it was quicker with stopping than with answering
    except ServerError as error:
        if only_pid is not None and "another server" in error.message:
            return False
        lifecycle.ask_to_stop(record, now)
    except IpcError:
        lifecycle.ask_to_stop(record, now)
    return True


def _still_there(path: str, report: Callable[[str], None] | None) -> Callable[[], None] | None:
    """Return what to do every few seconds while waiting: report what for."""
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
        report(f"{path}: waiting for workers {', '.join(busy) or 'to exit'}")

    return say


def restart(path: Path, timeout: float | None = None) -> dict[str, Any]:
    """Stop the server at `path` and start it again with the same handler, settings and working folder.

    Before it is stopped, its handler is imported once in another process, and path and settings are checked.
    Only for a server in the background: one in the foreground belongs to its terminal or supervisor.

    Args:
        path: Where the server listens.
        timeout: Seconds for all of it; None for `drain_timeout`, `startup_timeout` and a margin.

    Returns:
        The record of the new server.

    Raises:
        NotListening: No server is there.
        SettingsError: It runs in the foreground, or its handler cannot be imported by name.
        StartError: It cannot be started again; where that is known beforehand, it was not stopped.
        HandlerImportError: The handler cannot be imported; it was not stopped.
        InvalidPath: The folder or a lock file is not as a start needs it; it was not stopped.
        CallTimeout: It did not stop in time.

    Example:
        >>> ipcsrv.restart("./z.sock")
    """
    from .starting import check_daemon, start_daemon

    path, deadline = absolute(path), Deadline(timeout)
    record = find_record(path)
    if record is None:
        raise no_server(path)
    settings = _startable(path, record)
    check_daemon(path, record["handler"], settings, timeout=deadline.remaining(), cwd=record["cwd"])
    stop(path, timeout=deadline.remaining())
    return start_daemon(path, record["handler"], settings, timeout=deadline.remaining(), cwd=record["cwd"])


def _startable(path: str, record: dict[str, Any]) -> Settings:
    """Return the settings of a server that can be started again; raises where that can be known not to work.

    All is looked at before the server is stopped, or there would be no server at all; `check_daemon` does the rest.
    """
    from ..config.settings import make

    if not record.get("detached"):
        raise SettingsError(f"{path}: the server runs in the foreground; stop it and run it again, or use `reload`")
    if not os.path.isdir(record["cwd"]):
        raise StartError(f"the folder it was started in, {record['cwd']}, is gone")
    settings = make(**{**record["settings"], "log_file": record["log_file"]})
    if settings.chdir and not os.path.isdir(os.path.join(record["cwd"], settings.chdir)):
        raise StartError(f"the folder that it changes to, {settings.chdir}, is gone")
    hooks = {name: value for name, value in record["settings"].items() if name.startswith("on_") and value}
    for what, name in {"handler": record["handler"], **hooks}.items():
        if name.startswith("__main__:"):
            raise SettingsError(f"{path}: its {what} is in the program that started it; start it from there")
    os.close(open_log(record["log_file"]))
    return settings
