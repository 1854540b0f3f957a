"""A Dask cluster on this machine for tests and benchmarks: a scheduler and workers, each a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import support

STARTED = 30.0  # seconds


def free_port() -> int:
    """A port that was free a moment ago; Dask cannot tell which one it has chosen before it is too late."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Cluster:
    """A scheduler with workers of one thread each; `folder` is where they write."""

    def __init__(self, folder: Path, workers: int = 2, **extra: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.address = f"tcp://127.0.0.1:{self.port}"
        self._extra = {"PYTHONWARNINGS": "", **extra}
        self.start_scheduler()
        self.workers = [self.start_worker() for _ in range(workers)]
        for worker in self.workers:
            worker.wait_for("Registered to")

    def start_scheduler(self) -> None:
        """Start a scheduler at the cluster's address."""
        self.scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", str(self.port))
        self.scheduler.wait_for("Scheduler at")

    def start_worker(self) -> Member:
        """Start one more worker, without a process that restarts it."""
        return self._start("worker", self.address, "--nworkers", "1", "--nthreads", "1", "--no-nanny",
                           "--local-directory", str(self.folder))

    def replace_worker(self, member: Member) -> None:
        """Kill a worker, if it still lives, and start another one, which comes when it comes."""
        self.workers.remove(member)
        member.kill()
        self.workers.append(self.start_worker())

    def close(self) -> None:
        """Kill everything."""
        for member in [self.scheduler, *self.workers]:
            member.kill()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None,
                 ) -> None:
        self.close()

    def _start(self, *arguments: str) -> Member:
        environment = {name: value for name, value in support.environment(**self._extra).items() if value}
        command = [sys.executable, "-m", "dask", *arguments, "--no-dashboard"]
        return Member(subprocess.Popen(command, env=environment, cwd=self.folder, stdout=subprocess.PIPE,
                                       stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL))


class Member:
    """One process of a cluster, whose output is read as it comes."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self._lines.append(line.decode("utf-8", "replace"))
                self._changed.notify_all()

    def wait_for(self, text: str) -> None:
        """Wait until the process has printed a line with `text`."""
        until = time.monotonic() + STARTED
        with self._changed:
            while not any(text in line for line in self._lines):
                assert self._changed.wait(until - time.monotonic()), "".join(self._lines)

    def kill(self) -> None:
        """End it at once."""
        with contextlib.suppress(OSError):
            self.process.kill()
        self.process.wait()
        self._thread.join()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def terminate(self) -> None:
        """Have it leave in good order."""
        self.process.terminate()

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """For the block, the process does nothing; its kernel still accepts connections for it."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitpid(self.pid, os.WUNTRACED)  # until it has stopped
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid


def marker(folder: Path, name: str) -> str:
    """The path of a file by which processes of a cluster tell something."""
    return os.fspath(folder / name)
