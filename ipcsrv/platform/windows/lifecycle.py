"""Starting and stopping a server from outside, on Windows (see `platform.lifecycle`)."""

from __future__ import annotations

import sys

assert sys.platform == "win32"

import _winapi
import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from filelock import lock_descriptor

from ...deadline import Deadline
from ...errors import StartError
from .pipe import wait_any
from .processes import ask_to_stop_by_event
from .processes import kill as kill
from .rendezvous import LOCK_SUFFIX, read_record

REPORT_INTERVAL: Final = 5.0  # seconds between two reports of what is being waited for
POLL: Final = 0.01  # seconds between two checks of a lock
_SYNCHRONIZE: Final = 0x00100000


def detached() -> dict[str, Any]:
    """Arguments of `subprocess.Popen` for a process that survives its starter's console.

    With a console of its own that has no window: had it none, each of its children would open one.
    """
    return {"creationflags": subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP}


def fork_detached(run: Callable[[int], int], log_file: str | None) -> tuple[int, int] | None:
    """Return None: there is no fork(2)."""
    return None


def log_folder() -> str:
    """Return the folder for the logs of this user's servers, below the local application data; make it if missing.

    Raises:
        StartError: it cannot be made.
    """
    folder = os.path.join(os.environ.get("LOCALAPPDATA") or os.path.expanduser("~"), "ipcsrv", "log")
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise StartError(f"there is no folder for the log ({error}); name a file with --log-file") from None
    return folder


def is_locked(path: str) -> bool:
    """Whether a server holds the lock of `path`.  It is tried for a moment, which a starting server sits out."""
    try:
        descriptor = os.open(path + LOCK_SUFFIX, os.O_RDWR | os.O_BINARY | os.O_NOINHERIT)
    except OSError:
        return False
    try:
        return not lock_descriptor(descriptor, blocking=False)
    finally:
        os.close(descriptor)


def record(path: str) -> dict[str, Any] | None:
    """What the server that holds the lock of `path` says of itself; None if no server does."""
    return read_record(path + LOCK_SUFFIX) if is_locked(path) else None


def ask_to_stop(record: dict[str, Any], now: bool) -> None:
    """Ask a server that does not answer on its control pipe: by an event it waits for; by force where it is urgent."""
    pid = record.get("pid")
    if isinstance(pid, int):
        if now:
            kill(pid)
        else:
            ask_to_stop_by_event(pid)


def kill_all(path: str, record: dict[str, Any]) -> None:
    """End a server that does not react: the master, and those of its workers that the lock file names."""
    if is_locked(path):
        latest = read_record(path + LOCK_SUFFIX) or record
        for pid in (latest.get("pid"), *latest.get("workers", ())):
            if isinstance(pid, int):
                kill(pid)


def identity() -> dict[str, int]:
    """Nothing: a process is opened by its pid at once, and pids have no namespaces here."""
    return {}


def is_elsewhere(record: dict[str, Any]) -> bool:
    """Whether a server's pids are of another namespace; there are none here."""
    return False


def end_start(pid: int, patience: float) -> None:
    """End a server that is still starting; its children end with it, when their channels do."""
    kill(pid)


def leave_alone(pid: int) -> None:
    """Nothing has to be reaped here."""


def reap_left_alone() -> None:
    """Nothing has to be reaped here."""


def use_known_state(*, umask: bool = True) -> None:
    """Nothing of the kind is inherited."""


held_interrupts = unblocked_signals = contextlib.nullcontext


class LockWatch:
    """The lock of a server that is starting."""

    def __init__(self, path: str) -> None:
        self._path = path

    def is_locked(self) -> bool:
        """Whether the server still holds it."""
        return is_locked(self._path)

    def record(self) -> dict[str, Any]:
        """Return what the server wrote about itself at last, if the file is still there."""
        return read_record(self._path + LOCK_SUFFIX)

    def close(self) -> None:
        """Nothing is open."""


def wait_gone(path: str, record: dict[str, Any], deadline: Deadline, report: Callable[[], None] | None) -> bool:
    """Wait until the server that `record` describes has ended and left nothing locked; False at the deadline.

    A library's `serve` ends without its process ending: then the lock being free is all there is to wait for.
    """
    next_report = time.monotonic() + REPORT_INTERVAL
    with _process_of(record.get("pid")) as process:
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


@contextlib.contextmanager
def _process_of(pid: Any) -> Iterator[int | None]:
    """A handle of the process, which is set when it ends; None where it has."""
    try:
        handle = _winapi.OpenProcess(_SYNCHRONIZE, False, pid)
    except (OSError, TypeError):
        yield None
        return
    try:
        yield handle
    finally:
        _winapi.CloseHandle(handle)


def _wait(process: int | None, seconds: float | None) -> None:
    if process is None:
        time.sleep(POLL if seconds is None else min(POLL, seconds))
    else:
        wait_any([process], seconds)
        time.sleep(0 if seconds is None else min(POLL, seconds) / 10)  # it has ended, and its files are being closed


def remains(path: str) -> list[str]:
    """Return the files that a killed server has left at `path`."""
    return [] if is_locked(path) or not os.path.lexists(path + LOCK_SUFFIX) else [path + LOCK_SUFFIX]


def clean_up(path: str) -> list[str]:
    """Remove what a killed server left at `path`; Windows refuses where a new one has it open."""
    with contextlib.suppress(OSError):
        os.unlink(path + LOCK_SUFFIX)
        return [path + LOCK_SUFFIX]
    return []
