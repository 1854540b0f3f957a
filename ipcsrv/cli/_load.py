"""The load of `ipcsrv bench`: client processes, and the sum of what they measured.

Clients in one process would share its interpreter, and their waiting for each other would count as the server's time.
So each client is a process: this module, run by name with its arguments and the request on standard input. It reports
that it is ready, waits for all others, and at the end reports its figures and the share of time for which it computed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from ..client import sync as client
from ..errors import IpcError
from ..platform import children

STEPS = 16  # buckets per octave: a percentile is right within 5 %
START_LIMIT = 30.0  # seconds for a client to be ready
REQUEST_LIMIT = 60.0  # seconds after which a request has failed


class Report(NamedTuple):
    """The figures of clients: requests by bucket of latency, failures by kind, seconds of wall clock and of processor.

    `clients` is the number of clients, `worst` the longest latency in seconds.
    """

    histogram: Counter[int]
    failures: Counter[str]
    clients: int
    seconds: float
    processor: float
    worst: float

    @property
    def requests(self) -> int:
        """Number of answered requests."""
        return self.histogram.total()

    @property
    def rate(self) -> float:
        """Answered requests per second."""
        return self.requests / self.seconds if self.seconds else 0.0

    @property
    def busy(self) -> float:
        """Share of the time for which the clients computed, 0 to 1."""
        return self.processor / (self.seconds * self.clients) if self.seconds else 0.0

    def percentile(self, share: float) -> float | None:
        """Return the latency in seconds within which that share (0 to 1) of the requests was answered."""
        rank, seen = share * self.requests, 0
        for bucket in sorted(self.histogram):
            seen += self.histogram[bucket]
            if seen >= rank:
                return min(upper(bucket), self.worst)
        return None


def bucket(nanoseconds: int) -> int:
    """Return the bucket of a latency: `STEPS` of equal width in each octave."""
    if nanoseconds < STEPS:
        return nanoseconds
    octave = nanoseconds.bit_length() - STEPS.bit_length()
    return octave * STEPS + (nanoseconds >> octave)


def upper(bucket: int) -> float:
    """Return the longest latency of a bucket, in seconds."""
    if bucket < 2 * STEPS:
        return (bucket + 1) / 1e9
    octave = bucket // STEPS - 1
    return ((bucket - octave * STEPS + 1) << octave) / 1e9


def total(reports: list[Report]) -> Report:
    """Return several reports as one."""
    histogram: Counter[int] = Counter()
    failures: Counter[str] = Counter()
    for report in reports:
        histogram += report.histogram
        failures += report.failures
    return Report(histogram, failures, len(reports), max(each.seconds for each in reports),
                  sum(each.processor for each in reports), max(each.worst for each in reports))


# -- in a client process -----------------------------------------------------------------------------------------------


def ask_until_over(path: str, request: bytes, seconds: float, *, keep: bool) -> Report:
    """Send requests for `seconds`, each as soon as the previous one is answered."""
    counts: Counter[int] = Counter()
    failures: Counter[str] = Counter()
    ask, longest = _asker(path, request, keep), 0
    began, processor = time.monotonic(), time.process_time()
    while time.monotonic() - began < seconds:
        asked = time.perf_counter_ns()
        try:
            ask()
        except IpcError as error:
            failures[type(error).__name__] += 1
            ask = _asker(path, request, keep)
            continue
        took = time.perf_counter_ns() - asked
        counts[bucket(took)] += 1
        longest = max(longest, took)
    return Report(counts, failures, 1, time.monotonic() - began, time.process_time() - processor, longest / 1e9)


def _asker(path: str, request: bytes, keep: bool) -> Callable[[], bytes]:
    """Return the function that sends one request: each on a new connection, or all on one connection."""
    if not keep:
        return lambda: client.call(path, request, REQUEST_LIMIT)
    kept: list[client.Connection] = []

    def ask() -> bytes:
        if not kept:
            kept.append(client.connect(path, REQUEST_LIMIT))
        return kept[0].call(request, REQUEST_LIMIT)

    return ask


def main() -> None:
    """Run one client process."""
    path, seconds, keep, size = sys.argv[1:5]
    request = sys.stdin.buffer.read(int(size))
    print("ready", flush=True)
    if sys.stdin.buffer.read(1):  # end of input: the parent has exited
        report = ask_until_over(path, request, float(seconds), keep=keep == "keep")
        print(json.dumps(report), flush=True)


# -- in the parent -----------------------------------------------------------------------------------------------------


def drive(path: str, request: bytes, clients: int, seconds: float, *, keep: bool) -> Report:
    """Run `clients` processes for `seconds`, all from the same moment on."""
    command = [*children.command(__name__), path, str(seconds), "keep" if keep else "connect", str(len(request))]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(clients):
            processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            _tell(processes[-1], request)
        for process in processes:
            _await_ready(process)
        for process in processes:
            _tell(process, b"!")
        outputs = [process.communicate(timeout=seconds + REQUEST_LIMIT + START_LIMIT)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
    return total([_parse(output) for output in outputs])


def _tell(process: subprocess.Popen[bytes], data: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(data)
    process.stdin.flush()


def _await_ready(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    if process.stdout.readline().strip() != b"ready":
        raise IpcError("a client process ended before it was ready")


def _parse(output: bytes) -> Report:
    histogram, failures, *rest = json.loads(output)
    counts: dict[int, int] = {int(key): value for key, value in histogram.items()}
    numbers: list[Any] = rest
    return Report(Counter(counts), Counter(failures), *numbers)
