"""Who takes part: how each is started, and which protocol its clients speak. Runs in the benchmark's own process."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

START_LIMIT = 30.0  # seconds until a server must listen


@dataclass(frozen=True)
class Contestant:
    """A server: its name, its command (`PATH` and the C program's path are filled in), its clients' protocol.

    protocol: a key of `clients.OPENERS`; `ipc` and `http` can be driven by the C load too.
    needs: the module without which it is left out. keeps: whether it answers more than one request a connection.
    """

    name: str
    command: tuple[str, ...]
    protocol: str = "ipc"
    needs: str | None = None
    keeps: bool = True
    connects: bool = True
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def installed(self) -> bool:
        return self.needs is None or importlib.util.find_spec(self.needs) is not None


def ipcsrv(handler: str = "pong", workers: int = 2, name: str = "ipcsrv", *options: str) -> Contestant:
    """This project's server, as a user starts it, with everything on."""
    target = f"benchmarks.handlers:{handler}"
    command = (sys.executable, "-m", "ipcsrv", "run", "PATH", target, "--workers", str(workers),
               "--log-level", "warning", *options)
    return Contestant(name, command)


def systemd_socket() -> Contestant:
    """The same with a listener from systemd."""
    plain = ipcsrv()
    at = plain.command.index("PATH")
    command = (sys.executable, "-m", "benchmarks.servers.systemd_socket", *plain.command[at:])
    return Contestant("systemd's socket", command)


def bare_c(program: Path, mode: str, *numbers: int, processes: int = 2, name: str = "bare C") -> Contestant:
    """One of the loops of `c/server.c`."""
    return Contestant(name, (str(program), "PATH", str(processes), mode, *map(str, numbers)))


def _module(name: str, module: str, protocol: str = "ipc", needs: str | None = None, **more: bool) -> Contestant:
    return Contestant(name, (sys.executable, "-m", f"benchmarks.servers.{module}", "PATH"), protocol, needs, **more)


def _gunicorn(name: str, *options: str, keeps: bool) -> Contestant:
    command = (sys.executable, "-m", "gunicorn", "--bind", "unix:PATH", "--workers", "2", "--log-level", "error",
               "--no-control-socket", *options, "benchmarks.servers.wsgi:application")
    return Contestant(name, command, "http", "gunicorn", keeps)


def peers() -> list[Contestant]:
    """Every Python peer that is installed here."""
    uvicorn = (sys.executable, "-m", "uvicorn", "--uds", "PATH", "--workers", "1", "--log-level", "error",
               "--no-access-log", "benchmarks.servers.wsgi:asgi")
    known = [
        _gunicorn("gunicorn sync", keeps=False),
        _gunicorn("gunicorn gthread", "--worker-class", "gthread", "--threads", "2", keeps=True),
        Contestant("uvicorn", uvicorn, "http", "uvicorn"),
        _module("asyncio streams", "asyncio_streams"),
        _module("socketserver threading", "socketserver_threading"),
        _module("multiprocessing.connection", "mp_connection", "multiprocessing"),
        _module("pyzmq", "zmq_router", "zmq", "zmq"),
        _module("Pyro5", "pyro", "pyro", "Pyro5"),
        _module("rpyc", "rpyc_threaded", "rpyc", "rpyc"),
        _module("grpcio", "grpc_threads", "grpc", "grpc", connects=False),
    ]
    return [peer for peer in known if peer.installed]


@contextmanager
def running(contestants: Sequence[Contestant]) -> Iterator[dict[str, str]]:
    """Run all of them; gives the path of each by name. They end, with all their processes, with the block."""
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        processes: list[subprocess.Popen[bytes]] = []
        try:
            paths = {}
            for number, contestant in enumerate(contestants):
                paths[contestant.name] = path = f"{folder}/{number}.sock"
                processes.append(_start(contestant, path))
                _wait_until_listening(contestant, path, processes[-1])
            yield paths
        finally:
            for process in processes:
                _end(process)


def _start(contestant: Contestant, path: str) -> subprocess.Popen[bytes]:
    command = [word.replace("PATH", path) for word in contestant.command]
    environment = {**os.environ, **contestant.environment}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
    silent = subprocess.DEVNULL
    return subprocess.Popen(command, env=environment, stdin=silent, stdout=silent, stderr=silent,
                            start_new_session=True)


def _wait_until_listening(contestant: Contestant, path: str, process: subprocess.Popen[bytes]) -> None:
    limit = time.monotonic() + START_LIMIT
    while True:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(path)
                return
            except OSError as error:
                if process.poll() is not None or time.monotonic() > limit:
                    raise SystemExit(f"{contestant.name} does not listen at {path}: {error}") from None
        time.sleep(0.02)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a server and its workers: it leads a session of its own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(3)
        except subprocess.TimeoutExpired:
            continue
    process.wait()
