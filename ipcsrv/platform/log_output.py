"""Where a process writes its log: one descriptor of its own, to which whole lines go.

Nothing that the application does to `logging`, `sys.stderr` or descriptor 2 changes it. A log that cannot be written
never stops service: nothing here blocks for long or raises. What was lost is counted, and told when writing works
again.

A log file is appended to by every process of a server, each record by one write(2) in append mode, so that lines stay
whole.  Before each record it is checked whether the file was renamed or removed (log rotation); then it is opened again
under the same descriptor number, to which faulthandler writes stacks.
"""

from __future__ import annotations

import contextlib
import os
import select
import stat
import sys
from typing import Protocol

from ..config.values import LOG_STREAMS
from ..errors import StartError
from .log_file import open_log

PATIENCE = 0.2  # seconds to wait, once, for a terminal or pipe that takes nothing


class TextStream(Protocol):
    """What a program has put in the place of standard error."""

    def write(self, text: str, /) -> object: ...
    def flush(self) -> object: ...


class Output:
    """Whole lines to a descriptor, which it owns.

    Args:
        descriptor: where to write; closed by `close`.
        name: the absolute path of a log file; None for a standard stream.
    """

    def __init__(self, descriptor: int, name: str | None = None) -> None:
        self._descriptor = descriptor
        self._name = name
        self.times_reopened = 0
        self.lost = 0  # records since the last one that was written
        self._cut = self._stuck = False
        self._note_identity()

    def fileno(self) -> int:
        """Return the descriptor, which stays the same when the file is opened again."""
        return self._descriptor

    def write(self, text: str) -> None:
        """Write lines, all of `text` or, where that is not possible, none or a part."""
        self.reopen_if_rotated()
        data = (b"\n" if self._cut else b"") + text.encode("utf-8", "backslashreplace")
        rest = memoryview(data)
        try:
            while rest:
                self._wait_until_writable()
                with contextlib.suppress(BlockingIOError):
                    rest = rest[os.write(self._descriptor, rest) :]
        except OSError:  # the disk is full, or the reader of a pipe has gone or does not read
            self.lost += 1
            self._cut = self._cut or len(rest) < len(data)
        else:
            self.lost, self._cut = 0, False

    def _wait_until_writable(self) -> None:
        """Wait for a terminal, pipe or socket to take data; raise `TimeoutError` if it does not in time."""
        if self._is_file or sys.platform == "win32":
            return
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        if not poll.poll(0 if self._stuck else PATIENCE * 1000):
            self._stuck = True
            raise TimeoutError
        self._stuck = False

    def reopen_if_rotated(self) -> None:
        """Open the log file again if its name leads elsewhere by now; go on with the old one if that fails."""
        if self._name is None:
            return
        with contextlib.suppress(OSError):
            if _identity(os.lstat(self._name)) == self._identity:
                return
        try:
            descriptor = open_log(self._name)
        except StartError:  # something else was put in its place, or no descriptor is left
            return
        with contextlib.suppress(OSError):
            for number in (1, 2):  # of a server in the background, whose handlers print into the log
                if _identity(os.fstat(number)) == self._identity:
                    os.dup2(descriptor, number)
        os.dup2(descriptor, self._descriptor, inheritable=False)
        os.close(descriptor)
        self.times_reopened += 1
        self._note_identity()

    def go_on_in(self, name: str) -> None:
        """Use this log file as soon as it can be opened; the standard streams of the process stay as they are."""
        self._name, self._identity = name, (0, 0)

    def _note_identity(self) -> None:
        info = os.fstat(self._descriptor)
        self._identity = _identity(info)
        self._is_file = stat.S_ISREG(info.st_mode)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._descriptor)


def _identity(info: os.stat_result) -> tuple[int, int]:
    return info.st_dev, info.st_ino


class StreamOutput:
    """The same for a text stream that has no descriptor (a program has replaced `sys.stderr`)."""

    times_reopened = lost = 0

    def __init__(self, stream: TextStream) -> None:
        self._stream = stream

    def fileno(self) -> int:
        """Return standard error's descriptor."""
        return 2

    def write(self, text: str) -> None:
        """Write lines."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
            self._stream.flush()

    def reopen_if_rotated(self) -> None:
        """Do nothing: there is no file."""

    def close(self) -> None:
        """Do nothing: the stream is the program's."""


def open_output(log_file: str | None) -> Output | StreamOutput:
    """Open the log.

    Args:
        log_file: as the setting `log_file`.

    Raises:
        StartError: the file cannot be opened, or is nothing that a log can be written to.
    """
    if log_file is not None and log_file not in LOG_STREAMS:
        try:
            name = os.path.abspath(log_file)
        except OSError as error:
            raise StartError(f"the log file {log_file} cannot be opened: the current folder is gone") from error
        return Output(open_log(name), name)
    if log_file is not None:
        return Output(_own_copy(LOG_STREAMS[log_file]))
    try:
        number = sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):
        return StreamOutput(sys.stderr) if hasattr(sys.stderr, "write") else Output(_own_copy(2))
    return Output(_own_copy(number))


def _own_copy(number: int) -> int:
    """Return a descriptor for what `number` leads to; one that does not block where the system can make one.

    O_NONBLOCK belongs to the open file description, which other programs share, so it is never set on a copy: the
    terminal or pipe is opened anew (proc(5), /proc/PID/fd), which fails for sockets and for another user's terminal.
    """
    try:
        mode = os.fstat(number).st_mode
    except OSError:
        return open_log(None)
    if sys.platform == "linux" and (stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)):
        with contextlib.suppress(OSError):
            return os.open(f"/proc/self/fd/{number}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    return os.dup(number)
