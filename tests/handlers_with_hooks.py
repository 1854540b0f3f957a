"""Hooks for tests: each notes what it is called with, in the file that the environment names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

NOTES = "HANDLERS_WITH_HOOKS_NOTES"


def _note(text: str) -> None:
    with open(os.environ[NOTES], "a") as notes:
        notes.write(text + "\n")


def starts(request: Any) -> None:
    request.mark = bytes(request).decode()
    _note(f"start {request.mark} {request.peer.pid > 0}")
    if request == b"forbidden":
        raise PermissionError("not you")


def ends(request: Any, error: BaseException | None) -> None:
    _note(f"end {request.mark} {type(error).__name__}")
    if request == b"hook":
        raise RuntimeError("the hook itself")


def handle(request: Any) -> Any:
    _note(f"handle {bytes(request).decode()}")
    if request == b"raise":
        raise ValueError("no")
    if request in (b"stream", b"break", b"endless"):
        return _chunks(bytes(request))
    return bytes(request)


def _chunks(request: bytes) -> Iterator[bytes]:
    yield b"chunk"
    _note("between chunks")
    while request == b"endless":
        yield b"x" * 65536
    if request == b"break":
        raise OSError("half way")
