"""`bench`: measure throughput and latency of any server that speaks simple-ipc.

The load comes from client processes (`_load`); this module starts them and shows their figures: the rate, and the
latency by percentile and as a histogram.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

from ..client import sync as client
from . import _load, _style
from ._parser import add_path, argument_type, positive_seconds, whole_number
from ._text import count, duration, plural, rate

if TYPE_CHECKING:
    import argparse

MOST_CLIENTS = 256  # processes; with more, the scheduler of the machine would be measured
BAR, WIDEST_BAR = 40, 100  # columns of the longest bar, in a terminal of 80 columns and at most
ROWS = 14  # of the histogram, at most
SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
SATURATED = 0.9  # share of the time for which clients compute: above it, their own speed limits the rate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `bench` takes."""
    add_path(parser)
    parser.add_argument("data", metavar="DATA", nargs="?", default="ping",
                        help="the request (default: ping); - is standard input")
    parser.add_argument("-c", "--clients", metavar="N", type=whole_number(1, MOST_CLIENTS), default=2,
                        help="number of client processes, each with one request at a time (default: 2)")
    parser.add_argument("-d", "--duration", metavar="TIME", type=argument_type(positive_seconds), default=5.0,
                        help="how long to measure (default: 5s)")
    parser.add_argument("--keep-alive", action="store_true",
                        help="one connection per client (default: one per request, as Git's clients do)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, times in seconds")


def run(arguments: argparse.Namespace) -> int:
    """Measure and print the figures; exit code 1 if no request was answered."""
    request = sys.stdin.buffer.read() if arguments.data == "-" else os.fsencode(arguments.data)
    client.call(arguments.path, request, _load.REQUEST_LIMIT)  # report errors before the measurement
    report = _load.drive(arguments.path, request, arguments.clients, arguments.duration, keep=arguments.keep_alive)
    show = as_json if arguments.json else as_text
    print(show(report, arguments.path, keep=arguments.keep_alive))
    return 0 if report.requests else 1


def as_json(report: _load.Report, path: str, *, keep: bool) -> str:
    """Return all figures as one object; `histogram` is a list of [longest latency of the bucket, requests]."""
    figures: dict[str, Any] = {
        "path": path, "clients": report.clients, "keep_alive": keep, "seconds": report.seconds,
        "requests": report.requests, "failures": dict(report.failures), "rate": report.rate,
        "latency": {**{name: report.percentile(share) for name, share in SHARES.items()}, "worst": report.worst},
        "clients_busy": report.busy,
        "histogram": [[_load.upper(bucket), report.histogram[bucket]] for bucket in sorted(report.histogram)],
    }
    return json.dumps(figures)


def as_text(report: _load.Report, path: str, *, keep: bool) -> str:
    """Return the figures as text."""
    how = "one connection per client" if keep else "one connection per request"
    title = f"{path}: {plural(report.clients, 'client')}, {how}, {report.seconds:.1f} s"
    lines = [_style.styled(title, "title"), ""]
    lines.append(f"  rate      {rate(report.rate)} requests/s  ({count(report.requests)} answered, {_failed(report)})")
    if report.requests:
        # Two spaces: with durations of seven characters the line has 79.
        shares = "  ".join(f"{name} {duration(report.percentile(share))}" for name, share in SHARES.items())
        lines += [f"  latency   {shares}  worst {duration(report.worst)}", "", *bars(report)]
    if report.busy > SATURATED:
        lines += ["", f"  The clients computed for {report.busy:.0%} of the time: their speed limits the rate."]
    return "\n".join(lines)


def _failed(report: _load.Report) -> str:
    kinds = ", ".join(f"{kind} {number}" for kind, number in sorted(report.failures.items()))
    return f"{count(report.failures.total())} failed" + (f": {kinds}" if kinds else "")


def bars(report: _load.Report) -> list[str]:
    """Return the histogram, one row per octave; the first row includes all shorter latencies."""
    octaves: dict[int, int] = {}
    for bucket, number in report.histogram.items():
        octave = bucket // _load.STEPS
        octaves[octave] = octaves.get(octave, 0) + number
    first = max(min(octaves), max(octaves) - ROWS + 1)
    shown = {octave: octaves.get(octave, 0) for octave in range(first, max(octaves) + 1)}
    shown[first] += sum(number for octave, number in octaves.items() if octave < first)
    most = max(shown.values())
    width = min(WIDEST_BAR, BAR + _style.columns() - _style.LEAST_WIDTH)
    return [_bar(octave, number / most, number / report.requests, width) for octave, number in shown.items()]


def _bar(octave: int, length: float, share: float, width: int) -> str:
    edge = duration(_load.upper(octave * _load.STEPS + _load.STEPS - 1))
    bar = "#" * max(round(length * width), 1 if length else 0)
    shown = "<0.01%" if 0 < share < 0.0001 else f"{share:.2%}"
    return f"  up to {edge:>8}  {bar:{width}}  {shown:>7}"
