"""Suggestions for handlers' names that lead nowhere."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

from ipcsrv.config import suggestions


@pytest.mark.parametrize(
    ("target", "meant"),
    [
        ("words.py:count", "words:count"), ("./words.py:count", "words:count"), ("words.py:make()", "words:make()"),
        ("app/words.py:count", "app.words:count"), ("app.words.count", "app.words:count"),
        ("words::count", "words:count"), ("words:make(1)", "words:make()"),
        ("words", None), ("", None), ("a b:c", None), ("words:", None),
    ],
)  # fmt: skip
def test_malformed_target_is_understood(target: str, meant: str | None) -> None:
    assert suggestions.well_formed(target) == meant


def test_nearest_callable_is_suggested() -> None:
    assert suggestions.existing_name(zlib, "compres", "zlib:compres") == "zlib:compress"
    assert suggestions.existing_name(zlib, "x", "zlib:x") is None
    assert suggestions.existing_name(zlib, "DEFLATE", "zlib:DEFLATE") is None  # close to DEFLATED, which is a number


def test_nearest_module_is_suggested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "words.py").touch()
    monkeypatch.chdir(tmp_path)
    assert suggestions.existing_module("word", "word:count") == "words:count"
    assert suggestions.existing_module("zlb", "zlb:compress") == "zlib:compress"
    assert suggestions.existing_module("words.py", "words.py:count") == "words:count"
    assert suggestions.existing_module("xyzzy_q", "xyzzy_q:f") is None
