"""The exchange, either side alone and both joined in memory, fed whole and byte by byte."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipcsrv.errors import LocalProtocolError, Progress, ProtocolError, TooLarge
from ipcsrv.protocol import exchange
from ipcsrv.protocol.exchange import (
    ClientExchange,
    Failed,
    Lost,
    PeerClosed,
    Refused,
    RequestReceived,
    ResponseData,
    ResponseEnd,
    ServerExchange,
    Truncated,
    failure_packet,
    parse_failure,
)
from ipcsrv.protocol.pktline import FLUSH, MAX_DATA, encode, encode_data

WHOLE = 1 << 30
CUTS = [WHOLE, 1, 3, 7]


def wire_of(data):
    return b"".join(encode(data))


def cut(wire, size):
    return [wire[i : i + size] for i in range(0, len(wire), size)]


def events_of(machine):
    found = []
    while (event := machine.next_event()) is not None:
        found.append(event)
    return found


def requests_of(server):
    """Every request that has come, each answered with itself so that the next one is given; and the rest."""
    found, sent = [], b""
    for event in iter(server.next_event, None):
        found.append(event)
        if isinstance(event, RequestReceived):
            sent += b"".join(server.respond(event.payload))
    return found, sent


class Reader:
    """A client's response so far: its data, and what else happened."""

    def __init__(self, client):
        self.client, self.data, self.others = client, b"", []

    def read(self, pieces=(), eof=False):
        for piece in pieces:
            self.client.receive_data(piece)
            self.take()
        if eof:
            self.client.receive_eof()
            self.take()
        return self

    def take(self):
        for event in events_of(self.client):
            if isinstance(event, ResponseData):
                self.data += event.data
            else:
                self.others.append(event)


def asked(**limits):
    client = ClientExchange(**limits)
    client.send_request(b"request")
    return client


# The server's side


@pytest.mark.parametrize("size", CUTS)
def test_a_server_gives_a_request_and_answers_it(size):
    server = ServerExchange()
    found = []
    for piece in cut(wire_of(b"ping"), size):
        server.receive_data(piece)
        found += events_of(server)
    assert found == [RequestReceived(b"ping")]
    assert server.respond(b"pong") == [b"0008pong0000"]
    assert server.next_event() is None


def test_an_empty_response_still_ends_with_a_flush():
    server = ServerExchange()
    server.receive_data(FLUSH)
    assert server.next_event() == RequestReceived(b"")
    assert server.respond(b"") == [FLUSH]


def test_a_response_may_be_sent_in_parts():
    server = ServerExchange()
    server.receive_data(wire_of(b"x"))
    server.next_event()
    sent = [*server.respond_chunk(b"ab"), *server.respond_chunk(b""), *server.respond_chunk(b"c")]
    assert sent == [b"0006ab", b"0005c"]
    assert server.end_response() == [FLUSH]
    assert server.state == exchange.READING


@pytest.mark.parametrize("size", CUTS)
def test_requests_sent_ahead_wait_for_the_response_in_progress(size):
    server = ServerExchange()
    for piece in cut(wire_of(b"one") + wire_of(b"two"), size):
        server.receive_data(piece)
        if server.state == exchange.READING:
            event = server.next_event()
    assert event == RequestReceived(b"one")
    assert server.next_event() is None
    assert server.buffered == len(wire_of(b"two"))
    server.respond_chunk(b"1")
    assert server.next_event() is None
    server.end_response()
    assert server.next_event() == RequestReceived(b"two")
    assert server.buffered == 0


def test_half_closed_client_gets_every_response():
    server = ServerExchange()
    server.receive_data(wire_of(b"one") + wire_of(b"two"))
    server.receive_eof()
    assert requests_of(server) == (
        [RequestReceived(b"one"), RequestReceived(b"two"), PeerClosed()],
        wire_of(b"one") + wire_of(b"two"),
    )
    assert server.state == exchange.CLOSED
    assert server.next_event() is None


def test_an_end_of_file_before_any_byte_is_a_probe():
    server = ServerExchange()
    server.receive_data(b"")
    assert server.next_event() is None
    server.receive_eof()
    assert events_of(server) == [PeerClosed()]


@pytest.mark.parametrize("begun", [b"0", b"0008", b"0008pi", b"0008ping", b"0004"])
def test_an_end_of_file_inside_a_request_truncates_it(begun):
    server = ServerExchange()
    assert not server.mid_request
    assert server.idle
    server.receive_data(begun)
    assert server.next_event() is None
    assert server.mid_request
    assert not server.idle
    server.receive_eof()
    assert events_of(server) == [Truncated()]
    assert not server.mid_request


@pytest.mark.parametrize("size", CUTS)
@pytest.mark.parametrize(
    ("sent", "code", "message"),
    [
        (b"0001", "malformed", "delim"),
        (b"GET / HTTP/1.1\r\n", "malformed", "GET "),
        (b"fff1", "malformed", "65521"),
        (b"0010" + b"x" * 12, "too-large", "a request of more than 10 bytes"),
        (b"0009aaaaa" * 3, "too-large", "more than 10"),
    ],
)
def test_what_cannot_be_a_request_is_refused_with_its_reason(sent, code, message, size):
    server = ServerExchange(max_request_size=10)
    found = []
    for piece in cut(sent, size):
        server.receive_data(piece)
        found += events_of(server)
    (event,) = found
    assert isinstance(event, Refused)
    assert event.code == code
    assert message in event.message
    (reply,) = server.fail(event.code, event.message)
    assert reply[4:].startswith(b"ERR " + code.encode())
    assert server.state == exchange.CLOSED


def test_requests_before_a_bad_one_are_served():
    server = ServerExchange()
    server.receive_data(wire_of(b"good") + b"zzzz")
    assert server.next_event() == RequestReceived(b"good")
    assert server.respond(b"fine") == [wire_of(b"fine")]
    assert isinstance(server.next_event(), Refused)


def test_failure_replaces_cuts_or_precedes_a_response():
    for prepare in (
        lambda server: None,
        lambda server: (server.receive_data(FLUSH), server.next_event()),
        lambda server: (server.receive_data(FLUSH), server.next_event(), server.respond_chunk(b"part")),
    ):
        server = ServerExchange()
        prepare(server)
        assert server.fail("stopping", "the server stops") == [b"0021ERR stopping the server stops"]
        assert server.next_event() is None


@pytest.mark.parametrize(
    "call",
    [
        lambda server: server.respond(b""),
        lambda server: server.respond_chunk(b""),
        lambda server: server.end_response(),
    ],
)
@pytest.mark.parametrize("state", ["reading", "responded", "refusing", "closed"])
def test_response_without_a_request_is_a_local_error(state, call):
    server = ServerExchange()
    if state == "responded":
        server.receive_data(FLUSH)
        server.next_event()
        server.respond(b"")
    if state in ("refusing", "closed"):
        server.receive_data(b"zzzz")
        server.next_event()
    if state == "closed":
        server.fail("malformed", "")
    before = server.state
    with pytest.raises(LocalProtocolError, match=before):
        call(server)
    assert server.state == before


def test_nothing_follows_a_failure():
    server = ServerExchange()
    server.fail("busy", "")
    with pytest.raises(LocalProtocolError):
        server.fail("busy", "")


def test_response_that_is_no_buffer_can_become_a_failure():
    server = ServerExchange()
    server.receive_data(FLUSH)
    server.next_event()
    with pytest.raises(TypeError):
        server.respond("text")
    assert server.fail("handler", "TypeError")


# Failure replies


@pytest.mark.parametrize(
    ("code", "message", "packet"),
    [
        ("handler", "ValueError: no", b"001eERR handler ValueError: no"),
        ("busy", "", b"000dERR busy "),
        ("handler", "two\nlines\r\nor three", b"0022ERR handler two lines or three"),
    ],
)
def test_a_failure_reply_is_one_packet_of_one_line(code, message, packet):
    assert failure_packet(code, message) == packet


@pytest.mark.parametrize("letter", ["a", "é", "€", "\U0001f600", "\udc80"])
def test_failure_message_is_cut_to_1000_bytes(letter):
    for shift in range(4):
        data = failure_packet("handler", "x" * shift + letter * 2000)[4:]
        message = data[len(b"ERR handler ") :]
        assert 996 < len(message) <= 1000
        message.decode("utf-8")


@given(st.sampled_from(["handler", "timeout", "too-large"]), st.text("ab é€\U0001f600\n\r\x1b\udc80", max_size=500))
@settings(deadline=None)
def test_what_a_failure_says_arrives(code, message):
    text = " ".join(message.splitlines()).encode("utf-8", "backslashreplace")[:1000].decode("utf-8", "ignore")
    assert parse_failure(failure_packet(code, message)[4:]) == (code, text)


def test_a_failure_reply_that_is_odd_is_still_read():
    assert parse_failure(b"ERR ") == ("", "")
    assert parse_failure(b"ERR alone") == ("alone", "")
    assert parse_failure(b"ERR handler \xff") == ("handler", "\ufffd")


# The client's side


@pytest.mark.parametrize("size", CUTS)
@pytest.mark.parametrize("response", [b"", b"pong", b"ERR busy not a failure", b"ERR ", b"E", b"x" * 1500, b"x" * 5000])
def test_a_client_reads_a_response_whatever_it_holds(response, size):
    client = ClientExchange()
    assert client.send_request(b"ping") == [b"0008ping0000"]
    reader = Reader(client).read(cut(wire_of(response), size))
    assert reader.data == response
    assert reader.others == [ResponseEnd()]
    assert client.state == exchange.IDLE


def test_response_data_comes_as_soon_as_its_packet_does():
    client = asked()
    for data in (b"a", b"bc", b"x" * 2000):
        client.receive_data(b"".join(encode_data(data)))
        assert events_of(client) == [ResponseData(data)]


def test_a_long_packet_is_given_out_as_it_comes():
    client = asked()
    client.receive_data(b"fff0" + bytes(3000))
    assert events_of(client) == [ResponseData(bytes(3000))]
    client.receive_data(bytes(10))
    assert events_of(client) == [ResponseData(bytes(10))]
    client.receive_data(bytes(MAX_DATA - 3010) + FLUSH)
    assert events_of(client) == [ResponseData(bytes(MAX_DATA - 3010)), ResponseEnd()]


@pytest.mark.parametrize("size", CUTS)
@pytest.mark.parametrize(
    ("before", "data"),
    [(b"", b""), (b"0008part", b"part"), (b"0008part0004", b"part"), (b"0008ERR 000bERR x y", b"ERR ERR x y")],
)
def test_last_packet_that_begins_with_err_is_the_reason(before, data, size):
    reader = Reader(asked()).read(cut(before + failure_packet("handler", "ValueError: no"), size), eof=True)
    assert reader.others == [Failed("handler", "ValueError: no")]
    assert reader.data == data
    assert reader.client.state == exchange.CLOSED
    assert events_of(reader.client) == []


@pytest.mark.parametrize("size", CUTS)
@pytest.mark.parametrize(
    ("after", "data"), [(b"0005x", b"ERR busy x"), (b"05dc" + b"y" * 1496, b"ERR busy " + b"y" * 1496)]
)
def test_data_that_begins_with_err_is_data_once_more_follows_it(after, data, size):
    reader = Reader(asked()).read(cut(failure_packet("busy", "") + after + FLUSH, size))
    assert reader.data == data
    assert reader.others == [ResponseEnd()]


@pytest.mark.parametrize("cut_off", [b"0", b"00", b"0009ab", b"05dc" + b"z" * 100])
def test_failure_before_a_truncated_packet_is_a_lost_connection(cut_off):
    reader = Reader(asked()).read([failure_packet("busy", ""), cut_off], eof=True)
    assert reader.others == [Lost(Progress.RESPONSE_BEGUN)]


def test_a_failure_may_come_before_anything_was_asked():
    reader = Reader(ClientExchange()).read([failure_packet("denied", "user 5")], eof=True)
    assert reader.others == [Failed("denied", "user 5")]


@pytest.mark.parametrize(
    ("prepare", "received", "progress"),
    [
        (lambda client: None, b"", Progress.NOTHING_SENT),
        (lambda client: client.send_request(b"x"), b"", Progress.REQUEST_SENT),
        (lambda client: client.send_request(b"x"), b"00", Progress.RESPONSE_BEGUN),
        (lambda client: client.send_request(b"x"), b"0008pa", Progress.RESPONSE_BEGUN),
        (lambda client: client.send_request(b"x"), b"0008part", Progress.RESPONSE_BEGUN),
        (lambda client: client.send_request(b"x"), b"0008ERR", Progress.RESPONSE_BEGUN),
        (lambda client: client.send_request(b"x"), FLUSH, Progress.NOTHING_SENT),
    ],
)
def test_a_lost_connection_says_how_far_the_exchange_got(prepare, received, progress):
    client = ClientExchange()
    prepare(client)
    reader = Reader(client).read([received] if received else [])
    assert client.progress == progress
    reader.read(eof=True)
    assert reader.others[-1] == Lost(progress)
    assert client.state == exchange.CLOSED


@pytest.mark.parametrize("bad", [b"0001", b"zzzz", b"fff1"])
def test_bytes_that_are_no_response_break_the_connection(bad):
    client = asked()
    client.receive_data(b"0008part" + bad)
    assert client.next_event() == ResponseData(b"part")
    with pytest.raises(ProtocolError):
        client.next_event()
    assert client.next_event() is None
    with pytest.raises(LocalProtocolError):
        client.send_request(b"again")


@pytest.mark.parametrize("stray", [FLUSH, b"0005x", wire_of(b"ERR x")])
def test_a_response_that_was_not_asked_for_is_refused(stray):
    client = asked()
    client.receive_data(FLUSH + stray)
    assert client.next_event() == ResponseEnd()
    with pytest.raises(ProtocolError, match="no request asked"):
        client.next_event()


def test_a_response_beyond_the_limit_is_refused():
    client = asked(max_response_size=10)
    client.receive_data(b"000e" + bytes(10) + b"0005")
    assert client.next_event() == ResponseData(bytes(10))
    with pytest.raises(TooLarge, match="a response of more than 10 bytes"):
        client.next_event()


@pytest.mark.parametrize("size", CUTS)
def test_responses_to_requests_sent_ahead_come_in_their_order(size):
    client = ClientExchange()
    for data in (b"1", b"2", b"3"):
        client.send_request(data)
    found = []
    for piece in cut(wire_of(b"one") + wire_of(b"") + wire_of(b"ERR three"), size):
        client.receive_data(piece)
        found += events_of(client)
    end = ResponseEnd()
    assert found == [ResponseData(b"one"), end, end, ResponseData(b"ERR three"), end]
    assert client.state == exchange.IDLE


def test_a_request_may_be_sent_while_a_response_comes():
    client = asked()
    client.receive_data(b"0005a")
    assert client.next_event() == ResponseData(b"a")
    client.begin_request()
    client.receive_data(FLUSH)
    assert client.next_event() == ResponseEnd()
    assert client.progress == Progress.REQUEST_SENT


def test_a_request_that_is_no_buffer_was_never_begun():
    client = ClientExchange()
    with pytest.raises(TypeError):
        client.send_request("text")
    assert client.progress == Progress.NOTHING_SENT
    assert client.state == exchange.IDLE


# Events


def test_events_are_equal_by_kind_and_value_and_short_to_print():
    assert Refused("malformed", "x") == Refused("malformed", "x")
    assert Refused("malformed", "x") != Failed("malformed", "x")
    assert RequestReceived(b"a") != RequestReceived(b"b")
    assert repr(Failed("busy", "full")) == "Failed('busy', 'full')"
    assert repr(RequestReceived(bytes(10**6))) == "RequestReceived(1000000 bytes)"
    assert repr(PeerClosed()) == "PeerClosed()"
    with pytest.raises(TypeError):
        hash(PeerClosed())


# Both sides, joined


class Joined:
    """A client and an echoing server, and the bytes between them delivered in cuts of a given size."""

    def __init__(self, size):
        self.size, self.client, self.server = size, ClientExchange(), ServerExchange()

    def ask(self, requests):
        sent = b"".join(b"".join(self.client.send_request(data)) for data in requests)
        reader = Reader(self.client)
        for piece in cut(sent, self.size):
            self.server.receive_data(piece)
            _, answer = requests_of(self.server)
            reader.read(cut(answer, self.size))
        return reader


@pytest.mark.parametrize("size", [1, 5, 65536, WHOLE])
def test_one_connection_serves_many_exchanges(size):
    joined = Joined(size)
    for data in (b"", b"a", b"ERR a", bytes(3000), b"z" * (70_000 if size > 5 else 700)):
        reader = joined.ask([data])
        assert (reader.data, reader.others) == (data, [ResponseEnd()])
    joined.server.receive_eof()
    assert joined.server.next_event() == PeerClosed()


@given(st.lists(st.binary(max_size=40) | st.binary(max_size=9).map(b"ERR ".__add__), max_size=6), st.integers(1, 30))
@settings(deadline=None)
def test_whatever_is_asked_ahead_is_answered_in_order(requests, size):
    reader = Joined(size).ask(requests)
    assert reader.data == b"".join(requests)
    assert reader.others == [ResponseEnd()] * len(requests)


@given(st.binary(max_size=60) | st.text("0123456789abERR ", max_size=60).map(str.encode))
@settings(max_examples=300, deadline=None)
def test_random_bytes_end_every_exchange_in_order(data):
    server = ServerExchange(max_request_size=30)
    server.receive_data(data)
    server.receive_eof()
    found, _ = requests_of(server)
    assert isinstance(found[-1], (PeerClosed, Truncated, Refused))
    client = asked(max_response_size=30)
    try:
        others = Reader(client).read([data], eof=True).others
    except (ProtocolError, TooLarge):
        others = []
    assert client.state == exchange.CLOSED
    assert all(isinstance(event, (ResponseEnd, Failed, Lost)) for event in others)


@pytest.mark.parametrize("length", [0, 2, 4, 9, MAX_DATA + 7, MAX_DATA + 50])
def test_request_is_completed_by_another_machine_from_a_snapshot(length):
    wire = wire_of(b"x" * (MAX_DATA + 100))
    first = ServerExchange()
    first.receive_data(wire[:length])
    assert first.next_event() is None
    second = ServerExchange(assembly=first.assembly)
    second.restore(*first.snapshot())
    second.receive_data(wire[length:])
    (event,) = events_of(second)
    assert isinstance(event, RequestReceived) and bytes(event.payload) == b"x" * (MAX_DATA + 100)


def test_what_was_read_ahead_is_taken_once():
    machine = ServerExchange()
    machine.receive_data(wire_of(b"one") + wire_of(b"two"))
    assert isinstance(machine.next_event(), RequestReceived)
    assert machine.take_ahead() == wire_of(b"two")
    assert machine.take_ahead() == b""
