"""The plain forms of `call`, `is-active` and `ping`, parsed by hand: importing argparse costs as much as a whole call.

Anything unusual (help, `--`, unknown or joined options, a unit in a time, a wrong number of operands) is refused here
and left to argparse, so there is one behaviour. Runs in the client's process.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_PLAIN_DIGITS = frozenset("0123456789.")


class Arguments:
    """The arguments of the three commands, as attributes with the names of argparse's namespace."""

    __slots__ = ("autostart", "command", "data", "path", "timeout", "verbose", "worker")

    def __init__(self, command: str, path: str) -> None:
        self.command = command
        self.path = path
        self.data: str | None = None
        self.timeout: float | None = None
        self.autostart: str | None = None
        self.worker = False
        self.verbose = False


def parse(words: Sequence[str]) -> Arguments | None:
    """Return the arguments of a plain `call`, `is-active` or `ping`, or None for any other command line."""
    if not words or words[0] not in ("call", "is-active", "ping"):
        return None
    command, operands, options = words[0], [], {}
    rest = iter(words[1:])
    for word in rest:
        if not word.startswith("-"):
            operands.append(word)
        elif word == "--worker" and command == "ping":
            options[word] = ""
        else:
            value = next(rest, "-")
            if word not in ("-t", "--timeout", "--autostart") or value.startswith("-"):
                return None
            options["--timeout" if word == "-t" else word] = value
    return _checked(command, operands, options)


def _checked(command: str, operands: list[str], options: dict[str, str]) -> Arguments | None:
    """Return the arguments if the command takes these operands and options."""
    taken = {"call": {"--timeout", "--autostart"}, "ping": {"--timeout", "--worker"}, "is-active": set()}[command]
    timeout = options.get("--timeout")
    if not 1 <= len(operands) <= (2 if command == "call" else 1) or not taken.issuperset(options):
        return None
    if timeout is not None and not _is_plain_number(timeout):
        return None
    if ":" in operands[0] and operands[0][0] not in "/." and operands[0][1:2] != ":":
        return None  # a network address or a URL, perhaps; a drive of Windows is neither
    arguments = Arguments(command, operands[0])
    arguments.data = operands[1] if len(operands) == 2 else None
    arguments.timeout = None if timeout is None else float(timeout)
    arguments.autostart = options.get("--autostart")
    arguments.worker = "--worker" in options
    return arguments


def _is_plain_number(text: str) -> bool:
    """Whether text is seconds without a unit, above 0: float() and the parser of times agree on these."""
    return text[:1].isdigit() and _PLAIN_DIGITS.issuperset(text) and text.count(".") < 2 and float(text) > 0


def run(arguments: Arguments) -> int:
    """Run the command; returns the exit code."""
    # By name: a static import of all three would cost a call the modules of the others.
    name = arguments.command.replace("-", "_")
    module = __import__(f"{__package__}.{name}", fromlist=("run",))
    code: int = module.run(arguments)
    return code
