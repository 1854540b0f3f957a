"""The standard streams, some of which may be closed: descriptors 0 to 2 are opened before any other gets their number.

Runs in servers and in the command.
"""

from __future__ import annotations

import os

INPUT, OUTPUT, ERRORS = 0, 1, 2

opened: set[int] = set()  # those of this process that were closed


def open_closed() -> None:
    """Open descriptors 0 to 2 on the null device where they are closed.

    Or else a socket, a log or the scoreboard's memory would get such a number, and what is printed, or Python's last
    message, would go there.
    """
    for descriptor in (INPUT, OUTPUT, ERRORS):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # which gets the lowest number that is free
            os.set_inheritable(null, True)
            opened.add(null)
