"""Load for servers that are being hurt: clients in threads that keep a book of every exchange; sockets that misbehave.

A client of the load asks as fast as it is answered, checks each response byte by byte, and notes each failure with how
long it took to come. What a test then asserts is about the book: how many failures, how prompt, how right the
responses.
"""

from __future__ import annotations

import contextlib
import os
import random

try:
    import resource
except ModuleNotFoundError:  # Windows has no such limits
    resource = None  # type: ignore[assignment]
import select
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import support

import ipcsrv
from ipcsrv.errors import Progress
from ipcsrv.platform import server as serving

PROMPT = 1.0  # seconds within which a failure has to reach the client


@dataclass
class Book:
    """What happened to one client: responses, and failures as (error, seconds that it took)."""

    answered: int = 0
    wrong: int = 0
    seconds: list[float] = field(default_factory=list)
    failures: list[tuple[Exception, float]] = field(default_factory=list)
    refusals: list[tuple[Exception, float]] = field(default_factory=list)


class Load:
    """So many clients, each in its thread, from `with` to the end of the block.

    keeping: clients with one kept connection each; connecting: clients with a connection for each request.
    size: makes the nth request of a client of so many bytes; request: the same each time; pause: seconds after each.
    `failures` are those of requests that were sent or would have been; `refusals` those of clients that could not
    connect, or whose kept connection was closed between two requests.
    """

    def __init__(self, path: str, *, keeping: int = 8, connecting: int = 8, size: Callable[[int], int] = lambda n: 20,
                 answer: Callable[[bytes], bytes] = lambda request: request, timeout: float = 20.0,
                 request: bytes | None = None, pause: float = 0.0) -> None:
        self._request_text, self._pause = request, pause
        self._path, self._size, self._answer, self._timeout = path, size, answer, timeout
        self._over = threading.Event()
        self.books = [Book() for _ in range(keeping + connecting)]
        targets = [self._keep] * keeping + [self._connect] * connecting
        self._threads = [threading.Thread(target=target, args=(number, book), daemon=True)
                         for number, (target, book) in enumerate(zip(targets, self.books))]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        until = time.monotonic() + support.TIMEOUT
        while not all(book.answered for book in self.books):
            assert time.monotonic() < until, f"some clients were never answered: {self.report()}"
            time.sleep(0.001)  # a client's first response has no event for this process
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(self._timeout + 5)
        assert not any(thread.is_alive() for thread in self._threads), "a client hangs"

    def stop_asking(self) -> None:
        """The clients end after the exchange that they are in."""
        self._over.set()

    # -- the clients --------------------------------------------------------------------------------------------------

    def _request(self, number: int, count: int) -> bytes:
        if self._request_text is not None:
            return self._request_text
        mark = b"client %d request %d " % (number, count)
        return (mark * (self._size(count) // len(mark) + 1))[: max(self._size(count), len(mark))]

    def _keep(self, number: int, book: Book) -> None:
        connection = None
        while not self._over.is_set():
            if connection is None or connection.closed:
                connection = self._try_to_connect(book)
                continue
            if not self._exchange(book, number, lambda data, link=connection: link.call(data, timeout=self._timeout)):
                connection = None
        if connection is not None:
            connection.close()

    def _try_to_connect(self, book: Book) -> Any:
        began = time.monotonic()
        try:
            return ipcsrv.connect(self._path, timeout=self._timeout)
        except ipcsrv.IpcError as error:
            book.refusals.append((error, time.monotonic() - began))
            self._over.wait(0.01)
            return None

    def _connect(self, number: int, book: Book) -> None:
        while not self._over.is_set():
            self._exchange(book, number, lambda data: ipcsrv.call(self._path, data, timeout=self._timeout))

    def _exchange(self, book: Book, number: int, ask: Callable[[bytes], bytes]) -> bool:
        request, began = self._request(number, book.answered), time.monotonic()
        try:
            response = ask(request)
        except ipcsrv.IpcError as error:
            entry = (error, time.monotonic() - began)
            (book.refusals if was_never_taken(error) else book.failures).append(entry)
            if isinstance(error, ipcsrv.NotListening):
                self._over.wait(0.01)
            return False
        book.answered += 1
        book.wrong += response != self._answer(request)
        book.seconds.append(time.monotonic() - began)
        if self._pause:
            self._over.wait(self._pause)
        return True

    # -- the books ----------------------------------------------------------------------------------------------------

    @property
    def answered(self) -> int:
        """Right and wrong responses."""
        return sum(book.answered for book in self.books)

    @property
    def wrong(self) -> int:
        """Responses that are not the one to the request."""
        return sum(book.wrong for book in self.books)

    @property
    def failures(self) -> list[tuple[Exception, float]]:
        """Exchanges that failed after the server had taken the connection."""
        return [failure for book in self.books for failure in book.failures]

    @property
    def refusals(self) -> list[tuple[Exception, float]]:
        """Requests that the server never had, and said so."""
        return [refusal for book in self.books for refusal in book.refusals]

    @property
    def slowest_failure(self) -> float:
        """Seconds from asking to the failure; who could not connect (and tried for as long as it had) had not asked."""
        asked = [*self.failures, *(entry for entry in self.refusals if not isinstance(entry[0], ipcsrv.NotListening))]
        return max((seconds for _, seconds in asked), default=0.0)

    @property
    def slowest_answer(self) -> float:
        """Seconds."""
        return max((seconds for book in self.books for seconds in book.seconds), default=0.0)

    def report(self) -> str:
        """One line for a person."""
        kinds: dict[str, int] = {}
        for error, _ in [*self.failures, *self.refusals]:
            name = f"{type(error).__name__}{'/' + str(error.progress) if hasattr(error, 'progress') else ''}"
            kinds[name] = kinds.get(name, 0) + 1
        return (f"answered {self.answered}, wrong {self.wrong}, failed {len(self.failures)}, "
                f"refused {len(self.refusals)} {kinds or ''}, "
                f"slowest answer {self.slowest_answer * 1e3:.0f} ms, "
                f"slowest failure {self.slowest_failure * 1e3:.0f} ms")


def was_never_taken(error: Exception) -> bool:
    """Whether the client knows for certain that the server has not begun its request."""
    if isinstance(error, (ipcsrv.NotListening, ipcsrv.ServerStopping)):
        return True
    return isinstance(error, ipcsrv.ConnectionLost) and error.progress is Progress.NOTHING_SENT


def percentile(seconds: list[float], share: float) -> float:
    """The value that this share of the sorted list does not exceed."""
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


class Future:
    """What an action in a thread of its own comes to."""

    def __init__(self, action: Callable[[], Any]) -> None:
        self._outcome: list[Any] = []
        self._error: Exception | None = None
        self.seconds = 0.0
        self.thread = threading.Thread(target=self._run, args=(action,), daemon=True)
        self.thread.start()

    def _run(self, action: Callable[[], Any]) -> None:
        began = time.monotonic()
        try:
            self._outcome.append(action())
        except Exception as error:
            self._error = error
        self.seconds = time.monotonic() - began

    def _wait(self) -> None:
        self.thread.join(support.TIMEOUT)
        assert not self.thread.is_alive(), "it never ended"

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return not self.thread.is_alive()

    def result(self) -> Any:
        """What it returned; raises what it raised."""
        self._wait()
        if self._error is not None:
            raise self._error
        return self._outcome[0]

    def error(self) -> Exception:
        """What it raised."""
        self._wait()
        assert self._error is not None, f"it returned {self._outcome[0]!r:.80}"
        return self._error


# -- raw clients ------------------------------------------------------------------------------------------------------


def raw(path: str, data: bytes = b"", timeout: float | None = support.TIMEOUT) -> socket.socket:
    """A connected plain socket that has sent `data`; with a timeout, the queue must not be full."""
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(timeout)
    try:
        client.connect(path)
        client.sendall(data)
    except BaseException:
        client.close()
        raise
    return client


def packet(data: bytes) -> bytes:
    """One packet."""
    return b"%04x%b" % (len(data) + 4, data)


def has_halves(client: socket.socket) -> bool:
    """Whether one direction can be shut down alone: a pipe's client (Windows) has no such halves."""
    return not hasattr(client, "readable")


def message(data: bytes) -> bytes:
    """One small message."""
    return packet(data) + b"0000"


def rest_of(client: socket.socket) -> bytes:
    """All that comes, to the end (however it comes)."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while data := client.recv(65536):
            received += data
    return received


def fill(client: socket.socket, data: bytes) -> int:
    """Send of `data` what the other side takes without waiting; returns how much that was."""
    client.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while sent < len(data):
            sent += client.send(data[sent : sent + 65536])
    client.settimeout(support.TIMEOUT)
    return sent


# -- processes --------------------------------------------------------------------------------------------------------


def wait_until(condition: Callable[[], Any], what: str, timeout: float = support.TIMEOUT) -> Any:
    """Wait for something that the kernel or the server shows but does not announce; returns what was found."""
    until = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < until, f"not within {timeout} s: {what}"
        time.sleep(0.002)  # there is no event for it
    return found


def workers_of(running: support.RunningServer) -> list[dict[str, Any]]:
    """The workers as `status` lists them."""
    found: Any = running.status()["workers"]
    return list(found)


def worker_pids(running: support.RunningServer) -> set[int]:
    """Those that are ready or busy."""
    return {worker["pid"] for worker in workers_of(running) if worker["state"] in ("idle", "busy")}


def process_state(pid: int) -> str:
    """The letter that the kernel has for what a process is doing: T is stopped (proc(5))."""
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


def cpu_seconds(pid: int) -> float:
    """The CPU time that a process has used (proc_pid_stat(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def parent_of(pid: int) -> int:
    """The process that has started this one (proc_pid_stat(5))."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def is_whole(running: support.RunningServer) -> bool:
    """Whether as many workers serve as are wanted, and no others are left."""
    found = running.status()
    workers: Any = found["workers"]
    return len(workers) == found["workers_wanted"] and all(worker["state"] in ("idle", "busy") for worker in workers)


def template_pid(running: support.RunningServer) -> int:
    """The process from which the workers are forked."""
    if "fork" not in serving.start_methods():
        pytest.skip("workers are not forked here")
    (found,) = {parent_of(pid) for pid in worker_pids(running)}
    return found


def kill_workers(running: support.RunningServer, seconds: float, every: float = 0.05) -> int:
    """SIGKILL a random worker at this interval for so long; how many were killed."""
    rng, killed, until, template = random.Random(), 0, time.monotonic() + seconds, template_pid(running)
    while time.monotonic() < until:
        next_at = time.monotonic() + every
        found = list(support.children(template))
        if found:
            with contextlib.suppress(ProcessLookupError):
                support.kill(rng.choice(found))
                killed += 1
        time.sleep(max(0.0, next_at - time.monotonic()))  # the interval is the point
    return killed


@contextlib.contextmanager
def limited(**limits: int) -> Iterator[None]:
    """Soft limits of this process, which servers started meanwhile inherit: `limited(NOFILE=64)`."""
    before = {name: resource.getrlimit(getattr(resource, f"RLIMIT_{name}")) for name in limits}
    try:
        for name, value in limits.items():
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, before[name][1]))
        yield
    finally:
        for name, pair in before.items():
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), pair)


@contextlib.contextmanager
def started_by(wrapper: str) -> Iterator[None]:
    """Start servers through this shell text, which ends in `exec "$@"`, instead of directly."""
    if resource is None:
        pytest.skip("a process cannot be limited here")
    folder = Path(os.environ.get("TMPDIR", "/tmp"))
    script = folder / f"wrapper-{os.getpid()}-{os.urandom(4).hex()}"
    python = sys.executable
    script.write_text(f'#!/bin/sh\nset -- {python} "$@"\n{wrapper}\n')
    script.chmod(stat.S_IRWXU | stat.S_IRGRP | stat.S_IXGRP | stat.S_IROTH | stat.S_IXOTH)
    sys.executable = str(script)
    try:
        yield
    finally:
        sys.executable = python
        script.unlink()


def _needs_proc() -> None:
    if not support.have_proc:
        pytest.skip("/proc tells nothing here")


def pss(pid: int) -> int:
    """Proportional memory of a process in bytes (proc(5), smaps_rollup)."""
    _needs_proc()
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def peak_rss(pid: int) -> int:
    """The most memory that a process has had, in bytes (proc(5), VmHWM)."""
    _needs_proc()
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def is_readable(client: socket.socket, timeout: float) -> bool:
    """Whether something, or the end, comes in time."""
    if not has_halves(client):
        return bool(client.readable(timeout))  # type: ignore[attr-defined]
    return bool(select.select([client], [], [], timeout)[0])
