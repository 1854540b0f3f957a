"""`scale`: change the number of workers of a running server."""

from __future__ import annotations

import argparse

from ..config.settings import BY_NAME
from . import _text
from ._parser import add_path, whole_number
from .messages import OK


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `scale` takes."""
    add_path(parser)
    most = int(BY_NAME["workers"].maximum or 0)
    parser.add_argument("workers", metavar="N", type=whole_number(1, most), help="the number of workers")
    parser.epilog = ("The change lasts until the server stops; a restart uses the setting `workers` again. The largest "
                     "number is twice that setting, and at least 32.")


def run(arguments: argparse.Namespace) -> int:
    """Scale the server."""
    from ..server import server

    server.scale(arguments.path, arguments.workers)
    print(f"{arguments.path}: scaled to {_text.plural(arguments.workers, 'worker')}")
    return OK
