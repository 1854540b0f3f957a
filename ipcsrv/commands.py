"""What the pool asks of the master.

Each command is data: the pool decides and the master does, so that what was decided can be compared, printed and
tested. Workers and generations are named by their numbers, which are never used twice. This runs in the master.
"""

from __future__ import annotations

from ._record import Record


class StartGeneration(Record):
    """Make a queue, and a template that imports the handler; then say `generation_ready` or `generation_failed`."""

    generation: int


class Spawn(Record):
    """Have this generation's template fork a worker; say `spawn_failed` if that cannot be done now."""

    worker: int
    slot: int
    generation: int


class RetireOne(Record):
    """Put a message into this generation's queue that makes whichever worker takes it leave."""

    generation: int


class EndGeneration(Record):
    """Close this generation's queue, so that its workers drain it and exit, and end its template."""

    generation: int


class SwitchTo(Record):
    """From now on, connections go to this generation's queue."""

    generation: int


class DumpStacks(Record):
    """Have the worker's stacks written to the log."""

    worker: int


class TimeOut(Record):
    """Tell the worker to answer the request in its hands with this failure (`ERR code`) and to die."""

    worker: int
    code: str = "timeout"


class Kill(Record):
    """Send the worker a SIGKILL."""

    worker: int
    reason: str


class Report(Record):
    """Write a line to the log; `level` is one of debug, info, warning, error."""

    level: str
    text: str


class GiveUp(Record):
    """The server has failed, for this reason. What is left of it drains; Stopped follows."""

    reason: str
    traceback: str | None


class Stopped(Record):
    """Every worker has exited. Nothing follows."""


Command = (
    StartGeneration
    | Spawn
    | RetireOne
    | EndGeneration
    | SwitchTo
    | DumpStacks
    | TimeOut
    | Kill
    | Report
    | GiveUp
    | Stopped
)
