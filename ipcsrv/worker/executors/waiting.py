"""The handler of a worker whose requests run on an engine: submit, wait, answer. In the worker.

While it waits it sees to what the engine does not know: the deadline, a client that leaves, and an engine that is lost.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, Final

from ...config.handlers import HandlerSource, check_target
from ...config.settings import Settings
from ...errors import HandlerImportError
from ...platform import logs
from ...platform.job import Job
from ...request import Request
from ...supervision import scoreboard as board
from ...supervision.messages import VERDICTS
from ..exchange import chunk_bytes
from ..failures import Failure
from ..reporting import FAILURES, traceback_of
from . import Call, Lost, Result, State, Unavailable, Work, connected, engine_of
from .upload import Upload, upload_of

log = logs.get("ipcsrv.worker")

Pieces = SimpleQueue[bytes | None]  # of a streamed response; None when the future is done

LOOK_INTERVAL: Final = 0.05  # seconds between two checks whether the client of a waiting request has left
_COUNTERS: Final = {"too-large": board.TOO_LARGE, "timeout": board.TIMEOUTS}


class RemoteHandler:
    """A plain handler that has an engine do the work."""

    def __init__(self, job: Job, slots: board.Scoreboard, slot: int, upload: Upload | None) -> None:
        settings = job.settings
        assert settings.executor is not None
        self.name = settings.executor
        self._retries = settings.executor_retries
        self._words = slots.words(slot)
        self._others = [slots.words(number) for number in range(job.slots) if number != slot]
        self._telling = threading.Lock()
        work = Work(job.source.target, job.path, settings, f"{job.generation}", upload)
        self._blob = work.blob
        self.executor = connected(self.name, work, self._tell)

    def close(self) -> None:
        """Let go of the engine."""
        self.executor.close()

    def __call__(self, request: Request) -> Any:
        """Return what the engine's process makes of the request: bytes, QUIT, or a `Response` that is streamed."""
        left = self._retries
        while True:
            try:
                return self._submitted(request).begun()
            except Lost as error:
                log.warning("%s lost a request: %s%s", self.name, error, f"; {left} retries left" if left else "")
                if not left:
                    raise self.crashed(error) from None
                left -= 1

    def _submitted(self, request: Request) -> Response:
        peer = request.peer
        call = Call(self._blob, bytes(request), None if peer is None else tuple(peer), request.remaining)
        pieces: Pieces = SimpleQueue()
        try:
            future = self.executor.submit(call, pieces.put)
        except Unavailable as error:
            raise Failure("busy", f"{self.name} cannot be reached: {error}", board.HANDLER_ERRORS) from None
        future.add_done_callback(lambda _: pieces.put(None))
        return Response(self, request, future, pieces)

    def crashed(self, error: Lost) -> Failure:
        """Return the failure for a request that the engine has lost."""
        return Failure("crashed", f"{self.name}: {error}", board.HANDLER_ERRORS)

    def _tell(self, state: State, reason: str) -> None:
        """Write the engine's state where the master and the other workers see it; log a change once for all."""
        state = State(state)  # an engine's mistake is told to the engine
        with self._telling:
            before = self._words[board.EXECUTOR]
            if before == state:
                return
            known = any(words[board.PID] and words[board.EXECUTOR] == state for words in self._others)
            self._words[board.EXECUTOR] = state
        if known:
            return
        if state is State.UNREACHABLE:
            log.warning("%s cannot be reached: %s; requests get ERR busy until it can", self.name, reason)
        elif state is State.CONNECTED:
            log.info("%s is connected", self.name)


class Response:
    """One request at the engine; an iterator of its response's pieces where that is streamed."""

    def __init__(self, handler: RemoteHandler, request: Request, future: Future[Result], pieces: Pieces) -> None:
        self._handler, self._request, self._future, self._pieces = handler, request, future, pieces
        self._first: bytes | None = None
        self._size = 0  # bytes of all pieces so far
        self._unwanted = False

    def begun(self) -> Any:
        """Wait for the first piece or the result; return this object, or the result.

        Raises:
            Lost: the engine has lost the request, and nothing of the response has come.
            Failure: the handler failed, or the deadline is over.
        """
        self._first = self._next_piece()
        if self._first is not None:
            return self
        return None if self._unwanted else self._result()

    def __iter__(self) -> Response:
        return self

    def __next__(self) -> bytes:
        """Return the next piece; raises `Failure` for what ends the response early."""
        piece: Any = self._first
        self._first = None
        if piece is None and not self._unwanted:
            piece = self._next_piece()
        if piece is None and not self._unwanted:
            piece = self._rest()
        if piece is None:
            raise StopIteration
        return chunk_bytes(piece)

    def close(self) -> None:
        """Have the engine stop: nothing more is wanted."""
        self._unwanted = True
        if not self._future.done():
            try:
                self._handler.executor.cancel(self._future)
            except Exception as error:  # the client is told why its request ends, not this
                log.error("%s cannot cancel a request: %s", self._handler.name, traceback_of(error))

    def _next_piece(self) -> bytes | None:
        """Wait for a piece; None if the future is done or the client has left. Raises `Failure` at the deadline."""
        deadline = self._request.deadline
        while True:
            patience = LOOK_INTERVAL if deadline is None else min(LOOK_INTERVAL, deadline - time.monotonic())
            if patience <= 0 and not self._future.done():
                self.close()
                log.warning("cancelled a request on %s after request_timeout", self._handler.name)
                raise Failure("timeout", VERDICTS["timeout"], board.TIMEOUTS)
            try:
                piece = self._pieces.get(timeout=max(0.0, patience))
            except Empty:
                pass
            else:
                self._size += len(piece or b"")
                return piece
            if self._request.cancelled:
                self.close()
                return None

    def _result(self) -> Any:
        """Return the result's data; raises `Lost` or the `Failure` in its place."""
        result = self._future.result()
        if result.traceback or result.code == "handler":
            told = (result.traceback or result.text).rstrip()
            log.limited("handler failures", logs.ERROR, "the handler failed on %s: %s",
                        self._handler.executor.describe(), told, burst=FAILURES)
        if result.code:
            raise Failure(result.code, result.text, _COUNTERS.get(result.code, board.HANDLER_ERRORS))
        if result.sent != self._size:
            raise Lost(f"{self._size} of {result.sent} bytes of its response came")
        return result.data

    def _rest(self) -> Any:
        """Return what the result adds to the pieces, or None; it is too late to repeat a request that was lost."""
        self._unwanted = True
        try:
            return self._result() or None
        except Lost as error:
            log.warning("%s lost a request in the middle of its response: %s", self._handler.name, error)
            raise self._handler.crashed(error) from None


def checked(source: HandlerSource, settings: Settings) -> Upload | None:
    """Return what is to be uploaded; raise what is wrong with the settings before a worker is started."""
    assert settings.executor is not None
    check_target(source.target)
    if source.target.startswith("__main__:"):
        reason = "is in the program that was started, which another machine does not import; move it to a module"
        raise HandlerImportError(source.target, reason=reason)
    _, _, address = settings.executor.partition(":")
    try:
        getattr(engine_of(settings.executor), "check", lambda address: None)(address)
    except ValueError as error:
        raise HandlerImportError(settings.executor, reason=str(error), what="executor") from None
    return upload_of(source.target) if settings.upload_module else None
