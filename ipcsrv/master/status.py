"""What the master says of the server: the facts behind `status`, `top` and the metrics (docs/control.md).

Everything is read, nothing is asked: workers write the scoreboard as they go, so this is right also when all of them
are busy. Runs in the master.
"""

from __future__ import annotations

from time import monotonic, monotonic_ns
from typing import TYPE_CHECKING, Any

from .._version import __version__
from ..platform import lifecycle
from ..platform.server import resident_bytes
from ..supervision import scoreboard as board
from ..supervision.supervisor import PoolState, WorkerPhase

if TYPE_CHECKING:
    from .master import Master
    from .worker_processes import WorkerProcess

SCHEMA = 1  # of the status: raised when a key changes its meaning or goes; new keys do not raise it
_STATES = {PoolState.STARTING: "starting", PoolState.RUNNING: "running"}
_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}
_STAGES = ("queue_wait", "handler", "whole")
_TOTALS = ("requests", "ok", "handler_errors", "timeouts", "too_large", "malformed", "denied", "cancelled", "probes",
           "lost", "bytes_in", "bytes_out")


def of(master: Master) -> dict[str, Any]:
    """Return the status in the shape that docs/control.md describes."""
    now, record = monotonic(), master.record()
    processes, dispatch = master.processes, master.dispatcher.dispatch
    queue = master.dispatcher.facts()
    pool, totals = processes.supervisor, processes.scoreboard.totals()
    window = master.recent.window(now, totals)
    state = "stopping" if master.draining else _STATES.get(pool.state, "stopping")
    return {
        "schema": SCHEMA,
        "state": state,
        "pid": master.pid,
        "version": __version__,
        "name": master.settings.name or master.source.target,
        "handler": master.source.target,
        "path": master.rendezvous.path,
        "uptime_seconds": now - master.started,
        "generation": pool.generation,
        "fingerprint": record.get("fingerprint", ""),
        "workers": [_worker(master, each, now) for each in sorted(processes.workers.values(), key=lambda w: w.slot)],
        "workers_wanted": pool.size,
        "executor": _executor(master),
        "queue": queue,
        "idle": dispatch.silent,
        "stalled": dispatch.stalled,
        "suspended": sum(words[board.SUSPENDED] for words in processes.serving_slots()),
        "buffered_bytes": dispatch.buffered,
        "totals": {
            "connections": totals.connections,
            **{name: getattr(totals, name) for name in _TOTALS},
            "worker_restarts": pool.restarts,
        },
        "latency": {
            "since_start": _latency(totals),
            "last_minute": {**_latency(window.totals), "requests_per_second": window.rate("requests")},
        },
        "last_error": master.last_error,
        **{name: record[name] for name in ("log_file", "cwd", "own_process", "detached", "command")},
        **lifecycle.identity(),
        "lock_file": master.rendezvous.lock_path,
        "settings": master.settings.to_dict(),
    }


def _executor(master: Master) -> dict[str, Any] | None:
    """Return the executor and its state as the workers know it; the worst state if they differ."""
    name = master.settings.executor
    if name is None:
        return None
    states = [words[board.EXECUTOR] for words in master.processes.serving_slots()]
    return {"name": name, "state": board.EXECUTOR_STATES[max(states, default=0)] or "connecting"}


def _worker(master: Master, worker: WorkerProcess, now: float) -> dict[str, Any]:
    facts = master.processes.scoreboard.facts(worker.slot)
    record = master.processes.supervisor.workers.get(worker.number)
    totals = facts.totals
    since = worker.leaving_since
    return {
        "pid": facts.pid or (worker.process.pid if worker.process else None),
        "slot": worker.slot,
        "generation": worker.generation,
        "state": _state(record.phase if record else WorkerPhase.KILLED, facts.lent or facts.since_ns),
        "busy_seconds": (monotonic_ns() - facts.since_ns) / 1e9 if facts.since_ns else 0.0,
        "leaving_seconds": None if since is None else now - since,
        "requests": totals.requests,
        "errors": totals.requests - totals.ok,
        "rss_bytes": resident_bytes(facts.pid) if facts.pid else 0,
        "suspended": facts.suspended,
        "restarts": master.processes.slot_restarts.get(worker.slot, 0),
        "uptime_seconds": max(0.0, now - facts.started_ns / 1e9) if facts.started_ns else 0.0,
    }


def _state(phase: WorkerPhase, busy: int) -> str:
    if phase is WorkerPhase.STARTING:
        return "starting"
    if phase is WorkerPhase.READY:
        return "busy" if busy else "idle"
    return "leaving"


def _latency(totals: board.Totals) -> dict[str, Any]:
    return {stage: _percentiles(getattr(totals, stage)) for stage in _STAGES}


def _percentiles(counts: tuple[int, ...]) -> dict[str, float | None]:
    counted = any(counts)
    return {name: board.percentile(counts, q) if counted else None for name, q in _QUANTILES.items()}
