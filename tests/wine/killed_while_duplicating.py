"""Does a killed process leave handles in another that nobody knows of?  `python tests/wine/killed_while_duplicating.py`

No code of the project's: a child duplicates a handle into its parent again and again (DuplicateHandle), each time with
the next cell of shared memory as the place for the new handle's number, until the parent kills it.  On Windows the
kernel writes the number within the call, which a termination does not cut in two; so the parent must have as many new
handles as there are numbers in the memory.  Under Wine the number is written by the caller's own code, after the server
has made the handle: killed in between, a process leaves a handle of which there is no trace.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import struct
import subprocess
import sys
import time
from ctypes.wintypes import BOOL, DWORD, HANDLE

KILLS = int(os.environ.get("KILLS", "200"))
CELLS = 1 << 20

kernel32 = ctypes.WinDLL("kernel32")
kernel32.GetCurrentProcess.restype = HANDLE
kernel32.OpenProcess.restype, kernel32.OpenProcess.argtypes = HANDLE, (DWORD, BOOL, DWORD)
kernel32.CreateEventW.restype = HANDLE
kernel32.CloseHandle.argtypes = (HANDLE,)
kernel32.TerminateProcess.argtypes = HANDLE, DWORD
kernel32.GetHandleInformation.argtypes = HANDLE, ctypes.POINTER(DWORD)
kernel32.DuplicateHandle.argtypes = HANDLE, HANDLE, HANDLE, ctypes.c_void_p, DWORD, BOOL, DWORD


def duplicate_for_ever(tag: str, parent: int) -> None:
    """The child."""
    cells = mmap.mmap(-1, CELLS * 8, tagname=tag)
    base = ctypes.addressof(ctypes.c_char.from_buffer(cells))
    own, process, handle = kernel32.GetCurrentProcess(), kernel32.OpenProcess(0x40, False, parent), None
    handle = kernel32.CreateEventW(None, True, False, None)
    for cell in range(CELLS):
        assert kernel32.DuplicateHandle(own, handle, process, base + 8 * cell, 0, False, 2)


def handles(limit: int = 0) -> set[int]:
    """Those that this process has open, found by asking for each (Wine does not count them)."""
    flags = DWORD()
    numbers = range(4, limit + 4096, 4)
    return {number for number in numbers if kernel32.GetHandleInformation(number, ctypes.byref(flags))}


def main() -> None:
    """The parent."""
    unknown = 0
    for number in range(KILLS):
        tag = f"Local\\cells-{os.getpid()}-{number}"
        cells = mmap.mmap(-1, CELLS * 8, tagname=tag)
        child = subprocess.Popen([sys.executable, __file__, tag, str(os.getpid())])
        before = handles(1 << 14)
        while not any(cells[:8]):
            time.sleep(0.001)  # memory has no event
        time.sleep(random.random() * 0.05)  # any moment
        child.kill()
        child.wait()
        known = [value for (value,) in struct.iter_unpack("<Q", cells[: 8 * 200_000]) if value]
        for value in known:
            kernel32.CloseHandle(value)
        left = handles(1 << 14) - before
        unknown += bool(left)
        if left:
            print(f"kill {number + 1}: {len(known)} numbers, and the handles {sorted(left)}", flush=True)
    print(f"{unknown} of {KILLS} kills left a handle that nobody knows of")


if __name__ == "__main__":
    duplicate_for_ever(sys.argv[1], int(sys.argv[2])) if len(sys.argv) > 1 else main()
