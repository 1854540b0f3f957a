"""`status`: what a server does, as a table for people, as JSON, or as Prometheus text.

The figures come from the master, which answers by itself, so the answer comes also when every worker is busy. What
they are called is written down in docs/control.md. Runs in the client's process.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

from . import _text
from ._parser import add_path, add_timeout
from .messages import OK

WIDTH = 80
_STATUS_TIMEOUT = 5.0  # seconds; a living master answers within 50 ms
_STAGES = (("queue wait", "queue_wait"), ("handler", "handler"), ("whole", "whole"))
_QUANTILES = ("p50", "p90", "p99", "p999")
_ANSWERS = ("ok", "handler_errors", "timeouts", "too_large", "malformed", "denied", "cancelled", "lost")
_COLUMNS = "  {:>8} {:>4} {:<14} {:>9} {:>7} {:>8} {:>5} {:>8} {:>7}"
WORKER_HEADS = _COLUMNS.format("PID", "GEN", "STATE", "REQUESTS", "ERRORS", "MEMORY", "HELD", "RESTARTS", "UP")


def status_arguments(parser: argparse.ArgumentParser) -> None:
    """What `status` takes."""
    add_path(parser)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object, described in docs/control.md")
    form.add_argument("--metrics", action="store_true", help="Prometheus text, for the textfile collector")
    add_timeout(parser, "give up after this time (default: 5s)")


def status(arguments: argparse.Namespace) -> int:
    """Ask the master and print its answer."""
    from ..server import server

    facts = server.status(arguments.path, timeout=arguments.timeout or _STATUS_TIMEOUT)
    if arguments.json:
        import json

        text = json.dumps(facts, indent=2) + "\n"
    elif arguments.metrics:
        from ._metrics import exposition

        text = exposition(facts)
    else:
        text = table(facts)
    sys.stdout.write(text)
    return OK


def table(facts: dict[str, Any]) -> str:
    """The plain form: every line within 80 columns."""
    sections = (_summary(facts), _workers(facts), _totals(facts), _latency(facts["latency"]))
    return "\n".join("".join(f"{_text.cut(line, WIDTH)}\n" for line in section) for section in sections)


def _summary(facts: dict[str, Any]) -> Iterator[str]:
    queue, workers = facts["queue"], facts["workers"]
    yield f"{facts['path']}: {facts['state']}, pid {facts['pid']}, up {_text.duration(facts['uptime_seconds'])}"
    called = "" if facts["name"] == facts["handler"] else f"{facts['name']}, "
    yield f"handler  {called}{facts['handler']}, generation {facts['generation']}, ipcsrv {facts['version']}"
    waiting = f"{_text.count(queue['depth'])} waiting"
    if queue["depth"]:
        waiting += f", the oldest for {_text.duration(queue['oldest_seconds'])}"
    yield f"queue    {waiting}{'' if queue['accepting'] else ', full: new clients wait to connect'}"
    yield f"parked   {_text.count(facts['parked'])} silent connections"
    busy = sum(worker["state"] == "busy" for worker in workers)
    yield f"workers  {busy} busy of {len(workers)}, {facts['workers_wanted']} wanted"
    if executor := facts.get("executor"):
        yield f"executor {executor['name']}: {executor['state']}"
    if facts["last_error"]:
        yield f"error    {_text.cut(last_error(facts['last_error']), WIDTH - 9)}"
    yield f"log      {facts['log_file'] or 'standard error'}"


def last_error(error: dict[str, Any]) -> str:
    """When, in local time, and what."""
    import time

    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(error['when']))} {error['text']}"


def _workers(facts: dict[str, Any]) -> Iterator[str]:
    yield WORKER_HEADS
    for worker in facts["workers"]:
        yield worker_row(worker)


def worker_row(worker: dict[str, Any]) -> str:
    """One worker as a row under WORKER_HEADS, in `top` too."""
    return _COLUMNS.format(
        str(worker["pid"]),
        str(worker["generation"]),
        worker_state(worker),
        _text.count(worker["requests"]),
        _text.count(worker["errors"]),
        _text.size(worker["rss_bytes"]),
        str(worker["held"]),
        str(worker["restarts"]),
        _text.duration(worker["uptime_seconds"]),
    )


def worker_state(worker: dict[str, Any]) -> str:
    """idle, or busy and for how long."""
    if worker["state"] == "busy":
        return f"busy {_text.duration(worker['busy_seconds'])}"
    return str(worker["state"])


def _totals(facts: dict[str, Any]) -> Iterator[str]:
    totals, minute = facts["totals"], facts["latency"]["last_minute"]
    yield (
        f"requests {_text.count(totals['requests'])} on {_text.count(totals['connections'])} connections, "
        f"{_text.rate(minute['requests_per_second'])}/s in the last minute"
    )
    yield f"bytes    {_text.size(totals['bytes_in'])} in, {_text.size(totals['bytes_out'])} out"
    answers = [f"{_text.count(totals[name])} {name.replace('_', ' ')}" for name in _ANSWERS if totals[name]]
    yield from _text.wrapped("answers  ", answers or ["none yet"], WIDTH)
    yield f"also     {_text.count(totals['probes'])} probes, {_text.count(totals['worker_restarts'])} worker restarts"


def _latency(latency: dict[str, Any]) -> Iterator[str]:
    row = "{:<11}" + " {:>7}" * 4 + "  " + " {:>7}" * 4
    yield f"{'latency':11} {'since the start':<31}   {'in the last minute'}"
    yield row.format("", *("p50", "p90", "p99", "p99.9") * 2)
    for title, stage in _STAGES:
        figures = [latency[window][stage][q] for window in ("since_start", "last_minute") for q in _QUANTILES]
        yield row.format(title, *map(_text.duration, figures))
