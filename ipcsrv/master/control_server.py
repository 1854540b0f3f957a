"""The master's half of the control socket: answers about the server itself, between accepts (docs/control.md).

It shares the master's selector and never waits: a question comes in a few reads, an answer goes out in one write, and a
client that makes either impossible is closed. So it answers also when every worker is busy and the queue is full.
Only the server's own user and root may ask, whatever `allow` says of the server's clients. Questions are bounded in
size, depth and time, connections in number (the oldest gives way), and an exception in one of them ends that one alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from ..platform import logs
from ..platform.server import DONTWAIT, HANGUP, READ, AcceptedConnection, Admission, adopt, enlarge
from ..protocol.exchange import Refused, RequestReceived, ServerExchange, failure_packet
from . import status

if TYPE_CHECKING:
    from .master import Master

log = logs.get("ipcsrv.control")

MAX_QUESTION = 64 * 1024  # bytes
REFUSAL_INTERVAL = 1.0  # seconds between two lines in the log about refused clients
PAUSE = 0.2  # seconds without accepting when there was no descriptor
MAX_CONNECTIONS = 32  # the one that has been silent for longest gives way
MOST_ANSWER = 1 << 20  # bytes that one write takes, with the send buffer that is asked for


class Refusal(Exception):
    """Why a command is not carried out."""


class ControlConnection:
    """One client's connection; reload_from, ping: what it waits for, if it does; reload_began: by its own command."""

    __slots__ = ("connection", "exchange", "key", "ping", "reload_began", "reload_from")

    def __init__(self, connection: AcceptedConnection) -> None:
        self.connection = connection
        self.key = connection.fileno()
        self.exchange = ServerExchange(MAX_QUESTION)
        self.reload_from: int | None = None
        self.reload_began = False
        self.ping: int | None = None

    @property
    def waits(self) -> bool:
        """Whether its answer is still to come."""
        return self.reload_from is not None or self.ping is not None


class ControlServer:
    """Answers on the control socket of `master`."""

    def __init__(self, master: Master) -> None:
        self._master = master
        self._admission = Admission()
        self._listener: Any = None
        self._clients: dict[int, ControlConnection] = {}
        self._refused = -REFUSAL_INTERVAL
        self._pings = 0

    def open(self, listener: Any) -> None:
        """Begin to answer on `listener` (None: there is no control socket)."""
        self._listener = listener
        if listener is not None:
            self._master.watch(listener.fileno(), self._accept)

    def accept_again(self) -> None:
        """There may be a descriptor now."""
        if self._listener is not None:
            self._master.unwatch(self._listener.fileno())
            self._master.watch(self._listener.fileno(), self._accept)

    def close(self) -> None:
        """Stop listening; connections stay until `hang_up`, so that their peers see the end when it is the end."""
        if self._listener is not None:
            self._master.unwatch(self._listener.fileno())
            self._listener = None

    def hang_up(self) -> None:
        """Close all connections."""
        for client in list(self._clients.values()):
            self._end(client)

    def after_events(self) -> None:
        """Answer those that wait for a reload that is over now."""
        supervisor = self._master.processes.supervisor
        for client in [client for client in self._clients.values() if client.reload_from is not None]:
            assert client.reload_from is not None
            if supervisor.generation > client.reload_from:
                self._answer(client, {"ok": True, "generation": supervisor.generation, "began": client.reload_began})
            elif not supervisor.reloading:
                self._answer(client, {"ok": False, "error": supervisor.last_error or "the server is stopping"})
            else:
                continue
            client.reload_from = None
            self._go_on(client)

    def ponged(self, nonce: int) -> None:
        """A worker has answered a ping."""
        for client in [client for client in self._clients.values() if client.ping == nonce]:
            client.ping = None
            self._answer(client, {"ok": True, "worker": True})
            self._go_on(client)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            raw = self._listener.accept_raw()
        except BlockingIOError:
            return
        except OSError:  # no descriptor for it: the listener would stay readable
            self._master.unwatch(self._listener.fileno())
            self._master.set_timer("control", monotonic() + PAUSE)
            return
        connection = adopt(raw)
        if not self._admission.admits(connection):
            self._refuse(connection)
            return
        if len(self._clients) >= MAX_CONNECTIONS:
            oldest = next((client for client in self._clients.values() if not client.waits), None)
            self._end(oldest or next(iter(self._clients.values())))
        client = ControlConnection(connection)
        enlarge(connection, MOST_ANSWER)
        self._clients[client.key] = client
        self._watch(client, lambda: self._hear(client), READ)

    def _refuse(self, connection: AcceptedConnection) -> None:
        peer, now = connection.peer(), monotonic()
        if now - self._refused > REFUSAL_INTERVAL:
            self._refused = now
            log.warning("refused pid %s, uid %s on the control socket", peer.pid, peer.uid)
        self._say_last(connection, "denied", "only the server's own user may control it")

    def _hear(self, client: ControlConnection) -> None:
        try:
            data = client.connection.recv(MAX_QUESTION, DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            client.exchange.receive_data(data)
        else:
            client.exchange.receive_eof()
        self._proceed(client)
        if client.waits and client.key in self._clients:  # no more is read meanwhile; only its end is noticed
            self._watch(client, lambda: self._end(client), HANGUP)

    def _go_on(self, client: ControlConnection) -> None:
        """A client has its answer: handle what it asked meanwhile, after the events at hand."""

        def go_on() -> None:
            if self._clients.get(client.key) is client:
                self._proceed(client)
            if self._clients.get(client.key) is client and not client.waits:
                self._watch(client, lambda: self._hear(client), READ)

        self._master.later(go_on)

    def _watch(self, client: ControlConnection, callback: Callable[[], None], mask: int) -> None:
        self._master.unwatch(client.key)
        self._master.watch(client.key, callback, mask)

    def _proceed(self, client: ControlConnection) -> None:
        """Handle what has been read of a client."""
        try:
            self._handle_events(client)
        except Exception:  # a fault in the answer to one client must not end the server
            log.exception("a control connection failed")
            self._end(client)

    def _handle_events(self, client: ControlConnection) -> None:
        while client.key in self._clients and (event := client.exchange.next_event()) is not None:
            if isinstance(event, RequestReceived):
                self._question(client, event.payload)
                continue
            if isinstance(event, Refused):
                self._send(client, client.exchange.fail(event.code, event.message))
            self._end(client)
            return

    def _question(self, client: ControlConnection, payload: bytes) -> None:
        try:
            answer = self._carry_out(client, payload)
        except Refusal as refusal:
            answer = {"ok": False, "error": str(refusal)}
        if answer is not None:
            self._answer(client, answer)

    def _carry_out(self, client: ControlConnection, payload: bytes) -> dict[str, Any] | None:
        """Return the answer to a question, or None if it comes later."""
        try:
            question = json.loads(payload)
            name = question["command"]
            command = _COMMANDS[name]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise Refusal(f"not a JSON object with a command out of {', '.join(_COMMANDS)}") from None
        log.debug("pid %s asks: %s", client.connection.peer().pid, name)
        found = command(self, client, question)
        return found if found is None else {"ok": True, **found}

    def _answer(self, client: ControlConnection, answer: dict[str, Any]) -> None:
        self._send(client, client.exchange.respond(json.dumps(answer).encode()))

    def _send(self, client: ControlConnection, buffers: list[Any]) -> None:
        data = memoryview(b"".join(buffers))
        try:
            while data:
                data = data[client.connection.send(data, DONTWAIT) :]
        except OSError:  # it does not read, or has gone
            self._end(client)

    def _end(self, client: ControlConnection) -> None:
        if self._clients.pop(client.key, None) is not None:
            self._master.unwatch(client.key)
            client.connection.close()

    def _say_last(self, connection: AcceptedConnection, code: str, message: str) -> None:
        try:
            connection.send(failure_packet(code, message), DONTWAIT)
        except OSError:
            pass  # it has gone
        connection.close()

    # -- commands -----------------------------------------------------------------------------------------------------

    def _ping(self, client: ControlConnection, question: dict[str, Any]) -> dict[str, Any] | None:
        """Answer at once, or, with `worker`, when a worker has taken the ping from the queue."""
        if not question.get("worker"):
            return {}
        self._pings += 1
        if not self._master.dispatcher.ping(self._pings):
            raise Refusal("no worker can be asked: the server is starting, stopping, or its queue is full")
        client.ping = self._pings
        return None

    def _status(self, _: ControlConnection, __: dict[str, Any]) -> dict[str, Any]:
        return status.of(self._master)

    def _stop(self, _: ControlConnection, question: dict[str, Any]) -> dict[str, Any]:
        now = bool(question.get("now"))
        if question.get("if_pid") not in (None, self._master.pid):
            raise Refusal("another server runs here by now")
        log.info("told to stop%s", " now" if now else "")
        self._master.later(self._master.stop_now if now else self._master.stop)
        return {"pid": self._master.pid}

    def _reload(self, client: ControlConnection, question: dict[str, Any]) -> dict[str, Any] | None:
        """Reload; with `unless`, only code that has this fingerprint, and not once more during a reload."""
        if self._master.draining:
            raise Refusal("the server is stopping")
        self._refuse_without_workers()
        supervisor, old = self._master.processes.supervisor, question.get("unless")
        if old is not None and old != self._master.processes.code_facts().get("fingerprint"):
            return {"generation": supervisor.generation, "began": False}
        if old is not None and supervisor.reloading:
            client.reload_from, client.reload_began = supervisor.generation, False
            return None
        # One that is being loaded may have read older code, so its success is not the answer.
        client.reload_from, client.reload_began = supervisor.last_generation, True
        self._master.reload()
        return None

    def _refuse_without_workers(self) -> None:
        if self._master.settings.workers == 0:
            raise Refusal("workers is 0, so the handler is in the server's own process; restart it")

    def _scale(self, _: ControlConnection, question: dict[str, Any]) -> dict[str, Any]:
        self._refuse_without_workers()
        workers, largest = question.get("workers"), self._master.processes.supervisor.largest_size
        if type(workers) is not int or not 1 <= workers <= largest:
            raise Refusal(f"this server can have 1 to {largest} workers; for more, start it with a larger `workers`")
        self._master.scale(workers)
        return {"workers": workers}

    def _stacks(self, _: ControlConnection, question: dict[str, Any]) -> dict[str, Any]:
        self._master.dump_all_stacks()
        return {"log_file": self._master.settings.log_file}


_COMMANDS: dict[str, Callable[[ControlServer, ControlConnection, dict[str, Any]], dict[str, Any] | None]] = {
    "ping": ControlServer._ping,
    "status": ControlServer._status,
    "stop": ControlServer._stop,
    "reload": ControlServer._reload,
    "scale": ControlServer._scale,
    "stacks": ControlServer._stacks,
}
