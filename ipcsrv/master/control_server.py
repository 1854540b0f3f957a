"""The master's half of the control socket: answers about the server itself, between accepts (docs/control.md).

It shares the master's selector and never waits: a question comes in one read, an answer goes out in one write, and a
peer that makes either impossible is closed.  So it answers also when every worker is busy and the queue is full.
Only the server's own user and root may ask, whatever `allow` says of the server's clients.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from ..platform import logs
from ..platform.server import DONTWAIT, Admission, Connection, accept_raw, adopt, enlarge
from ..protocol.exchange import Refused, RequestReceived, ServerExchange, failure_packet
from . import status

if TYPE_CHECKING:
    from .master import Master

log = logs.get("ipcsrv.control")

MAX_QUESTION = 64 * 1024  # bytes
REFUSAL_INTERVAL = 1.0  # seconds between two lines in the log about who was refused
PAUSE = 0.2  # seconds without accepting when there was no descriptor
MAX_CONNECTIONS = 64  # of peers who ask; more are closed
SUFFIX_OF_ANSWER = 1 << 20  # bytes that one write takes, with the send buffer that we ask for


class Refusal(Exception):
    """Why a command is not carried out."""


class Conversation:
    """One peer's connection."""

    __slots__ = ("connection", "exchange", "reload_from")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.exchange = ServerExchange(MAX_QUESTION)
        self.reload_from: int | None = None


class Controller:
    """Answers on the control socket of `master`."""

    def __init__(self, master: Master) -> None:
        self._master = master
        self._admission = Admission()
        self._listener: Any = None
        self._talks: dict[int, Conversation] = {}
        self._refused = -REFUSAL_INTERVAL

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
        for talk in list(self._talks.values()):
            self._end(talk)

    def after_events(self) -> None:
        """Answer those who wait for a reload that is over now."""
        pool = self._master.crew.pool
        for talk in [talk for talk in self._talks.values() if talk.reload_from is not None]:
            assert talk.reload_from is not None
            if pool.generation > talk.reload_from:
                self._answer(talk, {"ok": True, "generation": pool.generation})
            elif not pool.reloading:
                self._answer(talk, {"ok": False, "error": pool.last_error or "the server is stopping"})
            else:
                continue
            talk.reload_from = None

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            raw = accept_raw(self._listener)
        except BlockingIOError:
            return
        except OSError:  # no descriptor for it: it would wake us for ever
            self._master.unwatch(self._listener.fileno())
            self._master.set_timer("control", monotonic() + PAUSE)
            return
        connection = adopt(raw)
        if len(self._talks) >= MAX_CONNECTIONS or not self._admission.admits(connection):
            self._refuse(connection)
            return
        talk = Conversation(connection)
        enlarge(connection, SUFFIX_OF_ANSWER)
        self._talks[raw] = talk
        self._master.watch(raw, lambda: self._hear(talk))

    def _refuse(self, connection: Connection) -> None:
        peer, now = connection.peer(), monotonic()
        if now - self._refused > REFUSAL_INTERVAL:
            self._refused = now
            log.warning("refused pid %s, uid %s on the control socket", peer.pid, peer.uid)
        self._say_last(connection, "denied", "only the server's own user may control it")

    def _hear(self, talk: Conversation) -> None:
        try:
            data = talk.connection.recv(MAX_QUESTION, DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            talk.exchange.receive_data(data)
        else:
            talk.exchange.receive_eof()
        self._handle_events(talk)

    def _handle_events(self, talk: Conversation) -> None:
        while (event := talk.exchange.next_event()) is not None:
            if isinstance(event, RequestReceived):
                self._question(talk, event.payload)
                continue
            if isinstance(event, Refused):
                self._send(talk, talk.exchange.fail(event.code, event.message))
            self._end(talk)
            return

    def _question(self, talk: Conversation, payload: bytes) -> None:
        try:
            answer = self._carry_out(talk, payload)
        except Refusal as refusal:
            answer = {"ok": False, "error": str(refusal)}
        if answer is not None:
            self._answer(talk, answer)

    def _carry_out(self, talk: Conversation, payload: bytes) -> dict[str, Any] | None:
        """The answer to a question, or None if it comes later."""
        try:
            question = json.loads(payload)
            name = question["command"]
            command = _COMMANDS[name]
        except (ValueError, TypeError, KeyError):
            raise Refusal(f"not a JSON object with a command out of {', '.join(_COMMANDS)}") from None
        log.debug("pid %s asks: %s", talk.connection.peer().pid, name)
        found = command(self, talk, question)
        return found if found is None else {"ok": True, **found}

    def _answer(self, talk: Conversation, answer: dict[str, Any]) -> None:
        self._send(talk, talk.exchange.respond(json.dumps(answer).encode()))

    def _send(self, talk: Conversation, buffers: list[Any]) -> None:
        data = memoryview(b"".join(buffers))
        try:
            while data:
                data = data[talk.connection.send(data, DONTWAIT) :]
        except OSError:  # it does not read, or has gone
            self._end(talk)

    def _end(self, talk: Conversation) -> None:
        key = talk.connection.fileno()
        if self._talks.pop(key, None) is not None:
            self._master.unwatch(key)
            talk.connection.close()

    def _say_last(self, connection: Connection, code: str, message: str) -> None:
        try:
            connection.send(failure_packet(code, message), DONTWAIT)
        except OSError:
            pass  # it has gone
        connection.close()

    # -- commands -----------------------------------------------------------------------------------------------------

    def _ping(self, _: Conversation, __: dict[str, Any]) -> dict[str, Any]:
        return {}

    def _status(self, _: Conversation, __: dict[str, Any]) -> dict[str, Any]:
        return status.of(self._master)

    def _stop(self, _: Conversation, question: dict[str, Any]) -> dict[str, Any]:
        now = bool(question.get("now"))
        log.info("told to stop%s", " now" if now else "")
        self._master.later(self._master.stop_now if now else self._master.stop)
        return {"pid": self._master.pid}

    def _reload(self, talk: Conversation, _: dict[str, Any]) -> None:
        if self._master.draining:
            raise Refusal("the server is stopping")
        self._refuse_without_workers()
        talk.reload_from = self._master.crew.pool.generation
        self._master.reload()

    def _refuse_without_workers(self) -> None:
        if self._master.settings.workers == 0:
            raise Refusal("workers is 0, so the handler is in the server's own process; restart it")

    def _scale(self, _: Conversation, question: dict[str, Any]) -> dict[str, Any]:
        self._refuse_without_workers()
        workers, largest = question.get("workers"), self._master.crew.pool.largest_size
        if not isinstance(workers, int) or not 1 <= workers <= largest:
            raise Refusal(f"workers must be a number from 1 to {largest}")
        self._master.scale(workers)
        return {"workers": workers}

    def _stacks(self, _: Conversation, question: dict[str, Any]) -> dict[str, Any]:
        self._master.dump_all_stacks()
        return {"log_file": self._master.settings.log_file}


_COMMANDS: dict[str, Callable[[Controller, Conversation, dict[str, Any]], dict[str, Any] | None]] = {
    "ping": Controller._ping,
    "status": Controller._status,
    "stop": Controller._stop,
    "reload": Controller._reload,
    "scale": Controller._scale,
    "stacks": Controller._stacks,
}
