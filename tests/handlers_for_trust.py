"""Handlers that look around from inside a server, for the tests of trust."""

from __future__ import annotations

import os


def descriptors_of_a_program(request: bytes) -> bytes:
    """What a program sees that is started without closing anything: its descriptors, as `ls -l` shows them."""
    name = os.fsdecode(request)
    os.system(f"ls -l /proc/self/fd > {name}")
    with open(name, "rb") as file:
        return file.read()


def surroundings(request: bytes) -> bytes:
    """The environment variable that the request names, the current folder, and what standard input leads to."""
    values = (os.environ.get(os.fsdecode(request), ""), os.getcwd(), os.readlink("/proc/self/fd/0"))
    return "\n".join(values).encode()
