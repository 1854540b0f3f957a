"""The handler between its request hooks: for tracing and other observers of each request. In the worker.

`on_request_start(request)` is called before the handler; what it raises fails the request, as if the handler had
raised it. `on_request_end(request, error)` is called when the handler is done, which for a response that is streamed
is when its iterator has ended: `error` is what was raised, None if nothing, `GeneratorExit` if the client went away
from a stream. What it raises is only logged: the response is complete by then.

Both run in the thread of the handler, in its context (`contextvars`). Without hooks the handler is itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

from ..config.handlers import Handler, load_hook
from ..config.settings import Settings
from .failures import Gone
from .reporting import log_failure

Hook = Callable[..., object] | None


def worker_hooks(settings: Settings) -> tuple[Hook, Hook]:
    """Return the hooks at a worker's start and stop, each None if there is none."""
    start = load_hook(settings.on_worker_start, "on_worker_start")
    return start, load_hook(settings.on_worker_stop, "on_worker_stop")


def between_hooks(handler: Handler, settings: Settings) -> Handler:
    """Return `handler` with the hooks that the settings name around it; `handler` itself if they name none."""
    start = load_hook(settings.on_request_start, "on_request_start", b"")
    end = load_hook(settings.on_request_end, "on_request_end", b"", None)
    if end is not None:
        handler = _with_end(handler, end)
    return handler if start is None else _with_start(handler, start)


def _with_start(handler: Handler, start: Callable[..., object]) -> Handler:
    def started(request: Any) -> Any:
        start(request)
        return handler(request)

    return started


def _with_end(handler: Handler, end: Callable[..., object]) -> Handler:
    process = os.getpid()

    def ended(request: Any, error: BaseException | None) -> None:
        try:
            end(request, error)
        except BaseException as failure:
            if os.getpid() != process:  # the hook has forked: this process ends by what it raised
                raise
            log_failure("failures of on_request_end", "on_request_end failed", failure)

    def stream(request: Any, chunks: Iterator[Any]) -> Iterator[Any]:
        try:
            yield from chunks
        except Gone as error:  # an async stream notices by itself that its client has left
            ended(request, GeneratorExit().with_traceback(error.__traceback__))
            raise
        except BaseException as error:
            ended(request, error)
            raise
        ended(request, None)

    def handled(request: Any) -> Any:
        try:
            response = handler(request)
            if issubclass(type(response), Iterator):
                return stream(request, response)
        except BaseException as error:
            ended(request, error)
            raise
        ended(request, None)
        return response

    return handled
