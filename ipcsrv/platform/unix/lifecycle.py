"""Starting and stopping a server from outside, on Unix (see `platform.lifecycle`)."""

from __future__ import annotations

import sys

assert sys.platform != "win32"

import contextlib
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
from .descriptors import close_all_but, pidfd
from .log_file import open_log
from .rendezvous import CONTROL_SUFFIX, LOCK_SUFFIX, Rendezvous, pid_namespace, read_record, record_in
from .rendezvous import is_elsewhere as is_elsewhere

REPORT_INTERVAL = 5.0  # seconds between two reports of what is being waited for
POLL = 0.005  # seconds between two checks of a lock


def detached() -> dict[str, Any]:
    """Arguments of `subprocess.Popen` for a process that survives its starter's terminal and session."""
    return {"start_new_session": True}


def log_folder() -> str:
    """Return the folder for the logs of this user's servers; make it if it is missing.

    It is in the user's state folder (XDG Base Directory Specification), if that is the user's own and can be written;
    else it is the folder of the user's sockets.  Nothing is made in a home that belongs to another user (sudo keeps
    HOME), and no home is made where there is none (HOME=/nonexistent means that there is to be none).

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
    candidates += [os.path.join(home, ".local", "state") for home in homes if home and os.path.isdir(home)]
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


def fork_detached(run: Callable[[int], int], log_file: str | None) -> tuple[int, int] | None:
    """Fork a process with a session and streams of its own, in which `run` is called with the write end of a pipe.

    Only for a process without other threads.  Returns its pid and the read end, None where there is no fork(2); `run`
    returns its exit status.
    The caller has closed none of the standard streams (`standard_streams.open_closed`).
    """
    null = os.open(os.devnull, os.O_RDWR)
    log = open_log(log_file)
    read, write = os.pipe()
    gc.freeze()  # modules, mostly: the collector need not visit them, and does not copy their pages
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setsid()
            for ours, standard in ((null, 0), (log, 1), (log, 2)):
                os.dup2(ours, standard)
            close_all_but({0, 1, 2, write})  # the starter's caller may wait for the end of file of one of the others
            use_known_state()
            status = run(write)
        finally:
            os._exit(status)  # what the parent registered to run at its exit is the parent's
    for descriptor in (log, null, write):
        os.close(descriptor)
    return pid, read


def is_locked(path: str) -> bool:
    """Whether a server holds the lock of `path`."""
    try:
        descriptor = os.open(path + LOCK_SUFFIX, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared, so that two checks do not collide
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def record(path: str) -> dict[str, Any] | None:
    """Return the record of the server that holds the lock of `path`; None if no server of this user or root does."""
    return read_record(path + LOCK_SUFFIX) if is_locked(path) and _is_ours(path + LOCK_SUFFIX) else None


def _is_ours(lock_path: str) -> bool:
    """Whether a lock file may be believed: pids and handlers in another user's are only what that user wishes."""
    with contextlib.suppress(OSError):
        return os.lstat(lock_path).st_uid in (os.geteuid(), 0)
    return False


def identity() -> dict[str, int]:
    """Return what tells this process from another that has its pid: in another namespace, or later.

    Its pid namespace (pid_namespaces(7)) and its start in clock ticks since boot (proc_pid_stat(5)); nothing where
    there is no /proc.
    """
    facts = {"pid_namespace": pid_namespace(), "started_ticks": _started(os.getpid())}
    return {name: value for name, value in facts.items() if value}


def _started(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read(4096).rpartition(b")")[2].split()[19])
    return 0


def process_of(record: dict[str, Any]) -> int | None:
    """Return the pid of the server that `record` describes; None where that process is gone or not to be seen here."""
    pid, started = record.get("pid"), record.get("started_ticks")
    if not isinstance(pid, int) or pid <= 0 or is_elsewhere(record):
        return None
    return None if started and _started(pid) != started else pid


def ask_to_stop(record: dict[str, Any], now: bool) -> None:
    """Signal the master: SIGTERM drains, SIGQUIT does not."""
    _signal(process_of(record), signal.SIGQUIT if now else signal.SIGTERM)


def kill_all(path: str, record: dict[str, Any]) -> None:
    """End a server that does not react: the master, then those of its workers that the lock file names."""
    latest = read_record(path + LOCK_SUFFIX) or record
    master = process_of(latest)
    if master is None or not is_locked(path):
        return
    session = _session(master)
    for pid in (master, *(pid for pid in latest.get("workers", ()) if _session(pid) == session)):
        _signal(pid, signal.SIGCONT)
        _signal(pid, signal.SIGKILL)


def _session(pid: Any) -> int | None:
    """Return the session of a process: the workers are in their master's, a stranger with a reused pid seldom is."""
    with contextlib.suppress(OSError, TypeError, OverflowError):
        return os.getsid(pid)
    return None


def kill(pid: int) -> None:
    """End a process at once, and where it has a session of its own all of that."""
    if _session(pid) == pid:
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)
    _signal(pid, signal.SIGKILL)


def end_start(pid: int, patience: float) -> None:
    """End a server of this process's children that is still starting, with all that it has started.

    It is asked to stop, which ends a template that imports, and has `patience` seconds for that; then it is killed with
    its descendants.  What is left of its session, if it has one, is what the handler's module has started, and is
    killed too.  A second Ctrl-C does that at once.
    """
    try:
        _signal(pid, signal.SIGTERM)
        _signal(pid, signal.SIGCONT)
        until = time.monotonic() + patience
        with _descriptor_of(pid) as process:
            while not _has_ended(pid) and time.monotonic() < until:
                _wait(process, 0.05)
    finally:
        if not _has_ended(pid):
            from .processes import kill_family  # seldom: it imports much

            kill_family(pid)
        kill(pid)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def _has_ended(pid: int) -> bool:
    """Whether a child has ended; it is not reaped yet, so that its pid still stands for its session."""
    if not hasattr(os, "waitid"):  # macOS, before Python 3.13
        return _reaped(pid)
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def _reaped(pid: int) -> bool:
    """Whether a child has ended; it is reaped then."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


_left_alone: set[int] = set()  # detached servers that are children of this process, and may have ended since


def leave_alone(pid: int) -> None:
    """Let a detached server that this process has started live on; it is reaped when the next one is started."""
    _left_alone.add(pid)


def reap_left_alone() -> None:
    """Reap the detached servers of this process that have ended."""
    _left_alone.difference_update([pid for pid in list(_left_alone) if _reaped(pid)])


def _signal(pid: Any, number: int) -> None:
    if isinstance(pid, int) and pid > 1:
        with contextlib.suppress(OSError):
            os.kill(pid, number)


def wait_gone(path: str, record: dict[str, Any], deadline: Deadline, report: Callable[[], None] | None) -> bool:
    """Wait until the server that `record` describes has ended and left nothing locked; False at the deadline.

    A library's `serve` ends without its process ending, and a process of another namespace cannot be seen: then the
    lock being free is all there is to wait for.  Where the lock file was removed, the process is.
    """
    next_report = time.monotonic() + REPORT_INTERVAL
    with _descriptor_of(process_of(record)) as process:
        own = process is not None and bool(record.get("own_process"))
        while is_locked(path) or own and not _ended(process):
            if deadline.expired:
                return False
            if report is not None and time.monotonic() >= next_report:
                report()
                next_report = time.monotonic() + REPORT_INTERVAL
            _wait(None if _ended(process) else process, POLL)
    reap_left_alone()
    return True


def _ended(process: int | None) -> bool:
    """Whether the process behind a pidfd has ended."""
    if process is None:
        return False
    poll = select.poll()
    poll.register(process, select.POLLIN)
    return bool(poll.poll(0))


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


def remains(path: str) -> list[str]:
    """Return the files that a killed server has left at `path`; a lone socket may be a Git server's and is none."""
    if is_locked(path) or not (os.path.isfile(path + LOCK_SUFFIX) or _is_socket(path + CONTROL_SUFFIX)):
        return []
    return [path + suffix for suffix in ("", CONTROL_SUFFIX, LOCK_SUFFIX) if os.path.lexists(path + suffix)]


def _is_socket(path: str) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    return False


def clean_up(path: str) -> list[str]:
    """Remove what a killed server left at `path`, if no new one is there already; return what was removed."""
    before = [path + suffix for suffix in ("", CONTROL_SUFFIX, LOCK_SUFFIX) if os.path.lexists(path + suffix)]
    if before:
        with contextlib.suppress(IpcError):
            Rendezvous(path, insecure_dir=True).remove_remains()
    reap_left_alone()
    return [name for name in before if not os.path.lexists(name)]


class LockWatch:
    """The lock file of a server that is starting, kept open: what it says at last is read even after it is removed."""

    def __init__(self, path: str) -> None:
        try:
            self._lock = os.open(path + LOCK_SUFFIX, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            self._lock = -1

    def is_locked(self) -> bool:
        """Whether the server still holds it."""
        if self._lock < 0:
            return False
        try:
            fcntl.flock(self._lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        fcntl.flock(self._lock, fcntl.LOCK_UN)
        return False

    def record(self) -> dict[str, Any]:
        """Return what the server wrote about itself at last."""
        if self._lock < 0:
            return {}
        return record_in(os.dup(self._lock))

    def close(self) -> None:
        """Close it."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


# -- the state that a server starts in --------------------------------------------------------------------------------


def use_known_state(*, umask: bool = True) -> None:
    """Undo what a server's process has inherited and a server must not have.

    No signal is blocked, and none is ignored but SIGHUP (nohup(1)), SIGPIPE and SIGXFSZ (which Python ignores itself).
    umask: what the server makes, its own user may read and write; the rest of the mask stays the starter's.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in signal.valid_signals() - {signal.SIGHUP, signal.SIGPIPE, getattr(signal, "SIGXFSZ", signal.SIGHUP)}:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    if umask:
        os.umask(os.umask(0o077) & 0o077)


@contextlib.contextmanager
def held_interrupts() -> Iterator[None]:
    """Hold Ctrl-C back, so that it does not come between the start of a process and the note that it was started."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def unblocked_signals() -> Iterator[None]:
    """In a program that serves: no signal is blocked meanwhile, or the server could not be stopped."""
    before = signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
