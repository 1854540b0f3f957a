"""Tests of the linter and its command: `pytest examples/linter`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import linter
import pytest

import ipcsrv
from ipcsrv.pytest_plugin import ServerFactory

HERE = Path(__file__).parent
SOURCE = """import os, sys
def f(a=[]):
    try:
        return sys.argv
    except:
        pass
"""
PROBLEMS = [
    [1, "os is imported and not used"],
    [2, "a default of f() is shared by all calls"],
    [5, "except without a type catches KeyboardInterrupt too"],
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file with three problems."""
    path = tmp_path / "source.py"
    path.write_text(SOURCE)
    return path


def test_results_are_cached_until_the_file_changes(ipcsrv_server: ServerFactory, source: Path) -> None:
    server = ipcsrv_server("linter:Linter()", workers=1, may_fail=FileNotFoundError)

    def lint() -> tuple[list[object], bool]:
        result = ipcsrv.call_json(server.path, {"path": str(source)}, timeout=20)
        return result["problems"], result["cached"]

    assert lint() == (PROBLEMS, False)
    assert lint() == (PROBLEMS, True)
    source.write_text(SOURCE.replace("os, ", "re, "))
    assert lint() == ([[1, "re is imported and not used"], *PROBLEMS[1:]], False)
    source.write_text("def")
    assert lint()[0][0][1].startswith("syntax error")  # type: ignore[index]
    source.unlink()
    with pytest.raises(ipcsrv.HandlerError, match="FileNotFoundError"):
        lint()


def test_unchanged_file_is_not_read(
    ipcsrv_server: ServerFactory, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ipcsrv_server(linter.Linter(), inline=True)
    request = {"path": str(source)}
    first = ipcsrv.call_json(server.path, request, timeout=20)
    monkeypatch.delattr(linter, "_lint_file")
    assert ipcsrv.call_json(server.path, request, timeout=20) == {**first, "cached": True}


def test_cache_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linter, "MOST_FILES", 2)
    found = linter.Linter()
    paths = [tmp_path / f"{number}.py" for number in range(3)]
    for path in paths:
        path.write_text("")
        assert not found.lint({"path": str(path)})["cached"]
    assert [found.lint({"path": str(path)})["cached"] for path in reversed(paths)] == [True, True, False]


def test_command_prints_what_it_finds(ipcsrv_path: str, source: Path) -> None:
    folder = ipcsrv_path + "-runtime"
    os.mkdir(folder, 0o700)
    env = {**os.environ, "IPCSRV_RUNTIME_DIR": folder, "XDG_STATE_HOME": folder}
    try:
        done = subprocess.run([sys.executable, HERE / "lint.py", source, HERE / "linter.py"],
                              capture_output=True, text=True, env=env, timeout=50, check=False)  # fmt: skip
        assert done.stdout.splitlines() == [f"{source}:{line}: {text}" for line, text in PROBLEMS]
        assert (done.returncode, done.stderr) == (1, "")
    finally:
        ipcsrv.stop(ipcsrv.default_path("linter-example", runtime_dir=folder))
