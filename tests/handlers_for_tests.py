"""Handlers that the tests ask real servers to serve: each does one thing, and says in its name what.

Served as `handlers_for_tests:echo` and so on; the `server` fixture puts this folder on the server's module path.
Handlers that take a number read it from the request, so that one server answers many cases.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any


def echo(request: bytes) -> bytes:
    """The request itself."""
    return request


def upper(request: bytes) -> bytes:
    """The request in capitals."""
    return request.upper()


def slow(request: bytes) -> bytes:
    """Sleeps as many milliseconds as the request says (20 if it says nothing) and echoes it: a handler that waits."""
    time.sleep(int(request or b"20") / 1000)
    return request


def cpu(request: bytes) -> bytes:
    """Burns as many milliseconds of pure Python as the request says (20 if nothing): a handler that computes."""
    end = time.process_time() + int(request or b"20") / 1000
    rounds = 0
    while time.process_time() < end:
        rounds += 1
    return str(rounds).encode()


def crash(request: bytes) -> bytes:
    """Dies at once: of the signal that the request names (`SEGV`, `KILL`, `ABRT`) or by `os._exit(N)`."""
    if request.isdigit():
        os._exit(int(request))
    faulthandler.disable()
    os.kill(os.getpid(), getattr(signal, "SIG" + (request.decode() or "SEGV")))
    return b"unreachable"


def crash_if_asked(request: bytes) -> bytes:
    """Echoes, but for `crash`, of which the worker dies by `os._exit(9)`."""
    if request == b"crash":
        os._exit(9)
    return request


def raise_error(request: bytes) -> bytes:
    """Raises ValueError with the request as its text."""
    raise ValueError(request.decode("utf-8", "replace"))


def raise_system_exit(request: bytes) -> bytes:
    """Calls sys.exit: a handler's bug that must not end the worker."""
    sys.exit(request.decode("utf-8", "replace"))


def stream(request: bytes) -> Iterator[bytes]:
    """As many chunks as the request says (3 if nothing): `chunk 0`, `chunk 1`, ..."""
    for number in range(int(request or b"3")):
        yield b"chunk %d\n" % number


def stream_slowly(request: bytes) -> Iterator[bytes]:
    """Five chunks with as many milliseconds between them as the request says."""
    for number in range(5):
        yield b"chunk %d\n" % number
        time.sleep(int(request or b"50") / 1000)


def stream_then_raise(request: bytes) -> Iterator[bytes]:
    """One chunk, then RuntimeError: the response breaks in the middle."""
    yield b"begun\n"
    raise RuntimeError(request.decode() or "half way")


def stream_for_ever(request: bytes) -> Iterator[bytes]:
    """Chunks without end; creates the file that the request names when its iterator is closed."""
    try:
        while True:
            yield b"x" * 1000
            time.sleep(0.005)
    finally:
        if request:
            open(request, "wb").close()


def stream_nothing(request: bytes) -> Iterator[bytes]:
    """An iterable without a chunk: an empty response."""
    return iter(())


def big(request: bytes) -> bytes:
    """As many bytes as the request says, in a pattern that shows a piece lost or moved."""
    size = int(request or b"1000000")
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def nothing(request: bytes) -> None:
    """None: the empty response."""


def quit_if_asked(request: bytes) -> Any:
    """Echoes, but for `quit`, which stops the server."""
    from ipcsrv import QUIT

    return QUIT if request == b"quit" else request


def a_str(request: bytes) -> str:
    """A str: a handler's bug that the client is told of."""
    return "not bytes"


def an_int(request: bytes) -> int:
    """An int: a handler's bug that the client is told of."""
    return 42


def a_stream_of_str(request: bytes) -> Iterator[str]:
    """An iterable of str: the same bug, found late."""
    yield "not bytes"


def a_bytearray(request: bytes) -> bytearray:
    """A bytearray: bytes-like, so as good as bytes."""
    return bytearray(request)


def a_memoryview(request: bytes) -> memoryview:
    """A memoryview: bytes-like, so as good as bytes."""
    return memoryview(request)


def pid(request: bytes) -> bytes:
    """Which worker answers."""
    return str(os.getpid()).encode()


def slow_pid(request: bytes) -> bytes:
    """Which worker answers, after as many milliseconds as the request says: two at once are two workers."""
    time.sleep(int(request or b"100") / 1000)
    return str(os.getpid()).encode()


def peer(request: Any) -> bytes:
    """The client's credentials as JSON: [pid, uid, gid]."""
    return json.dumps(list(request.peer)).encode()


def deadline(request: Any) -> bytes:
    """Seconds until the request is overdue, or `null`, as JSON."""
    return json.dumps(request.deadline and request.deadline - time.monotonic()).encode()


def wait_for_cancel(request: Any) -> bytes:
    """Waits (10 s at most) until the client is gone, then creates the file that the request names."""
    name, end = bytes(request), time.monotonic() + 10
    open(name + b".begun", "wb").close()
    while not request.cancelled and time.monotonic() < end:
        time.sleep(0.005)
    open(name + (b".cancelled" if request.cancelled else b".not-cancelled"), "wb").close()
    return b""


def hold(request: bytes) -> bytes:
    """Creates the file that the request names, and returns when it has been removed; echoes what names none."""
    if os.path.isabs(request):
        open(request, "wb").close()
        while os.path.exists(request):
            time.sleep(0.005)
    return request


def hang(request: bytes) -> bytes:
    """Never returns; the interpreter can run signal handlers meanwhile."""
    while True:
        time.sleep(0.1)  # briefly: the interpreter sees no signal that comes just before a sleep


def hang_in_c(request: bytes) -> bytes:
    """Never returns, and no Python signal handler runs: the state of a worker stuck in C code."""
    lock = threading.Lock()
    lock.acquire()
    blocked = set(signal.Signals) - {signal.SIGKILL} if hasattr(signal, "SIGKILL") else set()
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    lock.acquire()
    return b"unreachable"


def hang_if_asked(request: bytes) -> bytes:
    """Echoes, but for `hang`, on which it never returns."""
    return hang(request) if request == b"hang" else request


def leak(request: bytes, *, kept: list[bytes] = []) -> bytes:  # noqa: B006
    """Keeps as many bytes as the request says for ever, and says which worker did: for `max_rss`."""
    kept.append(b"x" * int(request or b"1000000"))
    return str(os.getpid()).encode()


def environment(request: bytes) -> bytes:
    """What the worker sees of its surroundings, as JSON: pid, ppid, cwd, argv, descriptors, threads, start method."""
    facts = {
        "pid": os.getpid(),
        "ppid": os.getppid(),
        "cwd": os.getcwd(),
        "argv": sys.argv,
        "variables": sorted(os.environ),
        "threads": threading.active_count(),
        "descriptors": sorted(map(int, os.listdir("/proc/self/fd"))) if os.path.isdir("/proc/self/fd") else None,
    }
    return json.dumps(facts).encode()


def say(request: bytes) -> bytes:
    """Prints the request and logs it: what becomes of a handler's own output."""
    import logging

    print(request.decode(), flush=True)
    logging.getLogger("handlers_for_tests").warning("%s", request.decode())
    return b"said"


# What on_worker_start and its siblings leave behind, in the file that this variable names.
NOTES = "HANDLERS_FOR_TESTS_NOTES"


def _note(what: str) -> None:
    with open(os.environ[NOTES], "a") as notes:
        notes.write(f"{what} {os.getpid()}\n")


def on_worker_start() -> None:
    """Notes `start PID`."""
    _note("start")


def on_worker_stop() -> None:
    """Notes `stop PID`."""
    _note("stop")


def on_worker_start_raises() -> None:
    """A worker that cannot start."""
    raise RuntimeError("no database today")


class Namespace:
    """Handlers reached by an attribute path (`handlers_for_tests:Namespace.echo`)."""

    echo: Callable[[bytes], bytes] = staticmethod(echo)


class Callable_:
    """An instance with `__call__` is a handler too."""

    def __call__(self, request: bytes) -> bytes:
        return b"called " + request


an_object = Callable_()
not_callable = 42


def read_descriptors(request: Any) -> bytes:
    """What the descriptors that came with the request give to read; they are closed."""
    found = []
    for descriptor in request.descriptors:
        with open(descriptor, "rb") as file:
            found.append(file.read() + (b"!" if os.get_inheritable(descriptor) else b""))
    return b"%d %b" % (len(found), b" ".join(found))
