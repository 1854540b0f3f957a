"""The handler of a worker whose requests run on an engine: submit, wait, answer.  In the worker.

While it waits it sees to what the engine does not know: the deadline, a client that leaves, and an engine that is lost.
"""

from __future__ import annotations

import concurrent.futures
import threading
import time
from concurrent.futures import Future
from typing import Any, Final

from ...config.handlers import HandlerSource, check_target
from ...errors import HandlerImportError
from ...platform import logs
from ...platform.job import Job
from ...request import Request
from ...supervision import scoreboard as board
from ...supervision.messages import VERDICTS
from ..failures import Failure
from . import Call, Executor, Lost, Result, State, Unavailable, Work, engine_of

log = logs.get("ipcsrv.worker")

LOOK_INTERVAL: Final = 0.05  # seconds between two checks whether the client of a waiting request has left
_COUNTERS: Final = {"too-large": board.TOO_LARGE, "timeout": board.TIMEOUTS}


class RemoteHandler:
    """A plain handler that has an engine do the work."""

    def __init__(self, job: Job, slots: board.Scoreboard, slot: int) -> None:
        settings = job.settings
        assert settings.executor is not None
        self.name = settings.executor
        self._retries = settings.executor_retries
        self._words = slots.words(slot)
        self._others = [slots.words(number) for number in range(job.slots) if number != slot]
        self._telling = threading.Lock()
        work = Work(job.source.target, job.path, settings, f"{job.generation}")
        self._blob = work.blob
        self._executor: Executor = engine_of(self.name).connect(self.name.partition(":")[2], work, self._tell)

    def close(self) -> None:
        """Let go of the engine."""
        self._executor.close()

    def __call__(self, request: Request) -> Any:
        """Return what the engine's process made of the request."""
        left = self._retries
        while True:
            try:
                return self._once(request)
            except Unavailable as error:
                raise Failure("busy", f"{self.name} cannot be reached: {error}", board.HANDLER_ERRORS) from None
            except Lost as error:
                log.warning("%s lost a request: %s%s", self.name, error, f"; {left} retries left" if left else "")
                if not left:
                    raise Failure("crashed", f"{self.name}: {error}", board.HANDLER_ERRORS) from None
                left -= 1

    def _once(self, request: Request) -> Any:
        peer = request.peer
        call = Call(self._blob, bytes(request), None if peer is None else tuple(peer), request.remaining)
        future = self._executor.submit(call)
        if not self._wait(future, request):
            self._executor.cancel(future)
            return None  # the client has left
        result = future.result()
        if not result.code:
            return result.data
        if result.traceback:
            log.error("the handler failed on %s: %s", self._executor.describe(), result.traceback.rstrip())
        raise Failure(result.code, result.text, _COUNTERS.get(result.code, board.HANDLER_ERRORS))

    def _wait(self, future: Future[Result], request: Request) -> bool:
        """Wait for the future; False if the client has left. Raises `Failure` at the deadline."""
        deadline = request.deadline
        while True:
            patience = LOOK_INTERVAL if deadline is None else min(LOOK_INTERVAL, deadline - time.monotonic())
            if concurrent.futures.wait((future,), max(0.0, patience)).done:
                return True
            if deadline is not None and time.monotonic() >= deadline:
                self._executor.cancel(future)
                log.warning("cancelled a request on %s after request_timeout", self._executor.describe())
                raise Failure("timeout", VERDICTS["timeout"], board.TIMEOUTS)
            if request.cancelled:
                return False

    def _tell(self, state: State, reason: str) -> None:
        """Write the engine's state where the master and the other workers see it; log a change once for all."""
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


def check(source: HandlerSource, executor: str) -> None:
    """Raise what is wrong with the settings before a worker is started; the handler itself is not imported here."""
    check_target(source.target)
    if source.target.startswith("__main__:"):
        reason = "is in the program that was started, which another machine does not import; move it to a module"
        raise HandlerImportError(source.target, reason=reason)
    engine_of(executor)
