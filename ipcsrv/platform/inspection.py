"""Looking at a path without touching it, for `ipcsrv doctor`: what systems differ in.

Runs in the client's process.  What a system must offer:

`place(path) -> Iterator[Finding]`
    What can be said of the path without asking a server: its length, the file system, the folders, the files there.
`lock_holder(path) -> LockHolder | None`
    Which process holds the server's lock; None if none does.  Asks without taking the lock itself, where it can.
`command_of(pid) -> str | None`
    A process's command line.
`user_of(uid) -> str`
    The user's name, or the number where it has none.
`descriptor_limits(pid) -> tuple[int, int] | None`
    How many descriptors a process (None: this one) may open, and how far it may raise that; None if it cannot be told.
"""

from __future__ import annotations

import sys

from .findings import LockHolder

if sys.platform == "win32":
    from .windows.inspection import command_of, descriptor_limits, lock_holder, place, user_of
else:
    from .unix.inspection import command_of, descriptor_limits, lock_holder, place, user_of

__all__ = ["LockHolder", "command_of", "descriptor_limits", "lock_holder", "place", "user_of"]
