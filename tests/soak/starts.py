"""Does exactly one of many simultaneous starts serve, every time?  `python tests/soak/starts.py [ROUNDS] [STARTS]`

Each round runs that many real `ipcsrv start` commands of one path at once (20 rounds of 50, unless told otherwise),
every second one over a stale socket that a dead server left.  Exactly one must exit 0 and all others 6, the path must
be served by the process that the lock file names, and after `ipcsrv stop` nothing may be left.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent.parent.parent)]

import support  # noqa: E402

import ipcsrv  # noqa: E402

LIMIT = 300.0  # seconds for a start, in a crowd of 50 on a small machine


def race(path: str, starts: int) -> Counter[int]:
    """The exit codes of so many starts at once."""
    command = [sys.executable, "-m", "ipcsrv", "start", path, "handlers_for_tests:pid", "--workers=1",
               "--log-file=/dev/null"]
    crowd = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=support.environment())
             for _ in range(starts)]
    return Counter(start.wait(LIMIT) for start in crowd)


def one_round(folder: str, starts: int, stale: bool) -> str | None:
    """What was wrong with a round, or None."""
    path = os.path.join(folder, "s")
    if stale:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(path)
    codes = race(path, starts)
    wrong = None if codes == {0: 1, 6: starts - 1} else f"exit codes {dict(codes)}"
    pid = json.loads(Path(path + ".ipcsrv.lock").read_bytes())["pid"]
    if ipcsrv.call(path, b"", timeout=support.TIMEOUT) not in {b"%d" % worker for worker in support.children(pid)} | {
        b"%d" % grandchild for child in support.children(pid) for grandchild in support.children(child)
    }:
        wrong = wrong or "another server answers than the lock file names"
    support.run_command("stop", path)
    left = os.listdir(folder)
    return wrong or (f"{left} are left" if left else None)


def main(rounds: int = 20, starts: int = 50) -> int:
    """Run the rounds; the exit status is the number of bad ones."""
    bad = 0
    for number in range(rounds):
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="i-") as folder:
            wrong = one_round(folder, starts, stale=number % 2 == 1)
        bad += wrong is not None
        where = "stale socket" if number % 2 else "free path"
        print(f"round {number + 1:2d}  {starts} starts  {where:12s}  {time.monotonic() - began:5.1f} s"
              f"  {wrong or 'ok'}",
              flush=True)
    return bad


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
