"""A day's worth of life in ten minutes: `python tests/soak/day.py [SECONDS] [SEED]`.

A server in the background is loaded by eight clients while its day goes by: reloads, workers that crash and are
killed, a template that is killed, floods, garbage, clients that leave, idle times, scaling, log rotation.  Six times
a day it is stopped and started, each time with the next start method.  Before each stop the clients pause, and then
their books and the server's totals must be equal to the request: every response, every handler's error, every lost
request, every client that left.  No client may see a failure that it did not ask for, and nothing may be left at the
end of each server.
"""

from __future__ import annotations

import json
import os
import random
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [os.fspath(TESTS), os.fspath(TESTS.parent)]

import support  # noqa: E402

import ipcsrv  # noqa: E402
from ipcsrv.client import control  # noqa: E402

SHIFTS = 6  # servers a day
METHODS = ("fork", "forkserver", "spawn")
NOBODY = {"waiting": 0, "parked": 0}
PATIENCE = 20.0  # seconds for anything, on a busy machine


class Book:
    """What the clients have seen, by the name of the server's total for it."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.surprises: list[str] = []
        self._lock = threading.Lock()

    def count(self, name: str, number: int = 1) -> None:
        with self._lock:
            self.counts[name] += number

    def surprise(self, what: str) -> None:
        with self._lock:
            self.surprises.append(what)


class Clients:
    """Eight clients in threads: four keep their connection, four make a new one for each request."""

    def __init__(self, path: str, book: Book, seed: int) -> None:
        self.path, self.book = path, book
        self._changed = threading.Condition()
        self._go = self._over = False
        self._resting = 0
        self._threads = [
            threading.Thread(target=self._live, args=(random.Random(seed * 100 + number), number < 4))
            for number in range(8)
        ]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._over, self._go = True, False
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def work(self) -> None:
        with self._changed:
            self._go = True
            self._changed.notify_all()

    def rest(self) -> None:
        """Returns when every client has ended its exchange, and closed its connection."""
        with self._changed:
            self._go = False
            assert self._changed.wait_for(lambda: self._resting == len(self._threads), PATIENCE)

    def _live(self, rng: random.Random, keeping: bool) -> None:
        while self._called():
            try:
                self._day(rng, keeping)
            except Exception as error:
                self.book.surprise(f"{type(error).__name__}: {error}")

    def _called(self) -> bool:
        """Rest until there is work; False when there will be no more."""
        with self._changed:
            self._resting += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._go or self._over)
            self._resting -= 1
            return not self._over

    def _day(self, rng: random.Random, keeping: bool) -> None:
        while self._go and not keeping:
            self._ask(lambda data: ipcsrv.call(self.path, data, timeout=PATIENCE), rng)
        while self._go:
            with ipcsrv.connect(self.path, timeout=PATIENCE) as connection:
                while self._go and self._ask(connection.call, rng):
                    if rng.random() < 0.01:
                        time.sleep(0.02)  # silent for a while: the master parks the connection

    def _ask(self, call: Callable[[bytes], bytes], rng: random.Random) -> bool:
        """One request; False if the connection is done for, as it is after what this request asked for."""
        dice = rng.random()
        if dice < 0.002:
            return self._ask_for_death(call, rng.choice([b"exit", b"kill"]))
        if dice < 0.01:
            return self._ask_for_error(call)
        size = rng.choice([0, 5, 200, 70_000]) if dice < 0.9 else rng.randrange(300_000)
        request = b"sleep 5" if dice > 0.98 else b"x" * size
        try:
            response = call(request)
        except ipcsrv.ConnectionLost as error:
            # A worker that dies takes along what it had read of others in part; a request of one packet it has not.
            if len(request) <= 65516:
                print(f"{request[:10]!r} of {len(request)} bytes: {error}", file=sys.stderr)
            self.book.count("lost in part" if len(request) > 65516 else "lost beside another")
            return False
        except ipcsrv.IpcError as error:
            self.book.surprise(f"{request[:10]!r} of {len(request)} bytes: {error}")
            return False
        if response != request:
            self.book.surprise("a response that is not its request's")
        self.book.count("ok")
        return True

    def _ask_for_death(self, call: Callable[[bytes], bytes], word: bytes) -> bool:
        try:
            call(word)
        except ipcsrv.HandlerCrashed:
            self.book.count("lost")
        return False

    def _ask_for_error(self, call: Callable[[bytes], bytes]) -> bool:
        try:
            call(b"raise on purpose")
        except ipcsrv.HandlerError:
            self.book.count("handler_errors")
        return False


class Day:
    """The server's day: what happens to it."""

    def __init__(self, folder: Path, seconds: float, seed: int) -> None:
        self.folder, self.seconds = folder, seconds
        self.rng, self.seed = random.Random(seed), seed
        self.path, self.log = str(folder / "s"), folder / "log"
        self.rotations = 0
        self.method = METHODS[0]
        self.happened: Counter[str] = Counter()
        self.events = (self.reload, self.reload, self.rotate, self.flood, self.idle, self.leave, self.garbage,
                       self.scale, self.kill_template, self.look)

    def live(self) -> Counter[str]:
        """The whole day; returns what was counted."""
        counted: Counter[str] = Counter()
        for shift in range(SHIFTS):
            book = Book()
            self.method = METHODS[shift % len(METHODS)]
            self.start()
            with Clients(self.path, book, self.seed + shift) as clients:
                clients.rest()
                self.shift(clients, book)
                self.compare(book)
            self.stop()
            counted += book.counts
        return counted

    def shift(self, clients: Clients, book: Book) -> None:
        """The life of one server, until the clients rest."""
        until = time.monotonic() + self.seconds / SHIFTS
        clients.work()
        while time.monotonic() < until:
            event = self.rng.choice(self.events)
            event(clients, book)
            self.happened[event.__name__] += 1
            assert not book.surprises, (event.__name__, book.surprises[:3])
            time.sleep(self.rng.uniform(0.05, 0.6))
        clients.rest()

    def start(self) -> None:
        done = support.run_command("start", self.path, "handlers_of_a_day:handle", "--workers", "2",
                                   "--start-method", self.method,
                                   "--log-file", str(self.log), "--log-level", "warning", timeout=PATIENCE)
        assert done.returncode == 0, done.stderr.decode()

    def stop(self) -> None:
        pids = {self.status()["pid"], *(worker["pid"] for worker in self.status()["workers"])}
        done = support.run_command("stop", self.path, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr.decode()
        assert support.wait_gone(pids, 5) == set()
        left = [name for name in os.listdir(self.folder) if not name.startswith("log")]
        assert left == [], left

    def status(self) -> dict:
        return control.request(self.path, "status", timeout=PATIENCE)

    # -- what happens -------------------------------------------------------------------------------------------------

    def reload(self, clients: Clients, book: Book) -> None:
        before = self.status()["generation"]
        assert control.request(self.path, "reload", timeout=PATIENCE)["generation"] > before

    def rotate(self, clients: Clients, book: Book) -> None:
        if self.log.exists():
            self.rotations += 1
            self.log.rename(self.folder / f"log.{self.rotations}")

    def flood(self, clients: Clients, book: Book) -> None:
        crowd = [socket.socket(socket.AF_UNIX) for _ in range(200)]
        for client in crowd:
            client.settimeout(PATIENCE)
            client.connect(self.path)
            client.sendall(b"0009flood0000")
        for client in crowd:
            with client:
                answer = b""
                while len(answer) < 13 and (data := client.recv(100)):
                    answer += data
                if answer != b"0009flood0000":
                    book.surprise(f"one of a flood was answered {answer!r}")
                book.count("ok")

    def idle(self, clients: Clients, book: Book) -> None:
        clients.rest()
        time.sleep(self.rng.uniform(0.5, 3))
        clients.work()

    def leave(self, clients: Clients, book: Book) -> None:
        for _ in range(10):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(self.path)
                client.sendall(b"000csleep 300000")
            book.count("cancelled")

    def garbage(self, clients: Clients, book: Book) -> None:
        for _ in range(10):
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(PATIENCE)
                client.connect(self.path)
                client.sendall(b"zzzz" + self.rng.randbytes(20))
                while client.recv(1000):
                    pass
            book.count("malformed")

    def scale(self, clients: Clients, book: Book) -> None:
        control.request(self.path, "scale", workers=self.rng.randint(1, 4), timeout=PATIENCE)

    def kill_template(self, clients: Clients, book: Book) -> None:
        if self.method == "spawn":
            return  # it has none
        for pid in support.children(self.status()["pid"]):
            os.kill(pid, 9)

    def look(self, clients: Clients, book: Book) -> None:
        begun = time.monotonic()
        self.status()
        assert time.monotonic() - begun < 2.0  # the 50 ms are tested where nothing else runs

    # -- the books ----------------------------------------------------------------------------------------------------

    def compare(self, book: Book) -> None:
        """The clients' book and the server's totals, once both have come to rest."""
        names = ("ok", "handler_errors", "lost", "malformed", "cancelled")
        expected = {name: book.counts[name] for name in names}
        until = time.monotonic() + PATIENCE
        while (counted := {name: self.status()["totals"][name] for name in names}) != expected:
            assert time.monotonic() < until, f"server {counted}, clients {expected}"
            time.sleep(0.05)
        totals = self.status()["totals"]
        handled = totals["ok"] + totals["handler_errors"] + totals["lost"]
        assert handled <= totals["requests"] <= handled + totals["cancelled"], totals
        while (left := {"waiting": self.status()["queue"]["depth"], "parked": self.status()["idle"]}) != NOBODY:
            assert time.monotonic() < until, left
            time.sleep(0.05)


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 600.0
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else int(time.time())
    print(f"{seconds:g} s, seed {seed}", flush=True)
    os.environ["PYTHONPATH"] = os.fspath(TESTS)
    with tempfile.TemporaryDirectory(prefix="d-", dir="/tmp") as folder:
        memory, descriptors = support.abandoned_memory(), len(support.descriptors())
        day = Day(Path(folder), seconds, seed)
        counted = day.live()
        support.wait_until(lambda: support.abandoned_memory() <= memory, "no shared memory is left")
        assert len(support.descriptors()) == descriptors
        lines = sum(len(file.read_bytes().splitlines()) for file in Path(folder).glob("log*"))
    print(json.dumps({"counted": counted, "happened": day.happened, "log lines": lines}, indent=1))
    raise SystemExit(bool(counted["lost beside another"]))


if __name__ == "__main__":
    main()
