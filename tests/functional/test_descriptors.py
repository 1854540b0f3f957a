"""The setting `receive_descriptors`: what a client passes with its request is the handler's."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

import pytest
import support
from conftest import ServerFactory
from fake_server import message, read_message

pytestmark = pytest.mark.skipif(not hasattr(socket, "send_fds"), reason="descriptors cannot be passed here")


def ask(path: str, *contents: bytes, split: int | None = None,
        stall: Callable[[], object] = lambda: None) -> bytes | None:
    """Send a request with the read end of a pipe for each of `contents`; `stall` is called in the middle of it."""
    ends = []
    for content in contents:
        read, write = os.pipe()
        os.write(write, content)
        os.close(write)
        ends.append(read)
    request = message(b"read these")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(support.TIMEOUT)
        connection.connect(path)
        socket.send_fds(connection, [request[:split]], ends)
        for end in ends:
            os.close(end)
        stall()
        connection.sendall(request[len(request[:split]) :])
        return read_message(connection)


@pytest.fixture
def running(server: ServerFactory) -> support.RunningServer:
    """A server that reads the descriptors that come."""
    return server("handlers_for_tests:read_descriptors", "--receive-descriptors", "--workers", "1")


def test_handler_gets_the_descriptors_of_a_request(running: support.RunningServer) -> None:
    assert ask(running.path, b"one", b"two", b"three") == b"3 one two three"
    assert ask(running.path) == b"0 "
    assert ask(running.path, b"again", split=3) == b"1 again"


def assert_descriptor_is_closed(path: str, data: bytes, refusal: bytes) -> None:
    """Send data with a descriptor, which is refused; then no process has that descriptor."""
    read, write = os.pipe()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(support.TIMEOUT)
        connection.connect(path)
        socket.send_fds(connection, [data], [write])
        os.close(write)
        assert refusal in connection.recv(100)
        connection.shutdown(socket.SHUT_RDWR)
        with open(read, "rb") as file:
            assert file.read() == b""  # the end of file: no process has the other end


def test_descriptors_survive_a_request_that_stalls(running: support.RunningServer) -> None:
    assert ask(running.path, b"one", b"two", split=3, stall=lambda: running.call(b"")) == b"2 one two"


def test_descriptors_of_a_stalled_request_are_closed_when_late(server: ServerFactory) -> None:
    running = server("handlers_for_tests:read_descriptors", "--receive-descriptors", "--read-timeout", "0.5")
    assert_descriptor_is_closed(running.path, b"00", b"ERR timeout")


@pytest.mark.skipif(not support.have_proc, reason="counts descriptors in /proc")
def test_descriptors_that_no_handler_takes_do_not_pile_up(server: ServerFactory) -> None:
    running = server("handlers_for_tests:echo", "--receive-descriptors", "--workers", "1")
    running.call(b"")
    worker = running.status()["workers"][0]["pid"]
    before = len(support.descriptors(worker))
    with socket.socket(socket.AF_UNIX) as connection, open(os.devnull, "rb") as file:
        connection.settimeout(support.TIMEOUT)
        connection.connect(running.path)
        for _ in range(100):
            socket.send_fds(connection, [message(b"x")], [file.fileno()])
            assert read_message(connection) == b"x"
        assert len(support.descriptors(worker)) <= before + 17


@pytest.mark.skipif(not support.have_proc, reason="counts descriptors in /proc")
def test_descriptors_that_are_not_taken_are_closed(running: support.RunningServer) -> None:
    assert_descriptor_is_closed(running.path, b"zzzz", b"ERR malformed")


def test_descriptors_are_not_received_unless_asked(server: ServerFactory) -> None:
    running = server("handlers_for_tests:read_descriptors", "--workers", "1")
    assert ask(running.path, b"one") == b"0 "
