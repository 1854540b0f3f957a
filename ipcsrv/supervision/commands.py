"""What the pool asks of the master.

Each command is data: the pool decides and the master does, so that what was decided can be compared, printed and
tested. Workers and generations are named by their numbers, which are never used twice. This runs in the master.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StartGeneration:
    """Make a queue, and a template that imports the handler; then say `generation_ready` or `generation_failed`."""

    generation: int


@dataclass(frozen=True)
class Spawn:
    """Have this generation's template fork a worker; say `spawn_failed` if that cannot be done now."""

    worker: int
    slot: int
    generation: int


@dataclass(frozen=True)
class RetireOne:
    """Tell one worker of this generation, an idle one if there is one, to leave."""

    generation: int


@dataclass(frozen=True)
class EndGeneration:
    """Close this generation's queue, so that its workers drain it and exit, and end its template."""

    generation: int


@dataclass(frozen=True)
class SwitchTo:
    """From now on, connections go to this generation's queue."""

    generation: int


@dataclass(frozen=True)
class DumpStacks:
    """Have the worker's stacks written to the log."""

    worker: int


@dataclass(frozen=True)
class DumpTemplateStacks:
    """Have a template that is still importing write its stacks: they go with the failure that follows."""

    generation: int


@dataclass(frozen=True)
class Kill:
    """Send the worker a SIGKILL; its client is told `ERR code` with the reason."""

    worker: int
    reason: str
    code: str = "crashed"


@dataclass(frozen=True)
class Report:
    """Write a line to the log; `level` is one of debug, info, warning, error."""

    level: str
    text: str


@dataclass(frozen=True)
class GiveUp:
    """The server has failed, for this reason. What is left of it drains; Stopped follows."""

    reason: str
    traceback: str | None


@dataclass(frozen=True)
class Stopped:
    """Every worker has exited. Nothing follows."""


Command = (
    StartGeneration
    | Spawn
    | RetireOne
    | EndGeneration
    | SwitchTo
    | DumpStacks
    | DumpTemplateStacks
    | Kill
    | Report
    | GiveUp
    | Stopped
)
