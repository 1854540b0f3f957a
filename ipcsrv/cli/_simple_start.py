"""The plain form of `start`, parsed by hand from the table of settings: two operands, and options with their values.

As in `_simple`, whatever is unusual is not understood on purpose, so that argparse takes it from the start. It runs in
the process that is forked to be the server, to which argparse would be of no use.
"""

from __future__ import annotations

from types import SimpleNamespace

from ..config.settings import TABLE
from ..config.values import ALLOW, SWITCH
from ._simple import is_plain_number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

_SWITCHES = {
    f"--{prefix}{setting.flag.removeprefix('--')}": (setting.name, on)
    for setting in TABLE
    if setting.kind is SWITCH
    for prefix, on in (("", True), ("no-", False))
}
_VALUES = {setting.flag: setting.name for setting in TABLE if setting.kind is not SWITCH}
_VALUES |= {"--config": "config", "--timeout": "timeout"}
_SEVERAL = {setting.name for setting in TABLE if setting.kind is ALLOW}


def parse(arguments: Sequence[str]) -> SimpleNamespace | None:
    """What argparse's namespace would be, if the words after `start` are in the plain form, else None."""
    operands: list[str] = []
    found: dict[str, Any] = {"command": "start", "config": None, "timeout": None}
    words = iter(arguments)
    for word in words:
        if not word.startswith("-"):
            operands.append(word)
        elif word in _SWITCHES:
            name, on = _SWITCHES[word]
            found[name] = on
        elif not _take(word, words, found):
            return None
    if len(operands) != 2:
        return None
    return SimpleNamespace(path=operands[0], target=operands[1], **found)


def _take(word: str, words: Iterator[str], found: dict[str, Any]) -> bool:
    """Take an option and its value; False if either is not plain."""
    flag, equals, value = word.partition("=")
    if not equals:
        value = next(words, "-")
    name = _VALUES.get(flag)
    if name is None or (value.startswith("-") and not equals):
        return False
    if name == "timeout":
        if not is_plain_number(value):
            return False
        found[name] = float(value)
    elif name in _SEVERAL:
        found[name] = [*found.get(name, ()), value]
    else:
        found[name] = value
    return True
