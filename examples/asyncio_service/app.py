"""An asyncio program whose heavy work runs in a server of its own: `python app.py [LIMIT [JOBS]]`.

While the jobs run the program measures how late its event loop is; `--inside` runs them in the loop, for comparison.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator

import work

import ipcsrv

TICK = 0.005  # seconds


@contextlib.asynccontextmanager
async def service(workers: int | None = None) -> AsyncIterator[str]:
    """The server for as long as the block runs; workers: one for each CPU if not given."""
    with tempfile.TemporaryDirectory(prefix="a-") as folder:
        server = ipcsrv.Server(os.path.join(folder, "s"), work.primes, workers=workers)
        await asyncio.to_thread(server.start)
        try:
            yield server.path
        finally:
            await asyncio.to_thread(server.stop)


async def lateness(stop: asyncio.Event) -> float:
    """The longest time that the event loop kept a timer waiting, in seconds."""
    longest = 0.0
    while not stop.is_set():
        due = time.monotonic() + TICK
        await asyncio.sleep(TICK)
        longest = max(longest, time.monotonic() - due)
    return longest


async def run(path: str | None, limit: int, jobs: int) -> tuple[list[int], float]:
    """Run the jobs, in the server at `path` or in this loop; return the results, and how late the loop was."""
    stop = asyncio.Event()
    watching = asyncio.create_task(lateness(stop))
    await asyncio.sleep(TICK)
    if path is None:
        results = [work.count(limit) for _ in range(jobs)]
    else:
        calls = [ipcsrv.aio.call(path, b"%d" % limit, timeout=120) for _ in range(jobs)]
        results = [int(answer) for answer in await asyncio.gather(*calls)]
    await asyncio.sleep(TICK)
    stop.set()
    return results, await watching


async def main(arguments: list[str]) -> None:
    """Run the jobs and print what came out."""
    limit, jobs = (int(text) for text in (arguments + ["5000000", "8"][len(arguments) :])[:2])
    began = time.monotonic()
    if "--inside" in sys.argv:
        results, late = await run(None, limit, jobs)
    else:
        async with service() as path:
            began = time.monotonic()
            results, late = await run(path, limit, jobs)
    seconds = time.monotonic() - began
    print(f"{jobs} x {results[0]} primes in {seconds:.2f} s, the loop at most {late * 1e3:.0f} ms late")


if __name__ == "__main__":
    asyncio.run(main([text for text in sys.argv[1:] if text.isdigit()]))
