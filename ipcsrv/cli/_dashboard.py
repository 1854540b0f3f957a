"""What `top` shows: the lines of one screen, from the server's status and its recent history. Pure.

The screen is given as lines with a style by name, so that it can be drawn by rich or by plain escape sequences, and
be looked at in a test. It fits any width and height; what is missing in a low terminal is the last workers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

from . import _text
from .showing import WORKER_HEADS, last_error, worker_row

HISTORY = 600  # samples kept: 10 minutes at one a second, more columns than a terminal has
KEYS = "r reload   + - scale   s stacks to the log   q quit"
_BARS = "▁▂▃▄▅▆▇█"
_ASCII_BARS = "_.-:=+*#"
_STAGES = (("whole", "whole"), ("queue wait", "queue_wait"), ("handler", "handler"))
_STYLES = {"busy": "busy", "starting": "warning", "leaving": "warning"}


class Line(NamedTuple):
    """A line of the screen; `style` is plain, title, heading, busy, warning or quiet."""

    text: str
    style: str = "plain"


class History:
    """The last minutes of a server, from one status to the next.

    spacing: seconds that two samples are apart at least; a rate over less (a key was pressed) would be noise.
    """

    def __init__(self, spacing: float = 0.0) -> None:
        self._spacing = spacing
        self.rates: deque[float] = deque(maxlen=HISTORY)
        self.p99s: deque[float] = deque(maxlen=HISTORY)
        self._requests: int | None = None
        self._pid: int | None = None
        self._at = 0.0

    def add(self, facts: dict[str, Any], now: float) -> None:
        """Take in a status, read at `now` (monotonic seconds); a restarted server begins anew."""
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
    """The whole screen: at most `height` lines of at most `width` columns."""
    bars = _ASCII_BARS if ascii_only else _BARS
    head = [*_summary(facts), *_sparklines(facts, history, width, bars), Line("")]
    foot = [Line(notice or KEYS, "warning" if notice else "quiet")]
    rows = [Line(worker_row(w), _STYLES.get(w["state"], "plain")) for w in facts["workers"]]
    room = max(0, height - len(head) - len(foot) - 1)
    if len(rows) > room:
        rows = [*rows[: max(0, room - 1)], Line(f"  ... and {len(rows) - max(0, room - 1)} more workers", "quiet")]
    lines = [*head, Line(WORKER_HEADS, "heading"), *rows]
    return [Line(_text.cut(line.text, width), line.style) for line in [*lines[: height - 1], *foot]]


def _summary(facts: dict[str, Any]) -> Iterator[Line]:
    queue, workers = facts["queue"], facts["workers"]
    up = _text.duration(facts["uptime_seconds"])
    yield Line(f"{facts['path']}  {facts['state']}  pid {facts['pid']}  up {up}", "title")
    busy = sum(worker["state"] == "busy" for worker in workers)
    yield Line(
        f"{facts['handler']}  generation {facts['generation']}  "
        f"{busy} busy of {len(workers)} workers, {facts['workers_wanted']} wanted"
    )
    waiting = f"queue {_text.count(queue['depth'])}"
    if queue["depth"]:
        waiting += f", oldest {_text.duration(queue['oldest_seconds'])}"
    full = "" if queue["accepting"] else ", full"
    yield Line(f"{waiting}{full}  parked {_text.count(facts['parked'])}", "warning" if full else "plain")
    error = facts["last_error"]
    yield Line(f"last error {last_error(error)}" if error else "no errors", "plain" if error else "quiet")


def _sparklines(facts: dict[str, Any], history: History, width: int, bars: str) -> Iterator[Line]:
    minute = facts["latency"]["last_minute"]
    rate = history.rates[-1] if history.rates else minute["requests_per_second"]
    room = max(0, width - 24)
    yield Line(f"requests/s {_text.rate(rate):>9}  {sparkline(history.rates, room, bars)}")
    yield Line(f"p99        {_text.duration(minute['whole']['p99']):>9}  {sparkline(history.p99s, room, bars)}")
    figures = [f"{name} {_text.duration(minute[stage]['p50'])}" for name, stage in _STAGES]
    yield Line(f"p50        {'  '.join(figures)}")


def sparkline(values: deque[float], room: int, bars: str = _BARS) -> str:
    """The newest values as a bar each, scaled to the highest that is shown; the lowest bar is nothing at all."""
    shown = list(values)[-room:] if room else []
    highest = max(shown, default=0.0)
    if not highest:
        return bars[0] * len(shown)
    return "".join(bars[min(len(bars) - 1, int(value / highest * (len(bars) - 1) + 0.999))] for value in shown)
