"""For tests that share a server: starting one for each of a hundred small questions would take minutes."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import support


@contextmanager
def shared(target: str, *options: str) -> Iterator[support.RunningServer]:
    """A server for as long as the block runs, in a folder of its own, where it must leave nothing."""
    folder = tempfile.mkdtemp(prefix="i-", dir="/tmp" if os.path.isdir("/tmp") else None)
    running = support.RunningServer(os.path.join(folder, "s"), target, *options)
    try:
        yield running.wait_until_listening()
    finally:
        running.clean_up()
        left = os.listdir(folder)
        shutil.rmtree(folder)
    assert left == []
