"""What the test suites share: running the real command, waiting for processes to end, and finding what was left behind.

Waits are for events: a server is ready when it has said so in its output, a process is gone when the kernel says so
on its pidfd, and `wait_until` is for what has no event. Where a system has no such means (`have_proc`, `have_pidfd`)
the checks that need it say nothing rather than guess.
"""

from __future__ import annotations

import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
TESTS = ROOT / "tests"
TIMEOUT = 60.0 if os.name == "nt" else 20.0  # seconds for each wait of a test, on a busy machine
QUIET = 0.05  # seconds without a line after which a server is asked whether it listens
HOME_OF_LOGS = "LOCALAPPDATA" if os.name == "nt" else "XDG_STATE_HOME"  # an environment variable
MARK = "TEST_SERVER_MARK"  # an environment variable by which every descendant of a server is found

have_proc = os.name != "nt" and os.path.isdir("/proc/self/fd")  # Wine shows Linux's, whose processes are others
have_pidfd = hasattr(os, "pidfd_open")
paths_are_sockets = True  # and not names of something that is elsewhere
sigterm_asks = True  # and does not kill
halves = True  # of a connection end alone, so a stop can know that nothing more has been asked on it
workers_end_with_master = False  # however busy they are
appends_are_whole = True  # of several processes to one file
stacks_in_c = True  # of a thread that does not return to the interpreter
REPLACED = 1.0  # seconds within which a new worker serves in the place of a dead one


def needs_signal(number: int) -> None:
    """Skip the test where a server cannot be sent this signal (Windows, but SIGTERM)."""
    if os.name == "nt" and number != signal.SIGTERM:
        pytest.skip(f"no signal {number} can be sent here")


def rounds(count: int) -> int:
    """So many times; fewer where a process takes seconds to start."""
    return count if REPLACED <= 1.0 else max(2, count // 5)


def environment(**extra: str) -> dict[str, str]:
    """The environment for a child that must find this package and the tests' handlers, with warnings as errors."""
    kept = {name: value for name, value in os.environ.items()
            if not name.startswith("IPCSRV_") or name == "IPCSRV_PURE_PYTHON"}
    paths = [str(TESTS), *([str(ROOT)] if (ROOT / "ipcsrv").is_dir() else []), os.environ.get("PYTHONPATH", "")]
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "error",
        **extra,
    }


def hide(module: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For every Python started from now on this module is not installed."""
    (folder / f"{module}.py").write_text("raise ImportError('hidden by a test')\n")
    paths = os.fspath(folder), os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))


def run_command(
    *arguments: str | os.PathLike[str], input: bytes = b"", timeout: float = TIMEOUT, **extra: str
) -> subprocess.CompletedProcess[bytes]:
    """Run `python -m ipcsrv ARGUMENTS` to its end; keywords are environment variables."""
    command = [sys.executable, "-m", "ipcsrv", *map(os.fspath, arguments)]
    return subprocess.run(command, input=input, capture_output=True, timeout=timeout, env=environment(**extra))


class Output:
    """The lines that a process prints, read by a thread as they come, so that a test can wait for one."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.lines: list[str] = []
        self._process = process
        self._arrived: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._ended = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            for line in stream:
                self._arrived.put(line.decode("utf-8", "replace").rstrip("\r\n"))
        self._arrived.put(None)

    def next_line(self, timeout: float = TIMEOUT) -> str | None:
        """The next line not yet waited for, or None once there are no more."""
        if self._ended:
            return None
        try:
            line = self._arrived.get(timeout=timeout)
        except queue.Empty:
            raise AssertionError(f"no more output within {timeout} s after:\n{self}") from None
        if line is None:
            self._ended = True
        else:
            self.lines.append(line)
        return line

    def wait_for(self, found: str | Callable[[str], bool], timeout: float = TIMEOUT) -> str:
        """The first line, seen already or to come, that contains `found` (or for which it is true)."""
        matches = (lambda line: found in line) if isinstance(found, str) else found
        for line in self.lines:
            if matches(line):
                return line
        until = time.monotonic() + timeout
        while (line := self.next_line(max(0.0, until - time.monotonic()))) is not None:
            if matches(line):
                return line
        raise AssertionError(f"the output ended without {found!r}:\n{self}")

    def rest(self, timeout: float = TIMEOUT) -> str:
        """Everything printed, to the end: the process must be ending."""
        while self.next_line(timeout) is not None:
            pass
        self._thread.join(timeout)
        return str(self)

    def __str__(self) -> str:
        return "\n".join(self.lines)


class RunningServer:
    """A server in its own process, started by the real command, with what a test asks of it."""

    def __init__(self, path: str, target: str, *options: str, env: Mapping[str, str] | None = None) -> None:
        self.path = path
        self.target = target
        self.mark = f"{os.getpid()}-{os.urandom(6).hex()}"
        self.command = [sys.executable, "-m", "ipcsrv", "run", path, target, *options]
        # Its own session: a terminal's Ctrl-C at pytest does not reach it, and a test may signal the whole group.
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment(**{MARK: self.mark}, **(env or {})),
            start_new_session=True,
        )
        self.pid = self.process.pid
        self.output = Output(self.process)

    def wait_until_listening(self, timeout: float = TIMEOUT) -> RunningServer:
        """Wait until the server says that it listens, or where it logs nothing, until it does; exiting is an error."""
        import ipcsrv

        until = time.monotonic() + timeout
        while time.monotonic() < until:
            try:
                line = self.output.next_line(QUIET)
            except AssertionError:
                if {ipcsrv.active_state(self.path + suffix).name for suffix in ("", ".control")} == {"LISTENING"}:
                    return self
                continue
            if line is None:
                raise AssertionError(f"{self.command} exited {self.process.wait(TIMEOUT)}:\n{self.output}")
            if "listening on " in line and ipcsrv.active_state(self.path) is ipcsrv.State.LISTENING:
                return self
        raise AssertionError(f"{self.command} does not listen after {timeout} s:\n{self.output}")

    def call(self, data: bytes = b"", timeout: float = TIMEOUT) -> bytes:
        """One exchange on one connection."""
        import ipcsrv

        return ipcsrv.call(self.path, data, timeout=timeout)

    def status(self) -> dict[str, object]:
        """What the server says of itself on its control socket."""
        from ipcsrv.server import server

        return server.status(self.path)

    def processes(self) -> set[int]:
        """The pids of every living process of this server, the master included."""
        return marked_processes(self.mark) or family(self.pid)

    def workers(self) -> set[int]:
        """The pids of every living process of this server but the master."""
        return self.processes() - {self.pid}

    def signal(self, number: int) -> None:
        """Send the master a signal; where one can only kill (Windows), SIGTERM by the event that means the same."""
        if os.name == "nt":
            needs_signal(number)
            from ipcsrv.platform import lifecycle

            lifecycle.ask_to_stop({"pid": self.pid}, now=False)
        else:
            self.process.send_signal(number)

    def ask_to(self, wish: str) -> None:
        """Have it `reload`, or have one worker `more` or `fewer`: by a signal, or where there is none by a command."""
        number = getattr(signal, {"reload": "SIGHUP", "more": "SIGTTIN", "fewer": "SIGTTOU"}[wish], None)
        if number is not None:
            self.process.send_signal(number)
            return
        from ipcsrv.client import control

        if wish == "reload":
            threading.Thread(target=self._reload, daemon=True).start()  # as a signal does, it does not wait for the end
        else:
            wanted: Any = self.status()["workers_wanted"]
            control.request(self.path, command="scale", workers=wanted + (1 if wish == "more" else -1))

    def _reload(self) -> None:
        from ipcsrv import IpcError
        from ipcsrv.client import control

        with suppress(IpcError):
            control.request(self.path, command="reload", timeout=TIMEOUT)

    def kill(self) -> None:
        """SIGKILL the master, and it alone; returns when it is gone."""
        self.process.kill()
        self.process.wait(TIMEOUT)

    def stop(self, number: int = getattr(signal, "SIGTERM", 15), timeout: float = TIMEOUT) -> int:
        """Ask the master to stop (SIGTERM drains) and return its exit status once it is gone."""
        if self.process.poll() is None:
            if os.name == "nt":
                from ipcsrv.server import server

                server.stop(self.path, timeout=timeout)
            else:
                self.process.send_signal(number)
        return self.wait(timeout)

    def wait(self, timeout: float = TIMEOUT) -> int:
        """The exit status, once the master has ended by itself."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.command} still runs after {timeout} s:\n{self.output}") from None

    def clean_up(self) -> None:
        """End what still runs, for the teardown: politely, then by force, and say so if force was needed."""
        was_running = self.process.poll() is None
        try:
            if was_running:
                self.stop()
        finally:
            self.process.kill()
            self.process.wait(TIMEOUT)
            left = wait_gone(self.processes())
            for pid in left:
                kill(pid)
        assert not left, f"processes {left} outlived their master {self.pid}:\n{self.output}"
        self.output.rest()


def marked_processes(mark: str) -> set[int]:
    """Every living process that has `mark` in its environment: a server and all that it started, orphans too."""
    if not have_proc:
        return set()
    wanted = f"{MARK}={mark}".encode()
    return {int(entry) for entry in os.listdir("/proc") if entry.isdigit() and _has_mark(int(entry), wanted)}


def _has_mark(pid: int, wanted: bytes) -> bool:
    try:
        return wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") and not is_zombie(pid)
    except OSError:  # gone, or another user's
        return False


def family(pid: int) -> set[int]:
    """The living processes that are this one or descend from it, where only they can tell (Windows)."""
    return set()


def kill(pid: int) -> None:
    """End a process at once: SIGKILL, or what the system has for it."""
    os.kill(pid, getattr(signal, "SIGKILL", signal.SIGTERM))  # on Windows, TerminateProcess


def is_zombie(pid: int) -> bool:
    """Whether the process has ended and only waits to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False  # it was reaped meanwhile


def children(pid: int | None = None) -> set[int]:
    """The living children of a process, of this one if none is given (Linux)."""
    if not have_proc:
        return set()
    tasks = Path(f"/proc/{pid or os.getpid()}/task")
    return {int(child) for task in tasks.iterdir() for child in (task / "children").read_text().split()}


def wait_gone(pids: set[int], timeout: float = TIMEOUT) -> set[int]:
    """Wait until all of these processes have ended; returns those that had not in time."""
    if not have_pidfd:
        return set()
    until = time.monotonic() + timeout
    return {pid for pid in pids if not _ends_by(pid, until)}


def _ends_by(pid: int, until: float) -> bool:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        return bool(poller.poll(max(0.0, until - time.monotonic()) * 1000))
    finally:
        os.close(descriptor)


def descriptors(pid: int | None = None) -> dict[int, str]:
    """Open descriptors of a process (of this one if none is given) and what they lead to (Linux)."""
    folder = f"/proc/{pid or os.getpid()}/fd"
    found = {}
    for entry in os.listdir(folder) if have_proc else ():
        try:
            found[int(entry)] = os.readlink(f"{folder}/{entry}")
        except OSError:  # the one that listed the folder, or closed since
            continue
    return found


def abandoned_memory() -> set[str]:
    """Names of POSIX shared memory and semaphores that no process but this one maps (Linux): what was left behind.

    Those of the tests that run beside this one are mapped by their own processes.
    """
    if not os.path.isdir("/dev/shm"):
        return set()
    names = {str(entry.inode()): entry.name for entry in os.scandir("/dev/shm")}
    for folder in Path("/proc").glob("[0-9]*") if names else ():
        if folder.name != str(os.getpid()):
            with suppress(OSError):  # it has ended, or is another user's
                for line in (folder / "maps").read_text(errors="replace").splitlines():
                    if "/dev/shm/" in line:
                        names.pop(line.split()[4], None)  # the inode: a semaphore is mapped under another name
    return set(names.values())


def wait_until(condition: Callable[[], object], what: str = "", timeout: float = TIMEOUT) -> None:
    """Wait until the condition is true, where there is no event to wait for."""
    until = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < until, f"not within {timeout} s: {what or condition}"
        time.sleep(0.005)  # the caller's condition is not an event


@contextmanager
def nothing_leaked(*folders: str | os.PathLike[str]) -> Iterator[None]:
    """Assert that the block leaves no descriptor, thread or child of this process, and nothing new in the folders.

    What was there before may go meanwhile: it is an earlier test's. Run the block's work once before, where the first
    use opens something for good.
    """

    def snapshot() -> Counter[object]:
        files = (os.path.join(folder, name) for folder in folders for name in os.listdir(folder))
        return Counter([*descriptors().values(), *children(), *threading.enumerate(), *files])

    before = snapshot()
    yield
    assert snapshot() - before == Counter()


def run_python(source: str, *arguments: str, timeout: float = TIMEOUT, options: Sequence[str] = ()) -> str:
    """Run a Python program that must succeed silently, and return what it printed."""
    command = [sys.executable, *options, "-c", source, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment())
    assert (done.returncode, done.stderr) == (0, ""), f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout
