"""Make one plain `handler(request) -> response` of whatever was loaded. In the worker, once, after the fork.

What is loaded may be a function, an `async def` function or generator, a factory (`MODULE:NAME()`), or, with the
setting `executor`, nothing at all: then the handler runs on another engine (`executors`).
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CoroutineType, TracebackType
from typing import Any, Final

from ..config.handlers import Factory, Handler, HandlerSource, cannot_be_called
from ..config.settings import Settings
from ..errors import HandlerImportError, IpcError
from ..exception_text import describe, is_interrupt, trace_without, traceback_text, type_name
from ..platform.job import Job
from ..supervision.scoreboard import Scoreboard

GRACE: Final = 1.0  # seconds after its deadline that a handler which can be cancelled has to end


class StartFailure(IpcError):
    """What the user's code raised at the start of a worker; `traceback_text` begins in that code."""

    def __init__(self, blamed: str, error: BaseException) -> None:
        super().__init__(f"{blamed}: {describe(error)}")
        self.traceback_text = traceback_text(error, without_own_frames(error))


def without_own_frames(error: BaseException) -> TracebackType | None:
    """Return the error's traceback from the first frame on that is not this package's."""
    return trace_without(error, "ipcsrv.")


@contextlib.contextmanager
def start_failures(blamed: str) -> Iterator[None]:
    """Raise what the block raises as a `StartFailure` that names whose it is."""
    try:
        yield
    except BaseException as error:
        if is_interrupt(error):
            raise
        raise StartFailure(blamed, error) from None


@dataclass(frozen=True)
class Adapted:
    """A plain handler, what to call when its worker leaves, and how long after the deadline it may end (seconds)."""

    handler: Handler
    close: Callable[[], object] | None = None
    grace: float = 0.0

    def stop_hook(self, stop: Callable[..., object] | None) -> Callable[[], object] | None:
        """Return the worker's stop hook: the user's `stop`, and then `close`."""
        close = self.close
        if close is None or stop is None:
            return close or stop

        def stopped() -> None:
            try:
                stop()
            finally:
                close()

        return stopped


def adapt(loaded: Handler, settings: Settings, path: str) -> Adapted:
    """Return the plain handler of one worker.

    Args:
        loaded: what `HandlerSource.load` returned.
        settings: the server's.
        path: where the server listens; a factory may ask for it.

    Raises:
        HandlerImportError: a factory returned something that is no handler.
        StartFailure: a factory raised.
    """
    if type(loaded) is Factory:  # not `isinstance`: `__class__` may be the user's own property
        with start_failures(f"handler {loaded.target}"):
            product = loaded.make(path=path, settings=settings)
        _check_product(loaded.target, product)
        check_signature(loaded.target, product)
        loaded = product
    if is_async(loaded):
        from .async_handlers import AsyncHandler

        runner = AsyncHandler(loaded)
        return Adapted(runner, runner.close, GRACE)
    return Adapted(loaded)


def on_executor(job: Job, slots: Scoreboard, slot: int, loaded: Handler) -> Adapted:
    """Return the plain handler of a worker whose requests run on another engine; loaded: what `not_here` returned."""
    from .executors.waiting import RemoteHandler

    handler = RemoteHandler(job, slots, slot, loaded())
    return Adapted(handler, handler.close, GRACE)


def not_here(source: HandlerSource, settings: Settings) -> Handler:
    """Return what is loaded where an executor has the handler: a function that returns the upload, or None.

    It is read once for all workers of a generation, as the code of a handler that runs here is.

    Raises:
        IpcError: the handler has no name by which another process finds it, or there is no such engine or module.
    """
    from .executors.waiting import checked

    upload = checked(source, settings)
    return lambda: upload


def _check_product(target: str, product: Any) -> None:
    """Raise `HandlerImportError` if a factory returned no handler for the two usual reasons."""
    if product is None:
        raise HandlerImportError(target, reason="the factory returned None; it must return the handler")
    if type(product) is CoroutineType:
        product.close()  # or Python warns that it was never awaited
        raise HandlerImportError(target, reason="a factory cannot be `async def`; make it `def`")


def check_signature(target: str, handler: Any) -> None:
    """Raise `HandlerImportError` if `handler` cannot be called with one argument, the request."""
    if type(handler) is Factory:
        handler.check()
        return
    if not callable(handler):
        raise HandlerImportError(target, reason=f"it is of type {type_name(handler)}, which cannot be called")
    if (reason := cannot_be_called(handler, b"")) is not None:
        as_factory = issubclass(type(handler), type) and any("__call__" in vars(base) for base in handler.__mro__)
        raise HandlerImportError(target, reason=reason, suggestion=f"{target}()" if as_factory else None)


def is_async(handler: Any) -> bool:
    """Return whether calling `handler` gives a coroutine or an async generator, as far as its definition tells."""
    functions = [handler]
    with contextlib.suppress(BaseException):  # the attributes of an object of the user's may raise, or lead to itself
        functions.append(inspect.unwrap(handler))
    candidates = (*functions, *(inspect.getattr_static(type(found), "__call__", None) for found in functions))
    return any(map(_is_async_function, candidates))


def _is_async_function(found: Any) -> bool:
    try:
        return inspect.iscoroutinefunction(found) or inspect.isasyncgenfunction(found)
    except BaseException:  # as above
        return False
