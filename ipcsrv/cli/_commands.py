"""The table of commands: what each is called, what it says of itself, and the module that does it.

From it come the general help, the dispatch, and the completion scripts. A command whose module is not there (a
package cut down for embedding) is not offered.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import argparse


class Command(NamedTuple):
    """One command: `add_arguments` and `run` are names in `module`, which is imported when it is used."""

    name: str
    group: str
    operands: str
    summary: str
    module: str
    add_arguments: str = "add_arguments"
    run: str = "run"

    def adder(self) -> Callable[[argparse.ArgumentParser], None]:
        """The function that declares the command's arguments."""
        found: Callable[[argparse.ArgumentParser], None] = getattr(self._load(), self.add_arguments)
        return found

    def runner(self) -> Callable[[argparse.Namespace], int]:
        """The function that does the command and returns its exit code."""
        found: Callable[[argparse.Namespace], int] = getattr(self._load(), self.run)
        return found

    def _load(self) -> object:
        return import_module(f"{__package__}.{self.module}")


def _in_module(module: str, group: str, *rows: tuple[str, str, str]) -> list[Command]:
    """Commands that share a module, in which `stop` is the functions `stop_arguments` and `stop`."""
    return [
        Command(name, group, operands, summary, module, f"{function}_arguments", function)
        for name, operands, summary in rows
        for function in [name.replace("-", "_")]
    ]


_ALL = (
    *_in_module(
        "serving",
        "Serve",
        ("run", "PATH MODULE:HANDLER", "serve in the foreground, until Ctrl-C"),
        ("start", "PATH MODULE:HANDLER", "serve in the background; waits till it listens"),
        ("stop", "PATH", "stop the server; returns once nothing is left of it"),
        ("restart", "PATH", "stop it and start it again with the same settings"),
        ("reload", "PATH", "new workers with new code; not one request fails"),
    ),
    *_in_module(
        "asking",
        "Ask",
        ("call", "PATH [DATA]", "send DATA or standard input, print the response"),
        ("is-active", "PATH", "exit 0 if a server listens, 3 if none does"),
    ),
    Command("warm", "Ask", "PATH MODULE:MAIN", "run a Python command-line program warm", "warm"),
    Command("bench", "Ask", "PATH [DATA]", "measure load and latency", "bench"),
    *_in_module("showing", "Look", ("status", "PATH", "what the server does, even if every worker is busy")),
    Command("top", "Look", "PATH", "the same as a live view", "top"),
    Command("doctor", "Look", "PATH", "what is wrong with this path, if anything", "doctor"),
    Command("demo", "More", "", "a real job, start to end, on this machine's files", "demo"),
    Command("completion", "More", "SHELL", "print a completion script for bash, zsh or fish", "completion"),
)


def commands() -> dict[str, Command]:
    """The commands that are there, by name."""
    return {command.name: command for command in _ALL if find_spec(f"{__package__}.{command.module}")}


def general_help() -> str:
    """What `ipcsrv --help` prints: every command in a line, by group."""
    lines = ["usage: ipcsrv COMMAND ...", "", "A local IPC server: any callable from bytes to bytes, in a pool of"]
    lines += ["supervised processes, behind a Unix socket or a named pipe.", ""]
    offered = commands().values()
    width = max(len(f"{command.name} {command.operands}") for command in offered)
    for group in dict.fromkeys(command.group for command in offered):
        lines.append(f"{group}:")
        lines += [
            f"  {f'{command.name} {command.operands}':{width}}  {command.summary}"
            for command in offered
            if command.group == group
        ]
        lines.append("")
    lines += ["`ipcsrv COMMAND --help` says more; `ipcsrv --version` prints the version.", ""]
    lines += ["Exit codes: 0 done, 1 the server answered with a failure, 2 usage or handler not"]
    lines += ["importable, 3 no server, 4 timed out, 5 denied or not trusted, 6 address in use,"]
    lines += ["7 invalid path, 8 the server's socket was taken away from it."]
    return "\n".join(lines) + "\n"
