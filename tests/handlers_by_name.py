"""One server for many tests: the first word of a request names the handler of `handlers_for_tests` that gets the rest.

Served as `handlers_by_name:dispatch`.  A few handlers that only the functional tests need are here too.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Any

import handlers_for_tests

from ipcsrv import Request


def dispatch(request: Request) -> Any:
    """Run the handler that the request's first word names on what follows it, with the request's own context."""
    name, _, rest = bytes(request).partition(b" ")
    inner = Request(rest)
    inner._context = request._context
    handler = globals().get(name.decode()) or getattr(handlers_for_tests, name.decode())
    return handler(inner)


def with_empty_chunks(request: bytes) -> Iterator[bytes]:
    """A stream in which some chunks are empty."""
    yield from (b"", b"a", b"", b"", b"b", b"")


def many_small_chunks(request: bytes) -> Iterator[bytes]:
    """As many chunks of one byte as the request says."""
    return (b"%d" % (number % 10) for number in range(int(request)))


def a_list(request: bytes) -> list[bytes]:
    """Any iterable is a stream."""
    return [b"one ", b"two"]


def wide_memoryview(request: bytes) -> memoryview:
    """A memoryview whose items are not bytes: its length is not its size."""
    return memoryview(b"12345678").cast("I")


def stamps(request: bytes) -> Iterator[bytes]:
    """Pairs of chunks, each the time at which it was yielded, then 20 ms of what the request says: sleep or work."""
    for _ in range(5):
        yield b"%020d" % time.monotonic_ns()
        yield b"%020d" % time.monotonic_ns()
        pause = time.monotonic() + 0.02
        if request == b"sleep":
            time.sleep(0.02)
        while time.monotonic() < pause:
            pass


def raise_base(request: bytes) -> bytes:
    """Raises what not even `except Exception` catches."""
    raise KeyboardInterrupt("not the user's")


def raise_long(request: bytes) -> bytes:
    """Raises an error of several lines and far more than a failure reply holds."""
    raise LookupError("grüße\n" * 1000)


def open_files(request: bytes) -> bytes:
    """What the worker's descriptors lead to, as JSON."""
    found = {}
    for entry in os.listdir("/proc/self/fd"):
        try:
            found[entry] = os.readlink(f"/proc/self/fd/{entry}")
        except OSError:
            continue  # the one that lists the folder
    return json.dumps(found).encode()
