"""The programs in examples/ do what they say."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
import support

EXAMPLES = support.ROOT / "examples"
ANSWER = '[["to", 2], ["be", 2], ["or", 1]]\n'


@pytest.fixture
def folder(sock_dir: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A copy of the examples that the test is in."""
    for path in EXAMPLES.glob("*.py"):
        shutil.copy(path, sock_dir)
    monkeypatch.chdir(sock_dir)
    return sock_dir


def run(*arguments: str) -> str:
    """Run an example in the current folder and return what it printed."""
    env = support.environment(IPCSRV_RUNTIME_DIR=os.path.join(os.getcwd(), "r"), PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=40, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line for line in done.stderr.splitlines() if " INFO " not in line] == []  # a server's log, and nothing else
    return done.stdout


def test_a_client_asks_a_running_server(folder: str, server) -> None:
    server("words:count", path="./words.sock")
    assert run("ask.py", "./words.sock", "to be or not to be") == ANSWER


def test_a_client_starts_its_server_once(folder: str) -> None:
    os.mkdir("r", 0o700)
    stop = "import ipcsrv; ipcsrv.stop(ipcsrv.default_path('words'))"
    try:
        assert run("autostart.py", "to be or not to be") == ANSWER
        assert run("autostart.py", "to be or not to be") == ANSWER
    finally:
        run("-c", stop)


def test_the_pytest_fixture_serves_its_tests(folder: str) -> None:
    assert "2 passed" in run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", ".", ".")
