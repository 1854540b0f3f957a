"""`list`: the running servers of this user, from the registry (`ipcsrv.server.registry`) and their status."""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from typing import Any, NamedTuple

from ..client import control
from ..errors import IpcError, one_line
from . import _style, _text
from .messages import OK

_TIMEOUT = 2.0  # seconds for the status of a server; a healthy master answers within 50 ms
_HEADS = ("PATH", "HANDLER", "PID", "SINCE", "WORKERS", "BUSY")
_LEAST = 12  # columns that a shortened column keeps


class Row(NamedTuple):
    """One server: what the registry says of it, and its status, None if it does not answer."""

    entry: dict[str, Any]
    status: dict[str, Any] | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `list` takes."""
    parser.add_argument("--json", action="store_true", help="print a JSON list with one object per server")


def run(arguments: argparse.Namespace) -> int:
    """Print one line per server."""
    from ..server import registry

    rows = with_status(registry.entries())
    if arguments.json:
        print(json.dumps([as_object(row) for row in rows], indent=2))
    elif rows:
        width = _style.columns() if sys.stdout.isatty() else None
        sys.stdout.write(table(rows, width))
    else:
        print("no servers are running; `ipcsrv start PATH MODULE:HANDLER` starts one")
    return OK


def with_status(entries: list[dict[str, Any]]) -> list[Row]:
    """Ask all servers at the same time for their status."""
    answers: dict[str, dict[str, Any]] = {}

    def ask(path: str) -> None:
        try:
            answers[path] = control.request(path, "status", timeout=_TIMEOUT)
        except IpcError:
            pass  # it has no control socket, or does not answer: shown as "?"

    threads = [threading.Thread(target=ask, args=(entry["path"],)) for entry in entries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [Row(entry, answers.get(entry["path"])) for entry in entries]


def as_object(row: Row) -> dict[str, Any]:
    """Return a row for --json; `workers` and `busy` are null for a server that does not answer."""
    workers = None if row.status is None else row.status["workers"]
    return {
        **{name: row.entry.get(name) for name in ("path", "handler", "name", "pid", "since")},
        "state": None if row.status is None else row.status["state"],
        "workers": None if workers is None else len(workers),
        "busy": None if workers is None else sum(worker["state"] == "busy" for worker in workers),
    }


def table(rows: list[Row], width: int | None) -> str:
    """Return the table; handlers and then paths are shortened to fit `width`, if there is one."""
    cells = [_HEADS, *map(_cells, rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(_HEADS))]
    if width is not None:
        for column in (1, 0):
            excess = sum(widths) + 2 * (len(widths) - 1) - width
            widths[column] = max(min(_LEAST, widths[column]), widths[column] - max(0, excess))
    lines = ["  ".join(_cell(text, *place) for text, *place in zip(row, widths, range(len(widths)))) for row in cells]
    lines[0] = _style.styled(lines[0], "heading")
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _cells(row: Row) -> tuple[str, ...]:
    facts = as_object(row)
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(facts["since"])) if facts["since"] else _text.NOTHING
    numbers = ("?" if facts[name] is None else str(facts[name]) for name in ("workers", "busy"))
    path, handler = (one_line(str(text)) for text in (_text.home(facts["path"]), facts["handler"]))
    return (path, handler, str(facts["pid"]), since, *numbers)


def _cell(text: str, width: int, column: int) -> str:
    if len(text) > width:  # of a path the end says most, of a handler too
        text = "..." + text[len(text) - width + 3 :]
    return f"{text:>{width}}" if _HEADS[column] in ("PID", "WORKERS", "BUSY") else f"{text:{width}}"
