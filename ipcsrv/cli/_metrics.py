"""A server's status as Prometheus text (exposition format 0.0.4), for node_exporter's textfile collector. No I/O.

Every sample has the label `server`, the path, so that the files of several servers can be in one folder.
Source: prometheus.io/docs/instrumenting/exposition_formats.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

_ANSWERS = ("ok", "handler_errors", "timeouts", "too_large", "malformed", "denied", "cancelled", "lost")
_STATES = ("idle", "busy", "starting", "leaving")
_QUANTILES = {"p50": "0.5", "p90": "0.9", "p99": "0.99", "p999": "0.999"}
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})

Sample = tuple[dict[str, Any], float | None]


def exposition(facts: dict[str, Any]) -> str:
    """Return the whole text, one line per sample."""
    server = {"server": facts["path"]}
    lines: list[str] = []
    for name, kind, help, samples in _families(facts):
        lines += [f"# HELP ipcsrv_{name} {help}", f"# TYPE ipcsrv_{name} {kind}"]
        lines += [f"ipcsrv_{name}{_labels(server | labels)} {v!r}" for labels, v in samples if v is not None]
    return "\n".join(lines) + "\n"


def _families(facts: dict[str, Any]) -> Iterator[tuple[str, str, str, Iterable[Sample]]]:
    """Yield name, type, help and samples of each metric."""
    yield from _gauges(facts)
    yield from _counters(facts["totals"])
    yield from _worker_gauges(facts["workers"])
    yield "latency_seconds", "gauge", "Percentiles of request latency, by stage and window.", _latency(facts["latency"])


def _gauges(facts: dict[str, Any]) -> Iterator[tuple[str, str, str, Iterable[Sample]]]:
    queue, minute = facts["queue"], facts["latency"]["last_minute"]
    about = {"name": facts["name"], "version": facts["version"], "handler": facts["handler"], "state": facts["state"]}
    for name, help, value, labels in (
        ("info", "The server's handler and version; always 1.", 1, about),
        ("uptime_seconds", "Time since the server started.", facts["uptime_seconds"], {}),
        ("generation", "Generation of the workers; a reload adds 1.", facts["generation"], {}),
        ("workers_wanted", "Number of workers that is set.", facts["workers_wanted"], {}),
        ("queue_depth", "Connections that wait for a worker.", queue["depth"], {}),
        ("queue_oldest_seconds", "Time that the first of them has waited.", queue["oldest_seconds"], {}),
        ("queue_accepting", "1 while new connections are accepted.", int(queue["accepting"]), {}),
        ("idle_connections", "Connections between two requests.", facts["idle"], {}),
        ("stalled_connections", "Connections in the middle of a message.", facts["stalled"], {}),
        ("buffered_bytes", "Bytes that are kept for stalled connections.", facts["buffered_bytes"], {}),
        ("requests_per_second", "Requests per second in the last minute.", minute["requests_per_second"], {}),
    ):
        yield name, "gauge", help, [(labels, value)]


def _counters(totals: dict[str, Any]) -> Iterator[tuple[str, str, str, Iterable[Sample]]]:
    for name, help in (
        ("connections", "Connections accepted."),
        ("requests", "Requests read."),
        ("probes", "Connections closed without a request."),
        ("worker_restarts", "Workers replaced after they died or were killed."),
    ):
        yield f"{name}_total", "counter", help, [({}, totals[name])]
    answers: list[Sample] = [({"outcome": name}, totals[name]) for name in _ANSWERS]
    yield "answers_total", "counter", "Requests by outcome.", answers
    bytes_: list[Sample] = [({"direction": way}, totals[f"bytes_{way}"]) for way in ("in", "out")]
    yield "bytes_total", "counter", "Bytes of requests and responses.", bytes_


def _worker_gauges(workers: list[dict[str, Any]]) -> Iterator[tuple[str, str, str, Iterable[Sample]]]:
    states: list[Sample] = [({"state": s}, sum(worker["state"] == s for worker in workers)) for s in _STATES]
    yield "workers", "gauge", "Workers by state.", states
    for name, key, help in (
        ("worker_busy_seconds", "busy_seconds", "Time since a worker began its current request; 0 if idle."),
        ("worker_resident_bytes", "rss_bytes", "Resident memory of a worker."),
        ("worker_suspended_streams", "suspended", "Streams that wait in a worker for their clients."),
    ):
        yield name, "gauge", help, [({"slot": worker["slot"]}, worker[key] or 0) for worker in workers]


def _latency(latency: dict[str, Any]) -> Iterator[Sample]:
    for window in ("since_start", "last_minute"):
        for stage in ("queue_wait", "handler", "whole"):
            for key, quantile in _QUANTILES.items():
                labels = {"window": window, "stage": stage, "quantile": quantile}
                yield labels, latency[window][stage][key]


def _labels(labels: dict[str, Any]) -> str:
    return "{" + ",".join(f'{name}="{str(value).translate(_ESCAPES)}"' for name, value in labels.items()) + "}"
