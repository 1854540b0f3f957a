"""Where a user's sockets belong on Unix: a folder that no other user can enter.  Loaded only to find a default path."""

from __future__ import annotations

import sys

assert sys.platform != "win32"

import os
import stat

from ...errors import InvalidPath


def runtime_folder(override: str | None = None) -> str:
    """Where this user's sockets belong: `override`, else a folder in XDG_RUNTIME_DIR, else one in the temporary folder.

    Its owner and mode are checked each time.  An XDG_RUNTIME_DIR that is another user's (left over by su) or missing
    is passed over; an `override` that does not pass is an `InvalidPath`.
    """
    if override:
        return _made(override)
    session = os.environ.get("XDG_RUNTIME_DIR")
    if session and _fault(session) is None:
        return _made(os.path.join(session, "ipcsrv"))
    temporary = os.environ.get("TMPDIR") or "/tmp"
    return _made(os.path.join(temporary, f"ipcsrv-{os.geteuid()}"))


def _made(folder: str) -> str:
    """Make the folder if it is missing, and check it."""
    if not os.path.isabs(folder):
        raise InvalidPath(folder, "is not an absolute path")
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise InvalidPath(folder, f"the folder cannot be made: {error.strerror}") from None
    fault = _parent_fault(os.path.dirname(folder.rstrip("/"))) or _fault(folder)
    if fault is not None:
        raise InvalidPath(folder, fault)
    return folder


def _parent_fault(parent: str) -> str | None:
    """Why others could put another folder in the place of one in `parent`, or None."""
    info = os.stat(parent)
    if info.st_uid not in (0, os.geteuid()):
        return f"{parent} belongs to user {info.st_uid}, who could replace the folder"
    if info.st_mode & 0o022 and not info.st_mode & stat.S_ISVTX:
        return f"others could replace the folder: {parent} is writable by them and not sticky"
    return None


def _fault(folder: str) -> str | None:
    """Why `folder` is not this user's alone, or None."""
    try:
        # Not through a symbolic link at the end: the user who made the link could change it after this check.
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        return f"the folder cannot be opened: {error.strerror}"
    try:
        info = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if info.st_uid != os.geteuid():
        return f"the folder belongs to user {info.st_uid}, not to you ({os.geteuid()})"
    if info.st_mode & 0o077:
        return f"others may enter the folder (mode {info.st_mode & 0o7777:04o}); it must be 0700: `chmod 700` it"
    return None
