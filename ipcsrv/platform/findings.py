"""What an inspection finds, in a form that a person reads: how bad, about what, what it is, what to do."""

from __future__ import annotations

import enum
from typing import NamedTuple


class Level(enum.Enum):
    """How bad a finding is; the value is what is printed."""

    OK = "OK"
    WARNING = "warning"  # it works, but not as well, or as safely, as it could
    FAILURE = "failure"  # no server can work there, or no client should trust it


class Finding(NamedTuple):
    """One line of a report; `advice` says what to do where there is something to do."""

    level: Level
    subject: str
    text: str
    advice: str = ""


def ok(subject: str, text: str) -> Finding:
    """A finding that needs nothing done."""
    return Finding(Level.OK, subject, text)


def warning(subject: str, text: str, advice: str) -> Finding:
    """A finding that one may live with."""
    return Finding(Level.WARNING, subject, text, advice)


def failure(subject: str, text: str, advice: str) -> Finding:
    """A finding with which nothing works, or nothing is safe."""
    return Finding(Level.FAILURE, subject, text, advice)


class LockHolder(NamedTuple):
    """Who holds a server's lock: its process, if that can be told, and what the lock file says of it."""

    pid: int | None
    record: dict[str, object]
