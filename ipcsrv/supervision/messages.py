"""What master, template and workers tell each other: exit statuses and the kinds of messages."""

from __future__ import annotations

import errno

TIMED_OUT = 75  # exit status after ERR timeout
START_FAILED = 76  # exit status of a worker that could not start; the master has been told why
FORK_FAILED = "nope"
PACED = 1 << 63  # in a stamp: the connection was parked, and its client is known to take its time
PASSING = {errno.ECONNABORTED, errno.EPERM, errno.EPROTO}  # a client's own end, before we took it
