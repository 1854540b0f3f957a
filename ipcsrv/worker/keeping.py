"""The connections that a worker holds between two requests.  In the worker.

An answered connection is first in *limbo* (`limbo`), unwatched; what is still open after that is *silent*: watched
together with the queue, given back to the master when it stays silent, or when the next request is likely to take long.

When we begin to watch a silent connection the master is given a copy of it under a number, in trust: if we die, it
lives (`worker`, "If it dies").
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterable
from time import monotonic_ns
from typing import Any

from ..platform.server import DONTWAIT, READ, Channel, Connection, close_raw, descriptor_limit
from ..protocol.exchange import failure_packet
from ..supervision import scoreboard as board
from .limbo import Limbo

PATIENCE = 0.002  # seconds for which a silent connection is held; clients in a loop come back within microseconds
MAX_SILENT = 64  # connections held silent at a time
CHATTY_NS = 1_000_000  # a client whose next request comes within 1 ms is in a loop
_EXHAUSTED = {getattr(errno, "ETOOMANYREFS", -1), errno.ENOBUFS, errno.ENOMEM}


class Held:
    """A silent connection.

    `kind` is "new" until its first request, then "kept"; `number` is the one under which the master has a copy, 0 for
    none; `since` is when it fell silent; `key` its
    descriptor; `chatty` says that its client is in a loop.
    """

    __slots__ = ("chatty", "connection", "key", "kind", "number", "since")

    def __init__(self, connection: Connection, kind: str, since: int = 0) -> None:
        self.connection, self.kind, self.since = connection, kind, since
        self.key = connection.fileno()
        self.number = 0
        self.chatty = False


class Keeping:
    """The silent connections, and the channel by which they, and those in limbo, go back to the master."""

    def __init__(self, channel: Channel, poller: Any, words: memoryview[int], limbo: Limbo) -> None:
        self._channel, self._poller, self._words = channel, poller, words
        self.silent: dict[int, Held] = {}
        self._limbo = limbo
        self.last: list[Held] = []  # to be served though the server stops: they had asked before they could be told
        self._numbers = 0
        self._most = min(MAX_SILENT, descriptor_limit() // 8)

    def tell(self, kind: str, body: bytes = b"", raw: int | None = None, *, keep: bool = False) -> bool:
        """Send the master a message; with a dead master there is nobody to give anything to.

        False if it could not be sent now: the kernel holds too many descriptors on their way (unix(7), ETOOMANYREFS).
        """
        try:
            self._channel.tell(kind, body, raw, keep=keep)
        except OSError as error:
            if raw is not None and not keep:
                close_raw(raw)
            return error.errno not in _EXHAUSTED
        return True

    def hold(self, connection: Connection, kind: str) -> None:
        """Watch a silent connection; if we hold too many already, it goes back at once."""
        held = Held(connection, kind, monotonic_ns())
        if len(self.silent) >= self._most:
            self.give_back(held)
            return
        self.entrust(held)
        self._watch(held)

    def _watch(self, held: Held) -> None:
        self.silent[held.key] = held
        self._words[board.HELD] += 1
        self._poller.register(held.key, READ)

    def forget(self, connection: Connection) -> None:
        """Watch it no longer, whoever has it now."""
        key = connection.fileno()
        if self.silent.pop(key, None) is not None:
            self._words[board.HELD] -= 1
            self._poller.unregister(key)

    def entrust(self, held: Held) -> None:
        """Give the master a copy of a connection, against our death."""
        self._numbers += 1
        if self.tell("keep", b"%d" % self._numbers, held.connection.fileno(), keep=True):
            held.number = self._numbers

    def release(self, held: Held) -> None:
        """Have the master drop its copy: the connection is in our hands alone."""
        if held.number:
            self.tell("drop", b"%d" % held.number)
            held.number = 0

    def drop(self, held: Held) -> None:
        """Close a silent connection, and the master's copy with it."""
        self.forget(held.connection)
        if held.number:
            held.connection.shutdown_both()
            self.release(held)
        held.connection.close()

    def give_back(self, held: Held) -> None:
        """Give a silent connection to the master, who parks it; where the server stops, see it off."""
        if self._words[board.VERDICT] == board.STOPPING:
            self._see_off(held)
        elif held.number:
            self.tell(held.kind, b"%d" % held.number)
            held.connection.close()
        elif self.tell(held.kind, b"", held.connection.fileno(), keep=True):
            held.connection.close()
        else:
            held.since = monotonic_ns()
            self._watch(held)  # until the next attempt

    def _see_off(self, held: Held) -> None:
        asked = held.kind == "new" or held.connection.hear_out()
        if asked:
            self.last.append(held)
            return
        if asked is None:
            with contextlib.suppress(OSError):
                held.connection.send(failure_packet("stopping", "the server has stopped"), DONTWAIT)
        self.drop(held)

    def leave_limbo(self) -> Held | None:
        """Look at the client that was answered longest ago: if it has spoken, it is returned, as one that we hold."""
        connection = self._limbo.oldest()
        said = connection.has_said()
        if said is False:
            self._limbo.release()
            connection.close()
            return None
        key = connection.fileno()
        self.hold(connection, "kept")  # and only then let go of it: at no moment has nobody a copy
        self._limbo.release()
        return self.silent.get(key) if said else None

    def secure_limbo(self) -> None:
        """Before a handler runs: see to those in limbo (`limbo`, "If the worker dies")."""
        if self._limbo:
            words = self._words
            newest = self._limbo.secure(insured=words[board.INSURED_NS] > words[board.BEGAN_NS])
            if newest is not None:
                self.hold(newest, "kept")

    def share(self, neighbours: Iterable[memoryview[int]]) -> None:
        """Of two clients in a loop that came to us, give one away while another worker has nobody.

        Who gets a connection first is chance, and a kept one stays; else one worker would serve both for ever.
        """
        if len(self.silent) > 1:
            chatty = [held for held in self.silent.values() if held.chatty]
            if len(chatty) > 1 and any(map(board.is_idle, neighbours)):
                self.forget(chatty[0].connection)
                self.give_back(chatty[0])

    def give_back_silent(self, but: Held | None = None, older_than: int | None = None) -> None:
        """Give back all silent connections; or all that fell silent before `older_than`, or all `but` one."""
        for held in list(self.silent.values()):
            if held is not but and (older_than is None or held.since < older_than):
                self.forget(held.connection)
                self.give_back(held)

    def give_back_all(self, but: Held | None = None) -> None:
        """Give back everything that is silent, or may be."""
        self.give_back_silent(but)
        while self._limbo:
            self.give_back(Held(self._limbo.oldest(), "kept"))
            self._limbo.release()
