"""The screen of `top`: lines of text with a style, from the server's status and its recent history. No I/O.

It fits any width and height; in a low terminal the last workers are left out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

from . import _text
from .status import WORKER_HEADS, clients_text, handler_text, last_error, queue_text, worker_row, workers_text

HISTORY = 600  # samples: 10 minutes at one per second, more than a terminal has columns
KEYS = "r reload   + - scale   s stacks to the log   q quit"
_BARS = "▁▂▃▄▅▆▇█"
_ASCII_BARS = "_.-:=+*#"
_STAGES = (("whole", "whole"), ("queue wait", "queue_wait"), ("handler", "handler"))
_HEAD, _FIGURE = 10, 8  # columns
_STYLES = {"busy": "busy", "starting": "warning", "leaving": "warning"}


class Line(NamedTuple):
    """A line of the screen; `style` is plain or one of `_style.CODES`."""

    text: str
    style: str = "plain"


class History:
    """The request rate and p99 of the last minutes.

    Args:
        spacing: the least time between two samples in seconds; a rate over less (after a key) would be noise.
    """

    def __init__(self, spacing: float = 0.0) -> None:
        self._spacing = spacing
        self.rates: deque[float] = deque(maxlen=HISTORY)
        self.p99s: deque[float] = deque(maxlen=HISTORY)
        self._requests: int | None = None
        self._pid: int | None = None
        self._at = 0.0

    def add(self, facts: dict[str, Any], now: float) -> None:
        """Add a status that was read at `now` (monotonic seconds); a restarted server starts a new rate."""
        requests = facts["totals"]["requests"]
        if self._requests is not None and facts["pid"] == self._pid:
            if now <= self._at or now - self._at < self._spacing:
                return
            self.rates.append(max(0, requests - self._requests) / (now - self._at))
            self.p99s.append(facts["latency"]["last_minute"]["whole"]["p99"] or 0.0)
        self._requests, self._pid, self._at = requests, facts["pid"], now


def screen(
    facts: dict[str, Any], history: History, notice: str, width: int, height: int, ascii_only: bool = False
) -> list[Line]:
    """Return the whole screen: at most `height` lines of at most `width` columns."""
    bars = _ASCII_BARS if ascii_only else _BARS
    head = [*_summary(facts), Line(""), *_graphs(facts, history, width, bars), Line("")]
    foot = [Line(notice or KEYS, "warning" if notice else "quiet")]
    rows = [Line(worker_row(w), _STYLES.get(w["state"], "plain")) for w in facts["workers"]]
    room = max(0, height - len(head) - len(foot) - 1)
    if len(rows) > room:
        rest = _text.plural(len(rows) - max(0, room - 1), "worker")
        rows = [*rows[: max(0, room - 1)], Line(f"  and {rest} more", "quiet")]
    lines = [*head, Line(WORKER_HEADS, "heading"), *rows]
    return [Line(_text.cut(line.text, width), line.style) for line in [*lines[: height - 1], *foot]]


def _summary(facts: dict[str, Any]) -> Iterator[Line]:
    up = _text.duration(facts["uptime_seconds"])
    yield Line(f"{facts['path']}: {facts['state']}, pid {facts['pid']}, up {up}", "title")
    short = len(facts["workers"]) < facts["workers_wanted"]
    yield Line(_row("handler", handler_text(facts)))
    yield Line(_row("workers", workers_text(facts)), "warning" if short else "plain")
    yield Line(_row("queue", queue_text(facts["queue"])), "plain" if facts["queue"]["accepting"] else "warning")
    yield Line(_row("clients", clients_text(facts)))
    totals = facts["totals"]
    failed, restarts = totals["requests"] - totals["ok"], _text.plural(totals["worker_restarts"], "worker restart")
    requests = _text.counted(totals["requests"], "request")
    yield Line(_row("total", f"{requests}, {_text.count(failed)} failed, {restarts}"))
    error = facts["last_error"]
    yield Line(_row("error", last_error(error) if error else "none"), "warning" if error else "quiet")


def _row(head: str, text: str) -> str:
    return f"{head:{_HEAD}}{text}"


def _graphs(facts: dict[str, Any], history: History, width: int, bars: str) -> Iterator[Line]:
    minute = facts["latency"]["last_minute"]
    rate = history.rates[-1] if history.rates else minute["requests_per_second"]
    room = max(0, width - _HEAD - _FIGURE - 2)
    yield Line(_row("req/s", f"{_text.rate(rate):>{_FIGURE}}  {sparkline(history.rates, room, bars)}"))
    p99 = _text.duration(minute["whole"]["p99"])
    yield Line(_row("p99", f"{p99:>{_FIGURE}}  {sparkline(history.p99s, room, bars)}"))
    figures = [f"{name} {_text.duration(minute[stage]['p50'])}" for name, stage in _STAGES]
    yield Line(_row("p50", "   ".join(figures)))


def sparkline(values: deque[float], room: int, bars: str = _BARS) -> str:
    """Return the newest values as one bar each, scaled to the highest shown; only 0 has the lowest bar."""
    shown = list(values)[-room:] if room else []
    highest = max(shown, default=0.0)
    if not highest:
        return bars[0] * len(shown)
    return "".join(bars[min(len(bars) - 1, int(value / highest * (len(bars) - 1) + 0.999))] for value in shown)
