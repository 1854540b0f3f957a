"""Servers of a few lines, made of plain sockets in a thread: peers that share no code with the client under test.

Each behaves exactly as its script says, also badly. `message` and `packet` spell the wire format out once more.
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import threading
from collections.abc import Callable, Iterator

FLUSH = b"0000"
Script = Callable[[socket.socket], object]


def packet(data: bytes) -> bytes:
    """One data packet."""
    return b"%04x%b" % (len(data) + 4, data)


def message(data: bytes) -> bytes:
    """A whole message: packets of at most 65,516 bytes and a flush."""
    pieces = [data[at : at + 65516] for at in range(0, len(data), 65516)]
    return b"".join(map(packet, pieces)) + FLUSH


def read_exactly(connection: socket.socket, size: int) -> bytes:
    """`size` bytes, or fewer at the end of file."""
    data = bytearray()
    while len(data) < size:
        more = connection.recv(min(size - len(data), 1 << 20))
        if not more:
            break
        data += more
    return bytes(data)


def read_message(connection: socket.socket) -> bytes | None:
    """The payload of the next message; None at an end of file before its first byte."""
    payload = bytearray()
    while True:
        header = read_exactly(connection, 4)
        if not header:
            return None
        size = int(header, 16)
        if size == 0:
            return bytes(payload)
        payload += read_exactly(connection, size - 4)


def echo(connection: socket.socket) -> None:
    """Answer each message with itself, until the client closes."""
    while (request := read_message(connection)) is not None:
        connection.sendall(message(request))


def answer(response: bytes) -> Script:
    """Read one request, send these raw bytes, close."""

    def script(connection: socket.socket) -> None:
        read_message(connection)
        connection.sendall(response)

    return script


def silent(connection: socket.socket) -> None:
    """Say nothing until the client has gone."""
    with contextlib.suppress(ConnectionError):
        while connection.recv(65536):
            pass


class FakeServer:
    """Runs `scripts`, one for each connection in turn (the last for all that follow), until `close`."""

    def __init__(self, path: str, *scripts: Script, backlog: int = 16) -> None:
        self.path = path
        self.accepted = 0
        self._one_more = threading.Condition()
        self._scripts = list(scripts)
        self._listener = socket.socket(socket.AF_UNIX)
        bind(self._listener, path)
        self._listener.listen(backlog)
        self._failures: list[BaseException] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # shut down by close
                return
            script = self._scripts[min(self.accepted, len(self._scripts) - 1)]
            self.accepted += 1
            thread = threading.Thread(target=self._run, args=(script, connection))
            thread.start()
            with self._one_more:
                self._threads.append(thread)
                self._one_more.notify()

    def _run(self, script: Script, connection: socket.socket) -> None:
        with connection:
            try:
                script(connection)
            except ConnectionError:
                pass  # the client went first
            except BaseException as error:
                self._failures.append(error)

    def wait_until_done_with(self, connections: int) -> None:
        """Wait until so many connections have been accepted and all of them are closed again."""
        with self._one_more:
            assert self._one_more.wait_for(lambda: len(self._threads) == 1 + connections, 20)
        for thread in self._threads[1:]:
            thread.join(20)

    def close(self) -> None:
        """Stop accepting, wait for the scripts, and raise what went wrong in one."""
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:  # the first adds no more once it has ended
            thread.join(1)
            if thread.is_alive():
                gc.collect()  # the test may have dropped its connection, in a cycle of references
                thread.join(20)
            assert not thread.is_alive(), "a script of the fake server did not end"
        self._listener.close()
        os.unlink(self.path)
        if self._failures:
            raise self._failures[0]


def bind(listener: socket.socket, path: str) -> None:
    """Bind at a path of any length, in a way of its own: by changing directory (no thread may mind)."""
    if len(os.fsencode(path)) < 100:
        listener.bind(path)
        return
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir(os.path.dirname(path))
        listener.bind(os.path.basename(path))
    finally:
        os.fchdir(here)
        os.close(here)


@contextlib.contextmanager
def serving(path: str, *scripts: Script, backlog: int = 16) -> Iterator[FakeServer]:
    """A fake server for the length of a block."""
    server = FakeServer(path, *scripts, backlog=backlog)
    try:
        yield server
    finally:
        server.close()
