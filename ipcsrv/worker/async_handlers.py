"""An `async def` handler as a plain one: one event loop per worker, one run of it per request. In the worker.

The task is cancelled at the request's deadline and answered with ERR timeout; the master kills the worker some time
later (`adapters.GRACE`) if that did not help, because the handler caught the cancellation or blocks the loop.
Loaded only where a handler is async: asyncio takes longer to import than everything else in a worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import signal
import threading
import time
import traceback
from collections.abc import AsyncIterable, Callable, Coroutine, Iterator
from typing import Any, Final

from ..platform import logs
from ..request import Request
from ..supervision import scoreboard as board
from ..supervision.messages import VERDICTS
from .failures import Failure, Gone
from .reporting import FAILURES, log_failure

log = logs.get("ipcsrv.worker")

LOOK_INTERVAL: Final = 0.05  # seconds between two checks whether the client of a waiting stream has left
CLOSE_PATIENCE: Final = 1.0  # seconds for what an async generator does when it is closed
MOST_AWAITED: Final = 1000  # coroutines that wait for each other: an object of the user's may lead to itself
MOST_LINES: Final = 50  # of where a request waited, as of a traceback
_END: Final = object()


class AsyncHandler:
    """An async handler as a plain one; the event loop is made by the first request."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wakeup = -1  # the signal wake-up descriptor that the handler's own code has set, if it has

    def __call__(self, request: Request) -> Any:
        """Run the handler to its end; an async iterable becomes an iterator."""
        response = self._function(request)
        context = contextvars.copy_context()  # one for all steps of a stream
        if inspect.isawaitable(response):
            response = self._run(_awaited(response), context, _remaining(request))
        if isinstance(response, AsyncIterable):
            return self._stream(request, response, context)
        return response

    def close(self) -> None:
        """Cancel what still runs in the loop, and close it."""
        loop, self._loop = self._loop, None
        if loop is None:
            return
        with self._own_wakeup():
            try:
                loop.run_until_complete(_end_tasks(asyncio.all_tasks(loop)))
                loop.run_until_complete(loop.shutdown_asyncgens())
            finally:
                loop.close()

    def _stream(self, request: Request, chunks: AsyncIterable[Any], context: contextvars.Context) -> Iterator[Any]:
        """Yield the chunks as they come; the time that the client takes to read them is not the handler's."""
        iterator, left = aiter(chunks), _remaining(request)
        try:
            while True:
                began = time.monotonic()
                chunk = self._run(_next(iterator), context, left, request)
                if chunk is _END:
                    return
                if left is not None:
                    left -= time.monotonic() - began
                yield chunk
        finally:
            close = getattr(iterator, "aclose", None)
            if close is not None:
                self._run(_bounded(close()), context, None)

    def _run(self, coroutine: Coroutine[Any, Any, Any], context: contextvars.Context, limit: float | None,
             stream_of: Request | None = None) -> Any:
        """Return what the coroutine returns; cancel it after `limit` seconds, or when the stream's client leaves."""
        loop = self._loop = self._loop or asyncio.new_event_loop()
        with self._own_wakeup():
            task = loop.create_task(_outcome(coroutine), context=context)
            watch = _Watch(loop, task, limit, stream_of)
            try:
                result, error = loop.run_until_complete(task)
            except asyncio.CancelledError as cancelled:  # before the coroutine began
                result, error = None, cancelled
            finally:
                watch.stop()
        if error is None:
            if watch.overdue:  # it caught the cancellation and went on
                watch.raise_reason()
            return result
        try:
            if issubclass(type(error), asyncio.CancelledError):
                watch.raise_reason()
            raise error
        finally:
            del error  # its traceback leads to this frame

    @contextlib.contextmanager
    def _own_wakeup(self) -> Iterator[None]:
        """Let the loop have its own signal wake-up descriptor, and restore the one of the process afterwards.

        An event loop sets it as soon as its user adds a signal handler, and never gives it back.
        """
        if threading.current_thread() is not threading.main_thread():  # where `signal.set_wakeup_fd` is not allowed
            yield
            return
        outer = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(outer if self._wakeup == -1 else self._wakeup, warn_on_full_buffer=False)
        try:
            yield
        finally:
            inner = signal.set_wakeup_fd(outer, warn_on_full_buffer=False)
            self._wakeup = -1 if inner == outer else inner


class _Watch:
    """Cancels a task at its deadline, or once the client of its stream has left."""

    def __init__(self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any], limit: float | None,
                 stream_of: Request | None) -> None:
        self._loop, self._task, self._limit, self._stream_of = loop, task, limit, stream_of
        self.overdue = self.left = False
        self._timers: dict[str, asyncio.TimerHandle] = {}
        if limit is not None:
            self._timers["deadline"] = loop.call_later(max(0.0, limit), self._expire)
        if stream_of is not None:
            self._timers["look"] = loop.call_later(LOOK_INTERVAL, self._look)

    def stop(self) -> None:
        """Watch no longer."""
        for timer in self._timers.values():
            timer.cancel()

    def raise_reason(self) -> None:
        """Raise what the cancellation stands for, if it was this object's."""
        if self.overdue:
            raise Failure("timeout", VERDICTS["timeout"], board.TIMEOUTS) from None
        if self.left:
            raise Gone from None

    def _expire(self) -> None:
        self.overdue = True
        self._task.cancel()  # first: what it waits for may be an object of the user's
        log.limited("cancelled requests", logs.WARNING, "cancelled a request after request_timeout; it was at:\n%s",
                    _suspended_at(self._task.get_coro()), burst=FAILURES)

    def _look(self) -> None:
        assert self._stream_of is not None
        if self._stream_of.cancelled:
            self.left = True
            self._task.cancel()
        else:
            self._timers["look"] = self._loop.call_later(LOOK_INTERVAL, self._look)


def _remaining(request: Any) -> float | None:
    """Return seconds until the deadline; None where there is none (a test's own bytes have none either)."""
    remaining: float | None = getattr(request, "remaining", None)
    return remaining


def _suspended_at(awaited: Any) -> str:
    """Return where a coroutine waits: the line of each coroutine and generator, without this module's own.

    What is awaited may be an object of the user's: where it raises, the lines end.
    """
    lines: list[traceback.FrameSummary] = []
    with contextlib.suppress(BaseException):
        for _ in range(MOST_AWAITED):
            if awaited is None:
                break
            frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "ag_frame", None)
            if frame is not None and frame.f_code is _next.__code__ and hasattr(frame.f_locals["iterator"], "ag_frame"):
                awaited = frame.f_locals["iterator"]  # what its __anext__ returns does not lead to it
                continue
            if frame is not None and frame.f_globals.get("__name__") != __name__:
                lines += traceback.extract_stack(frame, 1)
            awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "ag_await", None)
    return "".join(traceback.format_list(lines[-MOST_LINES:])).rstrip()


async def _outcome(coroutine: Coroutine[Any, Any, Any]) -> tuple[Any, BaseException | None]:
    """Return the coroutine's result, or what it has raised: asyncio reads `__class__`, which may be the user's own."""
    try:
        return await coroutine, None
    except BaseException as error:
        return None, error


async def _awaited(awaitable: Any) -> Any:
    return await awaitable


async def _next(iterator: Any) -> Any:
    try:
        return await type(iterator).__anext__(iterator)
    except StopAsyncIteration:
        return _END


async def _bounded(closing: Any) -> None:
    """Wait for a generator's own clean-up, but not for ever: no deadline applies between two requests."""
    try:
        async with asyncio.timeout(CLOSE_PATIENCE):
            await closing
    except BaseException as error:
        log_failure("async generators that failed to close", "the handler's async generator failed to close", error)


async def _end_tasks(tasks: set[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=CLOSE_PATIENCE)
