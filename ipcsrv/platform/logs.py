"""Logging of a server's processes: `ipcsrv.*` loggers, as text or JSON lines, to standard error or to one file.

Every process of a server appends to the same file, each record by one write(2) to a descriptor in append mode, so that
lines stay whole.  The file is looked at before each record, and when the master says so: where it was renamed or
removed (log rotation), it is opened anew, under the same descriptor number, for that is where faulthandler writes the
stacks.  A symbolic link in its place is refused, for it may be another user's idea.

A program that uses the library and has set up logging itself (handlers on `ipcsrv` or the root logger) keeps its own.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from ..config.settings import Settings
from ..errors import StartError
from .lifecycle import open_log

TEXT = "%(asctime)s.%(msecs)03d %(levelname)-7s [%(process)d] %(message)s"
TIME = "%Y-%m-%d %H:%M:%S"


class Whole:
    """What a logging handler takes for a text stream: each text goes out by one write(2), however long."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        """Where it writes."""
        return self._descriptor

    def write(self, text: str) -> None:
        """Write all of `text`; more than one call is needed only where a disk is full or a pipe is."""
        data = memoryview(text.encode("utf-8", "backslashreplace"))
        while data:
            data = data[os.write(self._descriptor, data) :]

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._descriptor)


class LogFile(logging.FileHandler):
    """A log file shared by processes and safe to rotate; `times_reopened` counts how often it was.

    It does what `logging.handlers.WatchedFileHandler` does, and keeps the descriptor's number.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.times_reopened = 0
        self._note_identity()

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, to the file that has the name now."""
        self.reopenIfNeeded()
        super().emit(record)

    def _note_identity(self) -> None:
        stream: Any = self.stream
        info = os.fstat(stream.fileno())
        self._identity = info.st_dev, info.st_ino

    def _open(self) -> Any:
        return Whole(open_log(self.baseFilename))

    def reopenIfNeeded(self) -> None:
        """Open the file anew where its name leads elsewhere by now; where that fails, go on with the one we have."""
        with contextlib.suppress(OSError):
            info = os.lstat(self.baseFilename)
            if (info.st_dev, info.st_ino) == self._identity:
                return
        stream: Any = self.stream
        try:
            descriptor = open_log(self.baseFilename)
            os.dup2(descriptor, stream.fileno(), inheritable=False)
        except (OSError, StartError):  # a symbolic link was put there, say, or no descriptor is left
            return
        os.close(descriptor)
        self.times_reopened += 1
        self._note_identity()


class JsonLines(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, logger, pid, message, and traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "message": record.getMessage(),
        }
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure(settings: Settings) -> None:
    """Set up the `ipcsrv` logger of this process; raises `StartError` if the log file cannot be opened."""
    logger = logging.getLogger("ipcsrv")
    if _is_set_up(logger) and settings.log_file is None:
        return
    for old in [handler for handler in logger.handlers if getattr(handler, "of_ipcsrv", False)]:
        logger.removeHandler(old)
        old.close()
    handler = _handler(settings)
    handler.of_ipcsrv = True  # type: ignore[attr-defined]
    handler.setFormatter(JsonLines() if settings.log_format == "json" else logging.Formatter(TEXT, TIME))
    logger.addHandler(handler)
    logger.setLevel(settings.log_level.upper())
    logger.propagate = False


def unconfigure() -> None:
    """Take our handler away again, when a server that ran in its caller's process has ended."""
    logger = logging.getLogger("ipcsrv")
    for handler in [handler for handler in logger.handlers if getattr(handler, "of_ipcsrv", False)]:
        logger.removeHandler(handler)
        handler.close()
        logger.propagate = True


def _is_set_up(logger: logging.Logger) -> bool:
    ours = [handler for handler in logger.handlers if getattr(handler, "of_ipcsrv", False)]
    return bool(logging.getLogger().handlers or logger.handlers) and not ours


def _handler(settings: Settings) -> logging.Handler:
    if settings.log_file is None:
        return logging.StreamHandler(_standard_error())
    try:
        return LogFile(settings.log_file)
    except OSError as error:
        reason = f"the log file {settings.log_file} cannot be opened: {error.strerror}"
        raise StartError(reason) from None


def _standard_error() -> Any:
    """Standard error, to which all processes of a server write; or what a program has put in its place."""
    try:
        return Whole(sys.stderr.fileno())
    except (AttributeError, OSError, ValueError):
        return sys.stderr


def log_file() -> LogFile | None:
    """The log file that this process has, if it has one."""
    handlers = logging.getLogger("ipcsrv").handlers
    return next((handler for handler in handlers if isinstance(handler, LogFile)), None)


def sink() -> Callable[[str], None] | None:
    """What writes whole lines into our own log; None where somebody else's logging set-up is in force."""
    handlers = [handler for handler in logging.getLogger("ipcsrv").handlers if getattr(handler, "of_ipcsrv", False)]
    if not handlers:
        return None
    handler = handlers[0]
    assert isinstance(handler, logging.StreamHandler)

    def write(text: str) -> None:
        if isinstance(handler, LogFile):
            handler.reopenIfNeeded()
        handler.stream.write(text)

    return write


def reopen() -> int:
    """See whether the log file was rotated; returns how often it was, in all."""
    file = log_file()
    if file is None:
        return 0
    with file.lock or contextlib.nullcontext():
        file.reopenIfNeeded()
    return file.times_reopened


def reopen_on_hangup() -> None:
    """In a worker: look after the log file on the master's word (SIGHUP), for an idle one logs nothing."""
    number = getattr(signal, "SIGHUP", None)
    if number is not None:
        signal.signal(number, lambda *_: reopen())


def dump_stream() -> int:
    """The descriptor to which a worker's stacks are written: the log file's, else standard error's."""
    file = log_file()
    return 2 if file is None or file.stream is None else file.stream.fileno()
