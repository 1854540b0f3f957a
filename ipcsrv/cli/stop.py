"""`stop`: stop a server gracefully, at once, or gracefully for a while and then at once."""

from __future__ import annotations

import argparse

from ..errors import CallTimeout
from ._parser import add_path, add_timeout
from .messages import OK, complain


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `stop` takes."""
    add_path(parser)
    parser.add_argument(
        "--now", action="store_true", help="do not wait for requests in progress; with --timeout, wait that long first"
    )
    add_timeout(parser, "give up after this time (default: the server's drain_timeout and a little more)")


def run(arguments: argparse.Namespace) -> int:
    """Stop the server; returns after all its processes have exited."""
    from ..server import server

    path, timeout = arguments.path, arguments.timeout
    if not arguments.now or timeout is not None:
        try:
            server.stop(path, timeout=timeout, report=_progress)
            return OK
        except CallTimeout:
            if not arguments.now:
                raise
    server.stop(path, now=True, report=_progress)
    return OK


def _progress(text: str) -> None:
    complain(text, "info")
