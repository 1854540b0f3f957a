"""What the access log costs: `python -m benchmarks.access_log [ROUNDS] [SECONDS] [TREE]`.

Two servers side by side, alike but for `access_log`, driven by one client in interleaved short rounds, keep-alive and
connecting anew.  Given are the cost in throughput, and in the worker's own CPU time a request, which says the same on a
machine that has other work too (but more of it, for the worker is only half of an exchange).

Off, the code is not there: the class of worker that keeps the log is chosen when a worker starts.  To see that, name a
second tree, at an earlier commit, whose server takes the place of the one with the log.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from ipcsrv import control

from .build import build

ROOT = Path(__file__).parent.parent


@dataclass
class Rival:
    """A running server, with one worker, and what was measured of it: requests a second, CPU seconds a request."""

    path: str
    process: subprocess.Popen[bytes]
    worker: int
    rates: list[float] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)

    def drive(self, program: list[str], mode: str, seconds: float) -> None:
        """One round."""
        before = self.cpu_seconds()
        command = [*program, self.path, mode, "1", str(seconds)]
        report = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=120).stdout)
        self.rates.append(report["requests"] / report["seconds"])
        self.costs.append((self.cpu_seconds() - before) / report["requests"])

    def cpu_seconds(self) -> float:
        """What the worker has used so far (/proc/PID/schedstat)."""
        return int(Path(f"/proc/{self.worker}/schedstat").read_text().split()[0]) / 1e9


def start(folder: Path, name: str, tree: Path, *options: str) -> Rival:
    """A server of the package in `tree`."""
    path = str(folder / name)
    command = [sys.executable, "-m", "ipcsrv", "run", path, "benchmarks.handlers:pong", "--workers", "1", *options,
               "--log-file", str(folder / f"{name}.log")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tree), str(ROOT)])}
    process = subprocess.Popen(command, cwd=tree, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    while b"stop " not in process.stderr.readline():
        pass
    return Rival(path, process, control.request(path, "status")["workers"][0]["pid"])


def main() -> None:
    """Measure and print."""
    count, seconds = int((sys.argv[1:2] or ["20"])[0]), float((sys.argv[2:3] or ["0.3"])[0])
    other = Path(sys.argv[3]).resolve() if len(sys.argv) > 3 else None
    with tempfile.TemporaryDirectory(dir="/tmp") as name, ExitStack() as stack:
        folder = Path(name)
        programs = build(folder)
        load = [str(programs["load"])] if programs else [sys.executable, "-m", "benchmarks.clients", "ipc"]
        plain = start(folder, "off", ROOT)
        rival = start(folder, "rival", other) if other else start(folder, "on", ROOT, "--access-log")
        for each in (plain, rival):
            stack.callback(each.process.wait)
            stack.callback(each.process.terminate)
        for mode in ("keep", "connect"):
            compare(load, mode, (plain, rival), count, seconds)


def compare(load: list[str], mode: str, rivals: tuple[Rival, Rival], count: int, seconds: float) -> None:
    """Rounds of one mode, and their result in a line."""
    for each in rivals:
        each.rates.clear()
        each.costs.clear()
    for number in range(count):
        for each in rivals if number % 2 else rivals[::-1]:
            each.drive(load, mode, seconds)
    rates = [better(each.rates) for each in rivals]
    costs = [-better([-cost for cost in each.costs]) for each in rivals]
    throughput, cpu = ((pair[1] / pair[0] - 1) * 100 for pair in (rates, costs))
    print(f"{mode:8} throughput {rates[0]:,.0f} -> {rates[1]:,.0f}/s ({throughput:+.1f} %), "
          f"worker {costs[0] * 1e6:.2f} -> {costs[1] * 1e6:.2f} us a request ({cpu:+.1f} %)")


def better(figures: list[float]) -> float:
    """What a server does in the rounds that nothing else disturbed: the mean of the best fifth."""
    return statistics.mean(sorted(figures)[-max(1, len(figures) // 5) :])


if __name__ == "__main__":
    main()
