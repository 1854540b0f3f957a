"""A section of a TOML file with the line of each key, so that an error can point at it.

`tomllib` reads the values, but forgets where they stood; the lines are found by a second look at the text, which
needs to understand only headers and bare or quoted keys. Runs in whoever reads settings, before a server starts.
"""

from __future__ import annotations

import re
from typing import Any

from ..errors import SettingsError

_HEADER = re.compile(r"\s*\[\s*([^\[\]]+?)\s*\]\s*(#.*)?")
_KEY = re.compile(r"""\s*["']?([A-Za-z0-9_-]+)["']?\s*[=.]""")
_WHERE = re.compile(r"\(at line (\d+)")


def read_section(path: str, section: str) -> list[tuple[str, Any, int]]:
    """Name, value and line (from 1) of each key in `section` ("" is the file itself); none if it is missing.

    Raises SettingsError for a file that cannot be read, is not TOML, or has a section that is no table.
    """
    text = _text(path)
    table = _parsed(path, text)
    for step in section.split(".") if section else ():
        table = table.get(step, {})
        if not isinstance(table, dict):
            raise SettingsError("not a table", name=section, source=path)
    lines = _lines_of_keys(text, section)
    return [(name, value, lines.get(name, 1)) for name, value in table.items()]


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SettingsError(f"cannot be read: {reason}", source=path) from None


def _parsed(path: str, text: str) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        match = _WHERE.search(str(error))
        line = int(match[1]) if match else None
        raise SettingsError(f"not TOML: {error}", source=path, line=line) from None


def _lines_of_keys(text: str, section: str) -> dict[str, int]:
    """The first line on which each key of `section` stands; sub-tables count as keys."""
    lines: dict[str, int] = {}
    current = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.fullmatch(line):
            current = "".join(header[1].split())
            if not section or current.startswith(section + "."):
                lines.setdefault(current.removeprefix(section + ".").split(".")[0], number)
        elif current == section and (key := _KEY.match(line)):
            lines.setdefault(key[1], number)
    return lines
