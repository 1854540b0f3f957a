"""Fixtures of the tests of faults."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import support
from conftest import ServerFactory
from faults.load import Future


@pytest.fixture(autouse=True)
def _find_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers of these tests find the handlers that lie beside them."""
    monkeypatch.setenv("PYTHONPATH", os.fspath(Path(__file__).parent))


@pytest.fixture
def slow_two(server: ServerFactory) -> support.RunningServer:
    """Two workers that take as many milliseconds as the request says."""
    return server("handlers_for_tests:slow", "--workers", "2")


@pytest.fixture
def in_background() -> Iterator[Callable[[Callable[[], object]], Future]]:
    """Run something in a thread: `in_background(lambda: ...)` returns what has `result()`, `error()` and `is_over`."""
    started: list[Future] = []

    def run(action: Callable[[], object]) -> Future:
        future = Future(action)
        started.append(future)
        return future

    yield run
    for future in started:
        future.thread.join(support.TIMEOUT)
        assert not future.thread.is_alive(), "something that a test began never ended"
