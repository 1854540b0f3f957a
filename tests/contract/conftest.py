"""The two command line clients: Python's, and `ipcsrvc`, compiled with the sanitizers where they are installed."""

from __future__ import annotations

import sys
from pathlib import Path

import native
import pytest

Command = list[str]


@pytest.fixture(scope="session")
def sanitized_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The path of `ipcsrvc`."""
    return native.build_sanitized(tmp_path_factory.mktemp("native"))


@pytest.fixture(scope="session", params=["python", "native"])
def client_command(request: pytest.FixtureRequest) -> Command:
    """The words that a client's command line begins with."""
    if request.param == "python":
        return [sys.executable, "-m", "ipcsrv"]
    return [str(request.getfixturevalue("sanitized_client"))]
