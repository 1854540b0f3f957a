"""What can be at a path (docs/protocol.md section 3, `active_state`).  Its own module: only a probe needs `enum`."""

from __future__ import annotations

import enum

from .errors import InvalidPath, NotListening, PathNotFound


class State(enum.Enum):
    """What a probe of a path found."""

    LISTENING = "listening"
    """A server accepts connections."""
    NOT_LISTENING = "not listening"
    """A socket is there, and no server accepts on it (or its queue is full)."""
    PATH_NOT_FOUND = "path not found"
    """Nothing is there, or a folder on the way is missing."""
    INVALID_PATH = "invalid path"
    """What is there is no socket, or the path cannot be looked at."""
    OTHER_ERROR = "other error"
    """The probe failed in some other way: whether a server listens cannot be told."""


_MEANINGS: tuple[tuple[type[Exception], State], ...] = (
    (PathNotFound, State.PATH_NOT_FOUND),
    (NotListening, State.NOT_LISTENING),
    (BlockingIOError, State.NOT_LISTENING),
    (InvalidPath, State.INVALID_PATH),
)


def state_after(error: Exception) -> State:
    """What an attempt to connect that failed with `error` says of the path."""
    return next((state for kind, state in _MEANINGS if isinstance(error, kind)), State.OTHER_ERROR)
