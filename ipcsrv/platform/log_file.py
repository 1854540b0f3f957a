"""Opening a log file. Runs in every process that logs, so it imports nothing of what starts and stops servers."""

from __future__ import annotations

import sys

if sys.platform == "win32":
    from .windows.log_file import open_log
else:
    from .unix.log_file import open_log

__all__ = ["open_log"]
