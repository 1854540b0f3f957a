"""Drive the installed package from elsewhere than its source, by both of its commands. Run by `tox -e wheel`.

Plain Python, no test tools: what is installed is the wheel and what it depends on, nothing else.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import ipcsrv

SCRIPT = Path(sys.executable).with_name("ipcsrv.exe" if os.name == "nt" else "ipcsrv")
COMMANDS = {"ipcsrv": [str(SCRIPT)], "python -m ipcsrv": [sys.executable, "-m", "ipcsrv"]}
TEXT = b"to be or not to be " * 1000


def run(*command: str, input: bytes = b"", status: int = 0) -> bytes:
    """Run a command that must exit so, and return what it printed."""
    done = subprocess.run(command, input=input, capture_output=True, timeout=60)
    assert done.returncode == status, f"{command} exited {done.returncode}\n{done.stdout!r}\n{done.stderr.decode()}"
    return done.stdout


def check_package() -> None:
    """It is the installed one, typed, with one dependency, and compiled where that can be."""
    package = Path(ipcsrv.__file__).parent
    assert "site-packages" in package.parts, package
    assert (package / "py.typed").exists()
    requires = importlib.metadata.requires("ipcsrv") or []
    assert [name for name in requires if "extra ==" not in name] == ["filelock>=3.30"], requires
    if os.name == "posix" and any(map(shutil.which, ("cc", "gcc", "clang"))):
        for name in ("master._passing", "worker._assembly", "worker._fastpath"):
            importlib.import_module(f"ipcsrv.{name}")
        COMMANDS["ipcsrvc"] = [str(SCRIPT.with_name("ipcsrvc"))]


def check_command(command: list[str], folder: str) -> None:
    """One life of a server: start, ask, look, stop; nothing is left."""
    path = os.path.join(folder, "z")
    assert importlib.metadata.version("ipcsrv").encode() in run(*command, "--version")
    run(*command, "is-active", path, status=3)
    run(*command, "start", path, "zlib:compress", "--workers", "2", "--log-file", os.path.join(folder, "log"))
    run(*command, "is-active", path)
    assert zlib.decompress(run(*command, "call", path, input=TEXT)) == TEXT
    assert b"zlib:compress" in run(*command, "status", path)
    run(*command, "start", path, "zlib:compress", status=6)
    run(*command, "stop", path)
    os.unlink(os.path.join(folder, "log"))
    assert os.listdir(folder) == []


def main() -> None:
    """Both commands, then the demo on a few files."""
    check_package()
    for name, command in COMMANDS.items():
        with tempfile.TemporaryDirectory(dir="/tmp" if os.path.isdir("/tmp") else None) as folder:
            check_command(command, folder)
        assert b"most complex functions" in run(*command, "demo", "--limit", "20")
        print(f"{name}: start, call, status, stop and demo work")


if __name__ == "__main__":
    main()
