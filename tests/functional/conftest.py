"""Servers that the tests of one module share: starting one for each of a hundred small questions would take minutes."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
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


@pytest.fixture(scope="module")
def module_server() -> Iterator[support.RunningServer]:
    """A server that runs whatever handler a request names (`handlers_by_name`)."""
    with shared("handlers_by_name:dispatch", "--workers", "2") as running:
        yield running


@pytest.fixture(scope="module")
def echo_path() -> Iterator[str]:
    """Where a server echoes."""
    with shared("handlers_for_tests:echo", "--workers", "2") as running:
        yield running.path


@pytest.fixture
def wait_until() -> Callable[..., None]:
    """Wait for what has no event: `wait_until(lambda: condition, "what it is")`."""
    return support.wait_until if hasattr(support, "wait_until") else _wait_until


def _wait_until(condition: Callable[[], object], what: str = "", timeout: float = support.TIMEOUT) -> None:
    import time

    until = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < until, f"not within {timeout} s: {what}"
        time.sleep(0.005)
