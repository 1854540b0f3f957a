"""Every code block of every page runs, in the order of the page, and shows what the page says."""

from __future__ import annotations

from pathlib import Path

import page_runner
import pytest
import support

PAGES = [support.ROOT / "README.md", *sorted((support.ROOT / "docs").rglob("*.md"))]
ELSEWHERE = {"quickstart"}  # test_quickstart.py
WITH_CODE = [page for page in PAGES if any(page_runner.blocks(page.read_text("utf-8"))) and page.stem not in ELSEWHERE]


@pytest.mark.skipif(not support.have_proc, reason="the pages show a Unix shell")
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_code_blocks_run(page: Path, sock_dir: str) -> None:
    reader = page_runner.Reader(sock_dir)
    try:
        for block in page_runner.blocks(page.read_text("utf-8")):
            try:
                reader.follow(block)
            except (AssertionError, ValueError, KeyError) as error:
                pytest.fail(f"{page.name}, line {block.line}: {error}")
    finally:
        reader.close()
