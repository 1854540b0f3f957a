"""The client's half of the platform seam: what `_platform` promises, on whatever system this runs.

The other end is a real listener of the server's half, in this process: one test is one client and one server end.
"""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Callable

import pytest

from ipcsrv.deadline import Deadline
from ipcsrv.errors import CallTimeout, InvalidPath, NotListening, PathNotFound
from ipcsrv.platform import client as platform
from ipcsrv.platform import server as serving
from ipcsrv.platform.client import DONTWAIT, Stream
from ipcsrv.state import State

PATIENCE = 20.0
Accept = Callable[[serving.Rendezvous], serving.AcceptedConnection]


# -- connecting -------------------------------------------------------------------------------------------------------


def test_an_attempt_at_a_missing_path_says_so(sock_path: str) -> None:
    with pytest.raises(PathNotFound):
        platform.attempt(sock_path)


def test_a_missing_path_is_waited_for_only_if_asked(sock_path: str) -> None:
    with pytest.raises(PathNotFound):
        platform.connect(sock_path, Deadline(10.0))
    with pytest.raises(PathNotFound):
        platform.connect(sock_path, Deadline(0.1), wait_if_not_found=True)


def test_a_server_that_starts_meanwhile_is_reached(sock_path: str) -> None:
    streams: list[Stream] = []

    def connect() -> None:
        streams.append(platform.connect(sock_path, Deadline(PATIENCE), wait_if_not_found=True))

    client = threading.Thread(target=connect)
    client.start()
    place = serving.Rendezvous(sock_path)
    place.claim({})
    place.listen()
    client.join(PATIENCE)
    streams[0].close()
    place.close()


def test_an_empty_path_and_one_with_nul_are_invalid() -> None:
    for path in ("", "a\0b"):
        with pytest.raises(InvalidPath):
            platform.attempt(path)


def test_the_states_of_a_path(sock_path: str, rendezvous: serving.Rendezvous) -> None:
    assert platform.probe(sock_path + "x") is State.PATH_NOT_FOUND
    assert platform.probe(sock_path) is State.LISTENING
    assert platform.probe("") is State.INVALID_PATH
    rendezvous.close()
    assert platform.probe(sock_path) is State.PATH_NOT_FOUND


def test_a_full_server_is_waited_for_until_the_deadline(sock_path: str) -> None:
    place = serving.Rendezvous(sock_path, backlog=1)
    place.claim({})
    place.listen()
    streams = []
    try:
        with pytest.raises((BlockingIOError, NotListening)):
            for _ in range(100):
                streams.append(platform.attempt(sock_path))
        with pytest.raises(CallTimeout):
            platform.connect(sock_path, Deadline(0.1))
        with pytest.raises(NotListening):
            platform.connect(sock_path, Deadline(10.0), wait_if_busy=False)
    finally:
        for stream in streams:
            stream.close()
        place.close()


def test_a_full_server_is_reached_once_it_accepts(sock_path: str, accepted: Accept) -> None:
    place = serving.Rendezvous(sock_path, backlog=1)
    place.claim({})
    place.listen()
    streams = []
    with pytest.raises((BlockingIOError, NotListening)):
        for _ in range(100):
            streams.append(platform.attempt(sock_path))
    reached = threading.Thread(target=lambda: streams.append(platform.connect(sock_path, Deadline(PATIENCE))))
    reached.start()
    wanted = len(streams) + 1
    connections = [accepted(place) for _ in range(wanted)]
    reached.join(PATIENCE)
    assert len(streams) == wanted
    for end in [*streams, *connections]:
        end.close()
    place.close()


# -- streams ----------------------------------------------------------------------------------------------------------


def test_what_one_end_sends_the_other_receives(pair: tuple[Stream, serving.AcceptedConnection]) -> None:
    stream, connection = pair
    assert stream.send(b"question", DONTWAIT) == 8
    assert connection.recv(100) == b"question"
    assert connection.send(b"answer", serving.DONTWAIT) == 6
    assert stream.recv(3) + stream.receive(100, Deadline(PATIENCE)) == b"answer"


def test_receive_keeps_its_deadline_and_loses_nothing_by_it(pair: tuple[Stream, serving.AcceptedConnection]) -> None:
    stream, connection = pair
    with pytest.raises(TimeoutError):
        stream.receive(100, Deadline(0.05))
    connection.send(b"late")
    assert stream.receive(100, Deadline(PATIENCE)) == b"late"


def test_the_end_is_empty_bytes_after_all_that_was_sent(pair: tuple[Stream, serving.AcceptedConnection]) -> None:
    stream, connection = pair
    connection.send(b"last words")
    connection.close()
    assert stream.recv(100) == b"last words"
    assert stream.recv(100) == b""
    assert stream.receive(100, Deadline(PATIENCE)) == b""


def test_sending_to_a_peer_that_is_gone_is_a_connection_error(pair: tuple[Stream, serving.AcceptedConnection]) -> None:
    stream, connection = pair
    connection.close()
    with pytest.raises(ConnectionError):
        for _ in range(100):
            stream.send(b"hello", DONTWAIT)


def test_send_takes_what_fits_and_then_would_wait(pair: tuple[Stream, serving.AcceptedConnection]) -> None:
    stream, connection = pair
    data, sent = bytes(range(256)) * 16384, 0
    with pytest.raises(BlockingIOError):
        while sent < len(data):
            sent += stream.send(memoryview(data)[sent:], DONTWAIT)
    assert 0 < sent < len(data)
    received = b""
    while sent < len(data) or len(received) < sent:
        received += connection.recv(1 << 20)
        try:
            while sent < len(data):
                sent += stream.send(memoryview(data)[sent:], DONTWAIT)
        except BlockingIOError:
            pass
    assert received == data


def test_transfer_sends_everything_to_a_peer_that_reads(pair: tuple[Stream, serving.AcceptedConnection]) -> None:
    stream, connection = pair
    parts: list[bytes] = []

    def read() -> None:
        while data := connection.recv(65536):
            parts.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    buffers: list[bytes | bytearray | memoryview] = [b"a" * 10, bytearray(b"b" * 300_000), memoryview(b"c" * 700_000)]
    assert stream.transfer(buffers, Deadline(PATIENCE)) is None
    assert buffers == []
    stream.close()
    reader.join(PATIENCE)
    assert b"".join(parts) == b"a" * 10 + b"b" * 300_000 + b"c" * 700_000


def test_transfer_hears_a_peer_that_answers_early(pair: tuple[Stream, serving.AcceptedConnection]) -> None:
    stream, connection = pair
    connection.send(b"enough", serving.DONTWAIT)
    buffers: list[bytes | bytearray | memoryview] = [b"x" * 4_000_000]
    assert stream.transfer(buffers, Deadline(PATIENCE)) == b"enough"
    unsent = sum(map(len, buffers))
    assert 0 < unsent < 4_000_000
    total = 0
    reader = threading.Thread(target=lambda: stream.transfer(buffers, Deadline(PATIENCE)))
    reader.start()  # what was under way goes on where it was
    while total < 4_000_000:
        total += len(connection.recv(1 << 20))
    reader.join(PATIENCE)
    assert total == 4_000_000


def test_transfer_keeps_its_deadline(pair: tuple[Stream, serving.AcceptedConnection]) -> None:
    with pytest.raises(TimeoutError):
        pair[0].transfer([b"x" * 4_000_000], Deadline(0.05))


def test_transfer_to_a_peer_that_is_gone_leaves_the_rest(pair: tuple[Stream, serving.AcceptedConnection]) -> None:
    stream, connection = pair
    connection.close()
    buffers: list[bytes | bytearray | memoryview] = [b"x" * 4_000_000]
    while stream.transfer(buffers, Deadline(PATIENCE)):
        pass
    assert buffers


def test_a_stream_can_be_closed_twice(pair: tuple[Stream, serving.AcceptedConnection]) -> None:
    pair[0].close()
    pair[0].close()


# -- what others made -------------------------------------------------------------------------------------------------


def test_what_comes_on_a_foreign_pipe_is_read_within_a_deadline() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"here")
    assert platform.read_within(reading, 100, Deadline(PATIENCE)) == b"here"
    os.write(writing, b"again")
    assert platform.read_within(reading, 100, Deadline(None)) == b"again"
    os.close(writing)
    assert platform.read_within(reading, 100, Deadline(PATIENCE)) == b""
    os.close(reading)
    with pytest.raises(OSError):
        platform.read_within(reading, 100, Deadline(PATIENCE))


def test_a_foreign_pipe_on_which_nothing_comes_times_out() -> None:
    reading, writing = os.pipe()
    with pytest.raises(TimeoutError):
        platform.read_within(reading, 100, Deadline(0.05))
    os.close(writing)
    os.close(reading)


@pytest.mark.parametrize("timeout", [None, PATIENCE])
def test_a_foreign_pipe_is_read_until_the_server_speaks(
    pair: tuple[Stream, serving.AcceptedConnection], timeout: float | None
) -> None:
    stream, accepted = pair
    reading, writing = os.pipe()
    accepted.send(b"said")
    for _ in range(2):
        assert platform.read_within(reading, 100, Deadline(timeout), stream) is None
    assert stream.recv(100) == b"said"
    os.write(writing, b"here")
    assert platform.read_within(reading, 100, Deadline(timeout), stream) == b"here"
    accepted.close()
    assert platform.read_within(reading, 100, Deadline(timeout), stream) is None
    os.close(writing)
    assert platform.read_within(reading, 100, Deadline(PATIENCE)) == b""
    os.close(reading)


def test_a_foreign_pipe_is_written_to_its_end() -> None:
    data = bytes(range(256)) * 4000
    reading, writing = os.pipe()
    if os.name == "posix":
        os.set_blocking(writing, False)
    writer = threading.Thread(target=lambda: (platform.write_all(writing, data), os.close(writing)))
    writer.start()
    with open(reading, "rb") as output:
        assert output.read() == data
    writer.join(PATIENCE)


def test_a_foreign_pipe_without_a_reader_is_broken() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with pytest.raises(BrokenPipeError):
        platform.write_all(writing, b"x")
    os.close(writing)


# -- credentials ------------------------------------------------------------------------------------------------------


def test_each_end_knows_the_other_by_process_and_user(pair: tuple[Stream, serving.AcceptedConnection]) -> None:
    stream, connection = pair
    stream.send(b"x", DONTWAIT)
    assert connection.recv(1) == b"x"
    for peer in (stream.peer(), connection.peer()):
        assert peer.pid == os.getpid()
        assert platform.trusted(peer, ())
        assert pickle.loads(pickle.dumps(peer)) == peer
    assert serving.Admission().admits(connection)


def test_a_stranger_is_trusted_only_by_name(pair: tuple[Stream, serving.AcceptedConnection]) -> None:
    own = pair[0].peer()
    stranger = type(own)(1, "S-1-5-21-1-2-3-4" if isinstance(own.uid, str) else 64321, None)
    assert not platform.trusted(stranger, ())
    assert platform.trusted(stranger, (str(stranger.uid),))
    assert not platform.trusted(stranger, ("no-such-user-anywhere",))


def test_the_runtime_folder_is_there_and_private(tmp_path: object) -> None:
    folder = platform.runtime_folder(os.path.join(str(tmp_path), "mine"))
    assert os.path.isdir(folder)
    with pytest.raises(InvalidPath):
        platform.runtime_folder("relative")
