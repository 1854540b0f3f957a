"""The file that says what a server has imported, by which a client knows whether it is up to date.

The template writes it beside the socket; clients compare it with the files (in C: ipcsrv/native/program.c).  It begins
with `FORMAT TOKEN SIZE`, a line, and the key, of SIZE bytes; then come lines `MTIME SIZE INODE PATH`, in nanoseconds
and bytes, -1 -1 0 for what must not exist.  The token is new for each template; a run names it, so that no template
serves a client that looked at the stamps of another.
"""

from __future__ import annotations

import sys

assert sys.platform != "win32"

import os

from .program import FORMAT

Stamp = tuple[int, int, int]
Stamps = dict[str, Stamp]
ABSENT: Stamp = (-1, -1, 0)


def stamp_of(path: str) -> Stamp:
    """Return the time of modification, in nanoseconds, the size and the inode of what is at `path`."""
    try:
        info = os.stat(path)
    except OSError:
        return ABSENT
    return info.st_mtime_ns, info.st_size, info.st_ino


def write(path: str, token: str, key: bytes, stamps: dict[str, Stamp]) -> None:
    """Write the file in one step: a client reads the old one or the new one.

    Raises:
        ValueError: a path holds a line break.
    """
    lines = [f"{mtime} {size} {inode} {name}\n" for name, (mtime, size, inode) in stamps.items()]
    if any(line.count("\n") != 1 for line in lines):
        raise ValueError("the path of an imported file holds a line break")
    content = f"{FORMAT} {token} {len(key)}\n".encode() + key + b"\n" + os.fsencode("".join(lines))
    temporary = f"{path}.{os.getpid()}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    os.rename(temporary, path)


def read(path: str) -> tuple[str, bytes, list[bytes]] | None:
    """Return the token, the key and the lines; None where there is no such file, or none of this format."""
    try:
        with open(path, "rb") as file:
            head, _, rest = file.read().partition(b"\n")
    except OSError:
        return None
    words = head.decode("ascii", "replace").split(" ")
    if " ".join(words[:2]) != FORMAT or len(words) != 4:
        return None
    size = int(words[3])
    return words[2], rest[:size], rest[size + 1 :].splitlines()


def current_token(path: str, key: bytes) -> tuple[str | None, str]:
    """Return the token if the file has this key and everything in it is as it was; else None and the reason."""
    found = read(path)
    if found is None:
        return None, "no server has been started"
    token, written, lines = found
    if written != key:
        return None, "the server is another one's"
    for line in lines:
        mtime, size, inode, name = line.split(b" ", 3)
        path = os.fsdecode(name)
        if stamp_of(path) != (int(mtime), int(size), int(inode)):
            return None, f"{path} has changed"
    return token, ""
