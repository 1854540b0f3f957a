"""The README keeps its promises of length and of commands; its code runs in test_documentation.py."""

from __future__ import annotations

import re

import page_runner
import support

README = (support.ROOT / "README.md").read_text("utf-8")


def block(containing: str) -> str:
    """The first Python block that contains this."""
    found = [text.text for text in page_runner.blocks(README) if text.language == "python" and containing in text.text]
    return found[0]


def code_lines(text: str) -> int:
    return sum(bool(line.strip()) and not line.startswith("#") for line in text.splitlines())


def test_readme_has_fewer_than_120_lines() -> None:
    assert len(README.splitlines()) < 120


def test_server_has_five_lines_and_client_three() -> None:
    assert code_lines(block("# words.py")) <= 5
    assert code_lines(block("ipcsrv.call(")) <= 3


def test_test_command_is_the_one_that_ci_runs() -> None:
    (command,) = re.findall(r"^\$ (.+/tox)$", README, re.MULTILINE)
    assert command in (support.ROOT / ".ci" / "run").read_text("utf-8")
