"""The queue of connections between the master and the workers of a generation, on whatever system this runs."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from ipcsrv.deadline import Deadline
from ipcsrv.platform import server as serving
from ipcsrv.platform.client import DONTWAIT, Stream

Pair = tuple[Stream, serving.AcceptedConnection]
Queue = tuple[serving.QueueWriter, serving.QueueReader]


@pytest.fixture
def queue() -> Iterator[Queue]:
    """Both ends of a queue."""
    writer, reader = serving.queue()
    yield writer, reader
    writer.close()
    reader.close()


def take(reader: serving.QueueReader) -> tuple[bytes, serving.AcceptedConnection]:
    """Return the next message and its connection."""
    item = reader.get(DONTWAIT)
    assert not isinstance(item, str)
    message, raw, file = item
    assert raw is not None
    assert file is None
    return message, serving.adopt(raw)


def fill(writer: serving.QueueWriter, raw: int) -> int:
    """Put messages into a queue until it is full; return how many it took."""
    for count in range(100_000):
        try:
            writer.put(raw, b"%040d" % count)
        except BlockingIOError:
            return count
    raise AssertionError("a queue without a limit")


def test_passed_connection_is_the_clients(pair: Pair, queue: Queue) -> None:
    (stream, connection), (writer, reader) = pair, queue
    writer.put(connection.fileno(), bytes(40))
    _, copy = take(reader)
    assert copy.fileno() != connection.fileno()
    copy.send(b"from a worker", DONTWAIT)
    copy.close()
    connection.send(b", and the master", DONTWAIT)
    data = b""
    while len(data) < 29:
        data += stream.receive(100, Deadline(20.0))
    assert data == b"from a worker, and the master"


def test_end_on_one_copy_is_the_clients_end(pair: Pair, queue: Queue) -> None:
    (stream, connection), (writer, reader) = pair, queue
    writer.put(connection.fileno(), bytes(40))
    _, copy = take(reader)
    copy.end()
    copy.close()
    assert stream.receive(1, Deadline(20.0)) == b""


def test_messages_are_taken_in_order(pair: Pair, queue: Queue) -> None:
    (_, connection), (writer, reader) = pair, queue
    for number in range(20):
        writer.put(connection.fileno(), b"%040d" % number)
    for number in range(20):
        message, copy = take(reader)
        assert message[:40] == b"%040d" % number
        copy.close()


def test_empty_queue_would_wait(queue: Queue) -> None:
    with pytest.raises(BlockingIOError):
        queue[1].get(DONTWAIT)
    assert serving.taken_back(queue[1]) == []


def test_full_queue_takes_more_when_messages_were_taken(pair: Pair, queue: Queue) -> None:
    (_, connection), (writer, reader) = pair, queue
    count = fill(writer, connection.fileno())
    assert count > 8
    for _ in range(count):
        take(reader)[1].close()
    with pytest.raises(BlockingIOError):  # what was refused is not in it
        reader.get(DONTWAIT)
    writer.put(connection.fileno(), bytes(40))
    take(reader)[1].close()


def test_queue_ends_after_what_is_in_it(pair: Pair, queue: Queue) -> None:
    (_, connection), (writer, reader) = pair, queue
    writer.put(connection.fileno(), bytes(40))
    writer.close()
    take(reader)[1].close()
    assert reader.get() == reader.get(DONTWAIT) == serving.END


def test_messages_taken_back_leave_connections_open(pair: Pair, queue: Queue) -> None:
    (stream, connection), (writer, reader) = pair, queue
    for number in range(3):
        writer.put(connection.fileno(), b"%040d" % number)
    assert [message[:40] for message in serving.taken_back(reader)] == [b"%040d" % number for number in range(3)]
    connection.send(b"still here", DONTWAIT)
    assert stream.receive(100, Deadline(20.0)) == b"still here"


def test_message_without_a_connection_is_passed(queue: Queue) -> None:
    queue[0].put_plain(b"p" * 40)
    item = queue[1].get(DONTWAIT)
    assert not isinstance(item, str)
    assert item[0][:40] == b"p" * 40
    assert item[1:] == (None, None)


def test_largest_state_fits_into_a_message(pair: Pair, queue: Queue) -> None:
    (_, connection), (writer, reader) = pair, queue
    state = os.urandom(40 + serving.INLINE_LIMIT)
    writer.put(connection.fileno(), state)
    message, copy = take(reader)
    assert message[: len(state)] == state
    copy.close()


def test_file_of_a_stalled_exchange_is_passed(pair: Pair, queue: Queue) -> None:
    (_, connection), (writer, reader) = pair, queue
    file = serving.anonymous_file("test")
    serving.write_at(file, b"half a request", 0)
    writer.put(connection.fileno(), bytes(40), file)
    item = reader.get(DONTWAIT)
    os.close(file)
    assert not isinstance(item, str)
    _, raw, copy = item
    assert raw is not None
    assert copy is not None
    serving.close_raw(raw)
    assert serving.read_at(copy, 100, 5) == b"a request"
    os.close(copy)
