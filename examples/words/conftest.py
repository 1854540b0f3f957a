"""A pytest fixture: a server for the whole test session, on a short path of its own, gone at the end."""

import os
import tempfile
from collections.abc import Iterator

import pytest
import words

import ipcsrv


@pytest.fixture(scope="session")
def words_path() -> Iterator[str]:
    """Where a server counts words."""
    with tempfile.TemporaryDirectory(prefix="w-") as folder:
        path = os.path.join(folder, "words")
        with ipcsrv.Server(path, words.count, workers=2):
            yield path
