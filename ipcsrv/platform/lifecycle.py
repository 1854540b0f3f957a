"""What systems differ in when a server is started and stopped from outside: its lock, its processes, its log.

Runs in the process that starts or stops a server.
"""

# ruff: noqa: F403, F405

from __future__ import annotations

import sys

if sys.platform == "win32":
    from .windows.lifecycle import *
else:
    from .unix.lifecycle import *

__all__ = [
    "LockWatch",
    "ask_to_stop",
    "clean_up",
    "detached",
    "end_start",
    "fork_detached",
    "held_interrupts",
    "identity",
    "is_elsewhere",
    "is_locked",
    "kill",
    "kill_all",
    "leave_alone",
    "log_folder",
    "reap_left_alone",
    "record",
    "remains",
    "unblocked_signals",
    "use_known_state",
    "wait_gone",
]
