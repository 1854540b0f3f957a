"""The connections that a worker holds between two requests.  In the worker.

After a response a connection may bring another request, or its end; which of the two takes the client a few
microseconds.  So an answered connection is first put in *limbo*, unwatched, for as long as new clients keep coming: by
the time it is looked at, most clients have closed, and one read says so, without a wake-up for each.  What is still
open after that is *silent*: watched together with the queue, given back to the master when it stays silent, or when the
next request is likely to take long.

When we begin to watch a silent connection the master is given a copy of it under a number, in trust: if we die, it
lives (`worker`, "If it dies").  Limbo is therefore short: it ends when the next event was waited for, however briefly.
"""

from __future__ import annotations

import contextlib
import errno
from collections import deque
from time import monotonic_ns
from typing import Any

from . import scoreboard as board
from ._platform.serving import DONTWAIT, READ, Channel, Connection, close_raw, descriptor_limit
from .exchange import failure_packet

PATIENCE = 0.002  # seconds for which a silent connection is held; clients in a loop come back within microseconds
LIMBO = 8  # connections; by the time so many others were served, a client that closes has closed
LIMBO_TIME = 0.001  # seconds without a new client after which those in limbo are watched
LIMBO_AGE_NS = 40_000  # since the last response: we had to wait for what came then, and those in limbo had their time
MAX_SILENT = 64  # connections held silent at a time
CHATTY_NS = 1_000_000  # a client whose next request comes within 1 ms is in a loop


_EXHAUSTED = {getattr(errno, "ETOOMANYREFS", -1), errno.ENOBUFS, errno.ENOMEM}


class Held:
    """A silent connection.

    `kind` is "new" until its first request, then "kept"; `number` is the one under which the master has a copy, 0 for
    none; `since` is when it fell silent; `chatty` says that its client is in a loop.
    """

    __slots__ = ("chatty", "connection", "kind", "number", "since")

    def __init__(self, connection: Connection, kind: str, since: int = 0) -> None:
        self.connection, self.kind, self.since = connection, kind, since
        self.number = 0
        self.chatty = False


class Keeping:
    """Limbo, the silent connections, and the channel by which they go back to the master."""

    def __init__(self, channel: Channel, poller: Any, words: memoryview[int]) -> None:
        self._channel, self._poller, self._words = channel, poller, words
        self.silent: dict[int, Held] = {}
        self.limbo: deque[Connection] = deque()
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
        key = held.connection.fileno()
        self.silent[key] = held
        self._words[board.HELD] += 1
        self._poller.register(key, READ)

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
            self.tell("back", b"%d" % held.number)
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

    def give_back_silent(self, but: Held | None = None, older_than: int | None = None) -> None:
        """Give back all silent connections; or all that fell silent before `older_than`, or all `but` one."""
        for held in list(self.silent.values()):
            if held is not but and (older_than is None or held.since < older_than):
                self.forget(held.connection)
                self.give_back(held)

    def give_back_all(self, but: Held | None = None) -> None:
        """Give back everything that is silent, or may be."""
        self.give_back_silent(but)
        while self.limbo:
            self.give_back(Held(self.limbo.popleft(), "kept"))
