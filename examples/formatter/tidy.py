"""The formatter and its handler: Python source in, tidy Python source out.

It sorts the imports at the top of a file, removes blanks at the ends of lines and more than two empty lines in a row,
and ends the file with one newline. The program means the same afterwards: its syntax tree is compared, imports aside.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize


def handle(request: bytes) -> bytes:
    """Format the source that is the request; raises SyntaxError."""
    return format_source(request.decode()).encode()


def format_source(source: str) -> str:
    """Return the source, formatted; raises SyntaxError."""
    tree = ast.parse(source)
    result = _sort_imports(source, tree)
    fixed = _inside_strings(result)
    lines = [line if number in fixed else line.rstrip() for number, line in enumerate(result.splitlines(), 1)]
    result = "\n".join(_without_long_gaps(lines, _inside_strings("\n".join(lines)))).strip("\n") + "\n"
    if _meaning(ast.parse(result)) != _meaning(tree):
        raise ValueError("formatting would change the program; this is a bug of the formatter")
    return result


def _sort_imports(source: str, tree: ast.Module) -> str:
    """Sort each run of one-line imports at the top: __future__, standard library, others."""
    lines = source.splitlines()
    body = tree.body[1:] if ast.get_docstring(tree) is not None else tree.body
    imports = []
    for node in body:
        if not isinstance(node, ast.Import | ast.ImportFrom) or node.lineno != node.end_lineno:
            break
        imports.append(node)
    if not imports:
        return source
    first, last = imports[0].lineno - 1, imports[-1].lineno
    block = [line for line in lines[first:last] if line.strip()]
    if len(block) != len(imports) or any("#" in line or ";" in line for line in block):
        return source  # comments belong to a line: better leave them alone
    groups: dict[int, list[str]] = {}
    for node, line in zip(imports, block, strict=True):
        groups.setdefault(_group(node), []).append(line.strip())
    text = "\n\n".join("\n".join(sorted(group)) for _, group in sorted(groups.items()))
    return "\n".join([*lines[:first], text, *lines[last:]])


def _group(node: ast.Import | ast.ImportFrom) -> int:
    module = (node.module or "") if isinstance(node, ast.ImportFrom) else node.names[0].name
    if module == "__future__":
        return 0
    if isinstance(node, ast.ImportFrom) and node.level:
        return 3
    return 1 if module.partition(".")[0] in sys.stdlib_module_names else 2


def _inside_strings(source: str) -> set[int]:
    """The numbers of the lines that end inside a string."""
    found: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.end[0] > token.start[0] and token.type not in (tokenize.NEWLINE, tokenize.NL):
            found.update(range(token.start[0], token.end[0]))
    return found


def _without_long_gaps(lines: list[str], fixed: set[int]) -> list[str]:
    kept: list[str] = []
    for number, line in enumerate(lines, 1):
        if line or number in fixed or not re.fullmatch(r"\n*", "\n".join(kept[-2:])) or len(kept) < 2:
            kept.append(line)
    return kept


def _meaning(tree: ast.Module) -> list[str]:
    """The program without positions, with the imports at the top in one order."""
    return sorted(ast.dump(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)) + [
        ast.dump(node) for node in tree.body if not isinstance(node, ast.Import | ast.ImportFrom)
    ]
