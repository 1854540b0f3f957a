"""Opening a log file on Windows (see `platform.log_file`)."""

from __future__ import annotations

import sys

assert sys.platform == "win32"

import _winapi
import msvcrt
import os
from typing import Final

from ...errors import StartError

_APPEND: Final = 0x00100004  # FILE_APPEND_DATA, SYNCHRONIZE: every write goes to the end, also when others write
_SHARE_ALL: Final = 7  # others may read, write, rename and delete it (log rotation)
_OPEN_ALWAYS: Final = 4


def open_log(log_file: str | None) -> int:
    """Return a descriptor that appends to a log file; of the null device if there is none.

    Raises:
        StartError: the file cannot be opened.
    """
    if log_file is None:
        return os.open(os.devnull, os.O_WRONLY)
    try:
        handle = _winapi.CreateFile(log_file, _APPEND, _SHARE_ALL, 0, _OPEN_ALWAYS, 0, 0)
    except OSError as error:
        reason = f"the log file {log_file} cannot be opened: {error.strerror}; name another with --log-file"
        raise StartError(reason) from None
    return msvcrt.open_osfhandle(handle, os.O_APPEND)
