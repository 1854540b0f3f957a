"""`logs`: the end of a server's log, and with -f what is added to it.

The server says where its log is. Where none runs, it is the log of the last background server at the path.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import BinaryIO

from ..errors import IpcError, NotListening
from ._parser import add_path, whole_number
from .messages import OK

_LINES = 20
_POLL = 0.2  # seconds between two checks of a log that is followed
_BLOCK = 1 << 16  # bytes
_TIMEOUT = 2.0  # seconds for the server's answer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `logs` takes."""
    add_path(parser)
    parser.add_argument("-f", "--follow", action="store_true", help="print new lines as they come, until Ctrl-C")
    parser.add_argument("-n", "--lines", metavar="N", type=whole_number(0, 10**9), default=_LINES,
                        help=f"print the last N lines (default: {_LINES})")  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Print the end of the log."""
    name = log_file(arguments.path)
    with open(name, "rb") as file:
        file.seek(start_of_last_lines(file, arguments.lines))
        _copy(file)
        position = file.tell()
    if arguments.follow:
        follow(name, position)
    return OK


def log_file(path: str) -> str:
    """Return the path of the log of the server at `path`; raises NotListening if there is neither."""
    from ..platform import lifecycle
    from ..server import server

    try:
        record = server.status(path, timeout=_TIMEOUT)
    except IpcError:
        found = lifecycle.record(path)
        if found is None:
            return _log_of_last_server(path)
        record = found
    if record["log_file"] is None:
        raise IpcError(f"{path}: the server logs to standard error, not to a file; see its terminal or journal, "
                       "or start it with --log-file", path)  # fmt: skip
    return str(record["log_file"])


def _log_of_last_server(path: str) -> str:
    from ..server import server

    name = server.default_log_file(path)
    if not os.path.exists(name):
        raise NotListening(path, "no server listens, and none has left a log in the default place")
    return name


def start_of_last_lines(file: BinaryIO, lines: int) -> int:
    """Return the offset at which the last `lines` lines of a file begin."""
    end = start = file.seek(0, os.SEEK_END)
    wanted = lines
    while start > 0 and lines > 0:
        size = min(_BLOCK, start)
        file.seek(start - size)
        block = file.read(size)
        if start == end and block.endswith(b"\n"):
            wanted += 1  # the end of the last line is no separator
        found = block.count(b"\n")
        if found >= wanted:
            at = len(block)
            for _ in range(wanted):
                at = block.rindex(b"\n", 0, at)
            return start - size + at + 1
        wanted -= found
        start -= size
    return end if lines == 0 else 0


def follow(name: str, position: int) -> None:
    """Print what is added to a log after `position`, until interrupted; a rotated log is opened again."""
    while True:
        with _opened(name) as file:
            if os.fstat(file.fileno()).st_size >= position:
                file.seek(position)
            while not _was_replaced(name, file):
                if os.fstat(file.fileno()).st_size < file.tell():
                    file.seek(0)  # it was truncated
                _copy(file)
                time.sleep(_POLL)  # regular files have no event that exists on every system
            _copy(file)
        position = 0


def _opened(name: str) -> BinaryIO:
    """Open a log, which may be missing for a moment after it was renamed."""
    while True:
        try:
            return open(name, "rb")
        except FileNotFoundError:
            time.sleep(_POLL)


def _was_replaced(name: str, file: BinaryIO) -> bool:
    try:
        now, before = os.stat(name), os.fstat(file.fileno())
    except OSError:
        return True
    return (now.st_dev, now.st_ino) != (before.st_dev, before.st_ino)


def _copy(file: BinaryIO) -> None:
    """Print the rest of a file."""
    output = sys.stdout.buffer
    while block := file.read(_BLOCK):
        output.write(block)
    output.flush()
