"""What the access log costs: `python -m benchmarks.access_log [ROUNDS] [SECONDS]`.

Three servers that are alike but for the access log: one from which its code has been taken away (a stub stands in place
of `ipcsrv.access`), one where it is off, one where it is on.  Two measurements, one of which no other work on the
machine can spoil:

- **Instructions** that a worker executes for a request on a kept connection, counted by valgrind: of two kinds of run,
  one with many more requests, the difference divided by the number of these.  A worker that has to wait for its client
  executes some more; so the least of several runs is taken.  What the kernel does is not in it, nor the client: a share
  of the instructions is several times that of the throughput.  (Where each request connects anew, how often a worker
  looks around depends on time, and so does a count.)
- **Throughput** and **CPU time** for a request, of the worker (/proc/PID/schedstat) and of worker and client together,
  which is what limits the throughput of a machine that does nothing else.  In short rounds that take turns, each in
  another order.  Of each figure the mean of the best fifth of the rounds, which nothing else disturbed, and in brackets
  the median of the ratios within the rounds, with its quartiles.  Driven by one C client, on a connection that is kept
  and by connecting anew for each request.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import ipcsrv
from ipcsrv.client import control

from .build import build

ROOT = Path(__file__).parent.parent
FEW, MANY = 1000, 11000  # requests of the two kinds of run under valgrind
RUNS = 3  # of each kind
MODES = ("keep", "connect")
ABSENT, OFF, ON = "absent", "off", "on"
WITHOUT = """
import sys, types
from ipcsrv.worker import Worker
stub = sys.modules["ipcsrv.worker.access_log"] = types.ModuleType("ipcsrv.worker.access_log")
stub.worker_for = lambda settings: Worker
from ipcsrv.cli import main
sys.exit(main())
"""
PROGRAMS = {ABSENT: ["-c", WITHOUT], OFF: ["-m", "ipcsrv"], ON: ["-m", "ipcsrv"]}
OPTIONS = {ABSENT: [], OFF: [], ON: ["--access-log"]}


@dataclass
class Rival:
    """A running server, with one worker, and what was measured of it, a figure a round.

    Requests a second; CPU seconds a request of the worker, and of worker and client together.
    """

    path: str
    process: subprocess.Popen[bytes]
    worker: int
    rates: list[float] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)
    both: list[float] = field(default_factory=list)

    def drive(self, load: list[str], mode: str, seconds: float) -> None:
        """One round."""
        command = [*load, self.path, mode, "1", str(seconds)]
        report = {"requests": 0}
        while not report["requests"]:  # a machine may be so busy that no client gets a turn in so short a time
            before = self.cpu_seconds()
            report = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=120).stdout)
        self.rates.append(report["requests"] / report["seconds"])
        cost = self.cpu_seconds() - before
        self.costs.append(cost / report["requests"])
        self.both.append((cost + report["cpu"]) / report["requests"])

    def cpu_seconds(self) -> float:
        """What the worker has used so far."""
        return int(Path(f"/proc/{self.worker}/schedstat").read_text().split()[0]) / 1e9

    def stop(self) -> None:
        """Stop it."""
        self.process.terminate()
        self.process.wait()


def start(folder: Path, kind: str, *tool: str) -> Rival:
    """A server of one kind, under `tool` if one is named."""
    path = str(folder / kind)
    command = [*tool, sys.executable, *PROGRAMS[kind], "run", path, "benchmarks.handlers:pong", "--workers", "1",
               *OPTIONS[kind], "--log-file", str(folder / f"{kind}.log")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    while b"stop " not in process.stderr.readline():
        pass
    return Rival(path, process, control.request(path, "status", timeout=60)["workers"][0]["pid"])


# -- instructions -----------------------------------------------------------------------------------------------------


def instructions(folder: Path, kind: str) -> float:
    """Instructions of the worker for one request; of several runs those in which it had to wait least."""
    few, many = (min(executed(folder, kind, requests) for _ in range(RUNS)) for requests in (FEW, MANY))
    return (many - few) / (MANY - FEW)


def executed(folder: Path, kind: str, requests: int) -> int:
    """Instructions of a worker in its whole life, in which it serves so many requests."""
    counts = folder / "%p.count"
    server = start(folder, kind, "valgrind", "--tool=cachegrind", "--cache-sim=no", f"--log-file={counts}",
                   "--cachegrind-out-file=/dev/null")
    with ipcsrv.connect(server.path) as connection:
        for _ in range(requests):
            connection.call(b"ping")
    server.stop()
    found = re.search(r"I\s+refs:\s+([\d,]+)", (folder / f"{server.worker}.count").read_text())
    assert found is not None
    return int(found[1].replace(",", ""))


def count(folder: Path) -> None:
    """Count for all kinds, and print."""
    figures = {kind: instructions(folder, kind) for kind in PROGRAMS}
    for kind, figure in figures.items():
        print(f"keep     {kind:6} {figure:8,.0f} instructions a request ({(figure / figures[OFF] - 1) * 100:+.2f} %)")


# -- time -------------------------------------------------------------------------------------------------------------


def compare(load: list[str], mode: str, rivals: dict[str, Rival], rounds: int, seconds: float) -> None:
    """Rounds of one mode, and their result, a line a kind."""
    order = list(rivals.values())
    for rival in order:
        rival.rates.clear()
        rival.costs.clear()
        rival.both.clear()
    for number in range(rounds):
        turn = number % len(order)
        for rival in order[turn:] + order[:turn]:
            rival.drive(load, mode, seconds)
    for kind, rival in rivals.items():
        off = rivals[OFF]
        print(f"{mode:8} {kind:6} throughput {against(rival.rates, off.rates, 1, '/s')}; "
              f"worker {against(rival.costs, off.costs, -1, 's')}; "
              f"with its client {against(rival.both, off.both, -1, 's')}")


def against(figures: list[float], others: list[float], good: int, unit: str) -> str:
    """What rounds that nothing disturbed give, and by how much it differs from that of others; and the median ratio.

    good: 1 where more is better, -1 where less is.
    """
    quiet = undisturbed(figures, good)
    percent = [(mine / other - 1) * 100 for mine, other in zip(figures, others)]
    low, middle, high = statistics.quantiles(percent, n=4)
    shown = f"{quiet:,.0f}{unit}" if quiet > 1 else f"{quiet * 1e6:.2f} u{unit}"
    return f"{shown} {(quiet / undisturbed(others, good) - 1) * 100:+.1f} % ({middle:+.1f} [{low:+.1f} to {high:+.1f}])"


def undisturbed(figures: list[float], good: int) -> float:
    """The mean of the best fifth."""
    return statistics.mean(sorted(figures, key=lambda figure: -good * figure)[: max(1, len(figures) // 5)])


def main() -> None:
    """Measure and print."""
    rounds, seconds = int((sys.argv[1:2] or ["100"])[0]), float((sys.argv[2:3] or ["0.2"])[0])
    with tempfile.TemporaryDirectory(dir="/tmp") as name, ExitStack() as stack:
        folder = Path(name)
        if shutil.which("valgrind"):
            count(folder)
        programs = build(folder)
        load = [str(programs["load"])] if programs else [sys.executable, "-m", "benchmarks.clients", "ipc"]
        rivals = {kind: start(folder, kind) for kind in PROGRAMS}
        for rival in rivals.values():
            stack.callback(rival.stop)
        for mode in MODES:
            compare(load, mode, rivals, rounds, seconds)


if __name__ == "__main__":
    main()
