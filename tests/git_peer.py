"""Git's two ends of simple-ipc as docs/protocol.md describes them, in plain sockets and with no code of ipcsrv's.

What a Git client would make of a server's bytes, and what a Git server would do at a path, is what the tests of the
wire and of the rendezvous have to know; a helper that shared the package's codec would share its mistakes.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

LARGEST = 65_516  # bytes of data in one packet
TIMEOUT = 20.0
FLUSH = b"0000"


def packets(data: bytes) -> bytes:
    """A message as Git writes it: full packets, the rest, a flush."""
    pieces = [data[start:start + LARGEST] for start in range(0, len(data), LARGEST)]
    return b"".join(b"%04x" % (len(piece) + 4) + piece for piece in pieces) + FLUSH


class ReadFailed(Exception):
    """What Git's client reports when the response does not end with a flush; `data` is what had come."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.data = data


class Client:
    """A raw connection to a server, with Git's way to read a response."""

    def __init__(self, path: str, timeout: float = TIMEOUT) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(timeout)
        self.socket.connect(path)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Put these bytes on the wire."""
        self.socket.sendall(data)

    def finish_writing(self) -> None:
        """Shut down the writing half."""
        self.socket.shutdown(socket.SHUT_WR)

    def read(self, size: int) -> bytes:
        """Exactly so many bytes, fewer only at the end of the connection."""
        pieces = []
        while size and (piece := self.socket.recv(min(size, 1 << 20))):
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def chunks(self) -> Iterator[bytes]:
        """The data packets of one message, up to its flush."""
        while True:
            header = self.read(4)
            if header == FLUSH:
                return
            if len(header) < 4:
                raise ReadFailed(header)
            yield self.read(int(header, 16) - 4)

    def response(self) -> bytes:
        """One message; `ReadFailed` if the connection ended before its flush."""
        pieces: list[bytes] = []
        try:
            pieces.extend(self.chunks())
        except ReadFailed as failure:
            raise ReadFailed(b"".join(pieces) + failure.data) from None
        return b"".join(pieces)

    def rest(self) -> bytes:
        """Every byte up to the end of the connection."""
        pieces = []
        while piece := self.socket.recv(1 << 20):
            pieces.append(piece)
        return b"".join(pieces)

    def failure(self) -> bytes:
        """The failure reply's text: one packet, no flush, end of connection."""
        data = self.rest()
        assert len(data) >= 4 and int(data[:4], 16) == len(data), f"not exactly one packet without a flush: {data!r}"
        return data[4:]


def exchange(path: str, data: bytes) -> bytes:
    """One request and its response on a connection of their own, as bytes on the wire to the end of the response."""
    with Client(path) as client:
        client.send(packets(data))
        client.finish_writing()
        return client.rest()


class AddressInUse(Exception):
    """A Git server finds another one alive at its path."""


@contextmanager
def server(path: str) -> Iterator[socket.socket]:
    """A Git server's start at `path`, listening; its socket is removed afterwards.

    Raises `FileExistsError` where `<path>.lock` is held and `AddressInUse` where a connect is accepted.
    """
    lock = path + ".lock"
    os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    listener = socket.socket(socket.AF_UNIX)
    try:
        _bind(listener, path)
    except BaseException:
        listener.close()
        raise
    finally:
        os.unlink(lock)
    with listener:
        yield listener
    os.unlink(path)


def _bind(listener: socket.socket, path: str) -> None:
    with socket.socket(socket.AF_UNIX) as probe:
        if probe.connect_ex(path) == 0:
            raise AddressInUse(path)
    if os.path.lexists(path):
        os.unlink(path)
    listener.bind(path)
    listener.listen(5)
