"""Python's standard streams where they are closed, or where a program that shares them has made them non-blocking.

What is printed to a closed stream is lost, as `print` has it; to a non-blocking one it is written whole.
"""

from __future__ import annotations

import io
import sys

from ..platform import client as platform
from ..standard_streams import ERRORS, INPUT, OUTPUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Buffer


class _Output(io.FileIO):
    """A descriptor to which writing waits, also where it is non-blocking, which others who use it rely on."""

    def write(self, data: Buffer) -> int:
        view = memoryview(data)
        platform.write_all(self.fileno(), view)
        return view.nbytes


def repair() -> None:
    """Give `sys` standard streams that can be written to."""
    if sys.stdin is None:
        sys.stdin = open(INPUT, closefd=False)  # noqa: SIM115
    for descriptor, name in ((OUTPUT, "stdout"), (ERRORS, "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(descriptor, "w", closefd=False))  # noqa: SIM115
        elif not platform.is_blocking(descriptor):
            raw = io.BufferedWriter(_Output(descriptor, "w", closefd=False))
            by_line = stream.line_buffering
            setattr(sys, name, io.TextIOWrapper(raw, stream.encoding, stream.errors, line_buffering=by_line))
