"""`ipcsrv warm PROGRAM`: run a Python command-line program without its imports (docs/warm.md)."""

from __future__ import annotations

import os

from .messages import UsageError, complain

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `warm` takes."""
    from argparse import REMAINDER

    add = parser.add_argument
    add("program", metavar="PROGRAM", nargs="?", help="a console script, another Python script, or MODULE:MAIN")
    add("arguments", metavar="ARGUMENTS", nargs=REMAINDER, help="for the program, as they stand")
    add("--preload", metavar="MODULE", action="append", help="import this too, now and in later servers; repeatable")
    add("--idle-exit", metavar="TIME", help="a server that is started ends after this time without a run (default: 1h)")
    add("--workers", metavar="N", help="runs at a time that a server that is started has room for (default: 2 to 8)")
    add("--install", metavar="FOLDER", nargs="?", const="", help="write a launcher for PROGRAM into FOLDER")
    add("--list", action="store_true", help="show the servers that run warm")
    add("--stop", action="store_true", help="stop the servers of PROGRAM, or all, and forget what was learned of it")
    add("--restart", action="store_true", help="start a server for PROGRAM, or have it import everything again")


def run(arguments: argparse.Namespace) -> int:
    """Do what `warm` was asked for; returns the exit code, or does not return."""
    from ..warm import command

    chosen = {"idle-exit": arguments.idle_exit, "workers": arguments.workers}
    options = {name: value for name, value in chosen.items() if value is not None}
    name = arguments.program
    for action in ("list", "stop"):
        if getattr(arguments, action):
            return command.manage(action, name, "", options)
    if name is None:
        raise UsageError("PROGRAM is missing", "see `ipcsrv warm --help`")
    if arguments.preload:
        command.manage("preload", name, ",".join(arguments.preload), options)
    if arguments.install is not None:
        return command.manage("install", name, arguments.install, options)
    if arguments.restart:
        return command.manage("restart", name, "", options)
    return command.run_program([name, *arguments.arguments], debug, options)


def run_program(words: list[str]) -> int:
    """Run a program with its arguments: the form of the command that needs no parser."""
    from ..warm import command

    return command.run_program(words, debug)


def debug(text: str) -> None:
    """Say how the program is run, if IPCSRV_WARM_DEBUG=1."""
    if os.environ.get("IPCSRV_WARM_DEBUG") == "1":
        complain(f"warm: {text}")
