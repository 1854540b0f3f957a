"""`call` and `is-active`: one question to a server, from a process that lives as long as the question.

Standard input goes to the server and the response to standard output as they come; neither is ever held whole. The
functions take argparse's namespace or `_simple.Asked` alike, and import nothing that a plain call does not need.
"""

from __future__ import annotations

import os

from .. import client
from ..errors import NotListening

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from ._simple import Asked

_CHUNK = 1 << 16  # bytes a read: what a pipe holds on Linux
_STDIN, _STDOUT = 0, 1


def call_arguments(parser: argparse.ArgumentParser) -> None:
    from ._parser import add_path, add_timeout

    add_path(parser)
    parser.add_argument("data", metavar="DATA", nargs="?", help="the request (default, and for -: standard input)")
    add_timeout(parser, "give up after this time, from connecting to the response's end (default: wait for ever)")
    parser.add_argument(
        "--autostart", metavar="MODULE:HANDLER", help="start a server in the background first, if none listens"
    )


def is_active_arguments(parser: argparse.ArgumentParser) -> None:
    from ._parser import add_path

    add_path(parser)


def call(asked: Asked | argparse.Namespace) -> int:
    """Send the request and print the response; returns the exit code, and raises what goes wrong."""
    request = _standard_input() if asked.data in (None, "-") else os.fsencode(asked.data)
    with _connection(asked) as connection:
        for piece in connection.stream(request):
            _print(piece)
    return 0


def is_active(asked: Asked | argparse.Namespace) -> int:
    """Exit 0 if a server listens; otherwise say what is there instead."""
    state = client.active_state(asked.path)
    if state.name == "LISTENING":
        return 0
    from . import messages

    return messages.say_state(asked.path, state.name)


def _connection(asked: Asked | argparse.Namespace) -> client.Connection:
    try:
        return client.connect(asked.path, timeout=asked.timeout)
    except NotListening:
        if asked.autostart is None:
            raise
    from .. import server

    server.ensure_running(asked.path, asked.autostart)
    return client.connect(asked.path, timeout=asked.timeout)


def _standard_input() -> Iterator[bytes]:
    while piece := os.read(_STDIN, _CHUNK):
        yield piece


def _print(piece: bytes | memoryview) -> None:
    rest = memoryview(piece)
    while rest:
        rest = rest[os.write(_STDOUT, rest) :]
