"""The current folder, which may have been deleted, and paths that depend on it.  Runs in every process."""

from __future__ import annotations

import os

from .errors import InvalidPath


def working_folder() -> str | None:
    """Return the current folder; None if it was deleted, or cannot be found (getcwd(3))."""
    try:
        return os.getcwd()
    except OSError:
        return None


def absolute(path: str | os.PathLike[str]) -> str:
    """Return a path as an absolute one.

    Raises:
        InvalidPath: the path is relative and the current folder was deleted.
    """
    try:
        return os.path.abspath(path)
    except OSError:
        raise InvalidPath(os.fspath(path), "the current folder was deleted, so the path must be absolute") from None
