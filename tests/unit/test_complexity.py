"""The demo's handler, as a function of bytes."""

from __future__ import annotations

import json
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from ipcsrv.cli import complexity


def report(source: str | bytes) -> Any:
    """The handler's answer, parsed."""
    data = source if isinstance(source, bytes) else source.encode()
    return json.loads(complexity.report(data))


def complexity_of(body: str) -> int:
    """The complexity of a function whose body this is."""
    return report(f"def f(a, b, c):\n    {body}\n")["functions"][0]["complexity"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("pass", 1),
        ("return a if b else c", 2),
        ("if a: pass", 2),
        ("if a: pass\n    elif b: pass\n    else: pass", 3),
        ("for x in a: pass", 2),
        ("while a: pass", 2),
        ("with a: pass", 1),
        ("try: pass\n    except ValueError: pass\n    except OSError: pass\n    finally: pass", 3),
        ("return a and b and c", 3),
        ("return a or b and c", 3),
        ("return [x for x in a]", 2),
        ("return {x: y for x in a if x if b for y in c}", 5),
        ("match a:\n        case 1: pass\n        case _: pass", 3),
        ("return lambda: a if b else c", 2),
        ("async def g():\n        async for x in a: pass", 1),
    ],
)
def test_complexity_is_one_and_one_for_each_branch(body: str, expected: int) -> None:
    assert complexity_of(body) == expected


def test_functions_are_listed_in_order_of_appearance() -> None:
    source = (
        "class A:\n    def m(self):\n        if self:\n            def inner():\n                while 1: pass\n"
        "\n\ndef f(): pass\n"
    )
    assert report(source)["functions"] == [
        {"name": "A.m", "line": 2, "lines": 4, "complexity": 2},
        {"name": "A.m.inner", "line": 4, "lines": 2, "complexity": 2},
        {"name": "f", "line": 8, "lines": 1, "complexity": 1},
    ]


def test_branches_outside_functions_belong_to_none() -> None:
    assert report("if 1:\n    x = 1 and 2\n")["functions"] == []


def test_branches_of_an_inner_class_count_for_the_function() -> None:
    assert complexity_of("class A:\n        x = 1 if a else 2") == 2


def test_longest_function_is_named() -> None:
    assert report("def short(): pass\ndef long():\n    1\n    2\n")["longest"]["name"] == "long"


def test_file_without_functions_has_no_longest_one() -> None:
    assert report("x = 1\n") == {"functions": [], "longest": None, "undocumented": [], "lines": 1}


def test_undocumented_names_are_public_ones() -> None:
    source = (
        "def bare():\n    def nested(): pass\n"
        "def told():\n    'Told.'\n"
        "def _private(): pass\n"
        "class A:\n    'Told.'\n    def m(self): pass\n    def __init__(self): pass\n    class B: pass\n"
        "class _C:\n    def m(self): pass\n"
        "async def later(): pass\n"
    )
    assert report(source)["undocumented"] == ["A.B", "A.m", "bare", "later"]


@pytest.mark.parametrize(
    "source",
    [
        b"def f(:\n",
        b"x = 1\0",
        b"\xff\xfe",
        b"# coding: no-such-codec\n",
        b"print 'two'\n",
        b"(" * 1000,
        b"x = " + b"-" * 100_000 + b"1",
    ],
    ids=["syntax", "null", "not-utf-8", "codec", "python-2", "parentheses", "depth"],
)
def test_file_that_does_not_parse_is_reported(source: bytes) -> None:
    assert set(report(source)) == {"error", "lines"}


def test_deep_file_is_measured() -> None:
    source = "def f(a):\n    return " + "a and (" * 80 + "a" + ")" * 80
    assert report(source)["functions"][0]["complexity"] == 81


def test_warnings_about_the_source_are_ignored() -> None:
    assert "error" not in report(r"x = '\d'" + "\n")


def test_any_buffer_is_a_request() -> None:
    class Request(bytes):
        """What a server hands over."""

    assert report(Request(b"def f(): pass"))["functions"][0]["name"] == "f"


def test_files_of_this_interpreter_are_reported() -> None:
    found = report(Path(sysconfig.get_path("stdlib"), "json", "__init__.py").read_bytes())
    names = {function["name"] for function in found["functions"]}
    assert names == {"dump", "dumps", "load", "loads", "detect_encoding"}
    assert found["undocumented"] == ["detect_encoding"]
