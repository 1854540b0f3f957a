"""What the command says when something goes wrong, and the code it exits with: here and nowhere else.

One line on standard error, `ipcsrv: <what> <why> <what to do>`, never a traceback for what a user can cause. Errors of
the tree in errors.py bring their line and their code along; the rest are translated here. Imported only on the way
out, so that a call that succeeds does not pay for it.
"""

from __future__ import annotations

import errno
import os
import sys

from ..errors import IpcError

OK = 0
FAILED = 1  # the server answered with a failure, or failed itself
USAGE = 2
NO_SERVER = 3
TIMED_OUT = 4
DENIED = 5
IN_USE = 6
INVALID_PATH = 7
SOCKET_STOLEN = 8
INTERRUPTED = 130  # 128 + SIGINT: what a shell reports for a program that Ctrl-C ended
BROKEN_PIPE = 141  # 128 + SIGPIPE: likewise, for one whose reader went away


class UsageError(Exception):
    """The command line cannot be understood."""


def report(error: BaseException) -> int:
    """Say in one line what went wrong and return the exit code; an error that is a bug is raised on."""
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


def complain(text: str) -> None:
    """One line on standard error, whatever `text` holds; nothing if nobody can read it."""
    line = "".join(letter if letter.isprintable() else " " for letter in text)
    try:
        print(f"ipcsrv: {line}", file=sys.stderr, flush=True)
    except (OSError, ValueError):
        pass


def broken_pipe() -> int:
    """The reader of our output has gone: end quietly, without a second failure when the interpreter flushes."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    except (OSError, ValueError, AttributeError):
        pass
    return BROKEN_PIPE


def _system_error(error: OSError) -> str:
    """The system's own reason, with the file it concerns; the most common ones with what to do."""
    subject = f"{error.filename}: " if error.filename else ""
    advice = {
        errno.EMFILE: ": raise the limit on open files (ulimit -n)",
        errno.ENOSPC: ": free some space",
    }.get(error.errno or 0, "")
    return f"{subject}{error.strerror or error}{advice}"
