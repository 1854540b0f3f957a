"""What systems differ in when a server is started and stopped from outside: its lock, its processes, its log.

Runs in the process that starts or stops a server.
"""

# ruff: noqa: F403, F405

from __future__ import annotations

import os
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
    "open_standard_streams",
    "reap_left_alone",
    "record",
    "remains",
    "unblocked_signals",
    "use_known_state",
    "wait_gone",
]


def open_standard_streams() -> None:
    """Open descriptors 0 to 2 on the null device where they are closed.

    Or else a socket, a log or the scoreboard's memory would get such a number, and what a handler prints, or Python's
    last message, would go there.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
