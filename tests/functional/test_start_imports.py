"""What a start of a server imports is what it waits for most: `ipcsrv start` loads nothing that it does not use."""

from __future__ import annotations

from pathlib import Path

import filelock
import pytest
import support

import ipcsrv
from ipcsrv.platform.server import default_start_method

# Each of these takes longer to import than the whole of the master, or brings one along that does.
HEAVY = {
    "asyncio", "concurrent", "dataclasses", "email", "filelock", "hashlib", "importlib.metadata", "inspect",
    "logging.handlers", "pathlib", "queue", "shutil", "tempfile", "tomllib", "unittest", "urllib",
}  # fmt: skip

SOURCE = """
import os, sys
sys.path[:0] = os.environ["PYTHONPATH"].split(os.pathsep)
sys.path.append(sys.argv.pop(1))
os.chdir(sys.argv.pop(1))
before = set(sys.modules)
from ipcsrv.cli import main
status = main(sys.argv[1:])
assert status == 0, status
print("imported", *sorted(set(sys.modules) - before))
"""
SITE = str(Path(filelock.__file__).parent.parent)  # without `site`, of which an editable install makes much
WITH_THE_LOCK = "import sys; sys.path.append(sys.argv[1]); import filelock; print(*sys.modules)"
HANDLER = """
import sys

def modules(request):
    return " ".join(sys.modules).encode()
"""


@pytest.mark.skipif(default_start_method() != "fork", reason="elsewhere nothing is forked")
def test_start_imports_nothing_heavy(sock_path: str, tmp_path: Path) -> None:
    (tmp_path / "tells.py").write_text(HANDLER)
    order = (SITE, str(tmp_path), "start", sock_path, "tells:modules", "--workers", "1")
    said = support.run_python(SOURCE, *order, "--log-file", str(tmp_path / "log"), options=("-S", "-E"))
    try:
        in_worker = set(ipcsrv.call(sock_path, b"", timeout=support.TIMEOUT).decode().split())
    finally:
        support.run_command("stop", sock_path)
    in_command = set(said.rpartition("imported")[2].split())
    assert "ipcsrv.server.server" in in_command
    assert "ipcsrv.worker.loop" in in_worker
    with_the_lock = set(support.run_python(WITH_THE_LOCK, SITE, options=("-S", "-E")).split())
    assert "filelock" in with_the_lock
    assert not in_worker & HEAVY - with_the_lock
    assert not in_command & HEAVY - with_the_lock
    assert not in_command & {"logging", "multiprocessing", "pickle", "subprocess", "ipcsrv.master.master", "filelock"}
