"""Is every request answered, once, whatever of a Dask cluster dies?  `python tests/soak/engines.py [SECONDS] [SEED]`

Six clients ask a server with three workers for SECONDS (90), while a worker of the cluster is killed and replaced
again and again, and every fourth time the scheduler with all workers. Every third request has a streamed response. Each
answer must be right, `ERR crashed` or `ERR busy`, in time, and no request may have run twice.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent.parent.parent)]

import support  # noqa: E402
from cluster import Cluster  # noqa: E402

import ipcsrv  # noqa: E402

CLIENTS = "abcdef"
LIMIT = 20.0  # seconds of request_timeout
STREAM = b"".join(b"%d\n" % number for number in range(5000))
BETWEEN = 50  # right answers between two deaths


class Books:
    """What the clients have seen."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.slowest = 0.0
        self.stop = threading.Event()

    def ask(self, name: str, path: str, folder: str) -> None:
        """Be one client."""
        number = 0
        while not self.stop.is_set():
            number += 1
            word, began = f"{name}{number}", time.monotonic()
            request, right = f"slow {folder} {word}", word.encode()
            if number % 3 == 0:
                request, right = "numbers 5000", STREAM
            try:
                answer = ipcsrv.call(path, request.encode(), timeout=2 * LIMIT)
                self.outcomes["right" if answer == right else f"wrong {answer!r}"] += 1
            except (ipcsrv.HandlerCrashed, ipcsrv.ServerBusy, ipcsrv.HandlerTimeout) as error:
                self.outcomes[type(error).__name__] += 1
            self.slowest = max(self.slowest, time.monotonic() - began)


def kill_and_replace(cluster: Cluster, books: Books, seconds: float, rng: random.Random) -> int:
    """Kill processes of the cluster for so long; returns how many times."""
    until, rounds = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        rounds += 1
        if rounds % 4:
            cluster.replace_worker(rng.choice(cluster.workers))
        else:
            cluster.close()
            cluster.start_scheduler()
            cluster.workers[:] = [cluster.start_worker() for _ in range(2)]
        enough = books.outcomes["right"] + BETWEEN
        support.wait_until(lambda enough=enough: books.outcomes["right"] > enough, timeout=3 * LIMIT)
    return rounds


def main() -> int:
    """Run, print, judge."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 90.0
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1000)
    books = Books()
    with tempfile.TemporaryDirectory(prefix="soak") as folder, Cluster(Path(folder), workers=2) as cluster:
        options = ("--workers", "3", "--executor", f"dask:{cluster.address}", "--request-timeout", str(LIMIT))
        running = support.RunningServer(os.path.join(folder, "s"), "handlers_on_cluster:handle", *options)
        running.wait_until_listening()
        threads = [threading.Thread(target=books.ask, args=(name, running.path, folder)) for name in CLIENTS]
        for thread in threads:
            thread.start()
        try:
            rounds = kill_and_replace(cluster, books, seconds, random.Random(seed))
        finally:
            books.stop.set()
            for thread in threads:
                thread.join()
            running.clean_up()
        runs = {len(note.read_text().splitlines()) for note in Path(folder).glob("[a-f][0-9]*")}
    print(f"seed {seed}: {rounds} rounds, {dict(books.outcomes)}, the slowest call took {books.slowest:.1f} s")
    allowed = {"right", "HandlerCrashed", "ServerBusy"}
    good = set(books.outcomes) <= allowed and books.slowest < LIMIT and runs == {1}
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
