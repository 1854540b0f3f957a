"""A handler that an engine runs: what happens on the engine's side. In a process of the engine.

`run` takes a call, loads the handler where it has not been loaded yet, and returns the result as plain bytes. The
chunks of a streamed response are sent as they are yielded, up to `max_response_size`, or collected where the engine has
no way for them. What the handler raises is part of the result, because engines log what a task raises together with
its arguments, and a request's bytes do not belong into a log.

Each thread that calls `run` has a handler of its own, because a handler serves one request at a time.
"""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from ...config import settings as table
from ...config.handlers import Handler, load
from ...errors import HandlerImportError
from ...exception_text import describe
from ...peer import Peer
from ...request import QUIT, Request
from ..adapters import Adapted, StartFailure, adapt, check_signature
from ..exchange import as_bytes_like, chunk_bytes
from ..failures import Failure
from ..reporting import traceback_of
from . import Call, Receive, Result
from .uploaded import use

_MOST_HANDLERS = 8  # of one thread; each reload of each server that uses the engine has one

_loaded = threading.local()


class Context:
    """What a request asks of its connection, answered on the engine's side."""

    def __init__(self, peer: tuple[Any, ...] | None, cancelled: Callable[[], bool]) -> None:
        self._peer, self.gone = peer, cancelled

    def peer(self) -> Peer:
        """Return the client's credentials, as the server had them from its kernel."""
        return Peer(*(self._peer or (0, 0, 0)))


def run(call: Call, cancelled: Callable[[], bool], send: Receive | None = None) -> Result:
    """Run the handler on one request.

    Args:
        call: the request and what it needs.
        cancelled: whether the result is not wanted any more; called in the handler's thread.
        send: takes the chunks of a streamed response, on the way to the client; None if the result is to have them.
    """
    request = Request(call.request)
    request._context = (Context(call.peer, cancelled), time.monotonic_ns(), call.remaining)
    try:
        handler, limit = _handler(call.blob)
        return _result(handler(request), limit, cancelled, send)
    except Failure as failure:
        return Result(code=failure.code, text=failure.message)
    except (HandlerImportError, StartFailure) as error:  # whose own frames are not those of the user's code
        return Result(code="handler", text=describe(error), traceback=error.traceback_text or traceback_of(error))
    except BaseException as error:
        return Result(code="handler", text=describe(error), traceback=traceback_of(error))


class _Loaded(NamedTuple):
    """A handler, with max_response_size and what `uploaded.use` needs to make its modules the current ones."""

    adapted: Adapted
    limit: int | None
    target: str
    digest: str


def _handler(blob: bytes) -> tuple[Handler, int | None]:
    """Return the handler of this thread, and max_response_size."""
    known: dict[bytes, _Loaded] = _loaded.__dict__.setdefault("handlers", {})
    if blob not in known:
        target, path, values, _version, digest = pickle.loads(blob)
        settings = table.make(**values)
        use(target, digest)
        found = load(target)
        check_signature(target, found)
        while len(known) >= _MOST_HANDLERS:
            old = known.pop(next(iter(known)))
            if old.adapted.close is not None:
                old.adapted.close()
        known[blob] = _Loaded(adapt(found, settings, path), settings.max_response_size, target, digest)
    loaded = known[blob]
    use(loaded.target, loaded.digest)  # for what the handler imports as it runs
    return loaded.adapted.handler, loaded.limit


def _result(response: Any, limit: int | None, cancelled: Callable[[], bool], send: Receive | None) -> Result:
    """Return the response as a result; the same rules as in a worker."""
    if response is None:
        return Result()
    if response is QUIT:
        return Result(QUIT)
    whole = as_bytes_like(response)
    if whole is not None:
        _check_size(len(whole), limit)
        return Result(bytes(whole))
    if not isinstance(response, Iterable) or isinstance(response, str):
        hint = "; encode it" if isinstance(response, str) else ""
        raise TypeError("a handler must return bytes-like, an iterable of bytes-like, None or ipcsrv.QUIT, "
                        f"not {type(response).__name__}{hint}")
    chunks: list[bytes] = []
    size, iterator = 0, iter(response)
    try:
        for chunk in iterator:
            data = chunk_bytes(chunk)
            size += len(data)
            _check_size(size, limit)
            if data:
                (send or chunks.append)(data)
            if cancelled():
                break
    finally:
        if (close := getattr(iterator, "close", None)) is not None:
            close()
    return Result(b"".join(chunks), sent=size if send else 0)


def _check_size(size: int, limit: int | None) -> None:
    if limit is not None and size > limit:
        raise Failure("too-large", f"a response of more than {limit} bytes", 0)
