"""What an engine's process makes of a call: results, failures, and which handler it uses."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

import ipcsrv
from ipcsrv import QUIT, Request
from ipcsrv.config import settings
from ipcsrv.config.handlers import HandlerSource
from ipcsrv.worker.executors import Call, Result, Work
from ipcsrv.worker.executors.remote import run
from ipcsrv.worker.executors.waiting import checked

closed: list[str] = []


def answer(request: Request) -> Any:
    """Return what the request names."""
    return {
        b"bytes": b"data", b"view": memoryview(b"data"), b"none": None, b"quit": QUIT, b"chunks": [b"da", b"ta"],
        b"text": "data", b"number": 7, b"bad chunk": ["data"], b"long": b"x" * 200, b"long chunks": [b"x" * 60] * 4,
    }[bytes(request)]  # fmt: skip


async def answer_late(request: Request) -> bytes:
    """An async handler."""
    await asyncio.sleep(0)
    return b"late"


async def stream_late(request: Request) -> AsyncIterator[bytes]:
    """An async generator."""
    yield b"la"
    yield b"te"


def make(path: str) -> Callable[[bytes], bytes]:
    """A factory."""
    thread = threading.get_ident()
    return lambda request: f"{path} {thread}".encode()


def make_nothing() -> None:
    """A factory that fails."""
    raise LookupError("no such table")


def context(request: Request) -> bytes:
    """What the request knows."""
    assert request.peer is not None and request.remaining is not None
    return f"{request.peer.pid} {request.remaining > 1} {request.cancelled}".encode()


def chunks_until_closed(request: bytes) -> Iterator[bytes]:
    """An endless stream that notes when it is closed."""
    try:
        while True:
            yield b"x" * 60
    finally:
        closed.append("chunks")


def call(name: str, request: bytes = b"", **values: Any) -> Result:
    """Run a handler of this module, or any other, as an engine does."""
    target = name if ":" in name else f"{__name__}:{name}"
    work = Work(target, "/run/s", settings.make(max_response_size=100), "1")
    asked = Call(work.blob, request, (1, 2, 3), values.get("remaining"))
    return run(asked, lambda: bool(values.get("cancelled")), values.get("send"))


@pytest.mark.parametrize(
    ("request_bytes", "data"),
    [(b"bytes", b"data"), (b"view", b"data"), (b"none", b""), (b"quit", QUIT), (b"chunks", b"data")],
)
def test_result_is_what_a_worker_would_send(request_bytes: bytes, data: object) -> None:
    assert call("answer", request_bytes) == Result(data)  # type: ignore[arg-type]


@pytest.mark.parametrize("request_bytes", [b"text", b"number", b"bad chunk"])
def test_wrong_type_is_a_handler_error(request_bytes: bytes) -> None:
    result = call("answer", request_bytes)
    assert result.code == "handler" and "must" in result.text


@pytest.mark.parametrize("request_bytes", [b"long", b"long chunks"])
def test_result_over_the_limit_is_too_large(request_bytes: bytes) -> None:
    assert call("answer", request_bytes).code == "too-large"


def test_chunks_are_sent_where_the_engine_has_a_way() -> None:
    sent: list[bytes] = []
    assert call("answer", b"chunks", send=sent.append) == Result(sent=4)
    assert sent == [b"da", b"ta"]
    assert call("answer", b"bytes", send=sent.append) == Result(b"data")
    assert call("answer", b"long chunks", send=sent.append).code == "too-large"
    assert sent == [b"da", b"ta", b"x" * 60]


def test_endless_stream_is_closed_when_its_client_has_left() -> None:
    assert call("chunks_until_closed", cancelled=True, send=lambda piece: None).sent == 60
    assert closed.pop() == "chunks"


def test_endless_stream_is_closed_at_the_limit() -> None:
    assert call("chunks_until_closed").code == "too-large"
    assert closed.pop() == "chunks"


def test_async_handlers_run() -> None:
    assert call("answer_late").data == b"late"
    assert call("stream_late").data == b"late"


def test_error_has_type_text_and_the_handlers_frames() -> None:
    result = call("answer", b"unknown")
    assert (result.code, result.text) == ("handler", "KeyError: b'unknown'")
    assert "in answer" in result.traceback and "executors" not in result.traceback


def test_handler_that_cannot_be_loaded_is_a_handler_error() -> None:
    result = call("no_such_module:handle")
    assert result.code == "handler" and "no module 'no_such_module'" in result.text


def test_factory_that_fails_has_its_own_traceback() -> None:
    result = call("make_nothing()")
    assert "LookupError: no such table" in result.text
    assert "in make_nothing" in result.traceback and "adapters.py" not in result.traceback


def test_request_has_its_context() -> None:
    assert call("context", remaining=5.0).data == b"1 True False"
    assert call("context", remaining=5.0, cancelled=True).data == b"1 True True"


def test_each_thread_has_a_handler_of_its_own() -> None:
    here = [call("make()").data for _ in range(2)]
    there: list[Any] = []
    thread = threading.Thread(target=lambda: there.append(call("make()").data))
    thread.start()
    thread.join()
    assert here[0] == here[1] == f"/run/s {threading.get_ident()}".encode()
    assert there[0] != here[0]


@pytest.mark.parametrize("target", ["__main__:handle", "module:make.<locals>.handle"])
def test_handler_without_a_name_elsewhere_is_refused(target: str) -> None:
    with pytest.raises(ipcsrv.HandlerImportError):
        checked(HandlerSource(target), settings.make(executor="json:1"))
