"""The registry of running servers: a folder of this user's own with one small file per server, for `ipcsrv list`.

The master adds its file when it listens and removes it when it ends. A killed server leaves its file: it is removed by
the next process that reads the registry or adds to it, because the lock of its path is free. A registry that cannot be
written never hinders a server.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

from ..client.paths import OVERRIDE
from ..errors import IpcError
from ..platform import client as platform
from ..platform import lifecycle

_FOLDER = "servers"
_SUFFIX = ".json"
_UNFINISHED = ".new"
_UNFINISHED_AGE = 60.0  # seconds after which the writer of such a file was killed


@contextlib.contextmanager
def registration() -> Iterator[Callable[[dict[str, Any]], None]]:
    """Give the function that adds a server by its record, and remove it again at the end of the block."""
    added: list[tuple[int, str]] = []

    def register(record: dict[str, Any]) -> None:
        with contextlib.suppress(OSError, IpcError):
            added.append((os.getpid(), _add(record)))

    try:
        yield register
    finally:
        for pid, file in added:
            if pid == os.getpid():  # and not in a process forked from the master
                with contextlib.suppress(OSError):
                    os.unlink(file)


def _add(record: dict[str, Any]) -> str:
    from binascii import crc32

    folder = os.path.join(platform.runtime_folder(os.environ.get(OVERRIDE)), _FOLDER)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    _read(folder)  # removes what killed servers left
    settings = record.get("settings", {})
    entry = {"path": record["path"], "handler": record["handler"], "name": settings.get("name") or record["handler"],
             "pid": record["pid"], "since": time.time()}  # fmt: skip
    digest = f"{crc32(os.fsencode(record['path'])):08x}"  # one process may have several servers, one after the other
    file = os.path.join(folder, f"{record['pid']}-{digest}{_SUFFIX}")
    with open(file + _UNFINISHED, "w", encoding="utf-8") as stream:
        json.dump(entry, stream)
    os.replace(file + _UNFINISHED, file)
    return file


def entries() -> list[dict[str, Any]]:
    """Return path, handler, name, pid and since (seconds since the epoch) of each running server, by path."""
    found = {entry["path"]: entry for folder in _folders() for entry in _read(folder)}
    return [found[path] for path in sorted(found)]


def _folders() -> list[str]:
    """Return the registries of this user: servers may run with another environment (a service, cron)."""
    bases: list[str] = []
    with contextlib.suppress(OSError, IpcError):
        bases.append(platform.runtime_folder(os.environ.get(OVERRIDE)))
    user = getattr(os, "geteuid", lambda: None)()
    if user is not None:
        bases += [f"/run/user/{user}/ipcsrv", f"/tmp/ipcsrv-{user}"]
    folders = [os.path.join(base, _FOLDER) for base in dict.fromkeys(bases)]
    return [folder for folder in folders if _is_own(folder, user)]


def _is_own(folder: str, user: int | None) -> bool:
    """Whether a folder is there and no other user can have written it."""
    try:
        info = os.lstat(folder)
    except OSError:
        return False
    return user is None or (info.st_uid == user and not info.st_mode & 0o022)


def _read(folder: str) -> list[dict[str, Any]]:
    """Return the entries of running servers, and remove the others."""
    try:
        names = os.listdir(folder)
    except OSError:  # it was removed
        return []
    found = []
    for name in names:
        file = os.path.join(folder, name)
        entry = _running(file) if name.endswith(_SUFFIX) else None
        if entry is not None:
            found.append(entry)
        elif name.endswith(_SUFFIX) or _is_abandoned(file):
            with contextlib.suppress(OSError):
                os.unlink(file)
    return found


def _is_abandoned(file: str) -> bool:
    """Whether a file was begun by a process that was killed before it finished."""
    try:
        return file.endswith(_UNFINISHED) and time.time() - os.stat(file).st_mtime > _UNFINISHED_AGE
    except OSError:
        return False


def _running(file: str) -> dict[str, Any] | None:
    """Return the entry in a file if its server runs."""
    try:
        with open(file, encoding="utf-8") as stream:
            entry: dict[str, Any] = json.load(stream)
        record = lifecycle.record(entry["path"])
        return entry if record is not None and record.get("pid") == entry["pid"] else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
