"""The linter and its handler: the problems of a Python file, from a cache as long as the file is the same.

A request is JSON, `{"path": "/absolute/path.py"}`, the response `{"problems": [[line, text], ...], "cached": true}`.
"""

from __future__ import annotations

import ast
import collections
import os
from collections.abc import Iterator
from typing import Any

import ipcsrv

MOST_FILES = 10_000  # in the cache of a worker; the one not asked for the longest goes first

Problems = list[tuple[int, str]]
Identity = tuple[int, int, int, int]


class Linter:
    """A handler with a cache; a server calls this class once in each worker (`linter:Linter()`)."""

    def __init__(self) -> None:
        self._cache: collections.OrderedDict[str, tuple[Identity, Problems]] = collections.OrderedDict()
        self._handle = ipcsrv.json_handler(self.lint)

    def __call__(self, request: bytes) -> Any:
        return self._handle(request)

    def lint(self, request: dict[str, str]) -> dict[str, Any]:
        """Return the problems of the file; raises OSError."""
        path = request["path"]
        identity = _identity(path)  # before the file is read: a change in between is found the next time
        known = self._cache.get(path)
        cached = known is not None and known[0] == identity
        problems = known[1] if known is not None and cached else _lint_file(path)
        self._cache[path] = identity, problems
        self._cache.move_to_end(path)
        if len(self._cache) > MOST_FILES:
            self._cache.popitem(last=False)
        return {"problems": problems, "cached": cached}


def _identity(path: str) -> Identity:
    info = os.stat(path)
    return info.st_mtime_ns, info.st_size, info.st_ino, info.st_ctime_ns


def _lint_file(path: str) -> Problems:
    with open(path, "rb") as file:
        source = file.read()
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        return [(error.lineno or 1, f"syntax error: {error.msg}")]
    return sorted(set(_problems(tree)))


def _has_shared_default(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(isinstance(value, ast.List | ast.Dict | ast.Set) for value in function.args.defaults)


def _problems(tree: ast.Module) -> Iterator[tuple[int, str]]:
    imported: dict[str, int] = {}
    used: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) and getattr(node, "module", "") != "__future__":
            imported |= {(alias.asname or alias.name).partition(".")[0]: node.lineno for alias in node.names}
        elif isinstance(node, ast.Name):
            used.add(node.id)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            used.add(node.value)  # in __all__, or an annotation in quotes
        elif isinstance(node, ast.ExceptHandler) and node.type is None:
            yield node.lineno, "except without a type catches KeyboardInterrupt too"
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _has_shared_default(node):
            yield node.lineno, f"a default of {node.name}() is shared by all calls"
    yield from ((line, f"{name} is imported and not used") for name, line in imported.items()
                if name not in used and name != "*")  # fmt: skip
