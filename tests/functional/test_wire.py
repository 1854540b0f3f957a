"""Byte for byte, what a client of any make gets from a real server (docs/protocol.md section 1 and 2)."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import git_peer
import pytest
import support
from conftest import ServerFactory
from git_peer import FLUSH, LARGEST, Client, packets

import ipcsrv

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="speaks to Unix sockets")

SIZES = [0, 1, 65_516, 65_517, 10_000_000]
BIG = 200_000_000


@pytest.fixture(scope="module")
def path(module_server: support.RunningServer) -> str:
    """Where the module's server listens."""
    return module_server.path


def pattern(size: int) -> bytes:
    """Bytes in which a piece that is lost or moved shows."""
    return (bytes(range(251)) * (size // 251 + 1))[:size]


# -- every response ends with a flush ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "response"),
    [
        (b"echo ping", b"0008ping0000"),
        (b"echo 0000", b"000800000000"),
        (b"echo \x00\n0000\xff", b"000b\x00\n0000\xff0000"),
        (b"echo ERR handler no", b"0012ERR handler no0000"),
        (b"echo ", FLUSH),
        (b"nothing ", FLUSH),
        (b"stream_nothing ", FLUSH),
        (b"a_bytearray x", b"0005x0000"),
        (b"a_memoryview x", b"0005x0000"),
        (b"wide_memoryview ", b"000c123456780000"),
    ],
)
def test_a_response_is_its_packets_and_a_flush(path: str, request_: bytes, response: bytes) -> None:
    assert git_peer.exchange(path, request_) == response


@pytest.mark.parametrize(
    ("request_", "data"),
    [
        (b"stream 3", b"chunk 0\nchunk 1\nchunk 2\n"),
        (b"stream_slowly 10", b"chunk 0\nchunk 1\nchunk 2\nchunk 3\nchunk 4\n"),
        (b"with_empty_chunks ", b"ab"),
        (b"a_list ", b"one two"),
        (b"many_small_chunks 20000", b"0123456789" * 2000),
    ],
)
def test_a_streamed_response_is_data_packets_and_one_flush(path: str, request_: bytes, data: bytes) -> None:
    with Client(path) as client:
        client.send(packets(request_))
        client.finish_writing()
        chunks = list(client.chunks())
        assert client.rest() == b""
    assert b"".join(chunks) == data
    assert all(chunks)  # an empty packet would end the message for Git


def test_small_chunks_travel_together(path: str) -> None:
    with Client(path) as client:
        client.send(packets(b"many_small_chunks 20000"))
        assert len(list(client.chunks())) < 1000


def test_quit_is_an_empty_response_before_the_server_stops(server: ServerFactory) -> None:
    quitting = server("handlers_for_tests:quit_if_asked", "--workers", "2")
    assert git_peer.exchange(quitting.path, b"quit") == FLUSH
    assert quitting.wait() == 0


# -- messages of any size and shape -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_a_message_comes_back_in_the_packets_that_git_would_send(echo_path: str, size: int) -> None:
    message = packets(pattern(size))
    assert git_peer.exchange(echo_path, pattern(size)) == message


@pytest.mark.skipif(not support.have_proc, reason="reads a process's memory from /proc")
def test_a_message_of_200_mb_comes_back_in_a_worker_of_600(server: ServerFactory) -> None:
    echo = server("handlers_for_tests:echo", "--workers", "1")
    data = pattern(BIG)
    assert echo.call(data) == data
    assert peak_memory(echo) <= 3 * BIG


@pytest.mark.parametrize("size", [0, 1, 5, 1000])
def test_a_request_that_comes_byte_by_byte_is_answered(echo_path: str, size: int) -> None:
    with Client(echo_path) as client:
        for byte in packets(pattern(size)):
            client.send(bytes([byte]))
        assert client.response() == pattern(size)


@pytest.mark.parametrize("cut", [1, 3, 4, 5, 11])
def test_a_request_cut_anywhere_is_answered(echo_path: str, cut: int) -> None:
    with Client(echo_path) as client:
        client.send(b"0008ping0000"[:cut])
        time.sleep(0.005)  # so that the server sees the piece; the answer is the same if it does not
        client.send(b"0008ping0000"[cut:])
        assert client.response() == b"ping"


@pytest.mark.parametrize(
    "message", [b"000CPingPong0000", b"0008Ping0008Pong0000", b"00040008Ping0004000aPong" + b"0000"]
)
def test_other_ways_to_pack_the_same_message_are_read(echo_path: str, message: bytes) -> None:
    if b"000a" in message:
        message = message.replace(b"000a", b"0008")
    with Client(echo_path) as client:
        client.send(message)
        assert client.response() == b"PingPong"


def test_ten_thousand_tiny_packets_are_one_message(echo_path: str) -> None:
    with Client(echo_path) as client:
        client.send(b"0005x" * 10_000 + FLUSH)
        assert client.response() == b"x" * 10_000


# -- one connection, many exchanges -----------------------------------------------------------------------------------


def test_a_connection_serves_one_request_after_another(echo_path: str) -> None:
    with Client(echo_path) as client:
        for size in [0, 1, 100, LARGEST, LARGEST + 1, 500_000, 3, 0]:
            client.send(packets(pattern(size)))
            assert client.response() == pattern(size)


def test_a_connection_that_pauses_between_requests_is_served_on(echo_path: str) -> None:
    with Client(echo_path) as client:
        for pause in [0.0, 0.001, 0.01, 0.05, 0.2, 0.0]:
            time.sleep(pause)
            client.send(packets(b"after %.3f" % pause))
            assert client.response() == b"after %.3f" % pause


@pytest.mark.parametrize("count", [2, 3, 100, 2000])
def test_pipelined_requests_are_answered_in_order(echo_path: str, count: int) -> None:
    with Client(echo_path) as client:
        client.send(b"".join(packets(b"%d" % number) for number in range(count)))
        assert [client.response() for _ in range(count)] == [b"%d" % number for number in range(count)]


def test_pipelined_requests_of_any_kind_are_answered_in_order(path: str) -> None:
    big = pattern(150_000)
    with Client(path) as client:
        client.send(packets(b"echo " + big) + packets(b"nothing ") + packets(b"stream 2") + packets(b"echo end"))
        assert [client.response() for _ in range(4)] == [big, b"", b"chunk 0\nchunk 1\n", b"end"]


def test_request_that_arrives_with_the_previous_one_is_answered(echo_path: str) -> None:
    both = packets(b"first") + packets(b"second")
    with Client(echo_path) as client:
        for cut in range(len(packets(b"first")) - 2, len(both)):
            client.send(both[:cut])
            if cut >= len(packets(b"first")):
                assert client.response() == b"first"
            client.send(both[cut:])
            if cut < len(packets(b"first")):
                assert client.response() == b"first"
            assert client.response() == b"second"


def test_a_sender_that_shuts_its_writing_half_gets_its_responses(echo_path: str) -> None:
    with Client(echo_path) as client:
        client.send(packets(b"one") + packets(pattern(300_000)) + packets(b"three"))
        client.finish_writing()
        assert [client.response() for _ in range(3)] == [b"one", pattern(300_000), b"three"]
        assert client.rest() == b""


def test_half_closed_sender_behind_others_is_answered(server: ServerFactory) -> None:
    one_worker = server("handlers_for_tests:slow", "--workers", "1")
    with Client(one_worker.path) as first, Client(one_worker.path) as second:
        first.send(packets(b"300"))
        second.send(packets(b"1"))
        second.finish_writing()
        assert (first.response(), second.response()) == (b"300", b"1")


def test_an_ipcsrv_client_keeps_its_connection(echo_path: str) -> None:
    with ipcsrv.connect(echo_path, timeout=support.TIMEOUT) as connection:
        assert [connection.call(b"%d" % number) for number in range(50)] == [b"%d" % number for number in range(50)]


# -- failure replies --------------------------------------------------------------------------------------------------


def test_a_failure_is_one_packet_without_a_flush_and_the_end(path: str) -> None:
    with Client(path) as client:
        client.send(packets(b"raise_error no such thing"))
        assert client.rest() == b"0029ERR handler ValueError: no such thing"


def test_git_sees_a_failure_as_a_failed_read(path: str) -> None:
    with Client(path) as client, pytest.raises(git_peer.ReadFailed):
        client.send(packets(b"raise_error x"))
        client.response()


def test_failure_of_a_stream_follows_its_chunks(path: str) -> None:
    with Client(path) as client:
        client.send(packets(b"stream_then_raise "))
        assert client.rest() == packets(b"begun\n")[:-4] + b"0026ERR handler RuntimeError: half way"


def test_a_failure_ends_a_pipeline_after_the_responses_before_it(path: str) -> None:
    with Client(path) as client:
        client.send(packets(b"echo ok") + packets(b"raise_error x") + packets(b"echo never"))
        assert client.response() == b"ok"
        assert client.failure() == b"ERR handler ValueError: x"


def test_the_text_of_a_failure_is_one_line_of_at_most_1000_bytes(path: str) -> None:
    with Client(path) as client:
        client.send(packets(b"raise_long "))
        code, message = client.failure().split(b" ", 2)[1:]
    assert code == b"handler"
    assert message.startswith(b"LookupError: ") and len(message) <= 1000 and b"\n" not in message
    message.decode()  # cut between characters


# -- on the wire within 5 ms ------------------------------------------------------------------------------------------


def lateness(path: str, pause: str) -> list[float]:
    """How many ms after it was yielded each chunk arrived, where the handler then sleeps or works for 20 ms."""
    late = []
    with Client(path) as client:
        client.send(packets(b"stamps " + pause.encode()))
        for chunk in client.chunks():
            arrived = time.monotonic_ns()
            yielded = [int(chunk[start:start + 20]) for start in range(0, len(chunk), 20)]
            late += [(arrived - stamp) / 1e6 for stamp in yielded]
    assert len(late) == 10
    return late


@pytest.mark.parametrize("pause", ["sleep", "work"])
def test_each_chunk_is_on_the_wire_within_5_ms_of_being_yielded(path: str, pause: str) -> None:
    # A machine that is busy with other things makes chunks late now and then; a server that holds one back makes the
    # same one late in every round, and by as much as the handler's pause.
    best = [float("inf")] * 10
    until = time.monotonic() + support.TIMEOUT
    while time.monotonic() < until:
        best = list(map(min, best, lateness(path, pause)))
        if max(best) <= 5.0:
            return
    pytest.fail(f"in round after round the chunks were late by at least {[f'{late:.1f}' for late in best]} ms")


def peak_memory(running: support.RunningServer) -> int:
    """The most that any worker has had in memory so far, in bytes (VmHWM, proc(5))."""
    peaks = []
    for worker in running.status()["workers"]:  # type: ignore[attr-defined]
        lines = Path(f"/proc/{worker['pid']}/status").read_text().splitlines()
        peaks.append(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")))
    return max(peaks)
