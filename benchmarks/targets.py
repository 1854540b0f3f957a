"""What is to be reached, and whether it was. The table of promises; it decides, it does not measure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from .measure import Ratio
from .workloads import Result, max_ratio


class Kind(Enum):
    AT_LEAST = "at least"
    AT_MOST = "at most"


@dataclass(frozen=True)
class Target:
    """`of` is the title of a result; `against` the name of one of its ratios, of one of its values, or `best peer`."""

    work: str
    of: str
    against: str
    kind: Kind
    goal: float
    unit: str = "x"


LEAST, MOST = Kind.AT_LEAST, Kind.AT_MOST
TABLE = (
    Target("connecting, against C of the same shape", "connect per request, geometric mean", "C of the same shape",
           LEAST, 0.75),
    Target("connecting, against the bare C loop", "connect per request, geometric mean", "bare C", LEAST, 0.48),
    Target("connecting, spawn against fork", "connect per request, by start method", "fork, spawn", LEAST, 0.95),
    Target("connecting, systemd's socket against fork", "connect per request, by start method",
           "fork, systemd's socket", LEAST, 0.95),
    Target("connecting, against the best Python peer", "connecting, all counts, against the best peer of each",
           "best peer", LEAST, 1.8),
    Target("keep-alive, 1 client, against the bare C loop", "keep-alive, 1 client", "bare C", LEAST, 0.85),
    Target("keep-alive, 2 clients, against the bare C loop", "keep-alive, 2 clients", "bare C", LEAST, 0.85),
    Target("keep-alive, against the best Python peer", "keep-alive beside the peers, 2 clients",
           "best peer", LEAST, 2.5),
    Target("CPU-bound handler, 2 workers against 1", "5 ms of pure Python a request", "1 worker", LEAST, 1.9),
    Target("10 MB requests, against bare C", "10 MB requests", "bare C", LEAST, 0.6),
    Target("10 MB responses, against bare C", "10 MB responses", "bare C", LEAST, 0.7),
    Target("10,000 small chunks, against one send a chunk in C", "10,000 chunks of 80 bytes", "bare C", LEAST, 2.0),
    Target("no chunk later than", "how late a chunk comes", "chunk lateness", MOST, 5.0, "ms"),
    Target("p99 of pings beside busy workers", "pings beside busy workers", "ping p99", MOST, 5.0, "ms"),
    Target("64 kept connections: the least share, of the mean", "64 kept connections, 2 workers", "least share",
           LEAST, 0.5),
    Target("start until listening, 4 workers", "start to end of a process", "ipcsrv start, 4 workers", MOST, 10.0),
    Target("ipcsrv call, cold", "start to end of a process", "ipcsrv call", MOST, 1.6),
    Target("PSS a worker", "PSS of an idle server, zlib:compress", "PSS a worker", MOST, 6.0, "MiB"),
)


def reached(target: Target, results: list[Result]) -> tuple[Ratio | float, bool] | None:
    """The figure and whether it is good enough; None if it was not measured in this run."""
    result = next((each for each in results if each.title == target.of), None)
    if result is None:
        return None
    figure: Ratio | float | None = result.ratios.get(target.against, result.values.get(target.against))
    if figure is None and target.against == "best peer" and result.ratios:
        figure = max_ratio(result)
    if figure is None:
        return None
    value = figure.median if isinstance(figure, Ratio) else figure
    return figure, value >= target.goal if target.kind is Kind.AT_LEAST else value <= target.goal
