"""argparse for one command at a time, and for the settings that several of them take.

Only the command that was named is imported and its parser built. Operands and options may stand in any order, an
abbreviated option is refused rather than guessed, and an error is raised (`UsageError`), so that `main` prints it in
the one form that errors have.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from ..config import values as _values
from ..config.settings import TABLE, Setting
from ._commands import Command, commands, general_help
from .messages import OK, UsageError

_HELP_WIDTH = 100  # beyond it lines of help are hard to read


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UsageError with the command's name and the nearest option."""

    def error(self, message: str) -> NoReturn:
        advice = self._nearest_option(message)
        if message.startswith(_UNRECOGNIZED):  # with its value or without, as the version of argparse has it
            message = f"unknown {message.removeprefix(_UNRECOGNIZED).split()[0]}"
        message = message.replace("argument ", "", 1)
        raise UsageError(f"{message}: {advice}see `{self.prog} --help`")

    def _nearest_option(self, message: str) -> str:
        import difflib

        unknown = next((word for word in message.split() if word.startswith("--")), None)
        if unknown is None or "unrecognized" not in message:
            return ""
        matches = difflib.get_close_matches(unknown.partition("=")[0], self._option_string_actions, 1)
        return f"did you mean `{matches[0]}`? or " if matches else ""

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse with operands and options mixed, but where the rest of the line is another program's."""
        if any(action.nargs == argparse.REMAINDER for action in self._actions):
            return self.parse_args(arguments)
        return self.parse_intermixed_args(arguments)


_UNRECOGNIZED = "unrecognized arguments: "


class _HelpFormatter(argparse.HelpFormatter):
    """argparse's help, a line wider, with a gap after the options."""

    def __init__(self, prog: str) -> None:
        import shutil

        width = min(shutil.get_terminal_size().columns, _HELP_WIDTH) - 2
        super().__init__(prog, max_help_position=28, width=width)


def run(arguments: Sequence[str]) -> int:
    """Do what the command line says; returns the exit code, and raises what goes wrong."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        return _show(general_help(), OK if arguments else None)
    if arguments[0] == "--version":
        from .._version import __version__

        return _show(f"ipcsrv {__version__}\n", OK)
    command = _named(arguments[0])
    try:
        return _flushed(command.runner()(build(command).parse(arguments[1:])))
    except SystemExit as stop:  # argparse leaves this way after --help
        return _flushed(stop.code if isinstance(stop.code, int) else OK)


def build(command: Command) -> Parser:
    """The parser of one command."""
    parser = Parser(
        prog=f"ipcsrv {command.name}",
        usage=f"%(prog)s {command.operands} [OPTIONS]".replace("  ", " "),
        description=command.summary[0].upper() + command.summary[1:] + ".",
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    command.adder()(parser)
    parser.set_defaults(command=command.name)
    return parser


def _named(name: str) -> Command:
    offered = commands()
    if name in offered:
        return offered[name]
    import difflib

    matches = difflib.get_close_matches(name, offered, 1)
    advice = f"did you mean `{matches[0]}`?" if matches else "see `ipcsrv --help`"
    raise UsageError(f"{name}: there is no such command: {advice}")


def _show(text: str, code: int | None) -> int:
    """Print help that was asked for; without a command at all it is an error, in one line."""
    if code is None:
        raise UsageError("no command given: see `ipcsrv --help`")
    sys.stdout.write(text)
    return _flushed(code)


def _flushed(code: int) -> int:
    """Let a reader that has gone be noticed here, not when the interpreter ends."""
    sys.stdout.flush()
    return code


def argument_type(parse: Any) -> Any:
    """`parse` as a type for argparse, which then says what is wrong with the value in the parser's own words."""

    def parsed(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} {error}") from None

    return parsed


def positive_seconds(text: str) -> float:
    """A time above 0, for --timeout."""
    seconds = _values.parse_seconds(text)
    if seconds <= 0:
        raise ValueError("is not above 0")
    return seconds


def add_path(parser: argparse.ArgumentParser, nargs: str | None = None) -> None:
    """The operand that every command about a server has."""
    help = "the server's socket (on Windows: the path its pipe is named for)"
    parser.add_argument("path", metavar="PATH", nargs=nargs, help=help)


def add_timeout(parser: argparse.ArgumentParser, help: str) -> None:
    parser.add_argument("--timeout", metavar="TIME", type=argument_type(positive_seconds), help=help)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """A flag for each setting of the table, grouped; what is not given leaves no attribute."""
    groups: dict[str, Any] = {}
    for setting in TABLE:
        group = groups.get(setting.group) or groups.setdefault(setting.group, parser.add_argument_group(setting.group))
        group.add_argument(setting.flag, **_flag(setting))


def _flag(setting: Setting) -> dict[str, Any]:
    common = {"dest": setting.name, "default": argparse.SUPPRESS, "help": _help(setting).replace("%", "%%")}
    if setting.kind is _values.SWITCH:
        return common | {"action": argparse.BooleanOptionalAction}
    if setting.kind is _values.ALLOW:
        return common | {"action": "append", "metavar": setting.metavar}
    return common | {"metavar": setting.metavar}


def _help(setting: Setting) -> str:
    """The setting's help with its default and unit."""
    if setting.default is None:
        default = f"default: {setting.nothing}"
    else:
        default = f"default: {setting.show(setting.default) or 'nobody else'}"
    return f"{setting.help} ({default})"
