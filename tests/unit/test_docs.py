"""The pages speak of what is there: each test that one names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_the_tests_that_a_page_names_exist(page: Path) -> None:
    named = set(re.findall(r"`(test_\w+)`", page.read_text("utf-8")))
    sources = "\n".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert {name for name in named if f"def {name}(" not in sources} == set()


def test_every_complaint_has_a_test() -> None:
    blocks = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8").split("\n\n")
    complaints = [block for block in blocks if block.startswith("**")]
    assert len(complaints) >= 26
    assert [block.splitlines()[0] for block in complaints if "`test_" not in block] == []


def test_every_page_is_in_a_table_of_contents() -> None:
    """Sphinx demands it as well; here it is noticed at once."""
    listed = set()
    for page in (ROOT / "docs").rglob("*.md"):
        for tree in re.findall(r"^```\{toctree\}\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL):
            names = [line for line in tree.splitlines() if line and not line.startswith(":")]
            listed |= {(page.parent / f"{name}.md").resolve() for name in names}
    assert {page.resolve() for page in (ROOT / "docs").rglob("*.md")} - listed == {(ROOT / "docs" / "index.md").resolve()}
