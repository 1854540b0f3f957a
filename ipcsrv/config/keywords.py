"""The settings as keywords, for type checkers and editors: `**settings: Unpack[SettingsDict]`.

A test compares it with the table in `settings`.  Imported by type checkers, and by programs for their own annotations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from os import PathLike
from typing import Literal, TypeAlias, TypedDict

OnMismatch: TypeAlias = Literal["reload", "restart", "warn", "error"]
"""What `ensure_running` does where the running server does not serve the current code, handler or settings."""

_Size: TypeAlias = int | str
_Seconds: TypeAlias = float | str
_Hook: TypeAlias = Callable[..., object] | str | None


class SettingsDict(TypedDict, total=False):
    """Keywords of `serve`, `Server` and `ensure_running`; docs/settings.md describes each.

    Sizes are bytes or text such as "64MiB", times are seconds or text such as "5m".
    """

    workers: int | None
    start_method: Literal["auto", "fork", "forkserver", "spawn"]
    preload: bool
    backlog: int
    max_request_size: _Size | None
    max_response_size: _Size | None
    max_buffered_size: _Size | None
    read_timeout: _Seconds
    write_timeout: _Seconds
    request_timeout: _Seconds | None
    startup_timeout: _Seconds
    drain_timeout: _Seconds
    max_requests: int | str | None
    max_requests_jitter: int
    max_rss: _Size | None
    idle_exit: _Seconds | None
    mode: int | str
    allow: str | int | Iterable[str | int]
    insecure_dir: bool
    log_level: Literal["debug", "info", "warning", "error", "critical"]
    log_file: str | PathLike[str] | None
    log_format: Literal["text", "json"]
    access_log: bool
    on_worker_start: _Hook
    on_worker_stop: _Hook
    on_request_start: _Hook
    on_request_end: _Hook
    receive_descriptors: bool
    control: bool
    name: str | None
    chdir: str | PathLike[str] | None
    executor: str | None
    executor_retries: int
    upload_module: bool
