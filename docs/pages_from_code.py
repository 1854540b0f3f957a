"""The parts of the pages that come from tables in the code: settings, exit codes, commands, errors.

A page marks such a part with two comments:

    <!-- from code: settings -->
    <!-- end -->

As a Sphinx extension this module fills each part while the site is built, so a page cannot be out of date. As a
program, `python docs/pages_from_code.py`, it also writes those parts into the pages that are read without a build
(docs/settings.md and docs/exit-codes.md); a test fails while these differ from the code.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
if __name__ == "__main__":
    sys.path.insert(0, str(DOCS.parent))

from ipcsrv import errors  # noqa: E402  (the path is set above)
from ipcsrv.cli import messages  # noqa: E402
from ipcsrv.cli._commands import commands as command_table  # noqa: E402
from ipcsrv.cli._parser import SHORT, build  # noqa: E402
from ipcsrv.config.settings import TABLE, Setting  # noqa: E402

WRITTEN = ("settings.md", "exit-codes.md")  # pages whose parts are kept in the repository too
_PART = re.compile(r"(<!-- from code: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

_MEANINGS = {
    messages.OK: "success",
    messages.FAILED: "the server answered with a failure (`ERR ...`), a worker died, or the server itself failed",
    messages.USAGE: "wrong usage, an invalid setting, or a handler that cannot be imported",
    messages.NO_SERVER: "no server listens at the path, or the connection was lost",
    messages.TIMED_OUT: "timed out",
    messages.DENIED: "the server denied this user, or the client does not trust the server's user",
    messages.IN_USE: "another server has the path",
    messages.INVALID_PATH: "the path cannot be a server's socket",
    messages.SOCKET_STOLEN: "the socket of the running server was removed or replaced",
    messages.INTERRUPTED: "interrupted by Ctrl-C",
    messages.BROKEN_PIPE: "the reader of standard output closed it",
}


def settings() -> Iterator[str]:
    """Every setting with its default, its range and its names, by group."""
    for group, members in groupby(TABLE, key=lambda setting: setting.group):
        yield f"## {group}\n\n"
        for setting in members:
            yield f"### `{setting.name}`\n\n{setting.help}\n\n"
            yield f"- Default: {default_text(setting)}\n"
            yield f"- Accepts: {accepted_text(setting)}\n"
            yield f"- Also: `{setting.flag}`, `{setting.variable}`\n\n"


def default_text(setting: Setting) -> str:
    """The default, and for None what it means."""
    if setting.default is None:
        return f"none ({setting.nothing})"
    return f"`{setting.show(setting.default)}`" if setting.default != () else "no other user"


def accepted_text(setting: Setting) -> str:
    """The values that a setting can have, with unit and range."""
    if setting.choices:
        return ", ".join(f"`{choice}`" for choice in setting.choices)
    bounds = [
        f"{word} {setting.show(bound)}"
        for word, bound in (("at least", setting.minimum), ("at most", setting.maximum))
        if bound is not None
    ]
    kind = f"`{setting.kind.metavar}`" + (f" in {setting.kind.unit}" if setting.kind.unit else "")
    return ", ".join([kind, *bounds, *(["or `none`"] if setting.nothing else [])])


def exit_codes() -> Iterator[str]:
    """Every exit code with its meaning and the errors of the library that it stands for."""
    yield "| code | meaning | error in the library |\n|---|---|---|\n"
    kinds = [kind for kind in error_types() if kind is not errors.IpcError]
    for code, meaning in _MEANINGS.items():
        named = ", ".join(f"`{kind.__name__}`" for kind in kinds if kind.exit_code == code)
        yield f"| {code} | {meaning} | {named} |\n"


def exit_status() -> Iterator[str]:
    """The exit codes as a list, for the manual page."""
    for code, meaning in _MEANINGS.items():
        yield f"{code}\n: {meaning[0].upper()}{meaning[1:]}.\n\n"


def error_types() -> list[type[errors.IpcError]]:
    """Every error class, in the order of the source."""
    return [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.IpcError)]


def commands() -> Iterator[str]:
    """Every command with its usage, operands and options."""
    for command in command_table().values():
        parser = build(command)
        yield f"### ipcsrv {command.name}\n\n"
        yield f"```text\nipcsrv {command.name} {command.operands}".rstrip() + " [OPTIONS]\n```\n\n"
        yield f"{parser.description}\n\n"
        yield from _arguments(parser)
        if parser.epilog:
            indented = any(line.startswith(" ") for line in parser.epilog.splitlines())
            yield f"```text\n{parser.epilog}\n```\n\n" if indented else f"{_sentence(parser.epilog)}\n\n"


def _arguments(parser: argparse.ArgumentParser) -> Iterator[str]:
    """A definition list of the arguments; where all settings are options, they are left to their own section."""
    settings = {setting.name for setting in TABLE}
    takes_settings = settings <= {action.dest for action in parser._actions}
    described = {"help", "path", *(settings if takes_settings else ())}
    for action in parser._actions:
        if action.dest not in described and action.help is not argparse.SUPPRESS:
            yield f"{_invocation(action)}\n: {_sentence(action.help)}\n\n"
    if takes_settings:
        yield "This command also takes every [setting](#settings-as-options) as an option.\n\n"


def _invocation(action: argparse.Action) -> str:
    value = "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
    if not action.option_strings:
        return f"`{value.strip()}`"
    return ", ".join(f"`{option}{value}`" for option in action.option_strings)


def _sentence(help: Any) -> str:
    text = str(help or "").replace("%%", "%").replace("<", r"\<")
    return text[:1].upper() + text[1:]


def setting_options() -> Iterator[str]:
    """The settings as options of a command, in short, for the manual page."""
    for setting in TABLE:
        switch = setting.kind.metavar == "on|off"
        option = f"`{setting.flag}`, `--no-{setting.flag[2:]}`" if switch else f"`{setting.flag} {setting.metavar}`"
        if setting.name in SHORT:
            option = f"`{SHORT[setting.name]} {setting.metavar}`, {option}"
        default = default_text(setting).replace("none (", "(")
        yield f"{option}\n: {setting.help} Default: {default.strip('()')}. Variable: `{setting.variable}`.\n\n"


def error_tree() -> Iterator[str]:
    """The tree of errors with their exit codes, as text."""
    yield "```text\n"
    yield from _branch(errors.IpcError, "", "")
    yield "```\n"


def _branch(kind: type[errors.IpcError], lead: str, indent: str) -> Iterator[str]:
    others = [base.__name__ for base in kind.__bases__ if not issubclass(base, errors.IpcError)]
    also = f"   (also a {others[0]})" if others and kind is not errors.IpcError else ""
    yield f"{lead + kind.__name__:<36}{kind.exit_code}{also}\n"
    children = [child for child in error_types() if child.__bases__[0] is kind]
    for child in children:
        last = child is children[-1]
        yield from _branch(child, f"{indent}{'└─' if last else '├─'} ", indent + ("   " if last else "│  "))


def error_entries() -> Iterator[str]:
    """An entry of the library reference for every error below the root of the tree."""
    yield "```{eval-rst}\n"
    for kind in error_types():
        if kind is not errors.IpcError:
            yield f".. autoexception:: ipcsrv.{kind.__name__}\n"
    yield "```\n"


PARTS: dict[str, Callable[[], Iterator[str]]] = {
    "settings": settings,
    "exit-codes": exit_codes,
    "exit-status": exit_status,
    "commands": commands,
    "setting-options": setting_options,
    "error-tree": error_tree,
    "error-entries": error_entries,
}


def filled(text: str) -> str:
    """The text of a page with its parts from the code put in."""
    return _PART.sub(lambda match: f"{match[1]}\n{''.join(PARTS[match[2]]()).strip()}\n\n{match[3]}", text)


def setup(app: Any) -> dict[str, bool]:
    """Sphinx: fill the parts of each page as it is read."""

    def read(_: Any, __: str, source: list[str]) -> None:
        source[0] = filled(source[0])

    app.connect("source-read", read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":
    for name in WRITTEN:
        path = DOCS / name
        path.write_text(filled(path.read_text("utf-8")), "utf-8")
