"""What an executor costs, and what it gives: `python -m benchmarks.executor [SECONDS]`.

A real Dask scheduler and workers (one thread each) on this machine's loopback, and a server whose workers submit to it:

- **overhead**: how long one client waits for an echo on a kept connection, from a server that runs the handler itself
  and from one that has the cluster run it: median and 99th percentile of SECONDS of requests each, taking turns;
- **scaling**: requests per second of a handler that takes 50 ms, with one and with two cluster workers, asked by four
  clients through four ipcsrv workers, in rounds that take turns.  The handler sleeps: the figure is about the way to
  the cluster and its scheduler, and not about how many cores this machine has free.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from cluster import Cluster  # noqa: E402

import ipcsrv  # noqa: E402

HANDLER_TIME = 0.05  # seconds
CLIENTS = 4
ROUNDS = 3


def echo(request: bytes) -> bytes:
    """The least a handler can do."""
    return request


def slow_echo(request: bytes) -> bytes:
    """A handler that takes 50 ms."""
    time.sleep(HANDLER_TIME)
    return request


@contextmanager
def server(folder: str, name: str, handler: str, workers: int, *options: str) -> Iterator[str]:
    """A server in processes of its own; the path of its socket."""
    path = os.path.join(folder, name)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    command = [sys.executable, "-m", "ipcsrv"]
    start = [*command, "start", path, f"benchmarks.executor:{handler}", "--workers", str(workers)]
    subprocess.run([*start, "--log-file", f"{path}.log", *options], env=environment, check=True,
                   stdout=subprocess.DEVNULL)
    try:
        yield path
    finally:
        subprocess.run([*command, "stop", path], env=environment, check=True, stdout=subprocess.DEVNULL)


def latencies(path: str, seconds: float) -> list[float]:
    """How long each request took, in seconds."""
    taken = []
    with ipcsrv.connect(path) as connection:
        connection.call(b"warm up")
        until = time.perf_counter() + seconds
        while (began := time.perf_counter()) < until:
            connection.call(b"hello")
            taken.append(time.perf_counter() - began)
    return taken


def throughput(path: str, seconds: float) -> float:
    """Requests per second of all clients together."""
    counts = [0] * CLIENTS
    until = time.perf_counter() + seconds

    def ask(number: int) -> None:
        with ipcsrv.connect(path) as connection:
            while time.perf_counter() < until:
                connection.call(b"hello")
                counts[number] += 1

    began = time.perf_counter()
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - began)


def overhead(folder: str, seconds: float) -> None:
    """Print what one request costs without and with a cluster."""
    with ExitStack() as stack:
        cluster = stack.enter_context(Cluster(Path(folder), workers=1))
        options = ("--executor", f"dask:{cluster.address}")
        paths = {
            "in the worker": stack.enter_context(server(folder, "l", "echo", 1)),
            "on the cluster": stack.enter_context(server(folder, "d", "echo", 1, *options)),
        }
        taken: dict[str, list[float]] = {name: [] for name in paths}
        for _ in range(ROUNDS):
            for name, path in paths.items():
                taken[name] += latencies(path, seconds / ROUNDS)
    for name, figures in taken.items():
        median, tail = statistics.median(figures), statistics.quantiles(figures, n=100)[98]
        print(f"{name:15} median {median * 1e3:7.3f} ms, p99 {tail * 1e3:7.3f} ms ({len(figures)} requests)")


def scaling(folder: str, seconds: float) -> None:
    """Print the throughput with one cluster worker and with two, and the ratio of each round."""
    with ExitStack() as stack:
        rates: dict[int, list[float]] = {1: [], 2: []}
        paths = {}
        for workers in rates:
            cluster = stack.enter_context(Cluster(Path(folder), workers=workers))
            options = ("--executor", f"dask:{cluster.address}")
            paths[workers] = stack.enter_context(server(folder, f"s{workers}", "slow_echo", CLIENTS, *options))
            throughput(paths[workers], 1.0)  # each process loads the handler
        for _ in range(ROUNDS):
            for workers, path in paths.items():
                rates[workers].append(throughput(path, seconds))
    for workers, figures in rates.items():
        print(f"{workers} cluster worker{'s'[: workers > 1]}: {statistics.median(figures):.1f} requests/s "
              f"(at most {workers / HANDLER_TIME:.0f})", flush=True)
    ratios = sorted(two / one for one, two in zip(rates[1], rates[2]))
    print(f"ratio {statistics.median(ratios):.2f} [{ratios[0]:.2f}-{ratios[-1]:.2f}]")


def main() -> None:
    """Measure both."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 6.0
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        overhead(folder, seconds)
        scaling(folder, seconds)


if __name__ == "__main__":
    main()
