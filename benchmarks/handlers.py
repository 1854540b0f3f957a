"""What the servers are asked to do. Imported by ipcsrv's workers, and nowhere else."""

from __future__ import annotations

import time
from collections.abc import Iterator

RESPONSE = bytes(10_000_000)
CHUNKS, CHUNK = 10_000, bytes(80)


def pong(request: bytes) -> bytes:
    """The least that a handler can do."""
    return b"pong"


def big(request: bytes) -> bytes:
    """10 MB."""
    return RESPONSE


def chunks(request: bytes) -> Iterator[bytes]:
    """10,000 chunks of 80 bytes, as fast as they are taken."""
    for _ in range(CHUNKS):
        yield CHUNK


def stamped(request: bytes) -> Iterator[bytes]:
    """Chunks that say when they were yielded, with the pauses (ms) that the request names in between, in turn."""
    pauses = [float(word) / 1000 for word in request.split()]
    for number in range(2000):
        pause = pauses[number % len(pauses)]
        if pause:
            time.sleep(pause)
        yield b"%020d" % time.monotonic_ns()


def spin(request: bytes) -> bytes:
    """5 ms of pure Python: a fixed number of steps, so that it is the same work at any load."""
    total = 0
    for number in range(STEPS):
        total += number & 7
    return b"%d" % total


def mixed(request: bytes) -> bytes:
    """`ping` at once; `busy` waits for 100 ms, as for a disk or a subprocess."""
    if request != b"ping":
        time.sleep(0.1)
    return b"pong"


def _steps(seconds: float) -> int:
    """How many steps of `spin` take so long here; the best of a few tries, for others may use this machine."""
    tries = []
    for _ in range(7):
        began = time.perf_counter()
        for number in range(20_000):
            number & 7
        tries.append(time.perf_counter() - began)
    return int(20_000 * seconds / min(tries) * 0.8)


STEPS = _steps(0.005)
