"""`restart`: stop a background server and start it again with the settings that it had."""

from __future__ import annotations

import argparse

from ._parser import add_path, add_timeout
from ._serving import started_line
from .messages import OK, UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `restart` takes."""
    add_path(parser)
    add_timeout(parser, "give up if the new server does not listen within this time")


def run(arguments: argparse.Namespace) -> int:
    """Restart the server and print its pid and log."""
    from ..platform import lifecycle
    from ..server import server

    path = arguments.path
    record = lifecycle.record(path)
    if record is not None and record.get("detached") is False:  # older servers do not say
        raise UsageError(f"{path}: the server runs in the foreground (pid {record['pid']}), where only its terminal or "
                         "supervisor can start it again", f"use `ipcsrv reload {path}`, or stop it and run it again")
    print(started_line(path, server.restart(path, arguments.timeout)))
    return OK
