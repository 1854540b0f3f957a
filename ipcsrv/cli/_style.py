"""Colours on standard output: only on a terminal, and not with NO_COLOR (no-color.org) or TERM=dumb."""

from __future__ import annotations

import os
import shutil
import sys

CODES = {"title": "1", "heading": "1;4", "good": "32", "busy": "32", "warning": "33", "failure": "31", "quiet": "2"}
LEAST_WIDTH = 80  # columns


def enabled() -> bool:
    """Whether standard output shows colours."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def styled(text: str, style: str) -> str:
    """Return text in a style of CODES (ECMA-48 SGR), or as it is where there are no colours."""
    return f"\x1b[{CODES[style]}m{text}\x1b[0m" if style in CODES and text and enabled() else text


def columns() -> int:
    """Return the width for tables: that of the terminal, at least 80; 80 where there is no terminal."""
    return max(LEAST_WIDTH, shutil.get_terminal_size().columns)
