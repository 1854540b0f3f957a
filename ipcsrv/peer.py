"""Who is at the other end of a connection, as the kernel says.

A named tuple by hand: `typing.NamedTuple` and `collections` would cost the client more to import than it takes to
connect.
"""

from __future__ import annotations


class Peer(tuple["int | None", "int | str", "int | None"]):
    """The process at the other end: `(pid, uid, gid)`.

    `pid` is None where the system does not tell; `uid` is a number, on Windows the user's SID as a string;
    `gid` is None on Windows.
    """

    __slots__ = ()

    def __new__(cls, pid: int | None, uid: int | str, gid: int | None = None) -> Peer:
        """Make a tuple of the three."""
        return tuple.__new__(cls, (pid, uid, gid))

    def __getnewargs__(self) -> tuple[int | None, int | str, int | None]:
        """Give pickle what `__new__` takes."""
        return self.pid, self.uid, self.gid

    @property
    def pid(self) -> int | None:
        """Process id; it may have ended, and been reused, by the time it is read."""
        return self[0]

    @property
    def uid(self) -> int | str:
        """Effective user at the time of connect(2) or listen(2)."""
        return self[1]

    @property
    def gid(self) -> int | None:
        """Effective group at that time."""
        return self[2]

    def __repr__(self) -> str:
        """Return the three by name."""
        return f"Peer(pid={self.pid!r}, uid={self.uid!r}, gid={self.gid!r})"
