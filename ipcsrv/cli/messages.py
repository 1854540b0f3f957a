"""Messages on standard error and exit codes of the command line: here and nowhere else.

One line, `ipcsrv: <what failed>: <why>; <what to do next>`; never a traceback for what a user can cause. Errors of the
tree in errors.py bring their text and exit code; other errors are translated here. `run --log-format json` writes these
lines as JSON too. Imported only when there is something to say, so a successful call does not pay for it.
"""

from __future__ import annotations

import errno
import os
import sys

from ..errors import IpcError, one_line

OK = 0
FAILED = 1  # the server answered with a failure, or failed itself
USAGE = 2
NO_SERVER = 3
TIMED_OUT = 4
DENIED = 5
IN_USE = 6
INVALID_PATH = 7
SOCKET_STOLEN = 8
INTERRUPTED = 130  # 128 + SIGINT, as a shell reports a program that Ctrl-C ended
BROKEN_PIPE = 141  # 128 + SIGPIPE

_as_json = False


class UsageError(Exception):
    """The command line cannot be understood.

    Args:
        what: what is wrong, and why.
        advice: what to do next.
    """

    def __init__(self, what: str, advice: str | None = None) -> None:
        super().__init__(f"{what}; {advice}" if advice else what)


def use_json(on: bool) -> None:
    """Write messages as JSON objects in the form of the JSON log, or as text."""
    global _as_json
    _as_json = on


def report(error: BaseException) -> int:
    """Write one line about an error and return the exit code; an error that is a bug is raised again."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, BrokenPipeError) and not isinstance(error, IpcError):
        return broken_pipe()
    if isinstance(error, IpcError):
        complain(str(error))
        return error.exit_code
    if isinstance(error, UsageError):
        complain(str(error))
        return USAGE
    if isinstance(error, OSError):
        complain(_system_error(error))
        return FAILED
    raise error


def complain(text: str, level: str = "error") -> None:
    """Write one line to standard error, whatever `text` contains; an unwritable standard error is ignored."""
    line = one_line(text)
    try:
        sys.stderr.write((_json_line(line, level) if _as_json else f"ipcsrv: {line}") + "\n")
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        pass


def _json_line(text: str, level: str) -> str:
    import time

    from ..platform import logs

    return logs.json_line(logs.Record("ipcsrv.cli", logs.LEVELS[level], text), time.time()).rstrip("\n")


def broken_pipe() -> int:
    """End quietly when the reader of standard output has gone, also when the interpreter flushes at exit."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    except (OSError, ValueError, AttributeError):
        pass
    return BROKEN_PIPE


def _system_error(error: OSError) -> str:
    """Return the system's reason with the file concerned, and what to do about the most common ones."""
    subject = f"{error.filename}: " if error.filename else ""
    advice = {
        errno.EMFILE: "; raise the limit on open files (ulimit -n)",
        errno.ENOSPC: "; free some space",
    }.get(error.errno or 0, "")
    return f"{subject}{error.strerror or error}{advice}"
