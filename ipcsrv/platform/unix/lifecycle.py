"""Looking after a server from outside, on Unix (see `lifecycle`)."""

from __future__ import annotations

import sys

assert sys.platform != "win32"

import contextlib
import fcntl
import gc
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

from ...deadline import Deadline
from ...errors import IpcError, StartError
from .rendezvous import CONTROL_SUFFIX, LOCK_SUFFIX, Rendezvous, read_record

REPORT_INTERVAL = 5.0  # seconds between two words on what is being waited for
POLL = 0.005  # seconds between two looks at a lock


def detached() -> dict[str, Any]:
    """Arguments of `subprocess.Popen` for a process that survives its starter's terminal and session."""
    return {"start_new_session": True}


def log_folder() -> str:
    """Where the logs of a user's servers go: below the user's state folder (XDG Base Directory Specification)."""
    base = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(base, "ipcsrv")


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
            os.closerange(3, write)  # the starter's, and those of whoever started it: somebody may wait for their end
            os.closerange(write + 1, os.sysconf("SC_OPEN_MAX"))
            status = run(write)
        finally:
            os._exit(status)  # what the parent registered to run at its exit is the parent's
    for descriptor in (log, null, write):
        os.close(descriptor)
    return pid, read


def open_log(log_file: str | None) -> int:
    """A descriptor for what a detached server writes to standard error before its log is set up."""
    if log_file is None:
        return os.open(os.devnull, os.O_WRONLY)
    try:
        return os.open(log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StartError(f"the log file {log_file} cannot be opened: {error.strerror}") from None


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
