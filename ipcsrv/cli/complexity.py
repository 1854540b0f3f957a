"""The handler of `ipcsrv demo`: a Python source file in, a report on its functions as JSON out. Runs in the workers.

`ipcsrv run PATH ipcsrv.cli.complexity:report` serves it. It is work of the kind that a pool of processes is for: pure
Python, bound by the CPU, not faster with threads, and a pure function of the request.

The complexity of a function is McCabe's: one, and one more for each place where its flow may branch. A nested function
counts for itself, not for the function around it. A file that does not parse is an answer too (`{"error": ...}`): the
standard library has some on purpose.
"""

from __future__ import annotations

import ast
import json
import warnings
from collections.abc import Iterator
from typing import Any

# Each of these branches once; boolean operators and comprehensions branch once for each of their parts.
_BRANCHES = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.match_case)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


class Function:
    """The facts about one function: its place, its length and its complexity."""

    __slots__ = ("complexity", "line", "lines", "name")

    def __init__(self, name: str, line: int, lines: int) -> None:
        self.name = name
        self.line = line
        self.lines = lines
        self.complexity = 1

    def facts(self) -> dict[str, Any]:
        """Return the facts for JSON."""
        return {name: getattr(self, name) for name in ("name", "line", "lines", "complexity")}


def report(request: bytes) -> bytes:
    """Return the report on a source file as JSON, `{"error": ...}` if it cannot be parsed; never raises."""
    try:
        answer = analyse(_parse(request))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # what ast.parse is known to raise
        answer = {"error": f"{type(error).__name__}: {error}"}
    return json.dumps({**answer, "lines": request.count(b"\n")}).encode()


def _parse(source: bytes) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the source file, not about this process
        return ast.parse(bytes(source))


def analyse(tree: ast.Module) -> dict[str, Any]:
    """Return the report on a parsed module: its functions, and its public names without a docstring."""
    functions = [function.facts() for function in measure(tree)]
    return {
        "functions": functions,
        "longest": max(functions, key=lambda facts: facts["lines"], default=None),
        "undocumented": sorted(undocumented(tree)),
    }


def measure(tree: ast.Module) -> list[Function]:
    """Every function of the module, in order of appearance, measured.

    The walk keeps its own stack: a file nested deeper than Python's recursion limit is no reason to fail.
    """
    found: list[Function] = []
    pending: list[tuple[ast.AST, str, Function | None]] = [(tree, "", None)]
    while pending:
        node, prefix, inside = pending.pop()
        for child in ast.iter_child_nodes(node):
            if isinstance(child, _FUNCTIONS):
                function = Function(prefix + child.name, child.lineno, (child.end_lineno or 0) - child.lineno + 1)
                found.append(function)
                pending.append((child, f"{function.name}.", function))
            elif isinstance(child, ast.ClassDef):
                pending.append((child, f"{prefix}{child.name}.", inside))
            else:
                if inside is not None:
                    inside.complexity += branches(child)
                pending.append((child, prefix, inside))
    return sorted(found, key=lambda function: function.line)


def branches(node: ast.AST) -> int:
    """How many more ways there are through a piece of code because of this node alone."""
    if isinstance(node, _BRANCHES):
        return 1
    if isinstance(node, ast.BoolOp):
        return len(node.values) - 1
    if isinstance(node, ast.comprehension):
        return 1 + len(node.ifs)
    return 0


def undocumented(tree: ast.Module) -> Iterator[str]:
    """Dotted names of public functions, classes and methods without a docstring, as an importer sees them."""
    pending: list[tuple[str, ast.Module | ast.ClassDef]] = [("", tree)]
    while pending:
        prefix, node = pending.pop()
        for child in _public(node.body):
            if not ast.get_docstring(child, clean=False):
                yield prefix + child.name
            if isinstance(child, ast.ClassDef):
                pending.append((f"{prefix}{child.name}.", child))


def _public(body: list[ast.stmt]) -> Iterator[_Definition]:
    for node in body:
        if isinstance(node, (*_FUNCTIONS, ast.ClassDef)) and not node.name.startswith("_"):
            yield node
