"""The short version of tests/soak/cycles.py: workers and servers come and go without a trace."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest
import support

pytestmark = pytest.mark.skipif(not support.have_proc, reason="counts what /proc shows")


@pytest.fixture
def cycles() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cycles", support.TESTS / "soak" / "cycles.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_workers_leave_nothing_in_their_server(cycles: ModuleType, sock_path: str) -> None:
    cycles.workers(sock_path, 60)


@pytest.mark.usefixtures("leaves_nothing")
def test_servers_leave_nothing_at_all(cycles: ModuleType, sock_path: str) -> None:
    cycles.servers(sock_path, 3)
