"""Tests of the asyncio program: `pytest examples/asyncio_service`."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import app
import work

from ipcsrv.pytest_plugin import ServerFactory

HERE = Path(__file__).parent


def test_handler_counts_primes(ipcsrv_server: ServerFactory) -> None:
    server = ipcsrv_server(work.primes, inline=True)
    assert [int(server.call(b"%d" % limit)) for limit in (0, 2, 3, 10, 100, 10_000)] == [0, 0, 1, 4, 25, 1229]


def test_event_loop_goes_on_while_the_service_works() -> None:
    async def scenario() -> tuple[list[int], float, float]:
        async with app.service(workers=1) as path:
            results, outside = await app.run(path, 3_000_000, 8)
        assert not os.path.exists(path)
        _, inside = await app.run(None, 3_000_000, 8)
        return results, outside, inside

    results, outside, inside = asyncio.run(scenario())
    assert results == [216816] * 8
    assert outside < inside / 2, (outside, inside)


def test_program_prints_its_figures() -> None:
    done = subprocess.run([sys.executable, HERE / "app.py", "100000", "3"],
                          capture_output=True, text=True, check=True, timeout=50)  # fmt: skip
    assert re.fullmatch(r"3 x 9592 primes in [\d.]+ s, the loop at most \d+ ms late\n", done.stdout)
    assert done.stderr == ""
