"""Looking after a server from outside, in what systems differ: its lock, its processes, its ways to be stopped.

Runs in the process of whoever starts or stops a server.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

fork_detached: Callable[[Callable[[int], int], str | None], tuple[int, int]] | None

if sys.platform == "win32":
    from .windows.lifecycle import (
        ask_to_stop,
        clean_up,
        detached,
        is_locked,
        kill,
        kill_all,
        log_folder,
        open_log,
        record,
        wait_gone,
    )

    fork_detached = None
else:
    from .unix import lifecycle as posix_lifecycle
    from .unix.lifecycle import (
        ask_to_stop,
        clean_up,
        detached,
        is_locked,
        kill,
        kill_all,
        log_folder,
        open_log,
        record,
        wait_gone,
    )

    fork_detached = posix_lifecycle.fork_detached

__all__ = [
    "ask_to_stop", "clean_up", "detached", "fork_detached", "is_locked", "kill", "kill_all", "log_folder", "open_log",
    "record", "wait_gone",
]  # fmt: skip
