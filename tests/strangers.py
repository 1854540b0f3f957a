"""Other users, for real: Python programs that begin as root, drop to another user, and then do what a test asks.

What such a program needs is imported before it drops (`imports` says what beside the client), since the interpreter may
lie where no other user can read.  Where the tests do not run as root there are no other users (`needs_other_users`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import support

NOBODY = 65534
OTHER = 61001  # a user and group without a name
needs_other_users = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become other users"
)

_PRELUDE = """
import fcntl, json, os, select, signal, socket, stat, sys, time
import ipcsrv, ipcsrv.client.sync, ipcsrv.errors, ipcsrv.client.exchanging, ipcsrv.platform.attempts, ipcsrv.state
uid, gid, groups, *arguments = json.loads(sys.argv[1])
os.setgroups(groups)
os.setresgid(gid, gid, gid)
os.setresuid(uid, uid, uid)
"""


def _command(source: str, imports: str, *identity_and_arguments: object) -> list[str]:
    program = f"import {imports or 'sys'}\n{_PRELUDE}{source}"
    return [sys.executable, "-c", program, json.dumps(identity_and_arguments)]


def run_as(
    source: str,
    *arguments: object,
    uid: int = NOBODY,
    gid: int = NOBODY,
    groups: Sequence[int] = (),
    imports: str = "",
) -> str:
    """Run a program as another user to its end; returns what it printed.  Its `arguments` is a list of these."""
    done = subprocess.run(
        _command(source, imports, uid, gid, groups, *arguments),
        capture_output=True,
        text=True,
        timeout=support.TIMEOUT,
        env=support.environment(),
        cwd="/",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def running_as(
    source: str,
    *arguments: object,
    uid: int = NOBODY,
    gid: int = NOBODY,
    pass_fds: Sequence[int] = (),
    imports: str = "",
) -> Iterator[subprocess.Popen[str]]:
    """The same for as long as the block runs; it must print a line when it is ready, and ends with its input."""
    command = _command(source, imports, uid, gid, (), *arguments)
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=support.environment(), cwd="/",
        pass_fds=pass_fds,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline().strip() == "ready"
        yield process
    finally:
        process.stdin.close()
        try:
            process.wait(support.TIMEOUT)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
