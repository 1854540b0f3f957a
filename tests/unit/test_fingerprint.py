"""What identifies the code that a server runs."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from ipcsrv.config import fingerprint


def module(name: str, path: Path | None) -> ModuleType:
    made = ModuleType(name)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x = 1\n")
        made.__file__ = str(path)
    return made


def later() -> int:
    """A moment after everything that was saved before."""
    return fingerprint.moment() + 1_000_000_000


def test_files_are_those_of_the_user_and_one_of_a_package(tmp_path: Path) -> None:
    installed = tmp_path / "lib" / "site-packages"
    own = [module("words", tmp_path / "words.py"), module("app.sub", tmp_path / "app" / "sub.py")]
    theirs = [module("black", installed / "black" / "__init__.py"), module("black.sub", installed / "black" / "sub.py")]
    rest = [json, module("ipcsrv.x", tmp_path / "x.py"), module("sys", None)]
    found = fingerprint.fingerprint_of_modules([*own, *theirs, *rest], later())
    assert list(found) == sorted(str(path.__file__) for path in (*own, theirs[0]))


def test_real_modules_have_files_and_none_of_the_stdlib() -> None:
    found = fingerprint.fingerprint_of_modules(list(sys.modules.values()), later())
    assert os.path.abspath(__file__) in found
    assert not any("ipcsrv/config" in path or path == os.__file__ for path in found)


def test_change_of_size_or_time_and_removal_are_seen(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("same.py", "size.py", "time.py", "gone.py")]
    files = fingerprint.fingerprint_of_modules([module(path.stem, path) for path in paths], later())
    assert fingerprint.changed_files(files) == []
    info = paths[1].stat()
    paths[1].write_text("x = 10\n")
    os.utime(paths[1], ns=(info.st_atime_ns, info.st_mtime_ns))
    os.utime(paths[2], (1, 1))
    paths[3].unlink()
    assert fingerprint.changed_files(files) == sorted(map(str, paths[1:]), key=list(files).index)


def test_file_saved_during_its_import_counts_as_changed(tmp_path: Path) -> None:
    before = fingerprint.moment()
    words = module("words", tmp_path / "words.py")
    files = fingerprint.fingerprint_of_modules([words], before)
    assert list(files.values()) == [fingerprint.CHANGED]
    assert fingerprint.changed_files(files) == [words.__file__]


def test_file_of_the_future_is_not_changed_for_ever(tmp_path: Path) -> None:
    words = module("words", tmp_path / "words.py")
    os.utime(tmp_path / "words.py", (time.time() + 9999, time.time() + 9999))
    assert fingerprint.changed_files(fingerprint.fingerprint_of_modules([words], fingerprint.moment())) == []


def test_digest_is_never_empty_and_depends_on_each_part() -> None:
    given = [({}, {}, "1"), ({"a": "1"}, {}, "1"), ({"a": "2"}, {}, "1"), ({}, {"workers": 2}, "1"), ({}, {}, "2")]
    digests = [fingerprint.digest(*each) for each in given]  # type: ignore[arg-type]
    assert len(set(digests)) == len(given)
    assert all(len(each) == 20 for each in digests)


@pytest.mark.parametrize("names", [[], ["a"], [f"/{'é' * 50}/{number}.py" for number in range(300)]])
def test_pieces_fit_and_add_up(names: list[str]) -> None:
    files = {name: "12-34" for name in names}
    parts = list(fingerprint.pieces(files, 4000))
    assert all(len(json.dumps(part)) <= 4000 for part in parts)
    assert {name: known for part in parts for name, known in part.items()} == files
