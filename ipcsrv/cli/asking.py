"""`call` and `is-active`: one question to a server, from a process that lives as long as the question.

Standard input goes to the server and the response to standard output as they come; neither is ever held whole. The
functions take argparse's namespace or `_simple.Asked` alike, and import nothing that a plain call does not need.
"""

from __future__ import annotations

import os
from errno import EINVAL

from ..client import sync as client
from ..errors import CallTimeout, IpcError, NotListening, Progress
from ..platform import client as platform

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from ..deadline import Deadline
    from ._simple import Asked

_CHUNK = 1 << 16  # bytes a read: what a pipe holds on Linux
_STDIN, _STDOUT = 0, 1


def call_arguments(parser: argparse.ArgumentParser) -> None:
    """What `call` takes; `_simple` must take the same."""
    from ._parser import add_path, add_timeout

    add_path(parser)
    parser.add_argument("data", metavar="DATA", nargs="?", help="the request (default, and for -: standard input)")
    add_timeout(parser, "give up after this time, from connecting to the response's end (default: wait for ever)")
    parser.add_argument(
        "--autostart", metavar="MODULE:HANDLER", help="start a server in the background first, if none listens"
    )


def is_active_arguments(parser: argparse.ArgumentParser) -> None:
    """What `is-active` takes; `_simple` must take the same."""
    from ._parser import add_path

    add_path(parser)


def call(asked: Asked | argparse.Namespace) -> int:
    """Send the request and print the response; returns the exit code, and raises what goes wrong."""
    deadline = client.deadline_of(asked.timeout)
    with _connection(asked, deadline) as connection:
        if asked.data is None or asked.data == "-":
            request: bytes | Iterator[bytes] = _standard_input(asked.path, deadline)
        else:
            request = os.fsencode(asked.data)
        for piece in connection.stream(request, deadline):
            _print(piece)
    return 0


def is_active(asked: Asked | argparse.Namespace) -> int:
    """Exit 0 if a server listens; otherwise say what is there instead."""
    try:
        platform.attempt(asked.path).close()
    except IpcError:
        raise
    except OSError:  # a full queue, or worse: a probe takes its time over it, and loads what it needs
        state = client.active_state(asked.path).name
        if state == "NOT_LISTENING":
            raise NotListening(asked.path) from None
        if state != "LISTENING":
            raise
    return 0


def _connection(asked: Asked | argparse.Namespace, deadline: Deadline) -> client.Connection:
    """A connection to the server, which is started first if that was asked for and none listens."""
    if asked.autostart is None:
        return client.connect(asked.path, deadline)
    try:
        return client.connect(asked.path, deadline, wait_if_busy=False)
    except NotListening:
        from ..server import server

        server.ensure_running(asked.path, asked.autostart)
        return client.connect(asked.path, deadline)


def _standard_input(path: str, deadline: Deadline) -> Iterator[bytes]:
    """Standard input piece by piece; raises CallTimeout when a piece does not come within the deadline."""
    progress = Progress.NOTHING_SENT
    while True:
        try:
            piece = platform.read_within(_STDIN, _CHUNK, deadline)
        except TimeoutError:
            raise CallTimeout(path, deadline.timeout, progress) from None
        if not piece:
            return
        yield piece
        progress = Progress.REQUEST_SENT


def _print(piece: bytes | memoryview) -> None:
    rest = memoryview(piece)
    while rest:
        try:
            rest = rest[os.write(_STDOUT, rest) :]
        except OSError as error:
            if error.errno != EINVAL:
                raise
            raise BrokenPipeError from None  # which Windows' C library does not tell apart
