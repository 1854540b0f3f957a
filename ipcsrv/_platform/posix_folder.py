"""Where a user's sockets belong on Unix: a folder that nobody else can enter.  Loaded only to find a default path."""

from __future__ import annotations

import os

from ..errors import InvalidPath


def runtime_folder(override: str | None = None) -> str:
    """Where this user's sockets belong: `override`, else XDG_RUNTIME_DIR, else a folder under the temporary one.

    Its owner and mode are checked each time.  An XDG_RUNTIME_DIR that is another user's (left over by su) or missing
    is passed over; an `override` that does not pass is an `InvalidPath`.
    """
    if override:
        return _checked(override)
    from_session = os.environ.get("XDG_RUNTIME_DIR")
    if from_session and _fault(from_session) is None:
        return from_session
    temporary = os.environ.get("TMPDIR") or "/tmp"
    return _checked(os.path.join(temporary, f"ipcsrv-{os.geteuid()}"))


def _checked(folder: str) -> str:
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise InvalidPath(folder, f"the folder cannot be made: {error.strerror}") from None
    fault = _fault(folder)
    if fault is not None:
        raise InvalidPath(folder, fault)
    return folder


def _fault(folder: str) -> str | None:
    """Why `folder` is not this user's alone, or None."""
    if not os.path.isabs(folder):
        return "is not an absolute path"
    try:
        # Not through a symbolic link at the end: whoever planted it could turn it elsewhere after this look.
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
