"""The access log: a line a request, with its peer, sizes, times and outcome.  In the worker, where it is asked for.

It must cost nothing where it is off, so it is not asked about anywhere: a worker that keeps it is another class, chosen
when the worker is made (`worker_for`), with a tally that also remembers.  And it must cost little where it is on, of
a request that takes a few microseconds in all.  So what is known of a request goes into a list as it is, and is made
text and written some milliseconds later, all lines of that time by one write(2), whole.  A worker that is killed takes
the lines of its last milliseconds with it.

Where the program has a logging set-up of its own, each line is a record of `ipcsrv.access` for that instead.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from time import monotonic_ns
from typing import Any

from ..config.handlers import Handler
from ..config.settings import Settings
from ..peer import Peer
from ..platform import logs
from ..platform.server import Channel, Connection, Listener, QueueReader
from ..supervision import scoreboard as board
from ..supervision.scoreboard import BEGAN_NS, LAST_NS
from .exchange import Conversation
from .failures import Complaints, verdict
from .loop import Worker
from .stats import Tally

log = logs.get("ipcsrv.access")

FLUSH = 0.02  # seconds for which an idle worker keeps a line to itself; a busy one writes as often as it looks around
MOST_LINES = 128  # kept at a time: a chatty client is served without looking around
NOBODY = Peer(None, "")
OUTCOMES = {board.HANDLER_ERRORS: "handler", board.TOO_LARGE: "too-large", board.CANCELLED: "cancelled"}



Line = tuple[int, str, int, int, int, int, str]
"""One request: when it ended (monotonic ns), whose it was, bytes in and out, queue wait, handler's time, outcome."""


class Exchange:
    """A request whose exchange takes longer than one stroke, or fails; times in ns."""

    __slots__ = ("bytes_in", "bytes_out", "handler", "queue_wait")

    def __init__(self, queue_wait: int) -> None:
        self.queue_wait = queue_wait
        self.bytes_in = self.bytes_out = self.handler = 0


class LoggingTally(Tally):
    """Counts, and tells `host` of what ends."""

    __slots__ = ("host",)

    host: LoggingWorker

    def handled(self, bytes_in: int, *, waited: int = 0) -> None:
        """As `Tally.handled`; the line follows when the exchange ends."""
        Tally.handled(self, bytes_in, waited=waited)
        exchange = self.host.exchange()
        exchange.bytes_in, exchange.handler = bytes_in, self.words[LAST_NS] - self.began

    def count_out(self, size: int) -> None:
        """As `Tally.count_out`."""
        Tally.count_out(self, size)
        self.host.exchange().bytes_out += size

    def count(self, counter: int) -> None:
        """As `Tally.count`, and a line if an exchange has ended that way."""
        Tally.count(self, counter)
        outcome = OUTCOMES.get(counter)
        if outcome is not None:
            self.host.ended(outcome)

    def ended_well(self) -> None:
        """As `Tally.ended_well`, and a line."""
        Tally.ended_well(self)
        self.host.ended("ok")


class LoggingComplaints(Complaints):
    """Says what went wrong, and tells `host` of it."""

    host: LoggingWorker

    def denied(self, connection: Connection) -> Peer:
        """As `Complaints.denied`, and a line."""
        self.host.ended("denied", connection)
        return super().denied(connection)

    def malformed(self, connection: Connection, reason: str) -> None:
        """As `Complaints.malformed`, and a line."""
        self.host.ended("malformed", connection)
        super().malformed(connection, reason)

    def refused(self, connection: Connection, code: str, message: str) -> None:
        """As `Complaints.refused`, and a line."""
        self.host.ended(code, connection)
        super().refused(connection, code, message)

    def stalled(self, connection: Connection) -> None:
        """As `Complaints.stalled`, and a line."""
        self.host.ended("stalled", connection)
        super().stalled(connection)


class LoggingWorker(Worker):
    """A worker that keeps an access log."""

    make_tally = LoggingTally

    def __init__(self, settings: Settings, handler: Handler, queue: QueueReader, listener: Listener | None,
                 channel: Channel, words: memoryview[int], rng: random.Random) -> None:
        super().__init__(settings, handler, queue, listener, channel, words, rng)
        complaints = LoggingComplaints(words, self._keeping, settings.write_timeout)
        assert isinstance(self.tally, LoggingTally)
        self.complaints = complaints
        complaints.host = self
        self.lines: list[Line] = []
        self.peers: dict[Connection | None, str] = {}  # of the clients of these lines
        self._exchanges: dict[Connection | None, Exchange] = {}
        self._waited = 0  # of the connection that has just been taken
        self.tally.host = self
        self._describe, self._write = writer(settings.log_format)

    # -- what happens -------------------------------------------------------------------------------------------------

    def on_answered(self, bytes_in: int, bytes_out: int, waited: int) -> None:
        """A request was answered on the straight path: add its line."""
        words, connection = self._words, self._current
        now = words[LAST_NS]
        peer = self.peers.get(connection) or self.look_up(connection)
        self.lines.append((now, peer, bytes_in, bytes_out, waited, now - words[BEGAN_NS], "ok"))
        if len(self.lines) >= MOST_LINES:
            self.flush()

    def look_up(self, connection: Connection | None) -> str:
        """Who is at the other end, as a line has it."""
        who = self.peers[connection] = self._describe(*(connection.peer() if connection is not None else NOBODY))
        return who

    def exchange(self) -> Exchange:
        """The exchange in hand."""
        found = self._exchanges.get(self._current)
        if found is None:
            found = self._exchanges[self._current] = Exchange(self._waited)
        return found

    def ended(self, outcome: str, connection: Connection | None = None) -> None:
        """An exchange has ended, the one in hand if no connection is named: add its line."""
        connection = connection or self._current
        exchange = self._exchanges.pop(connection, None) or Exchange(self._waited)
        peer = self.peers.get(connection) or self.look_up(connection)
        self.lines.append((monotonic_ns(), peer, exchange.bytes_in, exchange.bytes_out, exchange.queue_wait,
                           exchange.handler, outcome))

    def begin(self, connection: Connection, stamp: int, waited: int) -> None:
        """As `Worker.begin`."""
        self._waited, self._hand = waited, connection
        super().begin(connection, stamp, waited)
        self._waited = 0

    def _converse(self, connection: Connection, *arguments: Any, **keywords: Any) -> bool:
        self._hand = connection
        self.exchange()
        return super()._converse(connection, *arguments, **keywords)

    def _end_talk(self, talk: Conversation, *arguments: Any, **keywords: Any) -> None:
        self._exchanges.pop(talk.connection, None)
        super()._end_talk(talk, *arguments, **keywords)

    # -- when it is written -------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Write the lines that there are."""
        lines = self.lines[:]
        self.lines.clear()
        self.peers.clear()
        if lines:
            self._write(lines)

    def run(self) -> None:
        """As `Worker.run`."""
        try:
            super().run()
        finally:
            self.flush()

    def _patience(self) -> float | None:
        patience = super()._patience()
        if self.lines and (patience is None or patience > FLUSH):
            return FLUSH
        return patience

    def _sweep(self, *, idle: bool) -> None:
        super()._sweep(idle=idle)
        self.flush()

    def say_last_words(self) -> None:
        """As `Worker.say_last_words`, with a last line."""
        code = verdict(self._words, self._timeout)
        if code is not None:
            self.exchange().handler = monotonic_ns() - self.tally.began
            self.ended(code)
            self.flush()
        super().say_last_words()


def worker_for(settings: Settings) -> type[Worker]:
    """The class of worker that these settings ask for."""
    return LoggingWorker if settings.access_log and log.isEnabledFor(logs.INFO) else Worker


# -- making text ------------------------------------------------------------------------------------------------------


def writer(log_format: str) -> tuple[Callable[..., str], Callable[[list[Line]], None]]:
    """How a line has its peer, and what writes lines: into our own log, or as records for a program's own set-up."""
    sink = logs.sink()
    if sink is None:
        return json_peer, hand_to_logging
    describe, as_text = (json_peer, json_lines) if log_format == "json" else (text_peer, text_lines)

    def write(lines: list[Line]) -> None:
        sink(as_text(lines))

    return describe, write


def text_peer(pid: int | None, uid: int | str, gid: int | None) -> str:
    """A client for people."""
    return f"pid={pid} uid={uid}"


def json_peer(pid: int | None, uid: int | str, gid: int | None) -> str:
    """A client for programs."""
    if pid is None or gid is None or not isinstance(uid, int):
        return f'"peer": {json.dumps({"pid": pid, "uid": uid, "gid": gid})}'
    return f'"peer": {{"pid": {pid}, "uid": {uid}, "gid": {gid}}}'


def wall_clock() -> int:
    """What to add to monotonic time for the time of day, in ns."""
    return time.time_ns() - monotonic_ns()


def text_lines(lines: list[Line]) -> str:
    """Lines for people."""
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
    """Lines for programs, as `logs.json_line` writes them."""
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
    """Records for whatever the program has set up; `fields` are the JSON line's, for a formatter that wants them."""
    offset = wall_clock()
    for line in lines:
        fields = json.loads(json_lines([line]))
        for name in ("time", "level", "logger", "pid", "message"):
            del fields[name]
        message = text_lines([(line[0], text_peer(**fields["peer"]), *line[2:])]).rstrip().partition("] ")[2]
        log.record(logs.INFO, message, created=(line[0] + offset) / 1e9, fields=fields)
