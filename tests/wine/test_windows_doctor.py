"""`ipcsrv doctor` on Windows, as a user runs it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import support

if sys.platform != "win32":
    pytest.skip("for Windows", allow_module_level=True)

from ipcsrv.platform import inspection
from ipcsrv.platform.windows import win32


def examined(path: str, status: int = 0) -> str:
    """What doctor prints, with its lines joined."""
    done = support.run_command("doctor", path)
    assert (done.returncode, done.stderr) == (status, b"")
    return " ".join(done.stdout.decode().split())


def test_free_path_has_no_problems(sock_path: str) -> None:
    report = examined(sock_path)
    for said in ("as a pipe; the limit is 256", "listens no server", "lock free", "no problems found"):
        assert said in report


def test_running_server_is_described(server: Any, sock_path: str) -> None:
    running = server("handlers_for_tests:echo", "--workers", "1")
    report = examined(sock_path)
    user = inspection.user_of(win32.own_sid())
    assert f"listens pid {running.pid} of {user}" in report
    assert f"lock held by pid {running.pid}, serving handlers_for_tests:echo" in report
    assert "the server is running" in report


@pytest.mark.parametrize(("place", "said"), [
    ("no-such-folder\\s", "does not exist, and the lock file belongs there -> make it"),
    ("file", "a file or folder is at"),
    ("long" * 80, "-> choose another path"),
])  # fmt: skip
def test_impossible_path_is_a_failure_with_advice(tmp_path: Path, place: str, said: str) -> None:
    (tmp_path / "file").touch()
    report = examined(os.path.join(tmp_path, place), status=1)
    assert said in report and "1 failure" in report


def test_users_have_a_name_or_a_sid() -> None:
    assert inspection.user_of(win32.SYSTEM_SID) == "SYSTEM"
    assert inspection.user_of("S-1-5-32-544") == "S-1-5-32-544"
    assert inspection.descriptor_limits() is None and inspection.command_of(os.getpid()) is None
