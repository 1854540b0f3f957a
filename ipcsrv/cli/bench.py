"""`ipcsrv bench`: how fast a server answers, for any server that speaks simple-ipc.

The load comes from processes (`_load`); here it is asked for and its figures are shown: the rate, the latency by
percentile and as a histogram.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

from ..client import sync as client
from . import _load
from ._parser import add_path, argument_type, positive_seconds
from ._text import count, duration, rate

if TYPE_CHECKING:
    import argparse

MOST_CLIENTS = 256  # processes; more would measure this machine's scheduler
BAR = 40  # characters of the longest bar
ROWS = 14  # of the histogram, at most
SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
SATURATED = 0.9  # of the clients' time: from here on their own speed is part of the figure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `bench` takes."""
    add_path(parser)
    parser.add_argument("data", metavar="DATA", nargs="?", default="ping",
                        help="the request (default: ping; -: standard input)")
    parser.add_argument("-c", "--clients", metavar="N", type=argument_type(_clients), default=2,
                        help="processes that ask, each one request at a time (default: 2)")
    parser.add_argument("-d", "--duration", metavar="SECONDS", type=argument_type(positive_seconds), default=5.0,
                        help="how long (default: 5)")
    parser.add_argument("--keep-alive", action="store_true",
                        help="one connection a client (default: one a request; Git's servers know only that)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON; times in seconds")


def _clients(text: str) -> int:
    number = int(text)
    if not 1 <= number <= MOST_CLIENTS:
        raise ValueError(f"must be from 1 to {MOST_CLIENTS}")
    return number


def run(arguments: argparse.Namespace) -> int:
    """Make the load and print the figures; exit code 1 if not one request was answered."""
    request = sys.stdin.buffer.read() if arguments.data == "-" else os.fsencode(arguments.data)
    client.call(arguments.path, request, _load.REQUEST_LIMIT)  # what is wrong is better said before the load
    report = _load.drive(arguments.path, request, arguments.clients, arguments.duration, keep=arguments.keep_alive)
    show = as_json if arguments.json else as_text
    print(show(report, arguments.path, keep=arguments.keep_alive))
    return 0 if report.requests else 1


def as_json(report: _load.Report, path: str, *, keep: bool) -> str:
    """Everything, one object; `histogram` is a list of [longest latency of the bucket, requests]."""
    figures: dict[str, Any] = {
        "path": path, "clients": report.clients, "keep_alive": keep, "seconds": report.seconds,
        "requests": report.requests, "failures": dict(report.failures), "rate": report.rate,
        "latency": {**{name: report.percentile(share) for name, share in SHARES.items()}, "worst": report.worst},
        "clients_busy": report.busy,
        "histogram": [[_load.upper(bucket), report.histogram[bucket]] for bucket in sorted(report.histogram)],
    }
    return json.dumps(figures)


def as_text(report: _load.Report, path: str, *, keep: bool) -> str:
    """The figures for a person."""
    how = "one connection each" if keep else "a connection a request"
    clients = f"{report.clients} client{'s' if report.clients > 1 else ''}"
    lines = [f"{path}: {clients}, {how}, {report.seconds:.1f} s", ""]
    lines.append(f"  rate      {rate(report.rate)} requests/s  ({count(report.requests)} answered, {_failed(report)})")
    if report.requests:
        shares = "   ".join(f"{name} {duration(report.percentile(share))}" for name, share in SHARES.items())
        lines += [f"  latency   {shares}   worst {duration(report.worst)}", "", *bars(report)]
    if report.busy > SATURATED:
        lines += ["", f"  The clients were busy for {report.busy:.0%} of the time: their own speed is part of this."]
    return "\n".join(lines)


def _failed(report: _load.Report) -> str:
    kinds = ", ".join(f"{kind} {number}" for kind, number in sorted(report.failures.items()))
    return f"{report.failures.total()} failed" + (f": {kinds}" if kinds else "")


def bars(report: _load.Report) -> list[str]:
    """The histogram: a row an octave; what is rarer than the last row's edges is counted into these."""
    octaves: dict[int, int] = {}
    for bucket, number in report.histogram.items():
        octave = bucket // _load.STEPS
        octaves[octave] = octaves.get(octave, 0) + number
    first = max(min(octaves), max(octaves) - ROWS + 1)
    shown = {octave: octaves.get(octave, 0) for octave in range(first, max(octaves) + 1)}
    shown[first] += sum(number for octave, number in octaves.items() if octave < first)
    most = max(shown.values())
    return [_bar(octave, number, most, report.requests) for octave, number in shown.items()]


def _bar(octave: int, number: int, most: int, requests: int) -> str:
    edge = duration(_load.upper(octave * _load.STEPS + _load.STEPS - 1))
    length = max(round(number / most * BAR), 1 if number else 0)
    return f"  up to {edge:>8}  {'#' * length:{BAR}}  {number / requests:7.2%}"
