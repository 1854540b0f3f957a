"""dulwich, a Git implementation of its own, as the peer: its packets must be ours, and ours its.

It knows data packets and flushes, which is all that a message has. Its own packets may be of any size that it is
asked for, so it also stands for a peer that cuts messages differently.
"""

from __future__ import annotations

import random
import socket
import threading
from contextlib import contextmanager

import pytest
from dulwich.errors import HangupException
from dulwich.protocol import PktLineParser, Protocol, pkt_line
from hypothesis import given, settings
from hypothesis import strategies as st

import ipcsrv
from ipcsrv.errors import HandlerError
from ipcsrv.protocol.pktline import MAX_DATA, Decoder, encode

SIZES = [0, 1, 4, 1000, MAX_DATA - 1, MAX_DATA, MAX_DATA + 1, 3 * MAX_DATA + 17, 2_000_000]

needs_unix = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="dulwich is joined by a Unix socket")


def payload_of(size):
    return random.Random(size).randbytes(size)


def packets_of(message, size=MAX_DATA):
    """A message as dulwich writes it, in packets of up to `size` bytes of data."""
    packets = [pkt_line(message[at : at + size]) for at in range(0, len(message), size)]
    return b"".join([*packets, pkt_line(None)])


def parsed(wire):
    """What dulwich reads: each packet's data, None for a flush."""
    found = []
    parser = PktLineParser(found.append)
    parser.parse(wire)
    assert parser.get_tail() == b""
    return found


@pytest.mark.parametrize("size", SIZES)
def test_dulwich_writes_the_bytes_that_we_write(size):
    assert packets_of(payload_of(size)) == b"".join(encode(payload_of(size)))


@pytest.mark.parametrize("size", SIZES)
def test_dulwich_reads_what_we_write(size):
    *data, end = parsed(b"".join(encode(payload_of(size))))
    assert b"".join(data) == payload_of(size)
    assert end is None


@given(st.binary(max_size=300), st.integers(1, 40))
@settings(deadline=None)
def test_we_read_what_dulwich_writes_in_packets_of_any_size(message, size):
    decoder = Decoder()
    decoder.feed(packets_of(message, size))
    assert decoder.next_message() == message
    assert not decoder.mid_message


# End to end


class Dulwich:
    """dulwich's reader and writer on a stream socket."""

    def __init__(self, stream):
        self.file = stream.makefile("rb")
        self.protocol = Protocol(self.file.read, stream.sendall)

    def send(self, message, size=MAX_DATA):
        for at in range(0, len(message), size):
            self.protocol.write_pkt_line(message[at : at + size])
        self.protocol.write_pkt_line(None)

    def receive(self):
        return b"".join(self.protocol.read_pkt_seq())

    def close(self):
        self.file.close()


@contextmanager
def connected(path):
    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(30)
        stream.connect(path)
        peer = Dulwich(stream)
        yield peer
        peer.close()


@contextmanager
def dulwich_server(path, answer):
    """A server of dulwich's packets on one thread: one connection, one request, then it closes as Git's does."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        thread = threading.Thread(target=serve_one, args=(listener, answer))
        thread.start()
        yield
        thread.join(30)
        assert not thread.is_alive()


def serve_one(listener, answer):
    stream, _ = listener.accept()
    with stream:
        peer = Dulwich(stream)
        answer(peer, peer.receive())
        peer.close()


@needs_unix
def test_a_dulwich_client_is_answered_request_after_request(echo_server):
    with connected(echo_server.path) as peer:
        for number, size in enumerate(SIZES):
            peer.send(payload_of(size), 1000 if number % 2 else MAX_DATA)
            assert peer.receive() == payload_of(size)


@needs_unix
def test_a_dulwich_client_reads_a_streamed_response_to_its_flush(server):
    with connected(server("handlers_for_tests:stream", "--workers", "1").path) as peer:
        peer.send(b"3")
        assert peer.receive() == b"chunk 0\nchunk 1\nchunk 2\n"


@needs_unix
def test_dulwich_client_sees_a_failure_as_a_packet_and_an_end(server):
    with connected(server("handlers_for_tests:raise_error", "--workers", "1").path) as peer:
        peer.send(b"because")
        assert peer.protocol.read_pkt_line() == b"ERR handler ValueError: because"
        with pytest.raises(HangupException):
            peer.protocol.read_pkt_line()


@needs_unix
@pytest.mark.parametrize("size", SIZES)
def test_our_client_is_answered_by_a_dulwich_server(sock_path, size):
    with dulwich_server(sock_path, lambda peer, request: peer.send(request, 3000)):
        assert ipcsrv.call(sock_path, payload_of(size), timeout=30) == payload_of(size)


@needs_unix
def test_last_packet_of_a_dulwich_server_is_the_reason(sock_path):
    def fail(peer, request):
        peer.protocol.write_pkt_line(b"ERR handler no: " + request)

    with dulwich_server(sock_path, fail), pytest.raises(HandlerError, match="no: because"):
        ipcsrv.call(sock_path, b"because", timeout=30)
