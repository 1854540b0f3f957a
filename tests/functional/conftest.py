"""Servers that the tests of one module share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import support
from shared_server import shared


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
