"""The plain forms of `call` and `is-active`, parsed by hand because argparse alone costs as much as the whole call.
That of `start` is in `_simple_start`, for it needs the table of settings.

Whatever is unusual (help, abbreviations, `--`, an operand too many, anything that begins with a dash and is not
known) is not understood here on purpose: argparse then takes it from the start, so that there is one behaviour.
Runs in the client's process.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_PLAIN_DIGITS = frozenset("0123456789.")


class Asked:
    """What the two commands are asked to do: the attributes that argparse's namespace would have."""

    __slots__ = ("autostart", "command", "data", "path", "timeout")

    def __init__(self, command: str, path: str, data: str | None, timeout: float | None, autostart: str | None) -> None:
        self.command = command
        self.path = path
        self.data = data
        self.timeout = timeout
        self.autostart = autostart


def parse(arguments: Sequence[str]) -> Asked | None:
    """The command, if it is `call` or `is-active` in a plain form, else None."""
    if not arguments or arguments[0] not in ("call", "is-active"):
        return None
    operands: list[str] = []
    options: dict[str, str] = {}
    words = iter(arguments[1:])
    for word in words:
        if word.startswith("-"):
            value = next(words, "-")
            if word not in ("--timeout", "--autostart") or value.startswith("-"):
                return None
            options[word] = value
        else:
            operands.append(word)
    return _call(operands, options) if arguments[0] == "call" else _is_active(operands, options)


def _call(operands: list[str], options: dict[str, str]) -> Asked | None:
    timeout = options.get("--timeout")
    if len(operands) not in (1, 2) or not (timeout is None or is_plain_number(timeout)):
        return None
    data = operands[1] if len(operands) == 2 else None
    return Asked("call", operands[0], data, None if timeout is None else float(timeout), options.get("--autostart"))


def _is_active(operands: list[str], options: dict[str, str]) -> Asked | None:
    return Asked("is-active", operands[0], None, None, None) if len(operands) == 1 and not options else None


def is_plain_number(text: str) -> bool:
    """Seconds without a unit, above 0: what float() and the parser of times read alike."""
    return text[:1].isdigit() and _PLAIN_DIGITS.issuperset(text) and text.count(".") < 2 and float(text) > 0


def run(asked: Asked) -> int:
    """Do what was asked; returns the exit code."""
    from . import asking

    return asking.call(asked) if asked.command == "call" else asking.is_active(asked)
