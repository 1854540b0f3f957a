"""Looking at a path on Windows (see `inspection`): a pipe's name stands for it, and the pipe's access list guards it.

Loaded only there.
"""

from __future__ import annotations

import sys

assert sys.platform == "win32"

import os
from collections.abc import Iterator

from ...errors import InvalidPath
from ..findings import Finding, LockHolder, failure, ok
from . import lifecycle
from .client import pipe_name
from .rendezvous import LOCK_SUFFIX, read_record
from .win32 import own_sid, sid_of_account

LONGEST_NAME = 256  # characters of a pipe's name (CreateNamedPipe)


def place(path: str) -> Iterator[Finding]:
    """What can be said of the path without asking a server."""
    path = os.path.abspath(path)
    folder = os.path.dirname(path)
    try:
        name = pipe_name(path)
    except InvalidPath as error:
        yield failure("path", str(error), "choose another path")
        return
    yield ok("path length", f"{len(name)} characters as a pipe; the limit is {LONGEST_NAME}")
    if os.path.isdir(folder):
        yield ok("folder", f"{folder}; the access list of the pipe says who may connect")
    else:
        yield failure("folder", f"{folder} does not exist, and the lock file belongs there", "make it")
    if os.path.exists(path):
        yield failure("path", f"a file or folder is at {path}", "choose another path")


def lock_holder(path: str) -> LockHolder | None:
    """Return who holds the lock: the system tells whether it is held, the file by which process."""
    if not lifecycle.is_locked(os.path.abspath(path)):
        return None
    record = read_record(os.path.abspath(path) + LOCK_SUFFIX)
    pid = record.get("pid")
    return LockHolder(pid if isinstance(pid, int) else None, record)


def command_of(pid: int) -> str | None:
    """Not told by any call that is documented."""
    return None


def user_of(uid: int | str) -> str:
    """The user's name, or the SID of another."""
    name = os.environ.get("USERNAME", "you")
    if uid == own_sid():
        return name
    return "SYSTEM" if uid == sid_of_account("SYSTEM") else str(uid)


def descriptor_limits(pid: int | None = None) -> tuple[int, int] | None:
    """Handles have no limit that one could set."""
    return None
