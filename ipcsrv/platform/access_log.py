"""The access log: one line per request, with its peer, sizes, times and outcome. In the workers and the master.

What is known of a request goes into a list as it is, and is made text and written some milliseconds later, all lines of
that time by one write(2). A worker that is killed takes the lines of its last milliseconds with it.

Where a program has a logging set-up of its own, each line is a record of the logger `ipcsrv.access` for that instead.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from time import monotonic_ns

from ..config.settings import Settings
from ..peer import Peer
from . import logs

log = logs.get("ipcsrv.access")

FLUSH_NS = 20_000_000  # for which an idle process keeps a line to itself
MOST_LINES = 128  # kept at a time: a busy worker does not wait

#: How a request ends, in a line.
OUTCOMES = ("ok", "handler", "crashed", "timeout", "too-large", "malformed", "denied", "busy", "stopping", "cancelled",
            "stalled")  # fmt: skip

Line = tuple[int, str, int, int, int, int, str]
"""One request: when it ended (monotonic ns), its peer, bytes in and out, queue wait, handler's time (ns), outcome."""


class AccessLog:
    """The lines of one process."""

    def __init__(self, log_format: str) -> None:
        self._describe, self._write = writer(log_format)
        self._lines: list[Line] = []

    def peer(self, peer: Peer) -> str:
        """Return a client as a line has it."""
        return self._describe(*peer)

    def add(self, line: Line) -> None:
        """Add a line."""
        self._lines.append(line)
        if len(self._lines) >= MOST_LINES:
            self.write()

    def flush(self) -> float | None:
        """Write what is old enough; returns seconds until there will be more to write, None if there is nothing."""
        if not self._lines:
            return None
        age = monotonic_ns() - self._lines[0][0]
        if age >= FLUSH_NS:
            self.write()
            return None
        return (FLUSH_NS - age) / 1e9

    def write(self) -> None:
        """Write all lines."""
        lines, self._lines = self._lines, []
        if lines:
            self._write(lines)


def access_log(settings: Settings) -> AccessLog | None:
    """Return the access log that the settings ask for, or None."""
    return AccessLog(settings.log_format) if settings.access_log and log.isEnabledFor(logs.INFO) else None


def writer(log_format: str) -> tuple[Callable[..., str], Callable[[list[Line]], None]]:
    """Return how a line shows its peer, and what writes lines: to the log, or as records for a program's own set-up."""
    sink = logs.sink()
    if sink is None:
        return json_peer, hand_to_logging
    describe, as_text = (json_peer, json_lines) if log_format == "json" else (text_peer, text_lines)

    def write(lines: list[Line]) -> None:
        sink(as_text(lines))

    return describe, write


def text_peer(pid: int | None, uid: int | str, gid: int | None) -> str:
    """Return a client for people."""
    return f"pid={pid} uid={uid}"


def json_peer(pid: int | None, uid: int | str, gid: int | None) -> str:
    """Return a client for programs."""
    if pid is None or gid is None or not isinstance(uid, int):
        return f'"peer": {json.dumps({"pid": pid, "uid": uid, "gid": gid})}'
    return f'"peer": {{"pid": {pid}, "uid": {uid}, "gid": {gid}}}'


def wall_clock() -> int:
    """Return what to add to monotonic time for the time of day, in ns."""
    return time.time_ns() - monotonic_ns()


def text_lines(lines: list[Line]) -> str:
    """Return lines for people."""
    offset, head, last, stamp = wall_clock(), f" INFO    [{os.getpid()}] access ", 0, ""
    made = []
    for ended, who, bytes_in, bytes_out, waited, took, outcome in lines:
        if (milli := (ended + offset) // 1_000_000) != last:
            last = milli
            stamp = f"{time.strftime(logs.TIME, time.localtime(milli // 1000))}.{milli % 1000:03d}{head}"
        made.append(f"{stamp}{outcome} {who} in={bytes_in} out={bytes_out} "
                    f"wait={waited // 1000}us handler={took // 1000}us\n")
    return "".join(made)


def json_lines(lines: list[Line]) -> str:
    """Return lines for programs, as `logs.json_line` writes them."""
    offset, last, stamp = wall_clock(), 0, ""
    head = f'Z", "level": "info", "logger": "ipcsrv.access", "pid": {os.getpid()}, "message": "access '
    made = []
    for ended, who, bytes_in, bytes_out, waited, took, outcome in lines:
        if (milli := (ended + offset) // 1_000_000) != last:
            last = milli
            second = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(milli // 1000))
            stamp = f'{{"time": "{second}.{milli % 1000:03d}{head}'
        made.append(f'{stamp}{outcome}", "outcome": "{outcome}", {who}, "bytes_in": {bytes_in}, '
                    f'"bytes_out": {bytes_out}, "queue_wait_us": {waited // 1000}, "handler_us": {took // 1000}}}\n')
    return "".join(made)


def hand_to_logging(lines: list[Line]) -> None:
    """Hand records to what the program has set up; `fields` are the JSON line's, for a formatter that wants them."""
    offset = wall_clock()
    for line in lines:
        fields = json.loads(json_lines([line]))
        for name in ("time", "level", "logger", "pid", "message"):
            del fields[name]
        message = text_lines([(line[0], text_peer(**fields["peer"]), *line[2:])]).rstrip().partition("] ")[2]
        log.record(logs.INFO, message, created=(line[0] + offset) / 1e9, fields=fields)
