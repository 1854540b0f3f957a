"""Logging of a server's processes, as text or JSON lines, to standard error or to one file.

`get(name)` gives a log with the methods of `logging.Logger`.  It is none: what the application does to `logging`
(`dictConfig`, `disable`, `basicConfig`) neither silences nor redirects what ipcsrv itself logs.  Each process has one
target, set by `configure` in the master and by `configure_worker` in a template or worker: an output of its own
(`log_output`), or, in a program that has set up logging before it uses the library, that program's set-up.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any, Protocol

from ..config.settings import Settings
from ..errors import StartError
from ..exception_text import trace_of, traceback_text
from . import children
from .log_output import Output, StreamOutput, open_output

TIME = "%Y-%m-%d %H:%M:%S"
LONGEST = 64 << 10  # characters of one record; of a longer one the beginning and the end are kept
INTERVAL = 1.0  # seconds in which lines of one kind are counted together (`Log.limited`)
DEBUG, INFO, WARNING, ERROR, CRITICAL = 10, 20, 30, 40, 50  # as in `logging`
LEVELS = {"debug": DEBUG, "info": INFO, "warning": WARNING, "error": ERROR, "critical": CRITICAL}

# What could command a terminal, or make one line look like another: C0 but tab and newline, DEL, C1, and the
# characters that change the direction of text or end a line.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


# -- what the rest of ipcsrv calls ------------------------------------------------------------------------------------


class Log:
    """Writes records to this process's target; the methods are those of `logging.Logger`."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def debug(self, message: str, *arguments: object) -> None:
        """Log a detail."""
        self.log(DEBUG, message, *arguments)

    def info(self, message: str, *arguments: object) -> None:
        """Log an event."""
        self.log(INFO, message, *arguments)

    def warning(self, message: str, *arguments: object) -> None:
        """Log what may need attention."""
        self.log(WARNING, message, *arguments)

    def error(self, message: str, *arguments: object) -> None:
        """Log a failure."""
        self.log(ERROR, message, *arguments)

    def exception(self, message: str, *arguments: object) -> None:
        """Log a failure with the traceback of the exception that is being handled."""
        error = sys.exc_info()[1]
        text = "" if error is None else traceback_text(error, trace_of(error))
        self.error("%s\n%s", message % arguments if arguments else message, text)

    def log(self, level: int, message: str, *arguments: object) -> None:
        """Log at a level of `logging`."""
        if _target.enabled(self.name, level):
            _tell_pending()
            _target.emit(Record(self.name, level, message % arguments if arguments else message))

    def record(self, level: int, message: str, *, created: float, fields: Mapping[str, Any]) -> None:
        """Log what happened at `created` (seconds since the epoch); `fields` are for JSON lines, and for programs."""
        if _target.enabled(self.name, level):
            _target.emit(Record(self.name, level, message, created, fields))

    def limited(self, kind: str, level: int, message: str, *arguments: object, burst: int = 1) -> None:
        """Log what others can cause without end: at most `burst` lines of a kind in `INTERVAL`; the rest is counted.

        Args:
            kind: what is counted together, in words: the line that gives the count says it.
            level: a level of `logging`.
            message: as for `log`, with `arguments`.
            burst: how many lines are written before counting starts.
        """
        _tell_pending()
        limit = _limits.setdefault(kind, _Limit())
        if limit.admits(burst):
            self.log(level, message, *arguments)
        else:
            limit.held, limit.log, limit.level = limit.held + 1, self, level

    def isEnabledFor(self, level: int) -> bool:
        """Return whether records of a level are written."""
        return _target.enabled(self.name, level)


def get(name: str) -> Log:
    """Return the log of a part of ipcsrv, such as "ipcsrv.master"."""
    return Log(name)


class _Limit:
    """Lines of one kind: how many of the current interval were written, and how many since were not."""

    def __init__(self) -> None:
        self._since, self._written = -INTERVAL, 0
        self.held, self.level = 0, WARNING
        self.log: Log | None = None

    def admits(self, burst: int) -> bool:
        """Return whether one more line may be written now."""
        if self.over():
            self._since, self._written = monotonic(), 0
        self._written += 1
        return self._written <= burst

    def over(self) -> bool:
        """Return whether the interval is over."""
        return monotonic() - self._since >= INTERVAL


_limits: dict[str, _Limit] = {}


def _tell_pending(*, all_of_them: bool = False) -> None:
    """Write how many lines were not written, where their interval is over."""
    for kind, limit in list(_limits.items()):  # a signal handler may add one
        if limit.held and (all_of_them or limit.over()):
            held, limit.held = limit.held, 0
            assert limit.log is not None
            limit.log.log(limit.level, "%d more not logged: %s", held, kind)


# -- records as text --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """One thing to log.

    Args:
        name: the log's or logger's.
        level: of `logging`.
        message: may have several lines.
        created: seconds since the epoch; now if not given.
        fields: what JSON lines have besides.
        application: whether it is the application's own.
    """

    name: str
    level: int
    message: str
    created: float | None = None
    fields: Mapping[str, Any] | None = None
    application: bool = False


def text_line(record: Record, now: float) -> str:
    """Return a record for people, continued lines indented so that no text of others can pass for a record."""
    message = _escaped(_capped(record.message), _as_python).replace("\n", "\n  ")
    stamp = f"{time.strftime(TIME, time.localtime(now))}.{int(now % 1 * 1000):03d}"
    source = f"{_escaped(record.name, _as_python)}: " if record.application else ""
    return f"{stamp} {_level_name(record.level).upper():7} [{os.getpid()}] {source}{message}\n"


def json_line(record: Record, now: float) -> str:
    """Return a record as one JSON object: time (RFC 3339, UTC), level, logger, pid, message."""
    stamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now % 1 * 1000):03d}Z"
    line = {"time": stamp, "level": _level_name(record.level), "logger": record.name, "pid": os.getpid(),
            "message": _capped(record.message), **(record.fields or {})}
    return _escaped(json.dumps(line, ensure_ascii=False, default=str), _as_json) + "\n"


def _level_name(level: int) -> str:
    return next((name for name, number in reversed(LEVELS.items()) if level >= number), "debug")


def _capped(text: str) -> str:
    left_out = len(text) - LONGEST
    if left_out <= 0:
        return text
    return f"{text[: LONGEST // 2]} ... [{left_out} characters left out] ... {text[-LONGEST // 2 :]}"


def _escaped(text: str, how: Callable[[re.Match[str]], str]) -> str:
    return text if text.isascii() and text.isprintable() else _UNSAFE.sub(how, text)


def _as_python(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def _as_json(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


# -- targets ----------------------------------------------------------------------------------------------------------


class Target(Protocol):
    """Takes the records of this process."""

    def enabled(self, name: str, level: int) -> bool: ...
    def emit(self, record: Record) -> None: ...


class ToOutput:
    """Writes lines to an output of our own."""

    def __init__(self, output: Output | StreamOutput, settings: Settings) -> None:
        self.output = output
        self._level = LEVELS[settings.log_level]
        self._line = json_line if settings.log_format == "json" else text_line

    def enabled(self, name: str, level: int) -> bool:
        """Return whether `log_level` lets it through."""
        return level >= self._level

    def emit(self, record: Record) -> None:
        """Write the record."""
        self.write(self._line(record, record.created or time.time()))

    def write(self, text: str) -> None:
        """Write whole lines; before them, how many records were lost since the last ones."""
        if lost := self.output.lost:
            note = Record("ipcsrv.log", WARNING, f"{lost} log records could not be written")
            text = self._line(note, time.time()) + text
        self.output.write(text)


class ToProgram:
    """Hands records to the logging set-up of the program that uses the library, as it is when they are made."""

    def enabled(self, name: str, level: int) -> bool:
        """Return whether the program wants it."""
        return logging.getLogger(name).isEnabledFor(level)

    def emit(self, record: Record) -> None:
        """Hand it over."""
        logger = logging.getLogger(record.name)
        logger.handle(_logging_record(record))


class ToHandlers:
    """Hands records to the logging handlers that a program had set up before its worker was forked.

    What the handler's module does to `logging` in the worker changes neither which these are, nor the level.
    """

    def __init__(self) -> None:
        self._level = logging.getLogger("ipcsrv").getEffectiveLevel()
        self._handlers = list(_program_handlers())

    def enabled(self, name: str, level: int) -> bool:
        """Return whether the program wanted it."""
        return level >= self._level

    def emit(self, record: Record) -> None:
        """Hand it over."""
        made = _logging_record(record)
        for handler in self._handlers:
            if made.levelno >= handler.level:
                handler.handle(made)


def _logging_record(record: Record) -> logging.LogRecord:
    made = logging.LogRecord(record.name, record.level, __file__, 0, record.message, (), None)
    if record.created is not None:
        made.created = record.created
        made.msecs = int(made.created % 1 * 1000)
    if record.fields is not None:
        made.fields = record.fields
    return made


def _program_handlers() -> list[logging.Handler]:
    """The handlers to which the program's set-up takes a record of ours."""
    found: list[logging.Handler] = []
    logger: logging.Logger | None = logging.getLogger("ipcsrv")
    while logger is not None:
        found += [handler for handler in logger.handlers if not isinstance(handler, Bridge)]
        logger = logger.parent if logger.propagate else None
    return found


class Bridge(logging.Handler):
    """Takes records of `logging` into this process's log."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record."""
        try:
            message = record.getMessage()
        except Exception:
            self.handleError(record)
            return
        if record.exc_info:
            _, error, trace = record.exc_info
            message += "\n" + ("NoneType: None" if error is None else traceback_text(error, trace))
        _target.emit(Record(record.name, record.levelno, message, application=not record.name.startswith("ipcsrv.")))


_target: Target = ToProgram()
_LAST_RESORT = logging.lastResort


# -- setting up -------------------------------------------------------------------------------------------------------


def configure(settings: Settings) -> None:
    """Set up the log of this process; in a program that has set up logging, and names no `log_file`, that one is used.

    Raises:
        StartError: the log file cannot be opened.
    """
    global _target
    unconfigure()
    if settings.log_file is None and _program_handlers():
        return
    _target = ToOutput(open_output(settings.log_file), settings)
    logger = logging.getLogger("ipcsrv")  # records that others make below this name are the server's too
    logger.addHandler(Bridge())
    logger.setLevel(LEVELS[settings.log_level])
    logger.propagate = False


def unconfigure() -> None:
    """Undo `configure`, when a server that ran in its caller's process has ended."""
    if isinstance(_target, ToOutput):
        _tell_pending(all_of_them=True)
        _target.output.close()
        _release()


def forget() -> None:
    """Leave `logging` as a fresh interpreter has it, in a worker's child that becomes another program.

    The output stays open: the descriptors are the caller's to close.
    """
    _release()
    logging.lastResort = _LAST_RESORT
    logging.getLogger().setLevel(logging.WARNING)


def _release() -> None:
    global _target
    _target = ToProgram()
    logger = logging.getLogger("ipcsrv")
    for handler in [handler for handler in logger.handlers if isinstance(handler, Bridge)]:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
        logger.propagate = True


def configure_worker(settings: Settings) -> None:
    """Set up the log, the standard streams and the environment of a template or worker, before the handler is imported.

    A forked process keeps the log that it has.  Records of the application go into it as long as the application
    has not set up logging itself (docs/operations.md).
    """
    global _target
    if not isinstance(_target, ToOutput):
        if _program_handlers():
            _target = ToHandlers()
        else:
            try:
                configure(settings)
            except StartError:  # the master could open it: a log that is gone since does not keep workers from serving
                _target = ToOutput(_output_for_now(settings), settings)
    _take_application_records(settings)
    _write_lines_at_once()
    children.started()


def _output_for_now(settings: Settings) -> Output | StreamOutput:
    """Return standard error, until the log file can be opened."""
    output = open_output(None)
    if isinstance(output, Output) and settings.log_file is not None:
        with contextlib.suppress(OSError):  # the current folder is gone, of a name that is relative to it
            output.go_on_in(os.path.abspath(settings.log_file))
    return output


def _take_application_records(settings: Settings) -> None:
    """Write what the application logs if it has not set up logging: by logging's own handler of last resort.

    Not by a handler on the root logger: with one there, `logging.basicConfig` of the application would do nothing.
    """
    root = logging.getLogger()
    logging.lastResort = Bridge()
    if not root.handlers and root.level == logging.WARNING:
        root.setLevel(LEVELS[settings.log_level])


def _write_lines_at_once() -> None:
    """Have `print` in a handler write each line as it is made, also to a file; unbuffered streams stay so."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            with contextlib.suppress(OSError, ValueError):
                reconfigure(line_buffering=True)


# -- the log file -----------------------------------------------------------------------------------------------------


def sink() -> Callable[[str], None] | None:
    """Return what writes whole lines into our own log; None where a program's logging set-up is in force."""
    return _target.write if isinstance(_target, ToOutput) else None


def reopen() -> int:
    """Check whether the log file was rotated, and write counts that are due; return how often it was, in all."""
    _tell_pending()
    if not isinstance(_target, ToOutput):
        return 0
    _target.output.reopen_if_rotated()
    return _target.output.times_reopened


def reopen_on_hangup() -> None:
    """In a worker: check the log file at the master's request (SIGHUP), for an idle one logs nothing."""
    number = getattr(signal, "SIGHUP", None)
    if number is not None:
        signal.signal(number, lambda *_: reopen())


def dump_stream() -> int:
    """Return the descriptor to which a worker's stacks are written: the log's, else standard error's."""
    return _target.output.fileno() if isinstance(_target, ToOutput) else 2
