"""Tests of the formatter and its command: `pytest examples/formatter`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tidy

import ipcsrv
from ipcsrv.pytest_plugin import ServerFactory

HERE = Path(__file__).parent
UNTIDY = '''"""Doc."""
import sys
import numpy
import os

x = """two  \n\n\n\nlines"""   \n\n\n\n
print(x)'''
TIDY = '''"""Doc."""
import os
import sys

import numpy

x = """two  \n\n\n\nlines"""


print(x)
'''


@pytest.fixture
def runtime(ipcsrv_path: str) -> Iterator[str]:
    """The folder of the daemon's socket; the daemon is stopped at the end."""
    folder = ipcsrv_path + "-runtime"
    os.mkdir(folder, 0o700)
    yield folder
    path = ipcsrv.default_path("formatter-example", runtime_dir=folder)
    if ipcsrv.active_state(path) is ipcsrv.State.LISTENING:
        ipcsrv.stop(path)


def fmt(runtime: str, *arguments: str | Path) -> tuple[int, str]:
    """Run the command; return its exit status and what it said."""
    env = {**os.environ, "IPCSRV_RUNTIME_DIR": runtime, "XDG_STATE_HOME": runtime}
    command = [sys.executable, HERE / "fmt.py", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=50)
    return done.returncode, done.stdout + done.stderr


def test_source_is_formatted(ipcsrv_server: ServerFactory) -> None:
    server = ipcsrv_server(tidy.handle, workers=1, may_fail=SyntaxError)
    assert server.call(UNTIDY.encode()).decode() == TIDY
    assert server.call(TIDY.encode()).decode() == TIDY
    with pytest.raises(ipcsrv.HandlerError, match="SyntaxError"):
        server.call(b"def")


@pytest.mark.parametrize("path", sorted(HERE.glob("*.py")), ids=lambda path: path.name)
def test_formatted_source_stays_as_it_is(path: Path) -> None:
    once = tidy.format_source(path.read_text())
    assert tidy.format_source(once) == once


def test_command_formats_checks_and_refuses(runtime: str, tmp_path: Path) -> None:
    good, bad, wrong = tmp_path / "good.py", tmp_path / "bad.py", tmp_path / "wrong.py"
    good.write_text("x = 1\n")
    bad.write_text("x = 1   \n\n")
    wrong.write_text("def\n")
    assert fmt(runtime, "--check", good) == (0, "")
    assert fmt(runtime, "--check", good, bad) == (1, f"{bad}: is not formatted\n")
    assert fmt(runtime, good, bad) == (0, f"{bad}: formatted\n")
    assert bad.read_text() == "x = 1\n"
    status, said = fmt(runtime, wrong, good)
    assert status == 1
    assert f"{wrong}: SyntaxError" in said
