"""Descriptors on Unix: which are open in this process, closing those that a child is not to have, and pidfds."""

from __future__ import annotations

import sys

assert sys.platform != "win32"

import contextlib
import os
import resource
from collections.abc import Iterable

# Descriptors can lie above the soft limit, which may have been lowered since; without a listing more than this is not
# looked at, since the hard limit can be a million and each number costs a system call.
_MOST_LOOKED_AT = 1 << 16


def open_descriptors() -> set[int]:
    """Return the numbers of all open descriptors of this process; also where /proc is not mounted."""
    return {number for number in _candidates() if _is_open(number)}


def _candidates() -> Iterable[int]:
    """Return numbers among which are all open descriptors."""
    folder = "/proc/self/fd" if sys.platform == "linux" else "/dev/fd"
    try:
        numbers = {int(name) for name in os.listdir(folder)}
    except OSError:
        numbers = set()
    if not numbers or numbers <= {0, 1, 2}:  # /dev/fd of some BSDs lists the standard streams alone
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = _MOST_LOOKED_AT if hard == resource.RLIM_INFINITY else min(hard, _MOST_LOOKED_AT)
        return range(max(most, 0 if soft == resource.RLIM_INFINITY else min(soft, 1 << 20)))
    return numbers


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def close_all_but(keep: Iterable[int]) -> None:
    """Close every open descriptor but these."""
    for number in open_descriptors() - set(keep):
        with contextlib.suppress(OSError):
            os.close(number)


def pidfd(pid: int) -> int:
    """Return a descriptor of a process (pidfd_open(2)); -1 where there are none, or the process is gone."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):
            return os.pidfd_open(pid)
    return -1
