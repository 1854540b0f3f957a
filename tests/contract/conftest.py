"""The two command line clients: Python's, and `ipcsrvc`, compiled with the sanitizers where they are installed."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import support

SANITIZERS = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
Command = list[str]


def build_client(folder: Path, *flags: str) -> Path:
    """Compile `ipcsrvc` into `folder`, with the Python command beside it; skips the test without a compiler."""
    if os.name != "posix" or not shutil.which(os.environ.get("CC") or "cc"):
        pytest.skip("no C compiler")
    script = folder / "ipcsrv"
    script.write_text(f"#!{sys.executable}\nimport sys\nfrom ipcsrv.cli import main\nsys.exit(main())\n")
    script.chmod(0o755)
    compile_client = runpy.run_path(str(support.ROOT / "ipcsrv" / "native" / "compile.py"))["compile_client"]
    compile_client(folder / "ipcsrvc", ("-Werror", *flags))
    return folder / "ipcsrvc"


@pytest.fixture(scope="session")
def sanitized_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The path of `ipcsrvc`, compiled with the address and undefined behaviour sanitizers where they are installed."""
    folder = tmp_path_factory.mktemp("native")
    os.environ["ASAN_OPTIONS"] = "detect_leaks=0"  # a command of a millisecond leaves its memory to the kernel
    try:
        return build_client(folder, *SANITIZERS)
    except subprocess.CalledProcessError:
        return build_client(folder)


@pytest.fixture(scope="session", params=["python", "native"])
def client_command(request: pytest.FixtureRequest) -> Command:
    """The words that a client's command line begins with."""
    if request.param == "python":
        return [sys.executable, "-m", "ipcsrv"]
    return [str(request.getfixturevalue("sanitized_client"))]
