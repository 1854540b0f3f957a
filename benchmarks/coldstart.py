"""What a command costs from nothing: `ipcsrv call` and `ipcsrv start`, side by side with `python -c pass`.

    python -m benchmarks.coldstart [ROUNDS]

`-S`-less, with the environment as it is: what a user's shell would pay.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NOTHING = "python -c pass"
CALL = "ipcsrv call"
START = "ipcsrv start, 4 workers"


def timed(*command: str) -> float:
    """Milliseconds that a command takes; raises if it fails."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - began) * 1000


def ours(*words: str) -> tuple[str, ...]:
    """The command as it is installed beside this interpreter; else as a module, which takes `runpy` besides."""
    command = Path(sys.executable).with_name("ipcsrv")
    return (str(command), *words) if command.exists() else (sys.executable, "-m", "ipcsrv", *words)


def measure(rounds: int, folder: Path) -> dict[str, list[float]]:
    """Milliseconds of each, taken in turn."""
    figures: dict[str, list[float]] = {NOTHING: [], CALL: [], START: []}
    served, started = str(folder / "served.sock"), str(folder / "started.sock")
    options = ("benchmarks.handlers:pong", "--workers", "4", "--log-file", str(folder / "log"))
    subprocess.run(ours("start", served, *options), check=True, stdout=subprocess.DEVNULL)
    try:
        for _ in range(rounds):
            figures[NOTHING].append(timed(sys.executable, "-c", "pass"))
            figures[CALL].append(timed(*ours("call", served, "ping")))
            figures[START].append(timed(*ours("start", started, *options)))
            timed(*ours("stop", started))
    finally:
        subprocess.run(ours("stop", served), check=False)
    return figures


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        table = measure(int(sys.argv[1]) if len(sys.argv) > 1 else 20, Path(name))
    base = statistics.median(table[NOTHING])
    for title, figures in table.items():
        median = statistics.median(figures)
        print(f"{title:26} median {median:7.1f} ms   {median / base:5.2f} x   least {min(figures):7.1f} ms")
