"""The table of commands: their names, operands and summaries; each command is the module of the same name.

The general help, the dispatch and the completion scripts are made from it. A command whose module is not installed (a
package cut down for embedding) is left out.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

if TYPE_CHECKING:
    import argparse


class CommandModule(Protocol):
    """What the module of a command has."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's operands and options."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Run the command and return its exit code."""


class Command(NamedTuple):
    """One command of the table."""

    name: str
    group: str
    operands: str
    summary: str

    @property
    def module(self) -> str:
        """The full name of its module."""
        return f"{__package__}.{self.name.replace('-', '_')}"

    def load(self) -> CommandModule:
        """Import its module."""
        return cast(CommandModule, import_module(self.module))

    def is_installed(self) -> bool:
        """Whether its module is installed."""
        return find_spec(self.module) is not None


_TABLE = (
    Command("run", "Serve", "[PATH MODULE:HANDLER]", "serve in the foreground until Ctrl-C"),
    Command("start", "Serve", "[PATH MODULE:HANDLER]", "serve in the background; returns once ready"),
    Command("stop", "Serve", "PATH", "stop the server; returns after all processes exit"),
    Command("restart", "Serve", "PATH", "stop, then start again with the same settings"),
    Command("reload", "Serve", "PATH", "zero-downtime code reload: replace all workers"),
    Command("scale", "Serve", "PATH N", "change the number of workers"),
    Command("call", "Call", "PATH [DATA]", "send a request, print the response"),
    Command("warm", "Call", "PROGRAM [ARGUMENTS]", "run a Python command-line program warm"),
    Command("ping", "Call", "PATH", "check that the server answers, for health checks"),
    Command("is-active", "Call", "PATH", "exit 0 if a server listens, 3 if none does"),
    Command("bench", "Call", "PATH [DATA]", "measure throughput and latency"),
    Command("list", "Inspect", "", "list your running servers"),
    Command("status", "Inspect", "PATH", "show workers, queue, latency and errors"),
    Command("top", "Inspect", "PATH", "live status display"),
    Command("logs", "Inspect", "PATH", "show the server's log"),
    Command("doctor", "Inspect", "PATH", "diagnose problems with a socket path"),
    Command("demo", "More", "", "run a real job with one worker and with all"),
    Command("completion", "More", "SHELL", "print a completion script for bash, zsh or fish"),
)

_EXIT_CODES = """\
Exit codes: 0 success, 1 the server answered with a failure or failed itself,
2 wrong usage or handler not importable, 3 no server, 4 timed out, 5 denied or
not trusted, 6 address in use, 7 invalid path, 8 the server's socket was removed
or replaced, 130 interrupted.
"""


def commands() -> dict[str, Command]:
    """Return the installed commands by name."""
    return {command.name: command for command in _TABLE if command.is_installed()}


def find(name: str) -> Command | None:
    """Return the command of this name, if it is installed."""
    return next((command for command in _TABLE if command.name == name and command.is_installed()), None)


def general_help() -> str:
    """Return the text of `ipcsrv --help`: one line per command, by group."""
    lines = ["usage: ipcsrv COMMAND ...", ""]
    lines += ["A local IPC server: any function from bytes to bytes, in a pool of worker"]
    lines += ["processes, behind a Unix socket or a named pipe.", ""]
    installed = commands().values()
    width = max(len(f"{command.name} {command.operands}") for command in installed)
    for group in dict.fromkeys(command.group for command in installed):
        lines.append(f"{group}:")
        lines += [
            f"  {f'{command.name} {command.operands}':{width}}  {command.summary}"
            for command in installed
            if command.group == group
        ]
        lines.append("")
    lines += ["`ipcsrv COMMAND --help` shows the options, `ipcsrv --version` the version.", "", _EXIT_CODES]
    return "\n".join(lines)
