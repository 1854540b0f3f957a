"""Where the data of a request comes together, if it does not come whole in one read. In the worker.

There are three of one kind: `pktline.Assembly` itself; the compiled one (`_assembly.c`), whose `join` gives the
`Request` that the handler gets; and `FileAssembly`. tests/contract/test_assembly.py runs one routine on the first two.
"""

from __future__ import annotations

import functools
import os
from typing import Any

from ..platform.compiled import compiled_module
from ..platform.server import read_at, write_at
from ..protocol.pktline import Assembly
from ..request import Request


def request_assembly() -> Assembly:
    """Return an empty assembly of the fastest kind that there is here."""
    compiled = compiled_assembly()
    assembly: Assembly = Assembly() if compiled is None else compiled(Request)
    return assembly


@functools.cache
def compiled_assembly() -> Any:
    """Return the compiled class; None where it is not compiled, or where requests have another layout."""
    module = compiled_module("worker._assembly")
    if module is None:
        return None
    try:
        module.CompiledAssembly(Request)
    except TypeError:
        return None
    return module.CompiledAssembly


class FileAssembly(Assembly):
    """The data of a request that has stalled before, in the file that travels with it."""

    __slots__ = ("file",)

    def __init__(self, file: int = -1, size: int = 0) -> None:
        super().__init__()
        self.file, self.size = file, size

    def append(self, piece: bytes | memoryview) -> None:
        """Add the next piece."""
        if self.file < 0:  # a later request of this connection
            super().append(piece)
            return
        while piece:
            written = write_at(self.file, piece, self.size)
            self.size += written
            piece = piece[written:]

    def join(self) -> bytes:
        """Return the data; the file is closed, and the assembly is ready for the next request."""
        if self.file < 0:
            return super().join()
        try:
            return read_file(self.file, self.size)
        finally:
            os.close(self.file)
            self.__init__()  # type: ignore[misc]


def read_file(file: int, size: int) -> bytes:
    """Return the first `size` bytes of a file."""
    parts = []
    at = 0
    while at < size and (part := read_at(file, size - at, at)):
        parts.append(part)
        at += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
