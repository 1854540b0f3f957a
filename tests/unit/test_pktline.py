"""The codec, fed whole, byte by byte, in odd cuts and with trailing bytes; and what it must refuse."""

from __future__ import annotations

import random
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipcsrv.errors import ProtocolError, TooLarge
from ipcsrv.protocol.pktline import (
    FLUSH,
    MAX_DATA,
    MAX_PACKET,
    Assembly,
    Decoder,
    decode_exact,
    encode,
    encode_data,
)

SIZES = [0, 1, 4, 100, 2047, 2048, MAX_DATA - 1, MAX_DATA, MAX_DATA + 1, 2 * MAX_DATA, 2 * MAX_DATA + 1, 300_000]


def payload_of(size):
    return random.Random(size).randbytes(size)


def wire_of(data):
    return b"".join(encode(data))


def packet(data):
    return b"%04x" % (len(data) + 4) + data


def cuts(wire):
    """The ways in which a reader may bring the same bytes."""
    yield [wire]
    if len(wire) <= 5000:
        yield [wire[i : i + 1] for i in range(len(wire))]
    for size in (3, 7, 4096, 65536):
        if len(wire) // size <= 5000:
            yield [wire[i : i + size] for i in range(0, len(wire), size)]


def messages(decoder, pieces):
    found = []
    for piece in pieces:
        decoder.feed(piece)
        while (message := decoder.next_message()) is not None:
            found.append(message)
    return found


def outcome(pieces, max_size=None):
    """Messages, then how it ended: the type of the error, or what an end of file here would be."""
    decoder, found = Decoder(max_size), []
    try:
        for piece in pieces:
            decoder.feed(piece)
            while (message := decoder.next_message()) is not None:
                found.append(message)
    except (ProtocolError, TooLarge) as error:
        return found, type(error)
    return found, "truncated" if decoder.mid_message else "clean"


# Encoding


def test_a_message_of_one_packet_is_one_buffer():
    assert encode(b"ping") == [b"0008ping0000"]
    assert encode(b"") == [b"0000"]
    assert len(encode(bytes(MAX_DATA))) == 1
    assert len(encode(bytes(MAX_DATA + 1))) > 1


def test_a_large_message_is_views_of_the_data_and_not_copies():
    data = bytes(10 * MAX_DATA)
    views = [buffer for buffer in encode(data) if isinstance(buffer, memoryview)]
    assert len(views) == 9
    assert all(view.obj is data for view in views)


@pytest.mark.parametrize("size", SIZES)
def test_every_packet_but_the_last_is_full(size):
    wire, at, lengths = wire_of(payload_of(size)), 0, []
    while wire[at : at + 4] != FLUSH:
        lengths.append(int(wire[at : at + 4], 16))
        at += lengths[-1]
    assert at + 4 == len(wire)
    assert all(length == MAX_PACKET for length in lengths[:-1])
    assert sum(lengths) - 4 * len(lengths) == size
    assert 4 not in lengths


@pytest.mark.parametrize("size", SIZES)
def test_data_packets_are_the_message_without_its_flush(size):
    data = payload_of(size)
    assert b"".join([*encode_data(data), FLUSH]) == wire_of(data)


@pytest.mark.parametrize("size", [0, 5, MAX_DATA, MAX_DATA + 5])
@pytest.mark.parametrize("kind", [bytearray, memoryview, lambda data: memoryview(bytearray(data)).cast("B")])
def test_any_buffer_can_be_encoded(kind, size):
    data = payload_of(size)
    assert b"".join(encode(kind(data))) == wire_of(data)


def test_a_buffer_of_wide_items_is_encoded_as_its_bytes():
    wide = memoryview(bytes(range(80))).cast("Q")
    assert b"".join(encode(wide)) == wire_of(bytes(range(80)))


@pytest.mark.parametrize("no_buffer", ["text", None, 5, [1]])
def test_what_is_no_buffer_is_refused(no_buffer):
    with pytest.raises(TypeError):
        encode(no_buffer)


# Decoding a whole small message


@pytest.mark.parametrize("size", [size for size in SIZES if size <= MAX_DATA])
def test_decode_exact_takes_one_message_of_one_packet(size):
    data = payload_of(size)
    assert decode_exact(wire_of(data)) == data


def test_decode_exact_takes_an_empty_data_packet():
    assert decode_exact(b"00040000") == b""


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"0",
        b"000",
        b"0001",
        b"0002",
        b"0003",
        b"0004",
        b"00010000",
        b"00050000",
        b"0005a",
        b"0005a000",
        b"0005a00000",
        b"0005a0000x",
        b"00000000",
        b"0008ping0001",
        b"0008ping",
        b"000Cpingping0000",
        b"0005a0005b0000",
        b"+008ping0000",
        b"-008ping0000",
        b"fff1" + bytes(MAX_DATA + 1) + FLUSH,
        b"10000" + bytes(MAX_DATA + 20) + FLUSH,
    ],
)
def test_decode_exact_leaves_everything_else_to_the_decoder(data):
    assert decode_exact(data) is None


@given(st.binary(max_size=12) | st.text("0123456789abcdefA+-_ x", max_size=14).map(str.encode))
@settings(max_examples=200, deadline=None)
def test_decode_exact_never_says_more_than_the_decoder(data):
    exact = decode_exact(data)
    if exact is not None:
        assert outcome([data]) == ([exact], "clean")


@pytest.mark.parametrize("size", range(0, 70))
def test_decode_exact_of_zeros_agrees_with_the_decoder(size):
    data = b"0" * size
    assert decode_exact(data) == (b"" if size == 4 else None)


# Decoding


@pytest.mark.parametrize("size", SIZES)
def test_a_message_is_the_same_however_it_is_cut(size):
    data = payload_of(size)
    for pieces in cuts(wire_of(data)):
        decoder = Decoder()
        assert messages(decoder, pieces) == [data]
        assert not decoder.mid_message
        assert decoder.buffered == 0


def test_messages_are_decoded_in_order_in_any_cut():
    sent = [b"first", b"", payload_of(5000), b"0000", b"last"]
    for pieces in cuts(b"".join(map(wire_of, sent))):
        assert messages(Decoder(), pieces) == sent


@pytest.mark.parametrize("header", [b"000b", b"000B"])
def test_either_case_of_hexadecimal_is_taken(header):
    for pieces in cuts(header + b"0000000" + FLUSH):
        assert messages(Decoder(), pieces) == [b"0000000"]


def test_the_largest_packet_is_taken_and_one_byte_more_is_not():
    assert messages(Decoder(), [b"FFF0" + bytes(MAX_DATA) + FLUSH]) == [bytes(MAX_DATA)]
    assert outcome([b"fff1" + bytes(MAX_DATA + 1) + FLUSH]) == ([], ProtocolError)


def test_empty_packets_carry_nothing_and_end_nothing():
    for pieces in cuts(b"0004" + packet(b"a") + b"00040004" + packet(b"b") + b"0004" + FLUSH):
        assert messages(Decoder(), pieces) == [b"ab"]


@pytest.mark.parametrize(
    "header",
    [b"0001", b"0002", b"0003", b"fff1", b"FFFF", b"+123", b"-001", b" 12 ", b"0x1f", b"0X1f", b"1_00", b"12 \n", b"\0\0\0\0", b"00g0", b"GET ", "٣".encode() * 2],  # noqa: E501
)  # fmt: skip
def test_bad_header_is_refused_in_any_cut(header):
    for pieces in cuts(wire_of(b"good") + packet(b"x") + header + b"0005y0000"):
        assert outcome(pieces) == ([b"good"], ProtocolError)
    decoder = Decoder()
    decoder.feed(header)
    for _ in range(2):
        with pytest.raises(ProtocolError):
            decoder.next_message()
    assert decoder.mid_packet


@pytest.mark.parametrize("cut", range(1, len(b"0008ping0006zz0000")))
def test_an_end_of_file_anywhere_inside_a_message_truncates_it(cut):
    for pieces in cuts(b"0008ping0006zz0000"[:cut]):
        decoder = Decoder()
        assert messages(decoder, pieces) == []
        assert decoder.mid_message
        assert decoder.mid_packet == (cut not in (8, 14))


def test_before_and_after_messages_an_end_of_file_is_clean():
    decoder = Decoder()
    assert not decoder.mid_message
    assert messages(decoder, [b"", wire_of(b"x"), b""]) == [b"x"]
    assert not decoder.mid_message


def test_trailing_bytes_stay_undecoded_until_asked_for():
    decoder = Decoder()
    decoder.feed(wire_of(b"one") + b"not a packet")
    decoder.feed(b"more")
    decoder.feed(b" and more")
    assert decoder.next_message() == b"one"
    assert decoder.buffered == len(b"not a packetmore and more")
    assert decoder.take_rest() == b"not a packetmore and more"
    assert decoder.buffered == 0
    assert messages(decoder, [wire_of(b"two")]) == [b"two"]


def test_the_rest_includes_a_header_that_has_begun():
    decoder = Decoder()
    assert messages(decoder, [wire_of(b"one"), b"00"]) == [b"one"]
    assert decoder.take_rest() == b"00"
    assert not decoder.mid_message


def test_many_feeds_before_the_first_message_lose_nothing():
    wire = wire_of(payload_of(3000)) * 2
    decoder = Decoder()
    for i in range(0, len(wire), 10):
        decoder.feed(wire[i : i + 10])
    assert decoder.buffered == len(wire)
    assert decoder.next_message() == payload_of(3000)
    decoder.feed(wire_of(b"z"))
    assert messages(decoder, [b""]) == [payload_of(3000), b"z"]


def test_a_fed_buffer_may_be_changed_at_once():
    wire = bytearray(wire_of(payload_of(50_000)))
    decoder = Decoder()
    decoder.feed(memoryview(wire)[:30_000])
    assert decoder.next_message() is None
    rest = bytes(wire[30_000:])
    wire[:] = bytes(len(wire))
    decoder.feed(rest)
    assert decoder.next_message() == payload_of(50_000)


@given(st.lists(st.binary(max_size=50), max_size=6), st.data())
@settings(max_examples=200, deadline=None)
def test_whatever_is_encoded_decodes_to_itself_in_any_cut(sent, data):
    wire = b"".join(map(wire_of, sent))
    edges = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=10)))
    pieces = [wire[a:b] for a, b in zip([0, *edges], [*edges, len(wire)], strict=True)]
    assert messages(Decoder(), pieces) == sent


@given(st.binary(max_size=60) | st.text("0123456789abcdefA+-_ x", max_size=60).map(str.encode))
@settings(max_examples=200, deadline=None)
def test_random_bytes_end_the_same_way_in_every_cut(data):
    expected = outcome([data], max_size=20)
    for pieces in cuts(data):
        assert outcome(pieces, max_size=20) == expected


# Limits


def test_message_of_one_byte_more_than_the_limit_is_refused():
    for pieces in cuts(packet(b"abcde") + packet(b"fghij") + FLUSH):
        assert outcome(pieces, max_size=10) == ([b"abcdefghij"], "clean")
        assert outcome(pieces, max_size=9) == ([], TooLarge)


def test_message_is_refused_at_the_header_past_the_limit():
    decoder = Decoder(100, "request")
    decoder.feed(packet(bytes(60)) + b"0030")
    for _ in range(2):
        with pytest.raises(TooLarge, match="a request of more than 100 bytes"):
            decoder.next_message()


def test_the_limit_is_each_message_s_own():
    assert outcome([wire_of(bytes(10)) * 5], max_size=10) == ([bytes(10)] * 5, "clean")


# Pieces


def pieces_of(decoder):
    found = []
    while (piece := decoder.next_piece()) is not None:
        found.append(bytes(piece))
    return found


def test_pieces_come_as_soon_as_their_bytes_do():
    decoder = Decoder()
    decoder.feed(b"0008pi")
    assert pieces_of(decoder) == [b"pi"]
    assert (decoder.packet_left, decoder.mid_packet) == (2, True)
    decoder.feed(b"ng")
    assert pieces_of(decoder) == [b"ng"]
    assert (decoder.packet_left, decoder.mid_packet, decoder.mid_message) == (0, False, True)
    decoder.feed(b"0005x00000005y")
    assert pieces_of(decoder) == [b"x", b"", b"y"]


def test_large_pieces_are_views_of_what_was_fed():
    wire = wire_of(bytes(MAX_DATA))
    decoder = Decoder()
    decoder.feed(wire)
    piece = decoder.next_piece()
    assert isinstance(piece, memoryview)
    assert piece.obj is wire


def test_an_assembly_puts_pieces_together_and_is_empty_again():
    assembly = Assembly()
    big = memoryview(payload_of(5000))
    for piece in (b"a", big, b"b", b"c", bytes(big), memoryview(b"d")):
        assembly.append(piece)
    assert assembly.size == 10_004
    assert assembly.join() == b"a" + bytes(big) + b"bc" + bytes(big) + b"d"
    assert (assembly.size, assembly.join()) == (0, b"")


# Cost


def peak_of(work):
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        work()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def test_one_byte_packets_cost_little_more_than_their_payload():
    chunk = packet(b"x") * 3000
    decoder = Decoder()

    def work():
        for _ in range(10):
            decoder.feed(chunk)
            assert decoder.next_message() is None

    assert peak_of(work) < 3 * 30_000
    decoder.feed(FLUSH)
    assert decoder.next_message() == b"x" * 30_000


def test_small_pieces_do_not_keep_large_reads_alive():
    assembly = Assembly()

    def work():
        for _ in range(50):
            read = bytes(1 << 18)  # one packet with data, and then empty packets only
            assembly.append(memoryview(read)[:2048])

    assert peak_of(work) < 2 << 20  # of 13 MB that came
    assert assembly.join() == bytes(50 * 2048)


def test_a_large_message_costs_itself_once_beyond_what_was_fed():
    wire = wire_of(bytes(8 << 20))
    decoder = Decoder()
    decoder.feed(wire)
    assert peak_of(decoder.next_message) < 9 << 20


def test_ten_megabytes_decode_in_a_blink():
    data = bytes(10_000_000)
    wire = wire_of(data)
    pieces = [wire[i : i + 65536] for i in range(0, len(wire), 65536)]
    best = 1.0
    for _ in range(5):
        begin = time.perf_counter()
        found = messages(Decoder(), pieces)
        best = min(best, time.perf_counter() - begin)
        assert found == [data]
    assert best < 0.1  # 2 ms on an idle machine; a copy for each packet or each read would take far more than 100


def test_work_is_linear_however_small_the_pieces_are():
    wire = wire_of(bytes(12_000))

    def seconds(repeat):
        decoder = Decoder()
        begin = time.process_time()
        for _ in range(repeat):
            for i in range(0, len(wire), 2):
                decoder.feed(wire[i : i + 2])
        for _ in range(repeat):
            assert decoder.next_message() is not None
        return time.process_time() - begin

    seconds(1)
    assert seconds(8) < 8 * 5 * max(seconds(1), 0.01)
