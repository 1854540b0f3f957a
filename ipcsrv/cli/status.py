"""`status`: what a server does, as a table, as JSON, or as Prometheus text.

The figures come from the master, so the answer comes also when every worker is busy. docs/control.md describes them.
Runs in the client's process.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from typing import Any

from . import _style, _text
from ._parser import add_path, add_timeout
from .messages import FAILED, OK, complain

_TIMEOUT = 5.0  # seconds; a healthy master answers within 50 ms
_STAGES = (("queue wait", "queue_wait"), ("handler", "handler"), ("whole", "whole"))
_QUANTILES = ("p50", "p90", "p99", "p999")
_RESULTS = ("ok", "handler_errors", "timeouts", "too_large", "malformed", "denied", "cancelled", "lost")
_HEAD = 10  # columns before the facts
_COLUMNS = "{:>8} {:>4}  {:<13} {:>9} {:>7} {:>8} {:>7} {:>8} {:>7}"
WORKER_HEADS = _COLUMNS.format("PID", "GEN", "STATE", "REQUESTS", "ERRORS", "MEMORY", "STREAMS", "RESTARTS", "UP")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `status` takes."""
    add_path(parser)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object (docs/control.md describes it)")
    form.add_argument("--metrics", action="store_true", help="print Prometheus text, for the textfile collector")
    add_timeout(parser, "give up after this time (default: 5s)")


def run(arguments: argparse.Namespace) -> int:
    """Ask the master and print its answer."""
    from ..server import server

    facts = server.status(arguments.path, timeout=arguments.timeout or _TIMEOUT)
    if arguments.json:
        import json

        text = json.dumps({name: value for name, value in facts.items() if name != "ok"}, indent=2) + "\n"
    elif arguments.metrics:
        from ._metrics import exposition

        text = exposition(facts)
    else:
        text = table(facts, _style.columns())
    sys.stdout.write(text)
    missing = missing_workers(facts)
    if missing:
        complain(f"{arguments.path}: {_text.plural(missing, 'worker')} of {facts['workers_wanted']} missing; "
                 f"see the server's log (`ipcsrv logs {arguments.path}`)")  # fmt: skip
    return FAILED if missing else OK


def missing_workers(facts: dict[str, Any]) -> int:
    """Return how many workers fewer run, or are being started, than are wanted; 0 while the server starts or stops."""
    if facts["state"] != "running":
        return 0
    running: int = sum(worker["state"] != "leaving" for worker in facts["workers"])
    wanted: int = facts["workers_wanted"]
    return max(0, wanted - running)


def table(facts: dict[str, Any], width: int = _style.LEAST_WIDTH) -> str:
    """Return the table; no line is wider than `width`, which is at least 80."""
    sections = (_summary(facts, width), _workers(facts), _totals(facts, width), _latency(facts["latency"]))
    return "\n".join("".join(_line(text, style, width) for text, style in section) for section in sections)


Lines = Iterator[tuple[str, str]]  # text and style


def _line(text: str, style: str, width: int) -> str:
    return _style.styled(_text.cut(text, width), style) + "\n"


def _row(head: str, text: str) -> str:
    return f"{head:{_HEAD}}{text}"


def _summary(facts: dict[str, Any], width: int) -> Lines:
    from ..platform import lifecycle

    up = _text.duration(facts["uptime_seconds"])
    namespace = " of another pid namespace" if lifecycle.is_elsewhere(facts) else ""
    yield f"{facts['path']}: {facts['state']}, pid {facts['pid']}{namespace}, up {up}", "title"
    yield _row("handler", f"{handler_text(facts)}, ipcsrv {facts['version']}"), ""
    running = len(facts["workers"])
    yield _row("workers", workers_text(facts)), "warning" if running < facts["workers_wanted"] else ""
    if executor := facts.get("executor"):
        yield _row("executor", f"{executor['name']}: {executor['state']}"), ""
    yield _row("queue", queue_text(facts["queue"])), "" if facts["queue"]["accepting"] else "warning"
    yield _row("clients", clients_text(facts)), ""
    if facts["last_error"]:
        yield _row("error", _text.cut(last_error(facts["last_error"]), width - _HEAD)), "warning"
    yield _row("log", facts["log_file"] or "standard error"), ""


def handler_text(facts: dict[str, Any]) -> str:
    """Return the server's name, if it has one, its handler and its generation; in `top` too."""
    name = "" if facts["name"] == facts["handler"] else f"{facts['name']}, "
    return f"{name}{facts['handler']}, generation {facts['generation']}"


def workers_text(facts: dict[str, Any]) -> str:
    """Return how many workers there are, are busy, and are wanted; in `top` and `list` too."""
    workers = facts["workers"]
    busy = sum(worker["state"] == "busy" for worker in workers)
    return f"{_text.plural(len(workers), 'worker')}, {busy} busy, target {facts['workers_wanted']}"


def queue_text(queue: dict[str, Any]) -> str:
    """Return how many connections wait, and whether more are accepted; in `top` too."""
    text = f"{_text.count(queue['depth'])} waiting"
    if queue["depth"]:
        text += f", the oldest for {_text.duration(queue['oldest_seconds'])}"
    return text if queue["accepting"] else f"{text}; not accepting, new clients wait"


def clients_text(facts: dict[str, Any]) -> str:
    """Return how many connections are idle, stalled or suspended; in `top` too."""
    text = f"{_text.count(facts['idle'])} idle"
    if facts["stalled"]:
        text += f", {_text.count(facts['stalled'])} stalled ({_text.size(facts['buffered_bytes'])} buffered)"
    return text + (f", {_text.count(facts['suspended'])} suspended" if facts["suspended"] else "")


def last_error(error: dict[str, Any]) -> str:
    """Return the local time and the text of an error; in `top` too."""
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(error['when']))} {error['text']}"


def _workers(facts: dict[str, Any]) -> Lines:
    yield WORKER_HEADS, "heading"
    for worker in facts["workers"]:
        yield worker_row(worker), "busy" if worker["state"] == "busy" else ""


def worker_row(worker: dict[str, Any]) -> str:
    """Return one worker as a row below WORKER_HEADS; in `top` too."""
    return _COLUMNS.format(
        str(worker["pid"]),
        str(worker["generation"]),
        worker_state(worker),
        _text.count(worker["requests"]),
        _text.count(worker["errors"]),
        _text.size(worker["rss_bytes"]),
        str(worker["suspended"]),
        str(worker["restarts"]),
        _text.duration(worker["uptime_seconds"]),
    )


def worker_state(worker: dict[str, Any]) -> str:
    """Return the state of a worker, for a busy or leaving one with the time."""
    seconds = worker.get(f"{worker['state']}_seconds")
    return f"{worker['state']} {_text.duration(seconds)}" if seconds is not None else str(worker["state"])


def _totals(facts: dict[str, Any], width: int) -> Lines:
    totals, minute = facts["totals"], facts["latency"]["last_minute"]
    connections = _text.counted(totals["connections"], "connection")
    yield _row("requests", f"{_text.count(totals['requests'])} on {connections}, "
               f"{_text.rate(minute['requests_per_second'])}/s in the last minute"), ""  # fmt: skip
    yield _row("bytes", f"{_text.size(totals['bytes_in'])} in, {_text.size(totals['bytes_out'])} out"), ""
    results = [_result(name, totals[name]) for name in _RESULTS if totals[name]]
    for line in _text.wrapped(_row("results", ""), results or ["none yet"], width):
        yield line, ""
    restarts = _text.plural(totals["worker_restarts"], "worker restart")
    yield _row("other", f"{_text.plural(totals['probes'], 'probe')}, {restarts}"), ""


def _result(name: str, number: int) -> str:
    words = name.replace("_", " ")
    return f"{_text.count(number)} {words.removesuffix('s') if number == 1 else words}"


def _latency(latency: dict[str, Any]) -> Lines:
    row = "{:<11}" + " {:>7}" * 4 + "  " + " {:>7}" * 4
    yield f"{'latency':11} {'since the start':<31}   {'in the last minute'}", "title"
    yield row.format("", *("p50", "p90", "p99", "p99.9") * 2), "heading"
    for title, stage in _STAGES:
        figures = [latency[window][stage][q] for window in ("since_start", "last_minute") for q in _QUANTILES]
        yield row.format(title, *map(_text.duration, figures)), ""
