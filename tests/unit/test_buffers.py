"""Lists of buffers that are being sent."""

from __future__ import annotations

from ipcsrv.buffers import discard


def test_discard_keeps_what_was_not_sent_in_order() -> None:
    for count in range(7):
        buffers = [b"ab", b"cde", b"f"]
        discard(buffers, count)
        assert b"".join(buffers) == b"abcdef"[count:]
