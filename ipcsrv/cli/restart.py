"""`restart`: stop a background server and start it again with the settings that it had."""

from __future__ import annotations

import argparse

from ._parser import add_path, add_timeout
from ._serving import started_line
from .messages import OK


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `restart` takes."""
    add_path(parser)
    add_timeout(parser, "give up if the new server does not listen within this time")


def run(arguments: argparse.Namespace) -> int:
    """Restart the server and print its pid and log."""
    from ..server import server

    print(started_line(arguments.path, server.restart(arguments.path, arguments.timeout)))
    return OK
