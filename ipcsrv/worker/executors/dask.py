"""The engine Dask distributed: `--executor dask:tcp://SCHEDULER:8786`.

`connect` runs in an ipcsrv worker; `run_task`, `Sender` and `UploadPlugin` in a Dask worker; `SchedulerPart` in the
Dask scheduler, which therefore needs ipcsrv installed too.

Dask repeats a task by itself when the worker that had it is lost, and a task whose result is lost with it. A handler
may not be repeated unless the user says so, so a plugin of the scheduler makes such a task fail instead.

A task has one result, at its end. The pieces of a streamed response are messages on the connections that are there:
from the Dask worker to the scheduler, which forwards them to the client as events of a topic. The message that a task
has ended takes the same way, and so comes after them.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import Any

import dask
import distributed
from dask._task_spec import Task
from distributed.comm.addressing import parse_address, parse_host_port
from distributed.comm.registry import get_backend
from distributed.core import clean_exception
from distributed.diagnostics.plugin import SchedulerPlugin, WorkerPlugin
from distributed.protocol.pickle import dumps

from ...errors import HandlerImportError
from . import CONNECT_TIMEOUT, PATIENCE, Call, Lost, Receive, Result, State, Tell, Unavailable, Work, remote, uploaded
from .upload import Upload

PREFIX = "ipcsrv-"  # of the keys of all tasks
PIECE = f"{PREFIX}piece"  # the message and the topic of pieces of streamed responses
LARGEST_PIECE = 4 << 20  # bytes of one message
MOST_TRACEBACK = 5000  # characters; Dask cuts longer errors
LOOK_INTERVAL = 0.25  # seconds between two checks of the connection to the scheduler
RETRY_DELAYS = (0.1, 0.2, 0.5, 1.0)  # seconds between attempts to reach it; the last one repeats


def check(address: str) -> None:
    """Raise `ValueError` if this cannot be the address of a scheduler."""
    scheme, location = parse_address(address)
    try:
        get_backend(scheme)
        host, port = parse_host_port(location)
    except ValueError as error:
        raise ValueError(f"it is not tcp://HOST:PORT or tls://HOST:PORT ({error})") from None
    if not host or not 0 < port < 65536:
        raise ValueError("it is not tcp://HOST:PORT or tls://HOST:PORT")


def connect(address: str, work: Work, tell: Tell) -> DaskExecutor:
    """Return the connection of one ipcsrv worker to the scheduler at `address`; see the package."""
    return DaskExecutor(address, work, tell)


class DaskExecutor:
    """A client of a Dask scheduler, made by a thread that makes another one whenever the connection is lost."""

    def __init__(self, address: str, work: Work, tell: Tell) -> None:
        self._address, self._tell = address, tell
        self._upload, self._import_time = work.upload, work.settings.startup_timeout / 2
        self._changed = threading.Condition()
        self._client: Any = None
        self._reason = ""  # why there is none, once an attempt has failed or takes too long
        self._broken: BaseException | None = None  # what the cluster says of the upload
        self._tasks: dict[Future[Result], Any] = {}
        self._receivers: dict[str, Receive] = {}  # by the key of the task
        self._closing = threading.Event()
        tell(State.CONNECTING, "")
        dask.config.set({"distributed.admin.large-graph-warning-threshold": "1TB"})  # a request may be large
        for name in [name for name in logging.root.manager.loggerDict if name.startswith("distributed")]:
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what happens is told in this server's log, once
        self._thread = threading.Thread(target=self._keep_connected, name="ipcsrv-executor", daemon=True)
        self._thread.start()
        with self._changed:
            self._changed.wait_for(self._settled, work.settings.startup_timeout * 3 / 4)
        if self._broken is not None:
            self.close()
            if isinstance(self._broken, CannotImport):
                raise HandlerImportError(work.target, self._broken.args[1], self._broken.args[0])
            raise HandlerImportError(work.target, reason=_text(self._broken))

    def describe(self) -> str:
        """Return the engine and its address."""
        return f"dask:{self._address}"

    def submit(self, call: Call, receive: Receive) -> Future[Result]:
        """Have the cluster run a call; waits a moment for a connection that was lost."""
        patience = PATIENCE if call.remaining is None else min(PATIENCE, call.remaining / 2)
        with self._changed:
            self._changed.wait_for(self._settled, patience)
            client, reason = self._client, self._reason
        if client is None:
            raise Unavailable(reason or "the connection is being made")
        future: Future[Result] = Future()
        key = f"{PREFIX}{uuid.uuid4().hex}"
        self._receivers[key] = receive
        try:
            task = client.submit(run_task, call, key=key, pure=False)
        except Exception as error:
            del self._receivers[key]
            raise Unavailable(_text(error)) from None
        self._tasks[future] = task
        task.add_done_callback(partial(self._finished, future))
        return future

    def cancel(self, future: Future[Result]) -> None:
        """Forget a task: the scheduler drops it as soon as no client refers to it, and `cancelled()` becomes true."""
        task = self._tasks.pop(future, None)
        if task is not None:
            del self._receivers[task.key]
            task.release()

    def close(self) -> None:
        """Close the connection."""
        self._closing.set()
        self._thread.join(2 * LOOK_INTERVAL)
        self._drop(self._client)

    def _finished(self, future: Future[Result], task: Any) -> None:
        """A task has ended, one way or another. In a thread of Dask's."""
        if self._tasks.pop(future, None) is None:
            return  # cancelled
        del self._receivers[task.key]
        try:
            future.set_result(Result(*task.result(timeout=CONNECT_TIMEOUT)))
        except (distributed.scheduler.KilledWorker, WorkerLost):
            future.set_exception(Lost("the Dask worker that ran it died"))
        except (CancelledError, distributed.client.FutureCancelledError, TimeoutError, OSError):
            future.set_exception(Lost("the connection to the scheduler was lost"))
        except BaseException as error:
            future.set_exception(error)
        finally:
            task.release()

    def _piece_came(self, event: tuple[str, bytes]) -> None:
        """Hand over a piece of a streamed response. In a thread of Dask's."""
        key, piece = event
        if (receive := self._receivers.get(key)) is not None:
            receive(piece)

    # -- the connection, in a thread of its own -----------------------------------------------------------------------

    def _keep_connected(self) -> None:
        delays = iter(RETRY_DELAYS)
        delay = 0.0
        while not self._closing.wait(delay):
            client = self._try_to_connect()
            if client is None:
                delay = next(delays, RETRY_DELAYS[-1])
                continue
            self._set(client, "", State.CONNECTED)
            while client.status == "running" and not self._closing.wait(LOOK_INTERVAL):
                pass
            if self._closing.is_set():
                return  # `close` has the client
            self._set(None, "", State.CONNECTING)
            self._drop(client)
            delays, delay = iter(RETRY_DELAYS), 0.0

    def _try_to_connect(self) -> Any:
        client: Any = None
        try:
            with self._patience(CONNECT_TIMEOUT, "the scheduler does not answer"):
                client = distributed.Client(self._address, timeout=CONNECT_TIMEOUT, set_as_default=False, name="ipcsrv")
                client.register_plugin(SchedulerPart())
                client.subscribe_topic(PIECE, self._piece_came)
            if self._upload is not None:
                with self._patience(self._import_time, "not every Dask worker has imported the upload"):
                    self._send(self._upload, client)
        except Exception as error:
            self._drop(client)
            self._set(None, _text(error), State.UNREACHABLE)
            return None
        return client

    def _send(self, upload: Upload, client: Any) -> None:
        """Have each Dask worker import the upload, and note what they say if none of them can.

        One that cannot says so to its requests. A single Dask worker must not keep a server from its start.
        """
        plugin = UploadPlugin(upload)
        client.sync(client.scheduler.ipcsrv_needs, client=client.id, plugin=plugin.name)
        answers = client.sync(client.scheduler.register_worker_plugin, plugin=dumps(plugin), name=plugin.name,
                              idempotent=False)
        failures = [answer for answer in answers.values() if answer["status"] == "error"]
        if failures and len(failures) == len(answers):
            self._broken = clean_exception(failures[0]["exception"], failures[0]["traceback"])[1]

    @contextlib.contextmanager
    def _patience(self, seconds: float, reason: str) -> Iterator[None]:
        """Tell that the engine is unreachable if the block takes longer; the library has no such limit everywhere."""
        timer = threading.Timer(seconds, self._set, (None, f"{reason} within {seconds:g} s", State.UNREACHABLE))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()  # it may be telling just now

    def _settled(self) -> bool:
        """Return whether there is a connection, or has been no success in the last attempt."""
        return self._client is not None or bool(self._reason)

    def _set(self, client: Any, reason: str, state: State) -> None:
        with self._changed:
            self._client, self._reason = client, reason
            self._changed.notify_all()
        self._tell(state, reason)

    def _drop(self, client: Any) -> None:
        if client is not None:
            with contextlib.suppress(Exception):
                client.close(timeout=LOOK_INTERVAL)


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


# -- on the cluster ---------------------------------------------------------------------------------------------------


class WorkerLost(Exception):
    """Raised in place of a task that would be run for a second time."""


def run_task(call: Call) -> Result:
    """Run the handler. In a Dask worker."""
    worker = distributed.get_worker()
    key = worker.get_current_task()

    def cancelled() -> bool:
        task = worker.state.tasks.get(key)
        return task is None or task.state != "executing"

    return remote.run(Call(*call), cancelled, Sender(worker, key).send)


class Sender:
    """Sends the pieces of one task's streamed response, small ones together. In a Dask worker."""

    def __init__(self, worker: Any, key: str) -> None:
        self._worker, self._key = worker, key
        self._lock = threading.Lock()
        self._waiting: list[bytes] = []

    def send(self, piece: bytes) -> None:
        """Take a piece. In the handler's thread."""
        with self._lock:
            self._waiting.append(piece)
            if len(self._waiting) > 1:
                return  # the flush that the first one has asked for takes this one too
        self._worker.loop.add_callback(self._flush)

    def _flush(self) -> None:
        """Send what waits. In the thread of the Dask worker's event loop."""
        with self._lock:
            data, self._waiting = b"".join(self._waiting), []
        for at in range(0, len(data), LARGEST_PIECE):
            self._worker.batched_send({"op": PIECE, "key": self._key, "piece": data[at : at + LARGEST_PIECE]})


def fail() -> None:
    """Take the place of a task that must not run again. In a Dask worker."""
    raise WorkerLost


class SchedulerPart(SchedulerPlugin):
    """Makes tasks of ipcsrv fail where the scheduler would run them again, and forwards pieces. In the scheduler."""

    name = f"{PREFIX}scheduler"
    idempotent = True

    async def start(self, scheduler: Any) -> None:
        """Take part in what the scheduler does."""
        self._scheduler = scheduler
        self._uploads: dict[str, set[str]] = {}  # plugin -> clients that need it
        scheduler.stream_handlers[PIECE] = self.forward
        scheduler.handlers["ipcsrv_needs"] = self.needs

    def needs(self, client: str, plugin: str) -> None:
        """Note which upload a client is about to register."""
        if client in self._scheduler.clients:
            self._uploads.setdefault(plugin, set()).add(client)

    def remove_client(self, scheduler: Any, client: str) -> None:
        """Forget the uploads that only this client needed: Dask workers that come later do not get them."""
        for plugin, clients in list(self._uploads.items()):
            clients.discard(client)
            if not clients:
                del self._uploads[plugin]
                scheduler.loop.add_callback(self._unregister, plugin)

    async def _unregister(self, plugin: str) -> None:
        if plugin not in self._uploads and plugin in self._scheduler.worker_plugins:
            await self._scheduler.unregister_worker_plugin(None, plugin)

    def forward(self, key: str, piece: bytes, worker: str) -> None:
        """Send a piece of a task's response to the client that waits for it."""
        task = self._scheduler.tasks.get(key)
        for client in () if task is None else task.who_wants or ():
            message = {"op": "event", "topic": PIECE, "event": (key, piece)}
            self._scheduler.client_send(client.client_key, message)

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        """Look at one change of a task's state; called by the scheduler."""
        if not isinstance(key, str) or not key.startswith(PREFIX) or key not in self._scheduler.tasks:
            return
        task = self._scheduler.tasks[key]
        if finish == "processing":
            # The next death of its worker is one too many (`KilledWorker`).
            task.suspicious = self._scheduler.allowed_failures
        elif finish == "released" and start in ("processing", "memory"):
            # Its worker leaves in good order, or has died with the result.
            task.run_spec = Task(key, fail)


class CannotImport(Exception):
    """An uploaded module cannot be imported: text and traceback."""


class UploadPlugin(WorkerPlugin):
    """Brings an upload to every Dask worker, also to those that come later."""

    def __init__(self, upload: Upload) -> None:
        self._upload = upload
        self.name = f"{PREFIX}upload-{upload.digest}"  # servers that send the same share it

    async def setup(self, worker: Any) -> None:
        """Import the module. What fails is told to the server that sends it; the Dask worker goes on in any case."""
        try:
            uploaded.check(self._upload, worker.local_directory)
        except HandlerImportError as error:
            raise CannotImport(str(error), (error.traceback_text or "")[-MOST_TRACEBACK:]) from None
