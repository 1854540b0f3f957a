"""`call`: one exchange with a server.

The request goes out and the response is printed piece by piece; neither is held in memory as a whole. `run` takes the
arguments of `_light` and of argparse alike, and imports nothing that a plain call does not need.
"""

from __future__ import annotations

import os

from .. import standard_streams
from ..client import sync as client
from ..errors import CallTimeout, Progress
from ..platform import client as platform

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from typing import Any

    from ..deadline import Deadline
    from ._light import Arguments

_CHUNK = 1 << 16  # bytes per read: the size of a pipe on Linux


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `call` takes; `_light` must take the same."""
    from ._parser import add_path, add_timeout

    add_path(parser)
    parser.add_argument(
        "data", metavar="DATA", nargs="?",
        help="the request; @FILE is the contents of a file, - (and no DATA) is standard input")  # fmt: skip
    add_timeout(parser, "give up after this time, from connect to the end of the response (default: wait)")
    parser.add_argument(
        "--autostart", metavar="MODULE:HANDLER", help="start a server in the background first, if none listens"
    )


def run(arguments: Arguments | argparse.Namespace) -> int:
    """Send the request and print the response; returns the exit code, and raises errors."""
    deadline = client.deadline_of(arguments.timeout)
    data = arguments.data
    if data is None or data == "-":
        if standard_streams.INPUT in standard_streams.opened:
            from .messages import UsageError

            raise UsageError("standard input is closed", "give the request as an argument")
        request: bytes | Iterator[bytes] | None = None
    elif data.startswith("@"):
        request = _contents(data[1:])
    else:
        request = os.fsencode(data)
    with _connection(arguments, deadline) as connection:
        if request is None:
            request = _standard_input(connection, deadline)
        last = b"\n"
        try:
            for piece in connection.stream(request, deadline):
                _print(piece)
                last = bytes(piece[-1:]) or last
        finally:
            if last != b"\n" and os.isatty(standard_streams.OUTPUT):
                _print(b"\n")  # or the shell's prompt, or an error, would follow the response on the same line
    return 0


def _connection(arguments: Arguments | argparse.Namespace, deadline: Deadline) -> client.Connection:
    """Return a connection to the server; --autostart starts it if none listens, and reloads it if its code is old."""
    if arguments.autostart is not None:
        from ..server.ensure import ensure_running

        ensure_running(arguments.path, arguments.autostart, timeout=deadline.remaining())
    return client.connect(arguments.path, deadline)


def _contents(name: str) -> Iterator[bytes]:
    """Return the contents of a file piece by piece; it is opened at once, before a server is asked."""
    try:
        file = open(name, "rb", buffering=0)  # noqa: SIM115  (closed by the generator)
    except OSError as error:
        from .messages import UsageError

        raise UsageError(f"@{name}: {error.strerror}", "to send text that begins with @, use standard input") from None

    def pieces() -> Iterator[bytes]:
        with file:
            while piece := file.read(_CHUNK):
                yield piece

    return pieces()


def _standard_input(connection: client.Connection, deadline: Deadline) -> Iterator[Any]:
    """Yield standard input piece by piece, and `ANSWERED` where the server speaks first.

    Raises CallTimeout for a piece that does not come before the deadline.
    """
    progress = Progress.NOTHING_SENT
    while True:
        try:
            piece = platform.read_within(standard_streams.INPUT, _CHUNK, deadline, connection._stream)
        except TimeoutError:
            raise CallTimeout(connection.path, deadline.timeout, progress) from None
        if piece is None:
            from ..client.exchanging import ANSWERED

            yield ANSWERED
            continue
        if not piece:
            return
        yield piece
        progress = Progress.REQUEST_SENT


def _print(piece: bytes | memoryview) -> None:
    platform.write_all(standard_streams.OUTPUT, piece)
