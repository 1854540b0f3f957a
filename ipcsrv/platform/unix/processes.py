"""Signals, processes and memory on Unix, as the server's half of the seam promises them.

In the master and its children.
"""

from __future__ import annotations

import sys

assert sys.platform != "win32"

import contextlib
import faulthandler
import functools
import mmap
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from .descriptors import open_descriptors, pidfd

# -- signals ----------------------------------------------------------------------------------------------------------


class SignalInbox:
    """Signals as bytes to read: the handlers do nothing, the interpreter writes each number into a socket.

    Use in the main thread; `restore()` gives the process back its own handlers (a library's caller wants them).
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._theirs.setblocking(False)
        self._old_wakeup = signal.set_wakeup_fd(self._theirs.fileno(), warn_on_full_buffer=False)
        self._old = {}
        for name in names:
            number = getattr(signal, name)
            self._old[number] = signal.signal(number, _ignore)
        if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:  # the kernel would reap: no status (wait(2))
            self._old[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._old)  # the handler's module may have blocked all

    def fileno(self) -> int:
        """Becomes readable when a signal has come."""
        return self._ours.fileno()

    def receive(self) -> list[str]:
        """The names of the signals that came since the last time."""
        try:
            return [signal.Signals(number).name for number in self._ours.recv(4096)]
        except BlockingIOError:
            return []

    def close(self) -> None:
        """Receive no more, and let the signals still have no effect: this process is about to end."""
        signal.set_wakeup_fd(-1)
        self._ours.close()
        self._theirs.close()

    def restore(self) -> None:
        """Put back the handlers that were there before."""
        with contextlib.suppress(OSError):  # its owner has closed it
            signal.set_wakeup_fd(self._old_wakeup)
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._ours.close()
        self._theirs.close()


_SERVER_SIGNALS = ("SIGINT", "SIGTERM", "SIGQUIT", "SIGHUP", "SIGTTIN", "SIGTTOU", "SIGUSR1", "SIGUSR2")


def _ignore(*_: Any) -> None:
    """A handler and not SIG_IGN, which a handler's own subprocesses would inherit."""


SPARE_DESCRIPTORS: Final = 8  # that are not counted one by one where there are few
HAS_PIDFD: Final = hasattr(os, "pidfd_open")
NEEDS_GUARD: Final = True  # a process that outlives the master, where there is no template

TERMINAL_SIGNALS: Final = frozenset({"SIGTTIN", "SIGTTOU"})


def ignore(names: Iterable[str]) -> None:
    """Ignore signals, in this process and its children."""
    for name in names:
        signal.signal(getattr(signal, name), signal.SIG_IGN)


def has_controlling_terminal() -> bool:
    """Return whether this process has a controlling terminal (tty(4))."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def reap_orphans(known: set[int]) -> bool:
    """Reap children that are none of `known`; True if there may be more behind one of these (waitid(2))."""
    if sys.platform != "linux":
        return False  # there no server is process 1
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False
        if found is None:
            return False
        if found.si_pid in known:
            return True
        os.waitpid(found.si_pid, os.WNOHANG)


# -- processes --------------------------------------------------------------------------------------------------------


def default_start_method() -> str:
    """fork where it is safe (Linux), spawn elsewhere (macOS: its frameworks do not survive a fork)."""
    return "fork" if hasattr(select, "epoll") else "spawn"


def start_methods() -> tuple[str, ...]:
    """The start methods that work on this system."""
    return ("fork", "forkserver", "spawn")


def child_hygiene(keep: Iterable[int] | None = None) -> None:
    """In a new process of the server: close every descriptor but `keep`, and leave signals to the master.

    keep: None in a fresh interpreter, which has only what it was given.

    A child that kept the listener would make a dead server look alive, one that kept the lock would keep it locked.
    SIGINT and SIGTERM reach a whole terminal or service group: the master decides what they mean.
    """
    for number in sorted(open_descriptors() - {0, 1, 2}):
        with contextlib.suppress(OSError):
            if keep is None:
                os.set_inheritable(number, False)  # it has come through one exec(2), and is for no other
            elif number not in keep:
                os.close(number)
    signal.set_wakeup_fd(-1)
    for name in _SERVER_SIGNALS:
        if name in TERMINAL_SIGNALS and signal.getsignal(getattr(signal, name)) is signal.SIG_IGN:
            continue  # the master has a terminal: a handler of these would make a read from it spin
        signal.signal(getattr(signal, name), _ignore)
        signal.siginterrupt(getattr(signal, name), False)  # the handler's C code must not see EINTR for it
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # held back since the start (`held_interrupts`)


def announce_descriptors(*things: Any) -> list[int]:
    """The descriptor numbers of sockets, pollers or numbers, for `child_hygiene(keep=...)`."""
    return [thing if isinstance(thing, int) else thing.fileno() for thing in things]


def dump_stacks_on_request(descriptor: int) -> None:
    """In a template or worker: write all stacks to `descriptor` on SIGUSR1 and at a crash, also from C code.

    The handler of the signal restarts interrupted system calls (SA_RESTART), so the handler's C code sees no EINTR.
    """
    faulthandler.unregister(signal.SIGUSR1)  # or a registration that was inherited would keep its handler
    faulthandler.register(signal.SIGUSR1, file=descriptor, all_threads=True, chain=False)
    faulthandler.enable(file=descriptor, all_threads=True)


_PR_SET_PDEATHSIG = 1  # prctl(2)


def end_with_parent(wanted: bool) -> None:
    """Have the kernel kill this process when its parent's thread ends (PR_SET_PDEATHSIG, prctl(2)); Linux alone.

    The caller checks afterwards that the parent has not ended before.
    """
    set_option = _c_function("prctl") if sys.platform == "linux" else None
    if set_option is not None:
        set_option(_PR_SET_PDEATHSIG, int(signal.SIGKILL) if wanted else 0, 0, 0, 0)


def start_resource_tracker() -> None:
    """Start the process that multiprocessing has beside each process that it starts anew, if there is none yet."""
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()


def wake_resource_tracker() -> None:
    """Let it go on, if someone has stopped it (SIGSTOP): it would outlive the server."""
    tracker = getattr(sys.modules.get("multiprocessing.resource_tracker"), "_resource_tracker", None)
    if (pid := getattr(tracker, "_pid", None)) is not None:
        _signal(pid, signal.SIGCONT)


_in_forked_children: list[Callable[[], object]] = []


def _call_in_forked_child() -> None:
    for callback in tuple(_in_forked_children):
        callback()


@functools.cache
def _watch_forks() -> None:
    os.register_at_fork(after_in_child=_call_in_forked_child)  # once a process: it cannot be undone


@contextlib.contextmanager
def call_in_forked_children(callback: Callable[[], object]) -> Iterator[None]:
    """Call this in every process that is forked from this one in this block, before it goes on."""
    _watch_forks()
    _in_forked_children.append(callback)
    try:
        yield
    finally:
        _in_forked_children.remove(callback)


def protect_children(*sockets: socket.SocketType) -> None:
    """In a worker: make every child that the handler forks a plain process.

    It gets the system's signal dispositions and mask back, and none of the worker's own sockets. The signals are
    blocked meanwhile: one that comes before the dispositions are back would be lost.
    """
    numbers = {getattr(signal, name) for name in _SERVER_SIGNALS}
    masks: list[set[signal.Signals]] = []
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})  # for stacks; a module may have blocked all

    def before_fork() -> None:
        masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, numbers))  # type: ignore[arg-type]

    def after_fork_in_parent() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.pop())

    def after_fork() -> None:
        signal.set_wakeup_fd(-1)
        for each in sockets:
            each.close()
        for name in (*_SERVER_SIGNALS, "SIGCHLD"):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
        except KeyboardInterrupt:  # Python would discard what a hook raises: end by the signal instead
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)

    _watch_forks()  # first: a KeyboardInterrupt in a hook that runs after `after_fork` would be lost
    os.register_at_fork(before=before_fork, after_in_parent=after_fork_in_parent, after_in_child=after_fork)


def start_ticks(pid: int) -> int:
    """Return when a process started, in clock ticks since boot (proc_pid_stat(5)); 0 where that cannot be told."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return 0 if fields[0] in (b"Z", b"X") else int(fields[19])  # a zombie is not alive
    except (OSError, ValueError, IndexError):
        return 0


def is_same_process(pid: int, ticks: int) -> bool:
    """Return whether the process that had this pid and start time is alive."""
    return pid > 0 and ticks > 0 and start_ticks(pid) == ticks


def kill(pid: int) -> None:
    """End a process at once."""
    _signal(pid, signal.SIGKILL)


_LONGEST_LOOK = 0.2  # seconds


def kill_family(pid: int, *, itself: bool = True) -> None:
    """End a process and its descendants at once (Linux; elsewhere the process alone).

    They are stopped first, so that none starts another meanwhile.  A process whose parent has ended is not a
    descendant any more.  multiprocessing's resource trackers are left out: they end when the others have, and remove
    what those have left.  itself: end the process too, and not only what it has started.
    """
    found: dict[int, int] = {}
    until = time.monotonic() + _LONGEST_LOOK
    while time.monotonic() < until:
        new = [member for member in _descendants(pid, itself) if member not in found]
        for member in new:
            found[member] = start_ticks(member)
            _signal(member, signal.SIGSTOP)
        if not new and all(_state(member) in "TZ" for member in found):
            break
    for member, started in found.items():
        if start_ticks(member) == started:
            _signal(member, signal.SIGKILL)


def _signal(pid: int, number: int) -> None:
    if pid > 1:  # 0 and -1 stand for many processes (kill(2))
        with contextlib.suppress(OSError):
            os.kill(pid, number)


def _descendants(pid: int, itself: bool) -> list[int]:
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{parent}/task"):
                with open(f"/proc/{parent}/task/{task}/children", "rb") as file:
                    found += [child for child in map(int, file.read().split()) if not _is_tracker(child)]
    return found[not itself :]


def _is_tracker(pid: int) -> bool:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        return b"multiprocessing.resource_tracker" in file.read()
    return False


def _state(pid: int) -> str:
    """Return the state of a process as proc_pid_stat(5) has it; Z where it is gone."""
    with contextlib.suppress(OSError, IndexError), open(f"/proc/{pid}/stat", "rb") as file:
        return file.read(4096).rpartition(b")")[2].split()[0].decode()
    return "Z"


def anonymous_file(name: str) -> int:
    """Return a descriptor of a new file without a name (memfd_create(2); an unlinked temporary file elsewhere)."""
    if sys.platform == "linux":
        return os.memfd_create(name)
    import tempfile

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


read_at = os.pread  # (file, size, at)
write_at = os.pwrite  # (file, data, at)


class Process:
    """A worker as the master knows it: a process that cannot be confused with another that gets its pid later.

    (Where there are no pidfds, the template's not having reaped it yet has to do.)
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._handle = pidfd(pid)

    def fileno(self) -> int:
        """Become readable when the process ends (pidfd_open(2)); -1 where there is no such descriptor."""
        return self._handle

    def ask_for_stacks(self) -> None:
        """Have it write the stacks of all its threads into the log."""
        self._send(signal.SIGUSR1)

    def owes_stacks(self) -> bool:
        """Whether it has been asked for its stacks and has not written all of them; False where that is not known.

        While the signal waits it is pending; while its handler runs it is blocked (proc_pid_status(5), sigaction(2));
        for the instant in between it is neither, which looks as if it were done.
        """
        masks = 0
        with contextlib.suppress(OSError), open(f"/proc/{self.pid}/status", "rb") as file:
            for name, _, value in (line.partition(b":") for line in file):
                masks |= int(value, 16) if name in (b"SigPnd", b"ShdPnd", b"SigBlk") else 0
        return bool(masks >> signal.SIGUSR1 - 1 & 1)

    def ask_to_reopen_log(self) -> None:
        """Have it open the log file anew, in the middle of a request (`logs.reopen_on_hangup`)."""
        self._send(signal.SIGHUP)

    def kill(self) -> None:
        """End it at once."""
        self._send(signal.SIGKILL)

    def kill_family(self) -> None:
        """End it at once, with what it has started."""
        kill_family(self.pid)
        self.kill()

    def close(self) -> None:
        """It has been reaped."""
        if self._handle >= 0:
            os.close(self._handle)
        self._handle = self.pid = -1

    def _send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            if sys.platform == "linux" and self._handle >= 0:
                signal.pidfd_send_signal(self._handle, number)
            elif self.pid > 0:
                os.kill(self.pid, number)


def descriptor_limit() -> int:
    """How many descriptors this process may have open (RLIMIT_NOFILE, soft)."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return limit if limit != resource.RLIM_INFINITY else 1 << 20


_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
_ANY_LARGE = 128 << 10  # bytes; glibc's own threshold
_MOST_KEPT = 32 << 20
_threshold = 0  # what it is set to; 0 before the first time


def keep_freed_memory(size: int) -> None:
    """Set the C library up for a request of which so many bytes have come (mallopt(3), glibc).

    It keeps up to 64 MiB of freed memory and takes blocks of up to 32 MiB from it.  Otherwise each large block is given
    back to the kernel and taken anew, and the page faults of a 10 MB request take four times as long as its copying.
    What goes beyond that is given back block by block: of memory that is kept, one small block that lies in it keeps
    all beneath, which would be a whole copy of a request of 200 MB.
    """
    global _threshold
    threshold = _MOST_KEPT if size < _MOST_KEPT else _ANY_LARGE
    if threshold != _threshold:
        _threshold = threshold
        set_option = _c_function("mallopt")
        if set_option is None:
            return
        set_option(_M_MMAP_THRESHOLD, threshold)
        set_option(_M_TRIM_THRESHOLD, 64 << 20)
        set_option(_M_TOP_PAD, 1 << 20)


def release_freed_memory() -> None:
    """Give freed memory back to the kernel (malloc_trim(3), glibc)."""
    trim = _c_function("malloc_trim")
    if trim is not None:
        trim(0)


@functools.cache
def _c_function(name: str) -> Callable[..., int] | None:
    """Return a function of the C library, or None if it has none of this name."""
    import ctypes

    try:
        function: Callable[..., int] = getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError):
        return None
    return function


def resident_bytes(pid: int | None = None) -> int:
    """Resident memory of a process, of this one if none is named, in bytes.

    From /proc/PID/statm; elsewhere this process's peak (getrusage(2)), and 0 for another.
    """
    try:
        with open(f"/proc/{pid or 'self'}/statm", "rb") as file:
            return int(file.read().split()[1]) * mmap.PAGESIZE
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if pid is None else 0


# -- memory -----------------------------------------------------------------------------------------------------------


class SharedMemory:
    """Memory that the master and its workers see: an unnamed file, so that nothing is left however all die."""

    def __init__(self, size: int, descriptor: int | None = None) -> None:
        if descriptor is None:
            descriptor = anonymous_file("ipcsrv-shared")
            os.ftruncate(descriptor, size)
        self._descriptor = descriptor
        self.size = size
        self.buffer = mmap.mmap(self._descriptor, size)

    def fileno(self) -> int:
        """The descriptor behind it."""
        return self._descriptor

    def close(self) -> None:
        """Close the descriptor, and the mapping, which holds another one; with its last user, if there is one still."""
        os.close(self._descriptor)
        with contextlib.suppress(BufferError):
            self.buffer.close()

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        from multiprocessing.reduction import DupFd

        return _rebuild_memory, (self.size, DupFd(self._descriptor))


def _rebuild_memory(size: int, duplicate: Any) -> SharedMemory:
    return SharedMemory(size, duplicate.detach())


@contextlib.contextmanager
def quiet_about_threads() -> Any:
    """A server forks only where the caller has no other threads, or asked for it by name."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*multi-threaded.*", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message="resource_tracker", category=UserWarning)  # it was killed
        yield
