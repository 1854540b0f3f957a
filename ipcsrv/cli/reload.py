"""`reload`: replace all workers by new ones with new code, while the old ones finish their requests."""

from __future__ import annotations

import argparse

from ..errors import ServerError
from ._parser import add_path, add_timeout
from .messages import OK


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `reload` takes."""
    add_path(parser)
    add_timeout(parser, "give up waiting after this time; the reload itself goes on (default: wait)")


def run(arguments: argparse.Namespace) -> int:
    """Reload the server; returns once the new workers serve."""
    from ..server import server

    try:
        reply = server.reload(arguments.path, arguments.timeout)
    except ServerError as error:
        reason = f"not reloaded, the old workers still serve: {error.message}"
        raise ServerError(error.code, reason, error.path) from None
    print(f"{arguments.path}: reloaded, generation {reply.get('generation', '?')} serves")
    return OK
