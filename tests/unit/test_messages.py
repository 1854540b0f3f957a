"""The messages between processes: what is packed is parsed again, and garbage raises FormatError."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipcsrv.supervision import messages
from ipcsrv.supervision.messages import ExchangeState, FormatError, Kind, Passed, Returned, Stage

STATE = ExchangeState(b"00", 7, 9, True, b"body", 0, 3)


def test_frame_is_parsed_again() -> None:
    assert messages.parse_frame(messages.frame(Kind.RETURNED, b"abc")) == (Kind.RETURNED, b"abc")
    assert messages.parse_frame(messages.frame(Kind.READY)) == (Kind.READY, b"")


GOOD = messages.frame(Kind.READY, b"ab")
BAD_FRAMES = {
    "short": GOOD[:3],
    "other version": bytes([messages.VERSION + 1]) + GOOD[1:],
    "unknown kind": GOOD[:1] + b"\xff" + GOOD[2:],
    "too large": messages.frame(Kind.READY, bytes(messages.MAX_BODY + 1)),
    "cut": GOOD[:-1],
    "longer": GOOD + b"c",
}


@pytest.mark.parametrize("data", BAD_FRAMES.values(), ids=BAD_FRAMES)
def test_frame_is_refused_when_no_process_sends_it(data: bytes) -> None:
    with pytest.raises(FormatError):
        messages.parse_frame(data)


def test_numbers_are_parsed_again() -> None:
    assert messages.parse_number(messages.pack_number(2**40)) == 2**40
    assert messages.parse_pair(messages.pack_pair(3, -9)) == (3, -9)


def test_numbers_of_a_wrong_size_are_refused() -> None:
    with pytest.raises(FormatError):
        messages.parse_number(b"1234567")
    with pytest.raises(FormatError):
        messages.parse_pair(bytes(17))


def test_fields_are_parsed_again() -> None:
    assert messages.parse_fields(messages.pack_fields(reason="no", number=1)) == {"reason": "no", "number": 1}


def test_fields_keep_the_end_of_a_long_text() -> None:
    fields = messages.parse_fields(messages.pack_fields(traceback="a" * 9000 + "end"))
    assert fields["traceback"].startswith("...")
    assert fields["traceback"].endswith("aend")
    assert len(fields["traceback"]) == 8004


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 60_000, b"[1]"])
def test_fields_are_refused_when_no_json_object(body: bytes) -> None:
    with pytest.raises(FormatError):
        messages.parse_fields(body)


def test_text_is_read_whatever_its_bytes_are() -> None:
    assert messages.parse_text(b"a\xff") == "a\ufffd"


@pytest.mark.parametrize("state", [None, STATE, ExchangeState(in_file=70_000, ahead=70_000)])
def test_returned_and_passed_are_parsed_again(state: ExchangeState | None) -> None:
    returned = Returned(5, Stage.WRITING, 77, state)
    assert messages.parse_returned(messages.pack_returned(returned)) == returned
    passed = Passed(5, 66, True, Stage.WRITING, 77, state)
    assert messages.parse_passed(messages.pack_passed(passed)) == passed


def test_passed_ignores_padding_between_requests() -> None:
    passed = Passed(5, 66)
    assert messages.parse_passed(messages.pack_passed(passed) + bytes(50)) == passed


def test_state_size_is_what_it_holds() -> None:
    assert (STATE.size, ExchangeState(in_file=10).size) == (6, 10)


@pytest.mark.parametrize(
    "state",
    [STATE._replace(header=b"0000"), STATE._replace(left=65537), STATE._replace(ahead=5), STATE._replace(in_file=1)],
)
def test_state_is_refused_when_it_cannot_be(state: ExchangeState) -> None:
    with pytest.raises(FormatError):
        messages.parse_state(messages.pack_state(state))


def test_messages_are_refused_when_cut() -> None:
    for parse in (messages.parse_state, messages.parse_returned, messages.parse_passed):
        with pytest.raises(FormatError):
            parse(b"short")


def test_passed_is_refused_with_an_unknown_stage() -> None:
    message = bytearray(messages.pack_passed(Passed(1, 2)))
    message[17] = Stage.LINGERING + 1
    with pytest.raises(FormatError):
        messages.parse_passed(bytes(message))


def test_returned_is_refused_with_an_unknown_stage() -> None:
    body = bytearray(messages.pack_returned(Returned(1, Stage.BETWEEN)))
    body[8] = Stage.UNTOUCHED + 1
    with pytest.raises(FormatError):
        messages.parse_returned(bytes(body))


states = st.builds(
    ExchangeState, header=st.binary(max_size=3), left=st.integers(0, 65536), total=st.integers(0, 2**63),
    begun=st.booleans(), body=st.binary(max_size=40), in_file=st.just(0), ahead=st.just(0),
)  # fmt: skip
numbers = st.integers(0, 2**64 - 1)


@given(number=numbers, began=numbers, stage=st.sampled_from(Stage), state=st.none() | states)
def test_any_returned_is_parsed_again(number: int, began: int, stage: Stage, state: ExchangeState | None) -> None:
    returned = Returned(number, stage, began, state)
    assert messages.parse_returned(messages.pack_returned(returned)) == returned


@pytest.mark.parametrize("name", ["frame", "number", "pair", "fields", "state", "returned", "passed"])
@given(data=st.binary(max_size=80))
def test_any_bytes_are_parsed_or_refused(name: str, data: bytes) -> None:
    with contextlib.suppress(FormatError):
        getattr(messages, f"parse_{name}")(data)


@given(data=st.data(), state=states)
def test_any_changed_byte_is_parsed_or_refused(data: st.DataObject, state: ExchangeState) -> None:
    body = bytearray(messages.pack_passed(Passed(1, 2, True, Stage.READING, 3, state)))
    body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(FormatError):
        passed = messages.parse_passed(bytes(body))
        if passed.state is not None:
            assert passed.state.ahead <= max(len(passed.state.body), passed.state.in_file)
