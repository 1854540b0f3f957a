"""The WSGI application for gunicorn, and the ASGI one for uvicorn."""

from __future__ import annotations

from typing import Any

HEADERS = [("Content-Type", "text/plain"), ("Content-Length", "4")]


def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", HEADERS)
    return [b"pong"]


async def asgi(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    headers = [(name.encode(), value.encode()) for name, value in HEADERS]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"pong"})
