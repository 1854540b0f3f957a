"""A newcomer follows docs/quickstart.md with copy and paste alone, in a fresh virtual environment."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import page_runner
import pytest
import support

PAGE = (support.ROOT / "docs" / "quickstart.md").read_text("utf-8")
SOURCES = ("ipcsrv", "setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in")


@pytest.mark.timeout(180)
@pytest.mark.skipif(not support.have_proc, reason="the page shows a Unix shell")
def test_quickstart_leads_to_an_answer_in_five_minutes(sock_dir: str) -> None:
    copy_of_repository(Path(sock_dir))
    reader = page_runner.Reader(sock_dir, installed=True)
    begin = time.monotonic()
    try:
        for block in page_runner.blocks(PAGE):
            try:
                reader.follow(block)
            except AssertionError as error:
                if "NewConnectionError" in str(error):
                    pytest.skip("pip reaches no package index")
                pytest.fail(f"line {block.line}: {error}")
    finally:
        reader.close()
    assert time.monotonic() - begin < 120  # five minutes, less the time to read


def copy_of_repository(folder: Path) -> None:
    """What the newcomer has: the sources, and nothing that was built from them."""
    for name in SOURCES:
        source = support.ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.so", "*.pyd"))
        elif source.exists():
            shutil.copy(source, folder / name)
