"""Compiles the native client for tests, with the sanitizers where the compiler has them."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import support
from filelock import FileLock

SANITIZERS = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def build_client(folder: Path, *flags: str) -> Path:
    """Compile `ipcsrvc` into `folder`, with the Python command beside it; skips the test without a compiler."""
    if os.name != "posix" or not shutil.which(os.environ.get("CC") or "cc"):
        pytest.skip("no C compiler")
    compile_client = runpy.run_path(str(support.ROOT / "ipcsrv" / "native" / "compile.py"))["compile_client"]
    compile_client(folder / "ipcsrvc", ("-Werror", *flags))
    write_command(folder)
    return folder / "ipcsrvc"


def build_sanitized(base: Path) -> Path:
    """The same, with the address and undefined behaviour sanitizers where they are installed, once in a test run.

    base: pytest's temporary folder of this process; the processes of a parallel run have a common parent.
    """
    os.environ["ASAN_OPTIONS"] = "detect_leaks=0"  # a command of a millisecond leaves its memory to the kernel
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "sanitized"
    with FileLock(f"{folder}.lock"):
        if not (folder / "built").exists():
            folder.mkdir(exist_ok=True)
            try:
                build_client(folder, *SANITIZERS)
            except subprocess.CalledProcessError:
                build_client(folder)
            (folder / "built").touch()
    return folder / "ipcsrvc"


def write_command(folder: Path) -> Path:
    """Write the Python command `ipcsrv` into `folder`."""
    script = folder / "ipcsrv"
    script.write_text(f"#!{sys.executable}\nimport sys\nfrom ipcsrv.cli import main\nsys.exit(main())\n")
    script.chmod(0o755)
    return script
