"""Handlers and calls that speak JSON or text instead of bytes.  Runs in workers and in clients.

    @ipcsrv.json_handler
    def add(request):
        return {"sum": request["a"] + request["b"]}

    ipcsrv.call_json("./add.sock", {"a": 1, "b": 2})  # {"sum": 3}

A decorated function stays importable by its name, so `MODULE:NAME` leads to it.  Nothing is ever pickled.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

from .client import sync as client
from .errors import ProtocolError
from .request import QUIT

if TYPE_CHECKING:
    from typing import Unpack

    from .client.sync import CallOptions, Path

Function = Callable[..., Any]


def json_handler(function: Function) -> Function:
    """Make a handler of a function from a JSON value to a JSON value.

    A request that is not JSON, and a result that JSON cannot hold, are handler errors like any exception of the
    function: the client gets the exception's type and text.  `ipcsrv.QUIT` is passed on.

    Args:
        function: Takes what `json.loads` returns, returns what `json.dumps` takes; may be `async def`.

    Returns:
        The handler.

    Example:
        >>> @ipcsrv.json_handler
        ... def add(request):
        ...     return {"sum": request["a"] + request["b"]}
    """
    return _handler(function, _load_json, _dump_json)


def text_handler(function: Function) -> Function:
    """Make a handler of a function from text to text, both in UTF-8.

    Args:
        function: Takes a `str` and returns one; may be `async def`.

    Returns:
        The handler.  A request that is not UTF-8, and a result that is not a `str`, are handler errors.

    Example:
        >>> @ipcsrv.text_handler
        ... def shout(request):
        ...     return request.upper()
    """
    return _handler(function, lambda request: str(request, "utf-8"), _dump_text)


def call_json(path: Path, value: Any = None, timeout: float | None = None, **options: Unpack[CallOptions]) -> Any:
    """Send a JSON value as one request and return the response's JSON value.

    Args:
        path: Where the server listens.
        value: What `json.dumps` takes.
        timeout: Seconds for all of it; None for no limit.
        **options: As for `call`: trust, wait_if_busy, wait_if_not_found, max_response_size.

    Returns:
        What `json.loads` makes of the response.

    Raises:
        ProtocolError: The response is not JSON.
        IpcError: What `call` raises.
        TypeError: JSON cannot hold `value`; nothing was sent.
        ValueError: `timeout` is negative or not a number, or JSON cannot hold `value`; nothing was sent.

    Example:
        >>> ipcsrv.call_json("./add.sock", {"a": 1, "b": 2})
        {'sum': 3}
    """
    response = client.call(path, _dump_json(value), timeout, **options)
    try:
        return _load_json(response)
    except ValueError as error:
        raise ProtocolError(f"the response is not JSON: {error}", str(path)) from None


def _handler(function: Function, load: Callable[[bytes], Any], dump: Callable[[Any], bytes]) -> Function:
    def respond(result: Any) -> Any:
        return result if result is QUIT else dump(result)

    async def respond_later(result: Awaitable[Any]) -> Any:
        return respond(await result)

    @wraps(function)
    def handle(request: bytes) -> Any:
        result = function(load(request))
        return respond_later(result) if hasattr(result, "__await__") else respond(result)

    return handle


def _load_json(data: bytes) -> Any:
    return json.loads(data, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _dump_json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _dump_text(text: Any) -> bytes:
    if not isinstance(text, str):
        raise TypeError(f"a text handler returns str, not {type(text).__name__}")
    return text.encode()
