"""The bytes that docs/protocol.md fixes, as literals: what every other simple-ipc program sends and expects."""

from __future__ import annotations

import pytest

from ipcsrv.errors import ProtocolError
from ipcsrv.protocol.exchange import (
    ClientExchange,
    Failed,
    PeerClosed,
    RequestReceived,
    ResponseData,
    ResponseEnd,
    ServerExchange,
    Truncated,
)
from ipcsrv.protocol.pktline import Decoder, decode_exact, encode

FULL = b"x" * 65516

# What is sent for a message, and taken for it.
CANONICAL = [
    (b"", b"0000"),
    (b"a", b"0005a0000"),
    (b"ping", b"0008ping0000"),
    (b"hello, world\n", b"0011hello, world\n0000"),
    (b"\x00\xff0000\n", b"000b\x00\xff0000\n0000"),
    (b"0000", b"000800000000"),
    (b"x" * 11, b"000f" + b"x" * 11 + b"0000"),
    (FULL[1:], b"ffef" + FULL[1:] + b"0000"),
    (FULL, b"fff0" + FULL + b"0000"),
    (FULL + b"y", b"fff0" + FULL + b"0005y0000"),
    (FULL + FULL, b"fff0" + FULL + b"fff0" + FULL + b"0000"),
    (FULL + FULL + b"yz", b"fff0" + FULL + b"fff0" + FULL + b"0006yz0000"),
]

# Taken for a message, though never sent for it.
TOLERATED = [
    (b"", b"00040000"),
    (b"ping", b"0006pi0006ng0000"),
    (b"ping", b"0005p00040005i0005n0005g0000"),
    (b"ping", b"00040008ping00040000"),
    (b"hello worl", b"000Ehello worl0000"),
    (FULL, b"FFF0" + FULL + b"0000"),
]

REFUSED = [
    b"0001",
    b"0002",
    b"0003",
    b"fff1",
    b"ffff",
    b"FFFF",
    b"zzzz",
    b"00 4",
    b"+008",
    b"0x08",
    b"-001",
    b"\x00\x00\x00\x04",
    b"GET / HTTP/1.0\r\n\r\n",
    b"0008ping0001",
    b"0008ping0002",
    b"0008ping0003",
]


def brief(value):
    return f"{value[:24]!r}x{len(value)}"


@pytest.mark.parametrize(("message", "wire"), CANONICAL, ids=brief)
def test_a_message_is_sent_as_these_bytes(message, wire):
    assert b"".join(encode(message)) == wire
    assert b"".join(ClientExchange().send_request(message)) == wire


@pytest.mark.parametrize(("message", "wire"), CANONICAL, ids=brief)
def test_a_response_is_sent_as_these_bytes(message, wire):
    server = ServerExchange()
    server.receive_data(b"0000")
    server.next_event()
    assert b"".join(server.respond(message)) == wire


@pytest.mark.parametrize(("message", "wire"), CANONICAL + TOLERATED, ids=brief)
def test_these_bytes_are_taken_as_a_message(message, wire):
    decoder = Decoder()
    decoder.feed(wire)
    assert decoder.next_message() == message
    assert not decoder.mid_message
    assert decode_exact(wire) in (message, None)


@pytest.mark.parametrize(("message", "wire"), CANONICAL + TOLERATED, ids=brief)
def test_these_bytes_are_taken_as_a_request_and_as_a_response(message, wire):
    server = ServerExchange()
    server.receive_data(wire)
    assert server.next_event() == RequestReceived(message)
    client = ClientExchange()
    client.send_request(b"")
    client.receive_data(wire)
    *data, end = iter(client.next_event, None)
    assert b"".join(event.data for event in data if isinstance(event, ResponseData)) == message
    assert end == ResponseEnd()


@pytest.mark.parametrize("wire", REFUSED, ids=brief)
def test_these_bytes_are_refused(wire):
    decoder = Decoder()
    decoder.feed(wire)
    with pytest.raises(ProtocolError):
        decoder.next_message()
    assert decode_exact(wire) is None


def test_truncated_request_is_not_a_probe():
    probed, truncated = ServerExchange(), ServerExchange()
    truncated.receive_data(b"0008pin")
    for server, event in ((probed, PeerClosed()), (truncated, Truncated())):
        server.receive_eof()
        assert server.next_event() == event


def test_a_failure_is_one_packet_without_a_flush():
    server = ServerExchange()
    server.receive_data(b"0008ping0000")
    server.next_event()
    assert server.fail("handler", "ValueError: no") == [b"001eERR handler ValueError: no"]


def test_last_packet_is_the_reason_unless_a_flush_follows():
    failed, answered = ClientExchange(), ClientExchange()
    for client in (failed, answered):
        client.send_request(b"ping")
        client.receive_data(b"001eERR handler ValueError: no")
        assert client.next_event() is None
    failed.receive_eof()
    assert failed.next_event() == Failed("handler", "ValueError: no")
    answered.receive_data(b"0000")
    assert answered.next_event() == ResponseData(b"ERR handler ValueError: no")
    assert answered.next_event() == ResponseEnd()
