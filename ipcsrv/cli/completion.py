"""`completion`: scripts for bash, zsh and fish, made from the tables of commands and settings.

A script contains every command and flag, so that a completion starts no Python.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import NamedTuple

from ._commands import commands
from ._parser import build
from .messages import OK

_SET_UP = """\
To set it up, write

  eval "$(ipcsrv completion bash)"    in ~/.bashrc
  eval "$(ipcsrv completion zsh)"     in ~/.zshrc, after compinit
  ipcsrv completion fish | source     in ~/.config/fish/config.fish"""


class _Flag(NamedTuple):
    """One option of a command; `choices` are its values: None if it takes any value, () if it takes none."""

    names: tuple[str, ...]
    help: str
    choices: tuple[str, ...] | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `completion` takes."""
    parser.add_argument("shell", metavar="SHELL", choices=("bash", "zsh", "fish"), help="the shell: bash, zsh or fish")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _SET_UP


def run(arguments: argparse.Namespace) -> int:
    """Print the script."""
    writer = {"bash": _bash, "zsh": _zsh, "fish": _fish}[arguments.shell]
    sys.stdout.write("\n".join(writer()) + "\n")
    return OK


def _flags() -> dict[str, list[_Flag]]:
    """Return the options of every command."""
    return {name: list(_flags_of(build(command))) for name, command in commands().items()}


def _flags_of(parser: argparse.ArgumentParser) -> Iterator[_Flag]:
    for action in parser._actions:
        if action.option_strings:
            help = (action.help or "").replace("%%", "%").split(". ")[0].split(" (default")[0].rstrip(".")
            yield _Flag(tuple(action.option_strings), help, _values(action))


def _values(action: argparse.Action) -> tuple[str, ...] | None:
    if action.nargs == 0:
        return ()
    if isinstance(action.metavar, str) and "|" in action.metavar:
        return tuple(action.metavar.split("|"))
    return None


def _bash() -> Iterator[str]:
    yield "_ipcsrv() {"
    yield '    local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" flags="" values=""'
    yield "    COMPREPLY=()"
    yield '    if [ "$COMP_CWORD" -eq 1 ]; then'
    yield f'        COMPREPLY=($(compgen -W "{" ".join(commands())} --help --version" -- "$word")); return'
    yield "    fi"
    yield '    case "${COMP_WORDS[1]}" in'
    for name, flags in _flags().items():
        yield f'        {name}) flags="{" ".join(option for flag in flags for option in flag.names)}" ;;'
    yield "    esac"
    yield '    case "$before" in'
    for names, choices in _chosen().items():
        yield f'        {"|".join(names)}) values="{" ".join(choices)}" ;;'
    yield '        completion) values="bash zsh fish" ;;'
    yield "    esac"
    yield '    if [ -n "$values" ]; then COMPREPLY=($(compgen -W "$values" -- "$word"))'
    yield '    elif [ "${word#-}" != "$word" ]; then COMPREPLY=($(compgen -W "$flags" -- "$word")); fi'
    yield "}"
    yield "complete -o default -F _ipcsrv ipcsrv"


def _chosen() -> dict[tuple[str, ...], tuple[str, ...]]:
    """Return the options that take one of a few values."""
    return {flag.names: flag.choices for flags in _flags().values() for flag in flags if flag.choices}


def _zsh() -> Iterator[str]:
    yield "#compdef ipcsrv"
    yield "_ipcsrv() {"
    yield "    local -a offered"
    yield "    if (( CURRENT == 2 )); then"
    yield "        offered=(" + " ".join(_quoted(f"{c.name}:{c.summary}") for c in commands().values()) + ")"
    yield "        _describe command offered; return"
    yield "    fi"
    yield '    case "${words[2]}" in'
    for name, flags in _flags().items():
        specs = [_zsh_spec(flag, option) for flag in flags for option in flag.names]
        operands = [_quoted("*:shell:(bash zsh fish)" if name == "completion" else "*:file:_files")]
        yield f"        {name}) shift words; (( CURRENT-- )); _arguments {' '.join(specs + operands)} ;;"
    yield "    esac"
    yield "}"
    yield "compdef _ipcsrv ipcsrv"


def _zsh_spec(flag: _Flag, option: str) -> str:
    help = flag.help.replace("[", "(").replace("]", ")").replace(":", "\\:")
    value = ":value:_files" if flag.choices is None else f":value:({' '.join(flag.choices)})" if flag.choices else ""
    return _quoted(f"{option}[{help}]{value}")


def _fish() -> Iterator[str]:
    first = "-n __fish_use_subcommand"
    yield f"complete -c ipcsrv -f {first} -l version -d 'print the version'"
    for command in commands().values():
        yield f"complete -c ipcsrv -f {first} -a {command.name} -d {_quoted(command.summary)}"
    yield "complete -c ipcsrv -f -n '__fish_seen_subcommand_from completion' -a 'bash zsh fish'"
    for name, flags in _flags().items():
        for flag in flags:
            yield f"complete -c ipcsrv -n '__fish_seen_subcommand_from {name}' {_fish_flag(flag)}"


def _fish_flag(flag: _Flag) -> str:
    names = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in flag.names)
    values = " -r" if flag.choices is None else f" -x -a {_quoted(' '.join(flag.choices))}" if flag.choices else ""
    return f"{names}{values} -d {_quoted(flag.help)}"


def _quoted(text: str) -> str:
    """Return text as one word for any of the three shells."""
    return "'" + text.replace("'", "`") + "'"
