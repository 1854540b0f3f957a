"""The seam to an engine that runs handlers elsewhere: `--executor ENGINE:ADDRESS`. In the worker.

An engine is a module: `ENGINE` of this package (`dask`), or any other that can be imported. It has one function, and
may have a second one,

`connect(address, work, tell) -> Executor`
    Called once per worker, after the fork; returns when the first attempt to connect has succeeded or failed.
    `address` is the text behind the colon, `work` what the server asks of all requests, and `tell(state, reason)` is to
    be called whenever the engine's state changes, from any thread: `State.CONNECTED`, `State.UNREACHABLE`, or
    `State.CONNECTING` while a lost connection is made again. If `work.upload` is not None,
    `uploaded.check(work.upload, folder)` must have run in each process that is to call `remote.run`; `connect` raises
    what it has raised.
`check(address)`
    Raises `ValueError` with the reason if this cannot be an address; called once, before the server is started.

An `Executor` has four methods:

`submit(call, receive) -> concurrent.futures.Future[Result]`
    Have the engine run `remote.run(call, cancelled, send)`, once at most, and return the future of its result. What
    the call's process gives to `send`, the pieces of a streamed response, must reach `receive` in order, from any
    thread, before the future ends. An engine without a way for them leaves `send` out; then the result has them all.
    Raises `Unavailable` if the engine cannot be reached, after `PATIENCE` seconds at most. The future ends with `Lost`
    if the engine lost the call after it may have begun: it is repeated only if the user allows that
    (`executor_retries`) and nothing of its response has come. `Result.data` of a streamed response is its last piece.
`cancel(future)`
    Tell the engine that the result is not wanted any more; return at once. `cancelled()`, which `remote.run` was given,
    becomes true.
`close()`
    The worker leaves.
`describe() -> str`
    What the log calls the engine: its kind and address.

Each worker has one request at the engine at a time, so `workers` bounds what the server asks of it.
"""

from __future__ import annotations

import enum
import importlib
import importlib.util
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from ...config.handlers import current_folder_first
from ...config.settings import Settings
from ...errors import HandlerImportError
from ...exception_text import type_name
from ...request import Quit
from ...supervision.scoreboard import EXECUTOR_STATES
from .upload import Upload

CONNECT_TIMEOUT = 3.0  # seconds for an attempt to reach an engine
PATIENCE = 1.0  # seconds in which a lost connection may be made again before requests are answered with ERR busy


class State(enum.IntEnum):
    """What a worker knows of its engine; the numbers are those of `EXECUTOR_STATES`."""

    CONNECTING = EXECUTOR_STATES.index("connecting")
    CONNECTED = EXECUTOR_STATES.index("connected")
    UNREACHABLE = EXECUTOR_STATES.index("unreachable")


class Unavailable(Exception):
    """The engine cannot be reached; the handler was not run."""


class Lost(Exception):
    """The engine lost a request that may have been executed."""


@dataclass(frozen=True)
class Work:
    """What is the same for all requests of one worker; travels to the engine pickled, as `blob`.

    target: the handler's name; path, settings: of the server, for a factory; version: changes with each generation, so
    that a process of the engine loads the handler again; upload: the handler's code, whose digest travels in the blob.
    """

    target: str
    path: str
    settings: Settings
    version: str
    upload: Upload | None = None

    @property
    def blob(self) -> bytes:
        """The same as bytes."""
        import pickle

        values = {name: value for name, value in self.settings.to_dict().items() if not name.startswith("on_")}
        digest = "" if self.upload is None else self.upload.digest
        return pickle.dumps((self.target, self.path, values, self.version, digest))


class Call(NamedTuple):
    """One request on its way: the work it belongs to, its bytes, peer credentials and seconds left, or None."""

    blob: bytes
    request: bytes
    peer: tuple[Any, ...] | None
    remaining: float | None


class Result(NamedTuple):
    """What the handler made of a request: `data`, or a failure (`code`, `text`) and the traceback for the log.

    sent: bytes of a streamed response that came before, in pieces.
    """

    data: bytes | Quit = b""
    code: str = ""
    text: str = ""
    traceback: str = ""
    sent: int = 0


Tell = Callable[[State, str], None]
Receive = Callable[[bytes], object]


class Executor(Protocol):
    """A connection to an engine (see above)."""

    def submit(self, call: Call, receive: Receive) -> Future[Result]: ...
    def cancel(self, future: Future[Result]) -> None: ...
    def close(self) -> None: ...
    def describe(self) -> str: ...


def engine_of(executor: str) -> Any:
    """Return the module of the engine that the setting names.

    Raises:
        HandlerImportError: there is no such engine, or what it needs is not installed.
    """
    name = executor.partition(":")[0]
    own = "." not in name and importlib.util.find_spec(f"{__name__}.{name}") is not None
    try:
        with nullcontext() if own else current_folder_first(name):
            engine = importlib.import_module(f"{__name__}.{name}" if own else name)
    except ImportError as error:
        advice = f"; run: pip install 'ipcsrv[{name}]'" if own else ""
        raise HandlerImportError(executor, reason=f"{error}{advice}", what="executor") from None
    if not callable(getattr(engine, "connect", None)):
        raise HandlerImportError(executor, reason=f"the module {name} has no function connect", what="executor")
    return engine


def connected(executor: str, work: Work, tell: Tell) -> Executor:
    """Return the connection of one worker to the engine that the setting names.

    Raises:
        HandlerImportError: what the engine returned has not the methods of an `Executor`.
    """
    name, _, address = executor.partition(":")
    made: Executor = engine_of(executor).connect(address, work, tell)
    for method in ("submit", "cancel", "close", "describe"):
        if not callable(getattr(made, method, None)):
            reason = f"{name}.connect returned {type_name(made)}, which has no method {method}"
            raise HandlerImportError(executor, reason=reason, what="executor")
    return made
