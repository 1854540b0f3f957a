"""The handler of tests/soak/day.py: echoes, and does what a bad day brings, each on its own word."""

from __future__ import annotations

import os
import signal
import time


def handle(request: bytes) -> bytes:
    word, _, rest = bytes(request).partition(b" ")
    if word == b"exit":
        os._exit(9)
    if word == b"kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == b"raise":
        raise ValueError(rest.decode())
    if word == b"sleep":
        time.sleep(int(rest) / 1000)
    return request
