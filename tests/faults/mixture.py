"""Everything at once: every kind of client and every kind of fault, at random, against one server.

`survive` runs one round. What it asserts: every client is answered or told within its deadline, no answer is wrong, the
server stops in time, and no process, file or descriptor is left. The moments are random because that is the point.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import support
from faults import load

import ipcsrv
from ipcsrv.protocol import pktline

HANDLER = "handlers_of_a_mixture:answer"
SETTINGS = {"request-timeout": 1.5, "read-timeout": 4.0, "write-timeout": 4.0, "drain-timeout": 3.0,
            "startup-timeout": 8.0}  # fmt: skip
DEADLINE = 20.0  # seconds of a client: more than all timeouts of the server together
SLACK = 5.0  # seconds beyond what is allowed, on a busy machine
FEW = 70  # descriptors
FULL = 32 * 1024  # bytes of the file system with the log
HALF = b"".join(load.packet(b"u" * 50_000) for _ in range(10))
LARGE = b"".join(bytes(part) for part in pktline.encode(b"l" * 10_000_000))


class Late(Exception):
    """A client was neither answered nor told within its deadline."""


class Wrong(Exception):
    """An answer is not the one to the request."""


# -- clients: each returns what became of one exchange or a few --------------------------------------------------------


def connecting(path: str, rng: random.Random) -> None:
    request = b"%d" % rng.getrandbits(rng.choice([10, 3000]))
    check(ipcsrv.call(path, request, timeout=DEADLINE), request)


def keeping(path: str, rng: random.Random) -> None:
    with ipcsrv.connect(path, timeout=DEADLINE) as connection:
        for _ in range(rng.randint(1, 30)):
            request = b"%d" % rng.getrandbits(40)
            check(connection.call(request, timeout=DEADLINE), request)
            time.sleep(rng.choice([0, 0, 0.002]))  # some clients think


def pipelining(path: str, rng: random.Random) -> None:
    requests = [b"%d" % rng.getrandbits(40) for _ in range(rng.randint(2, 20))]
    with raw(path) as client:
        client.sendall(b"".join(map(load.message, requests)))
        read_responses(client, requests)


def half_upload(path: str, rng: random.Random) -> None:
    with raw(path) as client:
        client.sendall(HALF[: rng.randrange(1, len(HALF))])
        time.sleep(rng.uniform(0, 2))  # some complete it, some leave


def whole_upload_in_pieces(path: str, rng: random.Random) -> None:
    cut = rng.randrange(1, len(HALF))
    with raw(path) as client:
        client.sendall(HALF[:cut])
        time.sleep(rng.uniform(0, 1))  # it pauses
        client.sendall(HALF[cut:] + pktline.FLUSH)
        read_responses(client, [b"u" * 500_000])


def slow_reader(path: str, rng: random.Random) -> None:
    with raw(path) as client:
        client.sendall(LARGE)
        time.sleep(rng.uniform(0, 2))  # it does not read for a while
        read_responses(client, [b"l" * 10_000_000])


def large(path: str, rng: random.Random) -> None:
    request = b"l" * rng.randrange(10_000_000)
    check(ipcsrv.call(path, request, timeout=DEADLINE), request)


def streaming(path: str, rng: random.Random) -> None:
    count = rng.randrange(20_000)
    expected = b"".join(b"%06d" % number for number in range(count))
    check(ipcsrv.call(path, b"stream %d" % count, timeout=DEADLINE), expected)


def garbage(path: str, rng: random.Random) -> None:
    with raw(path) as client:
        client.sendall(rng.randbytes(rng.randrange(1, 5000)))
        client.shutdown(socket.SHUT_WR)
        while client.recv(65536):
            pass


def leaving(path: str, rng: random.Random) -> None:
    with raw(path) as client:
        client.sendall(load.message(rng.choice([b"hang", b"x", b"stream 20000"])))


def forking(path: str, rng: random.Random) -> None:
    check(ipcsrv.call(path, b"fork %.2f" % rng.uniform(0, 2), timeout=DEADLINE), b"forked")


def failing(path: str, rng: random.Random) -> None:
    word = rng.choice([b"fail", b"hang", b"die"])
    response = ipcsrv.call(path, word, timeout=DEADLINE)
    raise Wrong(f"{response[:20]!r} to {word!r}")


CLIENTS = (connecting, connecting, keeping, keeping, pipelining, half_upload, whole_upload_in_pieces, slow_reader,
           large, streaming, garbage, leaving, forking, failing)  # fmt: skip


def check(response: bytes, expected: bytes) -> None:
    if response != expected:
        raise Wrong(f"{len(response)} bytes {response[:40]!r} for {len(expected)} bytes {expected[:40]!r}")


@contextlib.contextmanager
def raw(path: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(DEADLINE)
        client.connect(path)
        yield client


def read_responses(client: socket.socket, expected: list[bytes]) -> None:
    """Read these responses, or a failure reply or the end in the place of one of them."""
    decoder, left = pktline.Decoder(), list(expected)
    while left:
        data = client.recv(1 << 18)
        if not data:
            raise ConnectionResetError("the end")
        decoder.feed(data)
        while left and (message := decoder.next_message()) is not None:
            check(message, left.pop(0))
        if decoder.assembly.size < 200 and b"ERR " in data[-300:]:
            raise ConnectionResetError("told")


# -- one round ---------------------------------------------------------------------------------------------------------


class Round:
    """One server, its clients and its faults."""

    def __init__(self, folder: Path, method: str, seed: str, seconds: float) -> None:
        self.folder, self.method, self.seconds = folder, method, seconds
        self.rng = random.Random(seed)
        self.outcomes: Counter[str] = Counter()
        self.bad: list[str] = []
        self._over = threading.Event()
        self._stopped: set[int] = set()

    def run(self) -> None:
        """Raises AssertionError for all that was not as it must be."""
        rng = self.rng
        with self._log_file() as log:
            running = self._start(log)
            threads = [threading.Thread(target=self._client, args=(running.path, rng.getrandbits(60)))
                       for _ in range(14)]
            for thread in threads:
                thread.start()
            given_up = threading.Thread(target=self._give_starts_up)
            given_up.start()
            until = time.monotonic() + self.seconds
            while time.monotonic() < until:
                time.sleep(rng.uniform(0.01, 0.4))  # to hit any moment
                self._hurt(running)
            self._resume()
            before = time.monotonic()
            running.signal(signal.SIGTERM)
            running.wait(SETTINGS["drain-timeout"] + 1 + SLACK)
            self.outcomes[f"stopped after {time.monotonic() - before:.0f} s"] += 1
            self._over.set()
            for thread in [*threads, given_up]:
                thread.join(DEADLINE + SLACK)
                assert not thread.is_alive(), "a client hangs"
            left = support.wait_gone(running.processes(), 2 + SLACK)  # forked children of the handler have 2 s
            assert not left, f"{left} are left:\n{running.output.rest()[-3000:]}"
            assert not self.bad, "\n".join(self.bad[:5])
        assert not list(self.folder.iterdir()), f"files are left: {list(self.folder.iterdir())}"

    def _start(self, log: Path) -> support.RunningServer:
        options = [part for name, value in SETTINGS.items() for part in (f"--{name}", f"{value:g}")]
        options += ["--start-method", self.method, "--workers", str(self.rng.randint(1, 3))]
        options += ["--log-file", os.fspath(log)]
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if self.rng.random() < 0.4:
            resource.setrlimit(resource.RLIMIT_NOFILE, (FEW, hard))
        try:
            running = support.RunningServer(os.fspath(self.folder / "s"), HANDLER, *options)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        load.wait_until(lambda: ipcsrv.active_state(running.path) is ipcsrv.State.LISTENING, "it listens")
        return running

    @contextlib.contextmanager
    def _log_file(self) -> Iterator[Path]:
        """The file of the log; half the time on a file system that is soon full, where this user may mount one."""
        place = self.folder / "log"
        place.mkdir()
        mounted = os.geteuid() == 0 and self.rng.random() < 0.5 and subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={FULL}", "tmpfs", place], capture_output=True, check=False
        ).returncode == 0  # fmt: skip
        try:
            yield place / "log"
        finally:
            if mounted:
                subprocess.run(["umount", "-l", place], check=True)
            shutil.rmtree(place)

    def _client(self, path: str, seed: int) -> None:
        rng = random.Random(seed)
        while not self._over.is_set():
            kind: Callable[[str, random.Random], None] = rng.choice(CLIENTS)
            began, outcome = time.monotonic(), "answered"
            try:
                kind(path, rng)
            except (ipcsrv.CallTimeout, TimeoutError) as error:
                outcome = "late"
                self.bad.append(f"{kind.__name__}: {error} after {time.monotonic() - began:.1f} s")
            except Wrong as error:
                outcome = "wrong"
                self.bad.append(f"{kind.__name__}: {error}")
            except (ipcsrv.IpcError, OSError) as error:
                outcome = type(error).__name__
                if isinstance(error, (ipcsrv.NotListening, ipcsrv.PathNotFound, ConnectionRefusedError)):
                    self._over.wait(0.01)
            self.outcomes[outcome] += 1

    # -- faults -------------------------------------------------------------------------------------------------------

    def _hurt(self, running: support.RunningServer) -> None:
        rng = self.rng
        others = sorted(running.processes() - {running.pid})
        some = rng.sample(others, rng.randint(min(1, len(others)), len(others)))
        event = rng.choice(["kill", "stop", "resume", "signal", "signal", "one"])
        if event == "resume":
            self._resume()
        elif event == "signal":
            running.signal(rng.choice([signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU]))
        elif event == "stop":
            self._send(some, signal.SIGSTOP)
            self._stopped.update(some)
        else:
            self._send(some[:1] if event == "one" else some, signal.SIGKILL)

    def _resume(self) -> None:
        self._send(sorted(self._stopped), signal.SIGCONT)
        self._stopped.clear()

    @staticmethod
    def _send(pids: list[int], number: int) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _give_starts_up(self) -> None:
        """Begin starts that hang in the import, and give them up."""
        other = self.folder / "given-up"
        command = [sys.executable, "-m", "ipcsrv", "start", os.fspath(other), HANDLER, "--timeout", "0.5"]
        while not self._over.is_set():
            mark = f"{os.getpid()}-{os.urandom(6).hex()}"
            done = subprocess.run(command, env=support.environment(IMPORT_HANGS="1", **{support.MARK: mark}),
                                  capture_output=True, timeout=DEADLINE, check=False)
            left = support.wait_gone(support.marked_processes(mark), 1 + SLACK)
            if done.returncode != 4 or left:
                self.bad.append(f"a start given up: status {done.returncode}, left {left}, {done.stderr[-300:]!r}")
            self.outcomes["starts given up"] += 1
            self._over.wait(1.0)


def survive(folder: Path, method: str, seed: str, seconds: float) -> Counter[str]:
    """Run one round; returns what became of the exchanges, by name. Descriptors of this process are as before."""
    before = set(os.listdir("/proc/self/fd"))
    this = Round(folder, method, seed, seconds)
    this.run()
    load.wait_until(lambda: len(os.listdir("/proc/self/fd")) <= len(before) + 1, "no descriptor is left")
    return this.outcomes
