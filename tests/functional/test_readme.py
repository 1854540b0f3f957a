"""The README is true: its programs are run as they stand, its test command is the CI's, its links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import support

README = (support.ROOT / "README.md").read_text("utf-8")
PAGES = [support.ROOT / "README.md", *sorted((support.ROOT / "docs").rglob("*.md"))]


def blocks(language: str) -> list[str]:
    """The README's code blocks in this language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """The commands that the README has the reader type."""
    return re.findall(r"^\$ (.+)$", "\n".join(blocks("console")), re.MULTILINE)


def block(containing: str) -> str:
    """The one Python block that contains this."""
    (found,) = [text for text in blocks("python") if containing in text]
    return found


def run_program(source: str) -> str:
    """Run a Python program in the current folder, as a reader would, and return what it printed."""
    Path("program.py").write_text(source, "utf-8")
    env = support.environment(IPCSRV_RUNTIME_DIR=os.getcwd())
    done = subprocess.run([sys.executable, "program.py"], capture_output=True, text=True, timeout=40, env=env)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if " INFO " not in line] == []  # a server's log, and nothing else
    return done.stdout


@pytest.fixture
def folder(sock_dir: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that the test is in, with the README's words.py."""
    monkeypatch.chdir(sock_dir)
    Path("words.py").write_text(block("# words.py"), "utf-8")
    return Path(sock_dir)


def test_the_handler_has_five_lines_and_the_client_three() -> None:
    def lines(text: str) -> int:
        return sum(bool(line.strip()) and not line.startswith("#") for line in text.splitlines())

    assert lines(block("# words.py")) <= 5
    assert lines(block("# ask.py")) <= 3


def test_the_client_gets_the_answer_that_the_readme_shows(folder: Path, server) -> None:
    (command,) = {command for command in commands() if command.startswith("ipcsrv run")}
    path, target, *options = shlex.split(command)[2:]
    server(target, *options, path=path)
    source = block("# ask.py")
    assert run_program(source).strip() == source.rpartition("#")[2].strip()


def test_the_commands_that_ask_get_the_answers_that_the_readme_shows(folder: Path, server) -> None:
    server("words:count", path="./words.sock")
    shown = re.findall(r"^\$ ipcsrv (call \./words\.sock .+)\n(\[.*)$", README, re.MULTILINE)
    assert len(shown) >= 2
    for command, answer in shown:
        assert support.run_command(*shlex.split(command)).stdout.decode().strip() == answer


def test_the_client_that_starts_its_server_gets_its_answer(folder: Path) -> None:
    source = block("ensure_running")
    try:
        assert run_program(source) == '[["to", 2], ["be", 2]]\n'
        assert run_program(source) == '[["to", 2], ["be", 2]]\n'  # the second finds it running
    finally:
        stop = source.partition("ipcsrv.ensure_running")[0] + "ipcsrv.stop(path)"
        run_program(stop)


def test_the_server_of_a_block_answers_and_is_gone_after_it(folder: Path) -> None:
    assert run_program(block("ipcsrv.Server(")) == '[["to", 2], ["be", 2]]\n'
    assert not list(folder.glob("words.sock*"))


def test_the_test_command_is_the_one_that_ci_runs() -> None:
    (command,) = [command for command in commands() if command.endswith("/tox")]
    assert command in (support.ROOT / ".ci" / "run").read_text("utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_pages_that_are_there(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8"))
    missing = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert missing == []

