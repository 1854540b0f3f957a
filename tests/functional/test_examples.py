"""The programs in examples/ do what they say: the tests of each folder, run as its reader would run them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import support

EXAMPLES = support.ROOT / "examples"
TESTED = sorted({path.parent.name for path in EXAMPLES.glob("*/test_*.py")})
NOTHING_COLLECTED = 5  # exit status of pytest, also where a whole module is skipped
ANSWER = '[["to", 2], ["be", 2], ["or", 1]]\n'


@pytest.fixture
def copied(sock_dir: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A copy of an example, which becomes the current folder."""
    folder = Path(sock_dir, "e")
    shutil.copytree(EXAMPLES / request.param, folder, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    folder.chmod(0o700)  # whatever the checkout's mode: no socket is served where others may write
    monkeypatch.chdir(folder)
    return folder


def run(*arguments: str, statuses: tuple[int, ...] = (0,), **extra: str) -> str:
    """Run a Python program in the current folder and return what it printed; its errors must be a server's log."""
    env = support.environment(IPCSRV_RUNTIME_DIR=os.path.join(os.getcwd(), "r"), **extra)
    env["PYTHONPATH"] = os.pathsep.join([str(support.ROOT), os.getcwd()])
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=280, env=env)
    assert done.returncode in statuses, done.stdout + done.stderr
    assert [line for line in done.stderr.splitlines() if " INFO " not in line] == []
    return done.stdout


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("copied", "name"), [(name, name) for name in TESTED], indirect=["copied"], ids=TESTED)
def test_example_passes_its_own_tests(copied: Path, name: str) -> None:
    options = ("-q", "-rs", "-p", "ipcsrv.pytest_plugin", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", ".")
    said = run("-m", "pytest", *options, ".", statuses=(0, NOTHING_COLLECTED), PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    assert "README.md" in os.listdir(copied)
    skipped = re.findall(r"^SKIPPED .*", said, re.M)
    if not re.search(r"[0-9]+ passed", said):
        assert skipped, said
        pytest.skip("; ".join(skipped))


@pytest.mark.parametrize("copied", ["words"], indirect=True)
def test_client_asks_a_running_server(copied: Path, server) -> None:
    server("words:count", path="./words.sock", env={"PYTHONPATH": f"{support.ROOT}{os.pathsep}{copied}"})
    assert run("ask.py", "./words.sock", "to be or not to be") == ANSWER


@pytest.mark.parametrize("copied", ["words"], indirect=True)
def test_client_starts_its_server_once(copied: Path) -> None:
    os.mkdir("r", 0o700)
    path = run("-c", "import ipcsrv; print(ipcsrv.default_path('words'))").strip()
    try:
        assert run("autostart.py", "to be or not to be") == ANSWER
        assert run("autostart.py", "to be or not to be") == ANSWER
    finally:
        run("-m", "ipcsrv", "stop", path)


def test_every_example_says_what_it_is() -> None:
    folders = [path for path in EXAMPLES.iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert [path.name for path in folders if not (path / "README.md").is_file()] == []
