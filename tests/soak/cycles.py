"""Do 10,000 workers and 200 servers come and go without a trace?  `python tests/soak/cycles.py [WORKERS] [SERVERS]`

Workers: a server that replaces each after one request is asked so many times; its master must have the same
descriptors, about the same memory and as many children at the end as after the first few.  Servers: so many are started
and stopped at one path; no process, file, descriptor of ours, shared memory or semaphore may be left.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [os.fspath(TESTS), os.fspath(TESTS.parent)]

import support  # noqa: E402

import ipcsrv  # noqa: E402

GROWTH = 4 << 20  # bytes that a master's memory may grow by in any number of workers: its heap settles
SPREAD = 8  # processes, descriptors: as many as workers that come and go at any moment


def resident(pid: int) -> int:
    """Resident memory in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def traces(running: support.RunningServer) -> tuple[int, int, int]:
    """Descriptors, bytes of memory and processes of a server."""
    return len(support.descriptors(running.pid)), resident(running.pid), len(running.processes())


def workers(path: str, number: int) -> None:
    """So many workers, one after the other, in one server."""
    running = support.RunningServer(path, "handlers_for_tests:echo", "--workers", "2", "--max-requests", "1",
                                    "--log-level", "warning")
    try:
        running.wait_until_listening()
        warm_up = min(200, number // 4)
        first = None
        for count in range(number):
            if count == warm_up:
                first = traces(running)
            assert ipcsrv.call(path, b"x", timeout=60) == b"x"
        last = traces(running)
        assert first is not None
        assert last[0] - first[0] <= SPREAD and last[2] - first[2] <= SPREAD, (first, last)
        assert last[1] - first[1] <= GROWTH, (first, last)
        assert running.stop() == 0
        assert running.processes() == set()
    finally:
        running.clean_up()
    print(f"{number} workers: descriptors {first[0]} -> {last[0]}, "
          f"memory {first[1] >> 10} -> {last[1] >> 10} KiB, processes {first[2]} -> {last[2]}")


def servers(path: str, number: int) -> None:
    """So many servers, one after the other, at one path."""
    with ipcsrv.Server(path, "handlers_for_tests:echo", workers=2):
        pass  # what the first use opens for good
    with support.nothing_leaked(os.path.dirname(path)):
        shared = support.abandoned_memory()
        for _ in range(number):
            with ipcsrv.Server(path, "handlers_for_tests:echo", workers=2):
                assert ipcsrv.call(path, b"x", timeout=60) == b"x"
        support.wait_until(lambda: support.abandoned_memory() <= shared, "no shared memory is left")
    print(f"{number} servers: nothing left")


def main() -> None:
    """Both, as often as the command line says."""
    many = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    few = int(sys.argv[2]) if len(sys.argv) > 2 else 200
    with tempfile.TemporaryDirectory(prefix="c-", dir="/tmp") as folder:
        begun = time.monotonic()
        workers(os.path.join(folder, "s"), many)
        servers(os.path.join(folder, "s"), few)
        assert os.listdir(folder) == []
    print(f"{time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
