"""argparse for one command at a time, and the arguments that several commands take.

Only the module of the named command is imported. Operands and options may stand in any order, an abbreviated option is
refused, and errors are raised (`UsageError`), so that `main` prints them in the one form that errors have.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from ..config import values as _values
from ..config.settings import TABLE, Setting
from . import messages
from ._commands import Command, commands, find, general_help
from .messages import OK, UsageError

_HELP_WIDTH = 100  # columns; longer lines of help are hard to read
_DEFAULT_WIDTH = 80
SHORT = {"workers": "-w"}  # by setting
_VERSION = ("-V", "--version", "version")

# Commands and options of other tools, and what to use here.
_OTHER_COMMANDS = {
    "serve": "run", "server": "run", "up": "start", "daemon": "start", "down": "stop", "kill": "stop", "quit": "stop",
    "log": "logs", "tail": "logs", "ls": "list", "ps": "list", "send": "call", "request": "call", "client": "call",
    "health": "ping", "healthcheck": "ping", "check": "doctor", "stats": "status", "info": "status",
}  # fmt: skip
_PROCESSES = "ipcsrv uses processes: `--workers N`"
_ADDRESS = "the first operand, PATH, is the address"
_OTHER_OPTIONS = {
    **dict.fromkeys(("--threads", "--thread", "--processes", "--concurrency", "--worker-count", "-j"), _PROCESSES),
    **dict.fromkeys(("--bind", "--socket", "--path", "--unix", "--uds", "-b"), _ADDRESS),
    **dict.fromkeys(("--port", "--host", "-p"), f"ipcsrv serves this machine only: {_ADDRESS}"),
    **dict.fromkeys(("--daemon", "--daemonize", "--background", "--detach", "-d"), "use `ipcsrv start`"),
    **dict.fromkeys(("--handler", "--app"), "the second operand, MODULE:HANDLER, is the handler"),
    **dict.fromkeys(("--reload", "--watch"), "`ipcsrv run --reload` watches files, `ipcsrv reload PATH` reloads once"),
    **dict.fromkeys(("--debug",), "use `-v`"),
    **dict.fromkeys(("--log", "--logfile"), "use `--log-file FILE`"),
    **dict.fromkeys(("--force", "-f", "-9"), "`ipcsrv stop --now` does not wait"),
}
# HOST:PORT and URLs; `./localhost:8000` is a path.
_NETWORK_ADDRESS = re.compile(r"(?P<unix>unix:(//)?)(?P<file>.+)|[a-z]+://.*|[\w.-]*:\d+|\[[\da-fA-F:]+\]:\d+")
_RUN_TIMEOUTS = "`--request-timeout` bounds the handler, `--startup-timeout` the start"


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UsageError with what to do next."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError for what argparse reports."""
        if message.startswith(_UNRECOGNIZED):
            raise self._unknown(message.removeprefix(_UNRECOGNIZED).split()[0])
        if message.startswith(_REQUIRED):
            missing = message.removeprefix(_REQUIRED).replace(", ", " and ")
            advice = f"usage: {self._usage()}"
            if missing.startswith("PATH"):
                advice += "; `ipcsrv list` shows your servers"
            raise UsageError(f"{missing} {'are' if ' and ' in missing else 'is'} missing", advice)
        raise UsageError(message.replace("argument ", "", 1), f"see `{self.prog} --help`")

    def _unknown(self, word: str) -> UsageError:
        """Return the error for an option or operand that the command does not take."""
        if word.startswith(f"{_OPERAND}-"):
            return UsageError(f"unexpected operand {word[1:]}", "only operands follow `--`: put options before")
        if not word.startswith("-"):
            return UsageError(f"unexpected operand {word.removeprefix(_OPERAND)}", f"usage: {self._usage()}")
        import difflib

        name = word.partition("=")[0]
        advice = _OTHER_OPTIONS.get(name)
        if name in ("-t", "--timeout") and "--request-timeout" in self._option_string_actions:
            advice = _RUN_TIMEOUTS
        matches = difflib.get_close_matches(name, self._option_string_actions, 1, cutoff=0.7)
        if matches and advice is None:
            advice = f"did you mean `{matches[0]}`?"
        return UsageError(f"unknown option {name}", advice or f"see `{self.prog} --help`")

    def _usage(self) -> str:
        return " ".join(self.format_usage().removeprefix("usage: ").split())

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse with operands and options mixed, except where the rest of the line belongs to another program."""
        if any(action.nargs == argparse.REMAINDER for action in self._actions):
            return self.parse_args(arguments)
        marked = list(arguments)
        if "--" in marked:  # the versions of argparse disagree on operands that begin with a dash: hide the dash
            end = marked.index("--")
            marked[end:] = [f"{_OPERAND}{word}" for word in marked[end + 1 :]]
        return _unmarked(self.parse_intermixed_args(marked))


_UNRECOGNIZED = "unrecognized arguments: "
_REQUIRED = "the following arguments are required: "
_OPERAND = "\0"  # no argument of a process can contain it


def _unmarked(found: argparse.Namespace) -> argparse.Namespace:
    for name, value in vars(found).items():
        if isinstance(value, str):
            setattr(found, name, value.removeprefix(_OPERAND))
    return found


class _HelpFormatter(argparse.HelpFormatter):
    """argparse's help with a wider column for the options."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=min(_columns(), _HELP_WIDTH) - 2)


def _columns() -> int:
    """Return the width of the terminal as shutil does; to import that would take 3 ms."""
    try:
        return int(os.environ.get("COLUMNS") or os.get_terminal_size(1).columns) or _DEFAULT_WIDTH
    except (OSError, ValueError):
        return _DEFAULT_WIDTH


def run(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code, and raises errors."""
    _make_output_safe()
    if not arguments:
        raise UsageError("no command given", "see `ipcsrv --help`")
    if arguments[0] in ("-h", "--help", "help"):
        return _show(_help_of(arguments[1:]))
    if arguments[0] in _VERSION:
        from .._version import __version__

        return _show(f"ipcsrv {__version__}\n")
    command = _named(arguments[0])
    messages.use_json(command.name == "run" and _wants_json(arguments))
    try:
        return _flushed(command.load().run(build(command).parse(arguments[1:])))
    except SystemExit as stop:  # argparse leaves this way after --help
        return _flushed(stop.code if isinstance(stop.code, int) else OK)


def build(command: Command) -> Parser:
    """Return the parser of one command."""
    parser = Parser(
        prog=f"ipcsrv {command.name}",
        usage=f"%(prog)s {command.operands} [OPTIONS]".replace("  ", " "),
        description=command.summary[0].upper() + command.summary[1:] + ".",
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    parser._positionals.title = "operands"
    command.load().add_arguments(parser)
    parser.set_defaults(command=command.name)
    return parser


def _help_of(words: Sequence[str]) -> str:
    """Return the general help, or for `ipcsrv help COMMAND` that of the command."""
    return build(_named(words[0])).format_help() if words else general_help()


def _named(name: str) -> Command:
    command = find(name)
    if command is not None:
        return command
    import difflib

    if os.path.basename(name) != name or ":" in name or name.endswith(".sock"):
        raise UsageError(f"unknown command {name}", "a command comes first: `ipcsrv run PATH MODULE:HANDLER`")
    matches = [_OTHER_COMMANDS[name]] if name in _OTHER_COMMANDS else difflib.get_close_matches(name, commands(), 1)
    what = "option" if name.startswith("-") else "command"
    raise UsageError(f"unknown {what} {name}", f"did you mean `{matches[0]}`?" if matches else "see `ipcsrv --help`")


def _wants_json(arguments: Sequence[str]) -> bool:
    """Whether JSON log lines are asked for, before the arguments are parsed: also for errors in them."""
    text = " ".join(arguments)
    chosen = re.findall(r"--log-format[= ](\w+)", text)
    return (chosen[-1] if chosen else os.environ.get("IPCSRV_LOG_FORMAT")) == "json"


def _make_output_safe() -> None:
    """Escape what the locale's encoding cannot represent (an ASCII locale), instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", None) in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _show(text: str) -> int:
    sys.stdout.write(text)
    return _flushed(OK)


def _flushed(code: int) -> int:
    """Flush standard output, so that a reader that has gone is noticed here and not when the interpreter ends."""
    sys.stdout.flush()
    return code


def argument_type(parse: Any) -> Any:
    """Return `parse` as a type for argparse whose errors keep the words of `parse`."""

    def parsed(text: str) -> Any:
        text = text.removeprefix(_OPERAND)
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} {error}") from None

    return parsed


def positive_seconds(text: str) -> float:
    """Parse a time above 0."""
    seconds = _values.parse_seconds(text)
    if seconds <= 0:
        raise ValueError("is not above 0")
    return seconds


def whole_number(least: int, most: int) -> Any:
    """Return a type for argparse: a whole number within these bounds."""

    def parse(text: str) -> int:
        if not text.isdecimal():
            raise ValueError("is not a whole number")
        if not least <= int(text) <= most:
            raise ValueError(f"is not between {least} and {most}")
        return int(text)

    return argument_type(parse)


def add_path(parser: argparse.ArgumentParser, nargs: str | None = None) -> None:
    """Add the operand of every command about a server."""
    help = "the server's socket (on Windows: the path that its pipe is named after)"
    parser.add_argument("path", metavar="PATH", nargs=nargs, help=help, type=socket_path)


def socket_path(text: str) -> str:
    """Return the operand PATH; raises UsageError for an address of another form, unless a file has that name."""
    path = text.removeprefix(_OPERAND)
    address = _NETWORK_ADDRESS.fullmatch(path)
    if address is None or os.path.lexists(path):
        return text
    if address["file"]:
        raise UsageError(f"{path}: PATH is a path without `{address['unix']}`", f"use {address['file']}")
    advice = "ipcsrv serves this machine only: PATH is a socket's path, such as ./a.sock"
    raise UsageError(f"{path} is a network address", advice)


def add_timeout(parser: argparse.ArgumentParser, help: str) -> None:
    """Add -t/--timeout."""
    parser.add_argument("-t", "--timeout", metavar="TIME", type=argument_type(positive_seconds), help=help)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add an option for each setting of the table, by group; an option that is not given leaves no attribute."""
    groups: dict[str, Any] = {}
    for setting in TABLE:
        group = groups.get(setting.group) or groups.setdefault(setting.group, parser.add_argument_group(setting.group))
        names = [SHORT[setting.name]] if setting.name in SHORT else []
        group.add_argument(*names, setting.flag, **_option(setting))


def _option(setting: Setting) -> dict[str, Any]:
    common = {"dest": setting.name, "default": argparse.SUPPRESS, "help": _help(setting).replace("%", "%%")}
    if setting.kind is _values.SWITCH:
        return common | {"action": argparse.BooleanOptionalAction}
    if setting.kind is _values.ALLOW:
        return common | {"action": "append", "metavar": setting.metavar}
    return common | {"metavar": setting.metavar}


def _help(setting: Setting) -> str:
    """Return the setting's help with its default."""
    if setting.default is None:
        default = f"default: {setting.nothing}"
    else:
        default = f"default: {setting.show(setting.default) or 'no other user'}"
    return f"{setting.help} ({default})"
