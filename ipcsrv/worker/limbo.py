"""Connections that have just been answered, and that nobody watches for a moment.  In the worker.

After a response a connection may bring another request, or its end; which of the two takes the client a few
microseconds.  To watch for that costs a wake-up for every client that closes, and nearly all do.  So for as long as new
clients keep coming an answered connection waits here; when it is looked at, it has mostly closed, and one look says so.

**If the worker dies** meanwhile, of another's request, they must not go with it.  To give the master a copy of each, as
of the silent ones (`keeping`), would cost the wake-up that is saved here.  So before a handler runs, the newest is
looked at once more: most have closed even then, and who has spoken is kept as any other.  Who is silent is *insured*: a
copy of it is put into the worker's lifebuoy, a socket pair of which the master has an end too, and which nobody reads
but us, when we let go of it, or the master, when we are dead.  That costs a tenth to a quarter of a short exchange (the
kernel looks for cycles of descriptors at every close while one is on its way), so it is paid where workers are known to
die: for as long as the master says in our slot (`INSURED_NS`).
"""

from __future__ import annotations

from collections import deque

from ..platform.server import Connection, Lifebuoy

MOST = 8  # connections; by the time so many others were served, a client that closes has closed
TIME = 0.001  # seconds without a new client after which those in limbo are watched
AGE_NS = 40_000  # since the last response: we had to wait for what came then, and those in limbo had their time


class Limbo:
    """First in, first out."""

    __slots__ = ("_buoy", "_waiting")

    def __init__(self, buoy: Lifebuoy) -> None:
        self._buoy = buoy
        self._waiting: deque[tuple[Connection, bool]] = deque()  # and whether the lifebuoy has it

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, connection: Connection) -> bool:
        """Let a connection wait here; True if there are too many now."""
        self._waiting.append((connection, False))
        return len(self._waiting) > MOST

    def secure(self, *, insured: bool) -> Connection | None:
        """Before a handler runs: the newest, if it cannot stay here; else None.

        It cannot if it has spoken, or if it is to be insured and the kernel has no room for its copy now.
        """
        try:
            connection, secured = self._waiting.pop()  # so that a signal's handler gives it to nobody meanwhile
        except IndexError:
            return None
        said = None if secured else connection.has_said()
        if said is False:
            connection.close()
            return None
        secured = secured or (insured and said is None and self._buoy.hold(connection.fileno()))
        if said or (insured and not secured):
            return connection
        self._waiting.append((connection, secured))
        return None

    def oldest(self) -> Connection:
        """Who has been here for longest; whatever becomes of it, `release` it then."""
        return self._waiting[0][0]

    def release(self) -> None:
        """The oldest is in other hands now, or closed."""
        _, secured = self._waiting.popleft()
        if secured:
            self._buoy.let_go()
