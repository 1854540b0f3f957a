"""A program that uses every public name, for type checkers; it is never run."""

from __future__ import annotations

import asyncio
import os
from typing import Any, assert_type

import ipcsrv
from ipcsrv import aio


def handle(request: ipcsrv.Request) -> bytes:
    """Use all of a request."""
    assert_type(request.peer, ipcsrv.Peer | None)
    assert_type(request.cancelled, bool)
    assert_type(request.deadline, float | None)
    assert_type(request.remaining, float | None)
    if request.peer is not None:
        assert_type(request.peer.pid, int | None)
        assert_type(request.peer.uid, int | str)
        assert_type(request.peer.gid, int | None)
    return bytes(request)


@ipcsrv.json_handler
def add(request: Any) -> Any:
    """Add two numbers."""
    return {"sum": request["a"] + request["b"]}


@ipcsrv.text_handler
def shout(text: str) -> str:
    """Return upper case."""
    return text.upper()


def quit_server(request: bytes) -> object:
    """End the server."""
    return ipcsrv.QUIT if request == b"quit" else None


def settings_of_all_kinds(path: os.PathLike[str]) -> None:
    """Give settings as keywords."""
    ipcsrv.serve(path, handle, workers=4, start_method="fork", preload=False, log_level="debug", allow=["uid:5", 7])
    ipcsrv.serve(path, "m:f", max_rss="1GiB", request_timeout="5m", drain_timeout=3, mode=0o660, log_file=path)
    common: ipcsrv.SettingsDict = {"workers": None, "idle_exit": 600, "on_worker_start": "m:start"}
    assert_type(ipcsrv.ensure_running(path, add, timeout=3, on_mismatch="restart", **common), bool)
    with ipcsrv.Server(path, shout, **common) as server:
        assert_type(server, ipcsrv.Server)
        assert_type(server.pid, int | None)
        assert_type(server.path, str)
        server.reload()
        server.scale(2)
        assert_type(server.status(), dict[str, Any])
        server.wait(timeout=5)
        server.stop(timeout=5, now=True)
        server.start(timeout=5)


def wrong_settings(path: str) -> None:
    """Give settings that a type checker must refuse: each comment is used, or it is an error itself."""
    ipcsrv.serve(path, "m:f", workrs=4)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    ipcsrv.serve(path, "m:f", start_method="thread")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ipcsrv.ensure_running(path, "m:f", on_mismatch="x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ipcsrv.call(path, "text")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def clients(path: str) -> None:
    """Call in every blocking way."""
    assert_type(ipcsrv.default_path("app", "key"), str)
    assert_type(ipcsrv.active_state(path), ipcsrv.State)
    ipcsrv.wait_until_listening(path, timeout=5)
    assert_type(ipcsrv.call(path, memoryview(b"x"), timeout=1.5, trust="www", wait_if_not_found=True), bytes)
    assert_type(ipcsrv.call_json(path, {"a": 1}, timeout=5, trust=(0, "www")), Any)
    with ipcsrv.connect(path, max_response_size=1 << 20) as connection:
        assert_type(connection, ipcsrv.Connection)
        assert_type(connection.peer, ipcsrv.Peer)
        assert_type(connection.call(b"x"), bytes)
        for piece in connection.stream([b"a", b"b"], timeout=5):
            assert_type(piece, bytes)
    with ipcsrv.Pool(path, size=4) as pool:
        assert_type(pool.call(b"x", timeout=1), bytes)


def steer(path: str) -> None:
    """Steer a server by its path."""
    assert_type(ipcsrv.status(path), dict[str, Any])
    assert_type(ipcsrv.reload(path, timeout=5), dict[str, Any])
    assert_type(ipcsrv.scale(path, 3), dict[str, Any])
    assert_type(ipcsrv.restart(path), dict[str, Any])
    ipcsrv.stop(path, now=True, timeout=5, report=print)


def errors(path: str) -> None:
    """Look at what errors carry."""
    try:
        ipcsrv.call(path, b"x")
    except ipcsrv.CallTimeout as error:
        assert_type(error.progress, ipcsrv.Progress)
    except ipcsrv.HandlerError as error:
        assert_type(error.code, str)
    except ipcsrv.IpcError as error:
        assert_type(error.exit_code, int)
        assert_type(error.path, str | None)


async def asyncio_clients(path: str) -> None:
    """Call in every awaited way."""
    assert_type(await aio.ensure_running(path, handle, workers=2), bool)
    await aio.wait_until_listening(path, 5)
    assert_type(await aio.active_state(path), ipcsrv.State)
    assert_type(await aio.call(path, b"x", timeout=5), bytes)
    async with aio.connect(path) as connection:
        assert_type(connection, aio.Connection)
        assert_type(await connection.call(b"x"), bytes)
        async for piece in connection.stream(b"x"):
            assert_type(piece, bytes)
    async with aio.Pool(path) as pool:
        assert_type(await pool.call(b"x"), bytes)


if __name__ == "__main__":
    asyncio.run(asyncio_clients("./x.sock"))
