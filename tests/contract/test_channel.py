"""The private pipe between the master and one child, on whatever system this runs."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator

import pytest

from ipcsrv.platform import server as serving
from ipcsrv.supervision.messages import MAX_BODY, FormatError, Kind, frame

Channels = tuple[serving.Channel, serving.Channel]


@pytest.fixture
def channel() -> Iterator[Channels]:
    """Both ends of a channel."""
    ours, theirs = serving.channel()
    yield ours, theirs
    ours.close()
    theirs.close()


def test_messages_go_both_ways_in_order(channel: Channels) -> None:
    for sender, receiver in (channel, channel[::-1]):
        sender.tell(Kind.BORN, b"first")
        sender.tell(Kind.LEAVE)
        assert receiver.hear() == (Kind.BORN, b"first", None)
        assert receiver.hear(wait=False) == (Kind.LEAVE, b"", None)


def test_largest_body_is_one_message(channel: Channels) -> None:
    body = os.urandom(MAX_BODY)
    channel[0].tell(Kind.RETURNED, body)
    assert channel[1].hear() == (Kind.RETURNED, body, None)


def test_silent_channel_would_wait(channel: Channels) -> None:
    assert not channel[0].has_ended()
    with pytest.raises(BlockingIOError):
        channel[0].hear(wait=False)


def test_full_channel_would_wait_and_loses_nothing(channel: Channels) -> None:
    count = 0
    with pytest.raises(BlockingIOError):
        for count in range(100_000):
            channel[0].tell(Kind.ENDED, b"%08d" % count + bytes(2000), wait=False)
    assert count > 0
    for number in range(count):
        message = channel[1].hear(wait=False)
        assert message is not None
        assert message[1][:8] == b"%08d" % number
    with pytest.raises(BlockingIOError):
        channel[1].hear(wait=False)


def test_end_comes_after_what_was_told(channel: Channels) -> None:
    channel[0].tell(Kind.READY)
    channel[0].close()
    assert channel[1].hear() == (Kind.READY, b"", None)
    assert channel[1].hear() is None
    assert channel[1].has_ended()


def test_telling_a_dead_process_is_an_error(channel: Channels) -> None:
    channel[1].close()
    with pytest.raises(OSError):
        channel[0].tell(Kind.READY)
    assert channel[0].hear() is None


def test_end_with_messages_unread_is_an_end(channel: Channels) -> None:
    channel[0].tell(Kind.READY)
    channel[1].close()
    assert channel[0].has_ended()
    assert channel[0].hear() is None


def test_file_is_the_receivers(channel: Channels) -> None:
    file = serving.anonymous_file("test")
    serving.write_at(file, b"state", 0)
    sender = threading.Thread(target=channel[0].tell, args=(Kind.RETURNED, b"1", file))
    sender.start()
    message = channel[1].hear()
    sender.join()
    os.close(file)
    assert message is not None
    kind, body, copy = message
    assert (kind, body) == (Kind.RETURNED, b"1")
    assert copy is not None
    assert serving.read_at(copy, 100, 0) == b"state"
    os.close(copy)


BAD = {"too short": b"x", "other version": b"\xff" + frame(Kind.READY)[1:], "cut": frame(Kind.READY, b"ab")[:-1]}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_bytes_that_are_no_message_raise(channel: Channels, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[type(channel[0]).__module__], "frame", lambda kind, body: data)
    channel[0].tell(Kind.READY)
    with pytest.raises(FormatError):
        channel[1].hear()


@pytest.mark.skipif(sys.platform == "win32", reason="there a descriptor comes once its message is parsed")
def test_descriptor_with_a_bad_message_is_closed(channel: Channels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[type(channel[0]).__module__], "frame", lambda kind, body: b"no message")
    channel[0].tell(Kind.RETURNED, b"", channel[0].fileno())
    before = serving.open_descriptors()
    with pytest.raises(FormatError):
        channel[1].hear()
    assert serving.open_descriptors() == before
