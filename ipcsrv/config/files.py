"""Configuration files: which one may be read, and the keys and values in it.  Runs in the process that starts a server.

A configuration file can name hooks, which are code, so `ipcsrv.toml` of a folder is trusted only if no other user could
have written it (`project_file`).  A file that the user names himself (`--config FILE`) is read as it is.
"""

from __future__ import annotations

import functools
import os
import re
import stat
from typing import Any

from ..errors import SettingsError

PROJECT_FILE = "ipcsrv.toml"
OPERANDS = ("path", "handler")  # keys that are no settings: what `run` and `start` serve if they are not told

_HAS_MODES = hasattr(os, "geteuid")  # elsewhere (Windows) modes and owners of files say nothing
LARGEST = 1 << 20  # bytes of a configuration file
_STREAM = re.compile(r"/dev/(null|stdin)|(/dev|/proc/self)/fd/[0-9]+")  # what this process has open: a pipe, say
_WHERE = re.compile(r"\(at line (\d+)")


def project_file(folder: str) -> str | None:
    """Return the path of `ipcsrv.toml` in `folder`, checked; None if there is none.

    The file must be a regular file, not a symbolic link; it and its folder must belong to this user or root, and no
    other user may be able to write the file or to replace it (a folder that others can write is accepted if it is
    sticky).

    Args:
        folder: the folder to look in; "" is the current folder.

    Raises:
        SettingsError: the file is there and is not to be trusted.
    """
    path = os.path.join(folder, PROJECT_FILE)
    try:
        info = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise SettingsError(f"cannot be read: {error.strerror}", source=path) from None
    fault = _fault(info) or _folder_fault(os.stat(folder or os.curdir), folder or os.curdir)
    if fault is not None:
        raise SettingsError(f"is not trusted: {fault}; name it with --config if it is to be read", source=path)
    return path


def _fault(info: os.stat_result) -> str | None:
    """Why another user could have written a file, or None."""
    if stat.S_ISLNK(info.st_mode):
        return "it is a symbolic link"
    if not stat.S_ISREG(info.st_mode):
        return "it is not a regular file"
    if not _is_own(info):
        return f"it belongs to user {info.st_uid}"
    if _HAS_MODES and info.st_mode & 0o022:
        return f"others can write it (mode {info.st_mode & 0o7777:04o}, `chmod go-w` it)"
    return None


def _folder_fault(info: os.stat_result, folder: str) -> str | None:
    """Why another user could have put a file into a folder, or None."""
    if not _is_own(info):
        return f"its folder belongs to user {info.st_uid}"
    if _HAS_MODES and info.st_mode & 0o022 and not info.st_mode & stat.S_ISVTX:
        return f"others can write its folder {folder} (mode {info.st_mode & 0o7777:04o})"
    return None


def _is_own(info: os.stat_result) -> bool:
    """Whether something belongs to this user or root."""
    own = getattr(os, "geteuid", lambda: info.st_uid)
    return info.st_uid in (0, own())


def read(path: str) -> list[tuple[str, Any, int | None]]:
    """Return name, value and line of each key of a TOML file.

    The line, counted from 1, is the only one that sets the key; None where a plain search finds none or several.

    Raises:
        SettingsError: the file cannot be read or is not TOML.
    """
    text = _text(path)
    return [(name, value, _line_of(name, text)) for name, value in _parsed(path, text).items()]


def operands(path: str) -> dict[str, str]:
    """Return what a configuration file says to serve: `path` and `handler`, each only if it is there.

    Raises:
        SettingsError: the file cannot be read or is not TOML, or one of the two is not text.
    """
    found = {}
    for name, value, line in read(path):
        if name in OPERANDS:
            if not isinstance(value, str) or not value or "\0" in value:
                raise SettingsError(f"{value!r} is not text", name=name, source=path, line=line)
            found[name] = value
    return found


def _text(path: str) -> str:
    try:
        data = _stream(path) if _STREAM.fullmatch(path) else _content(path)
        if len(data) > LARGEST:
            raise SettingsError(f"is larger than {LARGEST >> 20} MiB", source=path)
        return data.decode("utf-8").replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SettingsError(f"cannot be read: {reason}", source=path) from None


def _content(path: str) -> bytes:
    """Read a regular file; opening a named pipe would wait for a writer, and a device may have no end."""
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise SettingsError("is not a regular file", source=path)
        return file.read(LARGEST + 1)


@functools.cache  # settings and operands are read one after the other, and a stream has its bytes only once
def _stream(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(LARGEST + 1)


def _parsed(path: str, text: str) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        match = _WHERE.search(str(error))
        line = int(match[1]) if match else None
        raise SettingsError(f"not TOML: {error}", source=path, line=line) from None
    except RecursionError:
        raise SettingsError("not TOML: it is nested too deeply", source=path) from None
    except ValueError as error:  # of a number with thousands of digits
        raise SettingsError(f"not TOML: {str(error).partition(';')[0]}", source=path) from None


def _line_of(name: str, text: str) -> int | None:
    """Return the line that sets a key, if exactly one line looks like it."""
    key = re.compile(rf"""^[ \t]*\[?[ \t]*["']?{re.escape(name)}["']?[ \t]*[\].=]""", re.MULTILINE)
    lines = [text.count("\n", 0, match.start()) + 1 for match in key.finditer(text)]
    return lines[0] if len(lines) == 1 else None
