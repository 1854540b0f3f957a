"""Buffers that are sent in order, by several calls if need be. On both sides of a connection."""

from __future__ import annotations


def discard(buffers: list[bytes | memoryview], count: int) -> None:
    """Drop the first `count` bytes, which have been sent, from a list of buffers, in place."""
    whole = 0
    while whole < len(buffers) and count >= len(buffers[whole]):
        count -= len(buffers[whole])
        whole += 1
    del buffers[:whole]
    if count:
        buffers[0] = memoryview(buffers[0])[count:]
