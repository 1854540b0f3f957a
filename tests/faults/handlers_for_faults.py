"""Handlers that tests of faults serve: they misbehave in ways that need a file or a gate to be told of."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any


def versioned(request: bytes) -> bytes:
    """The text of the file `$VERSION_FILE` as it was when this was imported."""
    return VERSION + b" " + request


def _read_version() -> bytes:
    name = os.environ.get("VERSION_FILE")
    if name is None:
        return b"none"
    with open(name, "rb") as file:
        text = file.read()
    if text.startswith(b"raise"):
        raise RuntimeError("this version is broken")
    if text.startswith(b"hang"):
        open(f"{name}.hangs", "wb").close()
        time.sleep(600)
    return text


VERSION = _read_version()


def gated(request: bytes) -> bytes:
    """Notes in the file that the request names that it has begun, and echoes once the file `NAME.go` is there."""
    name = request.decode()
    open(f"{name}.begun-{os.getpid()}", "wb").close()
    while not os.path.exists(f"{name}.go"):
        time.sleep(0.002)
    return request


def streams_then_hangs(request: bytes) -> Iterator[bytes]:
    """One chunk, then nothing for ever."""
    yield b"begun\n"
    time.sleep(600)


def counts_what_it_serves(request: Any) -> bytes:
    """Appends the request to the file `$SERVED_FILE`; `stays` takes until there is a file `$SERVED_FILE.go`."""
    while request == b"stays" and not os.path.exists(os.environ["SERVED_FILE"] + ".go"):
        time.sleep(0.01)
    with open(os.environ["SERVED_FILE"], "ab") as file:
        file.write(bytes(request) + b"\n")
    return bytes(request)


FILLED: list[int] = []


def takes_all_descriptors(request: bytes) -> bytes:
    """`fill` opens descriptors until there are no more, and keeps them; everything else is echoed."""
    if request == b"fill":
        with contextlib.suppress(OSError):
            while True:
                FILLED.append(os.open(os.devnull, os.O_RDONLY))
    return request


def answers_with_much(request: bytes) -> bytes:
    """Answers with as many KiB of `r` as the request says."""
    return b"r" * (int(request) << 10)


def long_or_short(request: bytes) -> bytes | Iterator[bytes]:
    """`long N` takes N ms, `stream N` too, for its one chunk; everything else is echoed at once."""
    word, _, milliseconds = request.partition(b" ")
    if word == b"stream":
        return _one_chunk(int(milliseconds))
    if word == b"long":
        time.sleep(int(milliseconds) / 1000)
    return request


def _one_chunk(milliseconds: int) -> Iterator[bytes]:
    time.sleep(milliseconds / 1000)
    yield b"chunk"


def computes_in_c(request: bytes) -> bytes:
    """Never returns from one call into C, during which no Python runs."""
    return b"%d" % sum(range(10**15))


def dies_at_start() -> None:
    """For on_worker_start: the worker is gone without a word."""
    os._exit(3)


def dies_at_start_if_told() -> None:
    """For on_worker_start: only while the file `$VERSION_FILE` says so."""
    with open(os.environ["VERSION_FILE"], "rb") as file:
        if file.read().startswith(b"die"):
            raise RuntimeError("told to die")


def starts_behind_a_gate() -> None:
    """For on_worker_start: ready once the file `$START_GATE` exists."""
    gate = os.environ["START_GATE"]
    open(f"{gate}.waits-{os.getpid()}", "wb").close()
    while not os.path.exists(gate):
        time.sleep(0.01)


def hangs_at_start() -> None:
    """For on_worker_start: never ready."""
    time.sleep(600)
