"""Logging of a server's processes: `ipcsrv.*` loggers, as text or JSON lines, to standard error or to one file.

Every process of a server appends to the same file, each line by one write to a descriptor in append mode, so that
lines stay whole.  The file is looked at before each line: where it was renamed or removed (log rotation), it is
opened anew.  A symbolic link in its place is refused, for it may be another user's idea.

A program that uses the library and has set up logging itself (handlers on `ipcsrv` or the root logger) keeps its own.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from logging.handlers import WatchedFileHandler
from typing import Any

from ._platform.lifecycle import open_log
from .errors import StartError
from .settings import Settings

TEXT = "%(asctime)s.%(msecs)03d %(levelname)-7s [%(process)d] %(message)s"
TIME = "%Y-%m-%d %H:%M:%S"


class LogFile(WatchedFileHandler):
    """A log file shared by processes and safe to rotate; `on_open` is told the descriptor each time it is opened."""

    on_open: Callable[[int], object] | None = None

    def _open(self) -> Any:
        descriptor = open_log(self.baseFilename)
        if self.on_open is not None:
            self.on_open(descriptor)
        return open(descriptor, "a", encoding="utf-8", errors="backslashreplace")

    def reopenIfNeeded(self) -> None:
        """Open the file anew where its name leads elsewhere by now; where that cannot be, go on with the one we have."""
        with contextlib.suppress(OSError):
            info = os.lstat(self.baseFilename)
            if (info.st_dev, info.st_ino) == (self.dev, self.ino):
                return
        try:
            stream = self._open()
        except (OSError, StartError):  # a symbolic link was put there, say, or no descriptor is left
            return
        if self.stream is not None:
            self.stream.close()
        self.stream = stream
        self._statstream()


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
        return logging.StreamHandler(sys.stderr)
    try:
        return LogFile(settings.log_file)
    except OSError as error:
        reason = f"the log file {settings.log_file} cannot be opened: {error.strerror}"
        raise StartError(reason) from None


def dump_stream() -> int:
    """The descriptor to which a worker's stacks are written: the log file's, else standard error's."""
    for handler in logging.getLogger("ipcsrv").handlers:
        if isinstance(handler, LogFile) and handler.stream is not None:
            return handler.stream.fileno()
    return 2


def dump_own_stacks() -> None:
    """Write the stacks of this process's threads into the log, from Python."""
    faulthandler.dump_traceback(file=dump_stream(), all_threads=True)
