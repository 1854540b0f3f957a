"""Opening a log file on Unix (see `platform.log_file`)."""

from __future__ import annotations

import sys

assert sys.platform != "win32"

import errno
import os
import stat

from ...errors import StartError

_LOG_FLAGS = (  # without O_NONBLOCK, opening a named pipe would wait for a reader
    os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
)
_LOG_ERRORS = {
    errno.ELOOP: "it is a symbolic link",
    errno.EISDIR: "it is a folder",
    errno.ENXIO: "it is a named pipe, a socket or a device",
}


def open_log(log_file: str | None) -> int:
    """Return a descriptor that appends to a log file; of the null device if there is none.

    Only a regular file, a terminal or the null device will do: a named pipe blocks until another process reads it, and
    opening a device may have effects. A symbolic link could be another user's.

    Raises:
        StartError: the file cannot be opened or is none of these.
    """
    if log_file is None:
        return os.open(os.devnull, os.O_WRONLY)
    try:
        descriptor = os.open(log_file, _LOG_FLAGS, 0o600)
    except OSError as error:
        reason = _LOG_ERRORS.get(error.errno or 0, error.strerror)
        raise StartError(f"the log file {log_file} cannot be opened: {reason}; name another with --log-file") from None
    fault = _log_fault(descriptor)
    if fault is not None:
        os.close(descriptor)
        raise StartError(f"the log file {log_file} cannot be used: {fault}; name another with --log-file")
    return descriptor


def _log_fault(descriptor: int) -> str | None:
    """Return why a log cannot be written to what was opened, or None."""
    info = os.fstat(descriptor)
    if stat.S_ISREG(info.st_mode):
        return None
    if stat.S_ISCHR(info.st_mode):
        is_terminal = os.isatty(descriptor) and not _is_same(info, "/dev/ptmx")  # which makes one, and is its other end
        if is_terminal or _is_same(info, os.devnull):
            return None
        return "it is a device"
    return "it is a named pipe" if stat.S_ISFIFO(info.st_mode) else "it is not a regular file"


def _is_same(info: os.stat_result, device: str) -> bool:
    """Whether what was opened is a device."""
    return os.path.exists(device) and info.st_rdev == os.stat(device).st_rdev
