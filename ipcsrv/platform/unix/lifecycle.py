"""Looking after a server from outside, on Unix (see `lifecycle`)."""

from __future__ import annotations

import sys

assert sys.platform != "win32"

import contextlib
import errno
import fcntl
import gc
import os
import select
import signal
import stat
import time
from collections.abc import Callable, Iterator
from typing import Any

from ...deadline import Deadline
from ...errors import IpcError, StartError
from .descriptors import close_all_but
from .rendezvous import CONTROL_SUFFIX, LOCK_SUFFIX, Rendezvous, read_record

REPORT_INTERVAL = 5.0  # seconds between two words on what is being waited for
_LOG_FLAGS = (  # without O_NONBLOCK, opening a named pipe would wait for a reader
    os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
)
_LOG_ERRORS = {
    errno.ELOOP: "it is a symbolic link",
    errno.EISDIR: "it is a folder",
    errno.ENXIO: "it is a named pipe, a socket or a device",
}
POLL = 0.005  # seconds between two looks at a lock


def detached() -> dict[str, Any]:
    """Arguments of `subprocess.Popen` for a process that survives its starter's terminal and session."""
    return {"start_new_session": True}


def log_folder() -> str:
    """Return the folder for the logs of this user's servers; make it if it is missing.

    It is in the user's state folder (XDG Base Directory Specification), if that is the user's own and can be written;
    else it is the folder of the user's sockets.  Nothing is made in a home that belongs to another user (sudo keeps
    HOME).

    Raises:
        StartError: neither can be used.
    """
    for base in _state_folders():
        folder = os.path.join(base, "ipcsrv")
        if _nearest_owner(folder) != os.geteuid():
            continue
        with contextlib.suppress(OSError):
            os.makedirs(folder, mode=0o700, exist_ok=True)
            if os.access(folder, os.W_OK | os.X_OK):
                return folder
    from .folder import runtime_folder

    try:
        return runtime_folder()
    except IpcError as error:
        raise StartError(f"there is no folder for the log ({error}); name a file with --log-file") from None


def _state_folders() -> Iterator[str]:
    """Where the user's state folder may be, the first choice first; relative paths are ignored, as XDG demands."""
    candidates = [os.environ.get("XDG_STATE_HOME", "")]
    homes = [os.environ.get("HOME", "")]
    with contextlib.suppress(ImportError, KeyError):
        import pwd

        homes.append(pwd.getpwuid(os.geteuid()).pw_dir)
    candidates += [os.path.join(home, ".local", "state") for home in homes if home]
    return (candidate for candidate in candidates if os.path.isabs(candidate))


def _nearest_owner(path: str) -> int:
    """Return the owner of the nearest folder on the way to `path` that is there."""
    while True:
        try:
            return os.stat(path).st_uid
        except OSError:
            if path == os.path.dirname(path):
                return -1
            path = os.path.dirname(path)


def fork_detached(run: Callable[[int], int], log_file: str | None) -> tuple[int, int]:
    """Fork a process with a session and streams of its own, in which `run` is called with the write end of a pipe.

    Only for a process without other threads.  Returns its pid and the read end; `run` returns its exit status.
    """
    while (null := os.open(os.devnull, os.O_RDWR)) < 3:
        pass  # a standard stream was closed: nothing of ours may take its place
    log = open_log(log_file)
    read, write = os.pipe()
    gc.freeze()  # modules, mostly, of which neither will be rid: the collector need not look, nor copy pages by marking
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setsid()
            for ours, standard in ((null, 0), (log, 1), (log, 2)):
                os.dup2(ours, standard)
            close_all_but({0, 1, 2, write})  # those of the starter and its caller, who may wait for their end
            status = run(write)
        finally:
            os._exit(status)  # what the parent registered to run at its exit is the parent's
    for descriptor in (log, null, write):
        os.close(descriptor)
    return pid, read


def open_log(log_file: str | None) -> int:
    """Return a descriptor that appends to a log file; of the null device if there is none.

    Only a regular file, a terminal or the null device will do: a named pipe blocks until another process reads it, and
    opening a device may have effects.  A symbolic link could be another user's.

    Raises:
        StartError: the file cannot be opened or is none of these.
    """
    if log_file is None:
        return os.open(os.devnull, os.O_WRONLY)
    try:
        descriptor = os.open(log_file, _LOG_FLAGS, 0o600)
    except OSError as error:
        reason = _LOG_ERRORS.get(error.errno or 0, error.strerror)
        raise StartError(f"the log file {log_file} cannot be opened: {reason}; name another with --log-file") from None
    fault = _log_fault(descriptor)
    if fault is not None:
        os.close(descriptor)
        raise StartError(f"the log file {log_file} cannot be used: {fault}; name another with --log-file")
    return descriptor


def _log_fault(descriptor: int) -> str | None:
    """Why a log cannot be written to what was opened, or None."""
    info = os.fstat(descriptor)
    if stat.S_ISREG(info.st_mode):
        return None
    if stat.S_ISCHR(info.st_mode):
        if os.isatty(descriptor) or info.st_rdev == os.stat(os.devnull).st_rdev:
            return None
        return "it is a device"
    return "it is a named pipe" if stat.S_ISFIFO(info.st_mode) else "it is not a regular file"


def is_locked(path: str) -> bool:
    """Whether a server holds the lock of `path`."""
    try:
        descriptor = os.open(path + LOCK_SUFFIX, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two who look do not hinder each other
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def record(path: str) -> dict[str, Any] | None:
    """What the server that holds the lock of `path` says of itself; None if no server of ours or of root's does."""
    return read_record(path + LOCK_SUFFIX) if is_locked(path) and _is_ours(path + LOCK_SUFFIX) else None


def _is_ours(lock_path: str) -> bool:
    """Whether a lock file may be believed: pids and handlers in another user's are only what that user wishes."""
    with contextlib.suppress(OSError):
        return os.lstat(lock_path).st_uid in (os.geteuid(), 0)
    return False


def ask_to_stop(record: dict[str, Any], now: bool) -> None:
    """Signal the master: SIGTERM drains, SIGQUIT does not."""
    _signal(record.get("pid"), signal.SIGQUIT if now else signal.SIGTERM)


def kill_all(path: str, record: dict[str, Any]) -> None:
    """End a server that does not react: the master, then those of its workers that the lock file names."""
    if not is_locked(path):
        return
    latest = read_record(path + LOCK_SUFFIX) or record
    for pid in (latest.get("pid"), *latest.get("workers", ())):
        _signal(pid, signal.SIGCONT)
        _signal(pid, signal.SIGKILL)


def kill(pid: int) -> None:
    """End a process at once."""
    _signal(pid, signal.SIGKILL)


def _signal(pid: Any, number: int) -> None:
    if isinstance(pid, int) and pid > 1:
        with contextlib.suppress(OSError):
            os.kill(pid, number)


def wait_gone(path: str, record: dict[str, Any], deadline: Deadline, report: Callable[[], None] | None) -> bool:
    """Wait until the server that `record` describes has ended and left nothing locked; False at the deadline.

    A library's `serve` ends without its process ending: then the lock being free is all there is to wait for.
    """
    next_report = time.monotonic() + REPORT_INTERVAL
    with _descriptor_of(record.get("pid")) as process:
        while is_locked(path):
            if deadline.expired:
                return False
            if report is not None and time.monotonic() >= next_report:
                report()
                next_report = time.monotonic() + REPORT_INTERVAL
            _wait(process, POLL)
        if process is not None and record.get("own_process"):
            _wait(process, deadline.remaining())
    return True


def pidfd(pid: int) -> int:
    """A descriptor of a process (pidfd_open(2)); -1 where there are none, or the process is gone."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):
            return os.pidfd_open(pid)
    return -1


@contextlib.contextmanager
def _descriptor_of(pid: object) -> Iterator[int | None]:
    """A pidfd, where there are any: it becomes readable when the process ends."""
    descriptor = pidfd(pid) if isinstance(pid, int) else -1
    if descriptor < 0:
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _wait(process: int | None, seconds: float | None) -> None:
    if process is None:
        time.sleep(POLL if seconds is None else min(POLL, seconds))
    else:
        poll = select.poll()
        poll.register(process, select.POLLIN)
        poll.poll(None if seconds is None else seconds * 1000)


def clean_up(path: str) -> None:
    """Remove what a killed server left at `path`; nothing, if a new one is there already."""
    if not any(os.path.lexists(path + suffix) for suffix in ("", LOCK_SUFFIX, CONTROL_SUFFIX)):
        return
    with contextlib.suppress(IpcError):
        Rendezvous(path, insecure_dir=True).remove_remains()
