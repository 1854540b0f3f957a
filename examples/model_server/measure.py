"""The memory of a model server with and without preload (Linux): `python measure.py [WORKERS]`.

It is the proportional set size of all processes: a page that several share counts in parts.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

import ipcsrv

SIZE = 1024


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in family(int(child)))]


def megabytes(pid: int) -> float:
    """The proportional set size of a process."""
    found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)
    assert found is not None
    return int(found[1]) / 1024


def measure(workers: int, preload: bool) -> float:
    """The memory of a server that has answered as many requests as it takes to use every worker, in MB."""
    vector = np.ones(SIZE, dtype=np.float32).tobytes()
    with tempfile.TemporaryDirectory(prefix="m-") as folder:
        path = os.path.join(folder, "s")
        with (ipcsrv.Server(path, "model:predict", workers=workers, preload=preload) as server,
              ThreadPoolExecutor(4 * workers) as clients):
            # All at the same time: of requests one after the other, the first workers take every one.
            while any(worker["requests"] == 0 for worker in server.status()["workers"]):
                list(clients.map(lambda _: ipcsrv.call(path, vector, timeout=30), range(16 * workers)))
            assert server.pid is not None
            return sum(map(megabytes, family(server.pid)))


def main(workers: int) -> None:
    """Print both."""
    for preload in (True, False):
        print(f"preload={preload}: {measure(workers, preload):.0f} MB in {workers} workers, "
              f"weights of {os.environ.get('MODEL_MB', '200')} MB")  # fmt: skip


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4)
