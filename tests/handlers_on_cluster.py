"""A handler for tests that runs in the processes of a cluster: the first word says what to do with the rest."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from ipcsrv import Request


def handle(request: Request) -> Any:
    """Do what the request's first word says."""
    name, _, rest = bytes(request).partition(b" ")
    return globals()[name.decode()](rest.decode(), request)


def upper(rest: str, request: Request) -> bytes:
    """Say it louder."""
    return rest.upper().encode()


def context(rest: str, request: Request) -> bytes:
    """Return process, peer and the seconds left."""
    assert request.peer is not None
    return json.dumps([os.getpid(), request.peer.pid, request.remaining]).encode()


def fail(rest: str, request: Request) -> bytes:
    """Raise."""
    raise LookupError(rest)


class Silent(Exception):
    """An exception that cannot be printed."""

    def __str__(self) -> str:
        raise ValueError


def fail_silently(rest: str, request: Request) -> bytes:
    """Raise what cannot be printed."""
    raise Silent


def big(rest: str, request: Request) -> Iterator[bytes]:
    """A stream of so many kilobytes."""
    return (b"x" * 1000 for _ in range(int(rest)))


def steps(rest: str, request: Request) -> Iterator[bytes]:
    """A stream that notes its process, and goes on when the next file of `FILE.1`, `FILE.2` and so on is there."""
    note(rest)
    for number in count(1):
        yield f"{number}".encode()
        while not os.path.exists(f"{rest}.{number}"):
            if request.cancelled:
                Path(rest).with_suffix(".cancelled").touch()
                return
            time.sleep(0.005)
        last = Path(f"{rest}.{number}").read_text()
        if last == "end":
            return
        if last == "fail":
            raise LookupError("no further step")


def numbers(rest: str, request: Request) -> Iterator[bytes]:
    """A stream of so many short lines."""
    return (b"%d\n" % number for number in range(int(rest)))


def note(rest: str) -> int:
    """Add this process to the file of those that ran the request; returns how many there are."""
    with open(rest, "a") as file:
        file.write(f"{os.getpid()}\n")
    return len(Path(rest).read_text().splitlines())


def die(rest: str, request: Request) -> bytes:
    """End the process, but for the second one that runs this request."""
    if note(rest) == 1:
        os._exit(3)
    return b"survived"


def wait(rest: str, request: Request) -> bytes:
    """Note that it has begun, and wait until the result is not wanted any more."""
    note(rest)
    while not request.cancelled:
        time.sleep(0.005)
    Path(rest).with_suffix(".cancelled").touch()
    return b""


def alone(rest: str, request: Request) -> bytes:
    """Whether no other process runs this at the same time."""
    try:
        os.close(os.open(rest, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return b"not alone"
    time.sleep(0.03)
    os.unlink(rest)
    return b"alone"


def slow(rest: str, request: Request) -> bytes:
    """Take 20 ms, note the request in a file, and answer it."""
    time.sleep(0.02)
    folder, _, word = rest.partition(" ")
    note(f"{folder}/{word}")
    return word.encode()
