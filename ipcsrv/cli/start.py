"""`start`: serve in the background. This process is forked to be the master, and waits until it listens."""

from __future__ import annotations

import argparse

from ._parser import add_timeout
from ._serving import add_serving_arguments, check, naming_sources, operands, read_program, started_line
from .messages import OK


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `start` takes."""
    add_serving_arguments(parser)
    add_timeout(parser, "give up if the server does not listen within this time (default: startup_timeout + 5s)")


def run(arguments: argparse.Namespace) -> int:
    """Start the server and print its pid and log."""
    program = read_program(arguments)
    path, target = operands(program, "start")
    if arguments.check_config:
        print(check(program, "start"))
        return OK
    from ..server import server

    timeout = program.settings.startup_timeout + 5.0 if arguments.timeout is None else arguments.timeout
    with naming_sources(program):
        record = server.start_daemon(path, target, program.settings, timeout=timeout, may_fork=True)
    print(started_line(path, record, program.file))
    return OK
