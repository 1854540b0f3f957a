"""Tests that use the fixture of conftest.py: `pytest examples`."""

import json

import ipcsrv


def test_the_commonest_word_comes_first(words_path: str) -> None:
    """One request, one response."""
    assert json.loads(ipcsrv.call(words_path, b"to be or not to be"))[0] == ["to", 2]


def test_many_requests_share_a_connection(words_path: str) -> None:
    """A connection may be kept for as many requests as one likes."""
    with ipcsrv.connect(words_path) as connection:
        assert [connection.call(b"a") for _ in range(100)] == [b'[["a", 1]]'] * 100
