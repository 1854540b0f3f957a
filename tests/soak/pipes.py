"""What a server on Windows must reach, measured: `python tests/soak/pipes.py [NAME...]`; each says what it saw.

Run from the root of the project, with a Windows interpreter that has the test tools.  See README.md for the figures.
"""

from __future__ import annotations

import _winapi
import contextlib
import functools
import os
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [os.fspath(TESTS), os.fspath(TESTS.parent)]

import support  # noqa: E402

import ipcsrv  # noqa: E402
from ipcsrv.platform import lifecycle  # noqa: E402

SECONDS = float(os.environ.get("SOAK_SECONDS", "10"))
ROUNDS = int(os.environ.get("SOAK_ROUNDS", "5"))
PROMPT = 1.0  # seconds
TIMEOUT = 10.0  # seconds; no client may have to wait so long

HIGHEST_HANDLE = 4000

results: list[bool] = []


@contextlib.contextmanager
def served(*options: str, target: str = "handlers_for_tests:echo") -> Iterator[support.RunningServer]:
    """A server in a folder of its own."""
    folder = tempfile.mkdtemp(prefix="i-")
    running = support.RunningServer(os.path.join(folder, "s"), target, *options).wait_until_listening()
    try:
        yield running
    finally:
        running.clean_up()
        shutil.rmtree(folder)


def record(name: str, good: bool, text: str) -> None:
    """Print a result, and remember it for the exit status."""
    results.append(good)
    print(f"{'ok  ' if good else 'FAIL'} {name}: {text}", flush=True)


def workers(running: support.RunningServer) -> list[int]:
    """The processes of those that are ready."""
    found: Any = running.status()["workers"]
    return [worker["pid"] for worker in found if worker["state"] in ("idle", "busy")]


class Clients:
    """Eight clients in a loop, every other one on a kept connection, until `over` is set."""

    def __init__(self, path: str) -> None:
        self.over = threading.Event()
        self.unmanned = 0.0  # when no worker was ready, last
        self.answered = self.wrong = 0
        self.failures: list[tuple[float, str]] = []
        self.slowest = 0.0
        self._path = path
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(8)]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Have them end."""
        self.over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        link, count = None, 0
        while not self.over.is_set():
            count += 1
            request, began, error = b"client %d request %d" % (number, count), time.monotonic(), None
            try:
                if number % 2:
                    link = link if link is not None and not link.closed else ipcsrv.connect(self._path, timeout=TIMEOUT)
                    response = link.call(request, timeout=TIMEOUT)
                else:
                    response = ipcsrv.call(self._path, request, timeout=TIMEOUT)
            except ipcsrv.IpcError as failure:
                error, link, response = repr(failure), None, request
            with self._lock:
                # Who waits while there is no worker at all is not kept waiting by the dead one.
                waited = time.monotonic() - max(began, self.unmanned)
                self.slowest = max(self.slowest, waited)
                self.answered += error is None
                self.wrong += response != request
                if error is not None:
                    self.failures.append((waited, error))


def kills() -> None:
    """A random worker is killed every 200 ms: no client waits over 1 s, and no more fail than were killed."""
    for number in range(ROUNDS):
        with served("--workers", "4") as running:
            clients, killed, until = Clients(running.path), 0, time.monotonic() + SECONDS
            while time.monotonic() < until:
                next_at = time.monotonic() + 0.2
                if ready := workers(running):
                    lifecycle.kill(random.choice(ready))
                    killed += 1
                if len(ready) < 2:
                    clients.unmanned = time.monotonic()
                time.sleep(max(0.0, next_at - time.monotonic()))  # the interval is the point
            while not workers(running):
                clients.unmanned = time.monotonic()
            clients.join()
        good = len(clients.failures) <= killed and not clients.wrong and clients.slowest < PROMPT
        slow = [failure for failure in clients.failures if failure[0] >= PROMPT]
        record(f"kills {number + 1}", good, f"{killed} kills, {clients.answered} answered, {len(clients.failures)} "
               f"failed, longest wait with a worker there {clients.slowest:.2f} s {slow or ''}")


def handles(pids: list[int]) -> list[int]:
    """How many each of these processes has open; asked one by one, since Wine does not count them."""
    return [sum(_is_open(process, number) for number in range(4, HIGHEST_HANDLE, 4)) for process in map(_opened, pids)]


@functools.cache
def _opened(pid: int) -> int:
    return _winapi.OpenProcess(0x0040, False, pid)


def _is_open(process: int, number: int) -> bool:
    own = _winapi.GetCurrentProcess()
    try:
        _winapi.CloseHandle(_winapi.DuplicateHandle(process, number, own, 0, False, 2))
    except OSError as error:
        return error.winerror != 6  # some may not be duplicated
    return True


def ask(path: str, count: int, keep: bool) -> int:
    """So many calls from 8 clients; how many answers were wrong."""
    wrong = [0] * 8

    def client(number: int) -> None:
        with ipcsrv.connect(path, timeout=TIMEOUT) if keep else contextlib.nullcontext() as link:
            for index in range(count // 8):
                data = b"%d %d" % (number, index)
                answer = link.call(data, timeout=TIMEOUT) if keep else ipcsrv.call(path, data, timeout=TIMEOUT)
                wrong[number] += answer != data

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(wrong)


def constancy() -> None:
    """10,000 calls that connect and 50,000 on kept pipes: all right, and as many handles as after the first 1,000."""
    calls = int(os.environ.get("SOAK_CALLS", "10000"))
    with served("--workers", "4") as running:
        wrong = ask(running.path, 1000, False) + ask(running.path, 1000, True)
        pids = [running.pid, *sorted(workers(running))]
        before = settled(running, pids)
        began = time.monotonic()
        wrong += ask(running.path, calls, False) + ask(running.path, 5 * calls, True)
        seconds = time.monotonic() - began
        after, same = settled(running, pids), pids[1:] == sorted(workers(running))
    record("constancy", not wrong and same and max(after) <= max(before) and sum(after) <= sum(before),
           f"{6 * calls} calls in {seconds:.0f} s, {wrong} wrong; handles of master and workers {before} -> {after}; "
           f"the same processes: {same}")


def settled(running: support.RunningServer, pids: list[int]) -> list[int]:
    """Their handles, once every client's connection has been let go of."""
    support.wait_until(lambda: not running.status()["idle"], "the clients have gone")
    counts: list[int] = []
    while counts != (now := handles(pids)):
        counts = now
        time.sleep(0.5)  # closing what clients have left has no event
    return counts


def starts() -> None:
    """20 starts at once: one serves.  Its master is killed: the workers go within 2 s, and the next start works."""
    folder = tempfile.mkdtemp(prefix="i-")
    path, codes = os.path.join(folder, "s"), []

    def start() -> None:
        codes.append(support.run_command("start", path, "handlers_for_tests:echo", "--workers", "2",
                                         timeout=300.0).returncode)

    threads = [threading.Thread(target=start) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    from ipcsrv.server import server

    status: Any = server.status(path)
    left = [_winapi.OpenProcess(0x00100000, False, worker["pid"]) for worker in status["workers"]]
    began = time.monotonic()
    lifecycle.kill(status["pid"])
    gone = all(_winapi.WaitForSingleObject(process, 2000) == _winapi.WAIT_OBJECT_0 for process in left)
    seconds = time.monotonic() - began
    again = support.run_command("start", path, "handlers_for_tests:echo", "--workers", "1", timeout=60.0).returncode
    serves = ipcsrv.call(path, b"again", timeout=TIMEOUT) == b"again"
    support.run_command("stop", path, timeout=60.0)
    shutil.rmtree(folder, ignore_errors=True)
    record("starts", sorted(codes) == [0] + [6] * 19 and gone and not again and serves,
           f"{codes.count(0)} served, {codes.count(6)} exited 6; "
           f"workers of a killed master gone after {seconds:.2f} s; the next start exited {again}")


def silent() -> None:
    """200 silent clients on 2 workers: others are served as if they were not there."""
    with served("--workers", "2") as running:
        alone = [timed(running.path) for _ in range(300)]
        crowd = [ipcsrv.connect(running.path, timeout=TIMEOUT) for _ in range(200)]
        beside = [timed(running.path) for _ in range(300)]
        awake = all(link.call(b"awake", timeout=TIMEOUT) == b"awake" for link in crowd)
        for link in crowd:
            link.close()
    before, after = (statistics.median(times) * 1e3 for times in (alone, beside))
    record("silent", awake and after < 2 * before + 1,
           f"p50 {before:.1f} ms alone, {after:.1f} ms beside 200 silent ones, who were all answered after: {awake}; "
           f"slowest {max(alone) * 1e3:.0f} and {max(beside) * 1e3:.0f} ms")


def timed(path: str) -> float:
    """Seconds that one call takes."""
    began = time.monotonic()
    assert ipcsrv.call(path, b"x", timeout=TIMEOUT) == b"x"
    return time.monotonic() - began


if __name__ == "__main__":
    names = sys.argv[1:] or ["kills", "constancy", "starts", "silent"]
    for name in names:
        globals()[name]()
    sys.exit(not all(results))
