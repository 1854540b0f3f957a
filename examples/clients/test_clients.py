"""Each client against a real server: `pytest examples/clients`. A language without a toolchain is skipped."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import handlers
import pytest

from ipcsrv.pytest_plugin import ServerFactory

HERE = Path(__file__).parent
MOST_LINES = 40

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the clients speak to Unix sockets")


def needs(*programs: str) -> str:
    """The first of the programs that is there; skip if none is."""
    for program in programs:
        if (found := shutil.which(program)) is not None:
            return found
    pytest.skip(f"no {' or '.join(programs)} on this machine")


def shell(folder: Path) -> list[str]:
    """The command of the client in POSIX shell."""
    needs("socat", "nc")
    if shutil.which("socat") is None and "-N" not in subprocess.run(
        ["nc", "-h"], capture_output=True, text=True, check=False
    ).stderr:  # fmt: skip
        pytest.skip("neither socat nor an nc with -N on this machine")
    return [needs("sh"), str(HERE / "client.sh")]


def c(folder: Path) -> list[str]:
    """The command of the client in C."""
    program = folder / "client"
    flags = ["-O1", "-Wall", "-Wextra", "-Werror", "-std=c99", "-D_GNU_SOURCE"]
    subprocess.run([needs("cc", "gcc", "clang"), *flags, "-o", program, HERE / "client.c"], check=True)
    return [str(program)]


def node(folder: Path) -> list[str]:
    """The command of the client for Node.js."""
    return [needs("node"), str(HERE / "client.js")]


def go(folder: Path) -> list[str]:
    """The command of the client in Go."""
    program = folder / "client"
    env = {**os.environ, "GOCACHE": str(folder / "cache"), "GOFLAGS": "-buildvcs=false", "CGO_ENABLED": "0"}
    subprocess.run([needs("go"), "build", "-o", program, HERE / "client.go"], check=True, env=env, cwd=folder)
    return [str(program)]


@pytest.mark.parametrize("language", [shell, c, node, go])
def test_client_exchanges_any_bytes(
    language: Callable[[Path], list[str]], ipcsrv_server: ServerFactory, tmp_path: Path
) -> None:
    command = language(tmp_path)
    server = ipcsrv_server(handlers.echo, workers=1, may_fail=ValueError)
    for size in (0, 1, 65516, 65517, 300_000):
        request = random.Random(size).randbytes(size)
        done = subprocess.run([*command, server.path], input=request, capture_output=True, timeout=20, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout == request
    done = subprocess.run([*command, server.path], input=b"fail", capture_output=True, timeout=20, check=False)
    assert done.returncode != 0
    assert (done.stdout, b"ValueError: asked to fail" in done.stderr) == (b"", True)
    server.stop()
    done = subprocess.run([*command, server.path], input=b"x", capture_output=True, timeout=20, check=False)
    assert done.returncode != 0
    assert done.stderr


def test_clients_are_short() -> None:
    assert {path.name for path in HERE.glob("client.*") if len(path.read_text().splitlines()) >= MOST_LINES} == set()
