"""A status as a server answers it (docs/control.md), with figures that are hard to fit: for what shows them."""

from __future__ import annotations

from typing import Any

PERCENTILES = {"p50": 0.00012, "p90": 0.0034, "p99": 1.5, "p999": 75.0}
STAGES = {"queue_wait": PERCENTILES, "handler": dict.fromkeys(PERCENTILES), "whole": PERCENTILES}
STATUS: dict[str, Any] = {
    "state": "running",
    "pid": 4242,
    "version": "1.2.3",
    "name": "app",
    "handler": "app.handlers:handle",
    "path": "/run/user/1000/app/s",
    "uptime_seconds": 98765.4,
    "generation": 2,
    "fingerprint": "abc",
    "workers": [
        {"pid": 4243, "slot": 0, "generation": 2, "state": "busy", "busy_seconds": 12.34, "requests": 1234567,
         "errors": 3, "rss_bytes": 123 << 20, "suspended": 1, "restarts": 2, "uptime_seconds": 3600.0},
        {"pid": 4194304, "slot": 1, "generation": 2, "state": "starting", "busy_seconds": 0.0, "requests": 0,
         "errors": 0, "rss_bytes": 0, "suspended": 0, "restarts": 0, "uptime_seconds": 0.25},
    ],
    "workers_wanted": 2,
    "queue": {"depth": 512, "oldest_seconds": 3.5, "accepting": False},
    "idle": 17,
    "stalled": 1234,
    "suspended": 3,
    "buffered_bytes": 123 << 20,
    "totals": {
        "connections": 9_999_999, "requests": 123_456_789, "ok": 123_000_000, "handler_errors": 12345,
        "timeouts": 12345, "too_large": 12345, "malformed": 12345, "denied": 12345, "cancelled": 12345,
        "probes": 12345, "lost": 12345, "bytes_in": 1 << 50, "bytes_out": 1 << 40, "worker_restarts": 12345,
    },
    "latency": {"since_start": STAGES, "last_minute": {**STAGES, "requests_per_second": 1234.5}},
    "last_error": {"when": 1700000000.0, "text": "worker 4240: killed by SIGSEGV\n" + "x" * 200},
    "log_file": "/var/log/app.log",
    "lock_file": "/run/user/1000/app/s.ipcsrv.lock",
    "settings": {"workers": 2},
}  # fmt: skip
