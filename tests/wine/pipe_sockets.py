"""Sockets at paths for the tests of a system that has none: a pipe's client end behind a socket's methods.

Tests that speak to a server byte by byte do so through `socket.socket(socket.AF_UNIX)`.  On Windows the same path
stands for a pipe, and the bytes on it are the same; so there this gives them one.  What a pipe cannot do (to listen as
a socket does, to shut down one direction, to send datagrams) skips the test that asks for it, and says so.
"""

from __future__ import annotations

import sys

assert sys.platform == "win32"

import contextlib
import socket
import time
from typing import Any

import pytest

from ipcsrv.deadline import Deadline
from ipcsrv.errors import CallTimeout, IpcError, NotListening, PathNotFound
from ipcsrv.platform import client as platform
from ipcsrv.platform.windows.pipe import DONTWAIT, give_up, wait_any, wait_readable

AF_UNIX = 1  # as on Linux


class PipeSocket:
    """A client's end of a pipe, with the methods of a connected socket."""

    def __init__(self) -> None:
        self._stream: Any = None
        self._timeout: float | None = None

    def connect(self, path: str) -> None:
        """Open the pipe that stands for the path."""
        try:
            self._stream = platform.connect(path, Deadline(self._timeout))
        except CallTimeout:
            raise BlockingIOError(f"{path} is busy") from None
        except PathNotFound as error:
            raise FileNotFoundError(str(error)) from None
        except NotListening as error:
            raise ConnectionRefusedError(str(error)) from None
        except IpcError as error:
            raise OSError(str(error)) from None

    def connect_ex(self, path: str) -> int:
        """0 if it could connect."""
        try:
            self.connect(path)
        except OSError:
            return 1
        return 0

    def settimeout(self, seconds: float | None) -> None:
        """How long a call may take; 0: no time at all."""
        self._timeout = seconds

    def setblocking(self, blocking: bool) -> None:
        """For ever, or not at all."""
        self._timeout = None if blocking else 0.0

    def fileno(self) -> int:
        """The handle, which select() does not take."""
        return -1 if self._stream is None else int(self._stream.fileno())

    def send(self, data: bytes, flags: int = 0) -> int:
        """How many bytes went."""
        until = None if self._timeout is None else time.monotonic() + self._timeout
        while True:
            with contextlib.suppress(BlockingIOError):
                return int(self._stream.send(data, DONTWAIT))
            if self._timeout == 0:
                raise BlockingIOError
            left = None if until is None else max(0.0, until - time.monotonic())
            if wait_any([self._stream.writing.event], left) is None:
                raise TimeoutError("timed out")

    def sendall(self, data: bytes) -> None:
        """All of them."""
        rest = memoryview(bytes(data))
        while rest:
            rest = rest[self.send(rest.tobytes()) :]

    def recv(self, size: int, flags: int = 0) -> bytes:
        """At most so many bytes, b"" at the end."""
        if flags & getattr(socket, "MSG_PEEK", 2):
            pytest.skip("a pipe's client here does not look ahead")
        if self._timeout == 0:
            return bytes(self._stream.recv(size, DONTWAIT))
        data = self._stream.read(size, self._timeout)
        if data is None:
            raise TimeoutError("timed out")
        return bytes(data)

    def readable(self, seconds: float) -> bool:
        """Whether something, or the end, comes in time; what select() would tell."""
        arrival = wait_readable(self._stream.fileno())
        if arrival is None:
            return True
        try:
            return wait_any([arrival.event], seconds) is not None
        finally:
            give_up(arrival)

    def close(self) -> None:
        """Close the pipe."""
        if self._stream is not None:
            self._stream.close()

    def __enter__(self) -> PipeSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        pytest.skip(f"a pipe's client has no {name}()")


class _Socket(socket.socket):
    """`socket.socket`, which makes a pipe's client where a socket at a path is wanted."""

    def __new__(cls, family: int = -1, type: int = -1, *rest: Any, **more: Any) -> Any:
        if family != AF_UNIX:
            return super().__new__(cls, family, type, *rest, **more)
        if type not in (-1, socket.SOCK_STREAM):
            pytest.skip("a pipe has no datagrams with sockets' ways")
        return PipeSocket()


def install() -> None:
    """Let the tests of this process have them."""
    socket.AF_UNIX = AF_UNIX  # type: ignore[attr-defined]
    socket.socket = _Socket  # type: ignore[misc]
