"""Async handlers and factories for tests."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import ipcsrv
from ipcsrv import Request

REQUESTS: list[bytes] = []


async def dispatch(request: Request) -> Any:
    """Run what the request's first word names on the rest: one server for many tests."""
    name, _, rest = bytes(request).partition(b" ")
    found = HANDLERS[name.decode()](rest, request)
    return await found if asyncio.iscoroutine(found) else found


async def count(rest: bytes, request: Request) -> bytes:
    """The loop that this request runs in, and how many before it ran in the same process."""
    REQUESTS.append(rest)
    await asyncio.sleep(0)
    return json.dumps([os.getpid(), id(asyncio.get_running_loop()), len(REQUESTS)]).encode()


async def sleep(rest: bytes, request: Request) -> bytes:
    """Takes longer than any request_timeout, and says how it ended in the file that it is given."""
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        Path(rest.decode()).write_text("cancelled")
        raise
    return b"not reached"


async def stubborn(rest: bytes, request: Request) -> bytes:
    """Does not let itself be cancelled."""
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            continue


async def block(rest: bytes, request: Request) -> bytes:
    """Blocks the loop."""
    time.sleep(60)
    return b"not reached"


async def fail(rest: bytes, request: Request) -> bytes:
    """Raises."""
    await asyncio.sleep(0)
    raise LookupError(rest.decode())


async def wakeup(rest: bytes, request: Request) -> bytes:
    """Uses a signal handler of the loop's; its answer is whether the signal came."""
    came = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, came.set)
    os.kill(os.getpid(), signal.SIGUSR1)
    await asyncio.wait_for(came.wait(), 10)
    return b"came"


async def stream(rest: bytes, request: Request) -> AsyncIterator[bytes]:
    """The time of each chunk, 50 ms apart."""
    for _ in range(4):
        yield b"%020d" % time.monotonic_ns()
        await asyncio.sleep(0.05)


async def stream_then_wait(rest: bytes, request: Request) -> AsyncIterator[bytes]:
    """One chunk, and then none for a long time; notes in a file how it ends."""
    try:
        yield b"first"
        await asyncio.sleep(60)
    finally:
        Path(rest.decode()).write_text("closed")


async def watch_client(rest: bytes, request: Request) -> bytes:
    """Waits for its client to leave, by asking."""
    Path(rest.decode() + ".begun").touch()
    while not request.cancelled:
        await asyncio.sleep(0.005)
    Path(rest.decode()).write_text("left")
    return b""


class Foreign:
    """What an awaitable that is no coroutine may be: its attributes raise, or lead to itself for ever."""

    def __init__(self, kind: bytes) -> None:
        self._kind = kind
        self._waits = asyncio.get_running_loop().create_future().__await__()

    def __await__(self) -> Any:
        return self

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        return next(self._waits)

    def __getattr__(self, name: str) -> Any:
        if name in ("send", "throw", "close"):
            raise AttributeError(name)
        if self._kind == b"raises":
            raise RuntimeError(name)
        return self if name == "cr_await" else None


async def foreign(rest: bytes, request: Request) -> bytes:
    """Waits for an object that is no coroutine."""
    await Foreign(rest)
    return b"not reached"


HANDLERS: dict[str, Callable[..., Any]] = {
    found.__name__: found
    for found in (count, sleep, stubborn, block, fail, wakeup, stream, stream_then_wait, watch_client, foreign)
}


class Counter:
    """An object whose instances are handlers with a state of their own."""

    def __init__(self, path: str, settings: Any) -> None:
        self.text = f"{path} {settings.workers} {os.getpid()}"
        self.served = 0

    async def __call__(self, request: bytes) -> bytes:
        """What the factory was given, and how many requests this one has served."""
        self.served += 1
        return f"{self.text} {self.served}".encode()


def make_closure() -> Callable[[bytes], bytes]:
    """A factory that asks for nothing."""
    made_in = os.getpid()
    return lambda request: b"%d" % made_in


def make_number() -> int:
    """A factory of something that is no handler."""
    return 7


def make_with_host(host: str) -> Callable[[bytes], bytes]:
    """A factory that asks for what no server has."""
    return lambda request: host.encode()


def make_nothing() -> Callable[[bytes], bytes]:
    """A factory that raises."""
    raise LookupError("no model in this folder")


class Proxy:
    """An object that stands for one that is not there yet."""

    @property
    def __class__(self) -> Any:
        raise RuntimeError("no class")

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __repr__(self) -> str:
        raise RuntimeError("no text")

    async def __call__(self, request: bytes) -> bytes:
        """The request."""
        return request


proxy = Proxy()


def make_proxy() -> Proxy:
    """A factory of such an object."""
    return proxy


def hidden_default(request: bytes, context: object, other: object = proxy) -> bytes:
    """No handler, and its signature cannot be printed."""
    return request


class UnprintableError(BaseException):
    """An exception as a binding to another language may make it."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __str__(self) -> str:
        raise RuntimeError("no text")


def make_unprintable() -> Callable[[bytes], bytes]:
    """A factory that raises what cannot be printed."""
    raise UnprintableError


def make_interrupt() -> Callable[[bytes], bytes]:
    """A factory that raises an exception without a text."""
    raise KeyboardInterrupt


def two_arguments(request: bytes, context: object) -> bytes:
    """No handler: it takes two arguments."""
    return request


def no_arguments() -> Iterator[bytes]:
    """No handler either."""
    return iter(())


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator as people write it, with a plain wrapper around an async function."""

    @functools.wraps(function)
    def wrapper(*arguments: Any) -> Any:
        return function(*arguments)

    return wrapper


@logged
async def decorated(request: bytes) -> bytes:
    """An async handler behind a plain wrapper."""
    await asyncio.sleep(0)
    return b"decorated " + request


async def streams_then_waits(request: bytes) -> AsyncIterator[bytes]:
    """Send something, then nothing any more."""
    yield b"begun"
    await _waits()


async def _waits() -> None:
    await asyncio.sleep(60)


async def _same(_: object, value: object) -> object:
    await asyncio.sleep(0)
    return value


class _Same:
    async def __call__(self, value: object) -> object:
        return await _same(None, value)


json_decorated = ipcsrv.json_handler(logged(functools.partial(_same, None)))
json_partial = ipcsrv.json_handler(functools.partial(_same, None))
json_object = ipcsrv.json_handler(_Same())
