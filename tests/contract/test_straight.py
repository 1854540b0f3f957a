"""The straight path: one routine, run unchanged on the one in Python and, where it was compiled, on the one in C.

Each path has a slot of a real scoreboard and both ends of a real connection: the server's, which it serves, and the
client's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from ipcsrv.platform import client as platform
from ipcsrv.platform import server as serving
from ipcsrv.platform.client import DONTWAIT, Stream
from ipcsrv.protocol.pktline import MAX_DATA, encode
from ipcsrv.request import Request
from ipcsrv.supervision import scoreboard as board
from ipcsrv.supervision.scoreboard import Scoreboard
from ipcsrv.worker import fastpath as straight
from ipcsrv.worker.stats import SLOW_NS, Tally

HOUR_NS = 3600 * 10**9
NUMBER = 7  # of the master's copy of the connection
MAKERS: dict[str, Callable[..., Any]] = {"python": straight.PurePath}
if straight.compiled_path() is not None:
    MAKERS["compiled"] = straight.straight_path


@dataclass
class Stage:
    """A path and what is around it.  `calls` is what it called, in order; `respond` is the handler."""

    stream: Stream
    connection: serving.Connection
    words: memoryview
    make: Callable[..., Any]
    respond: Callable[[Request], Any] = lambda request: b"pong"
    calls: list[Any] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    path: Any = None

    def prepare(self, most_in: int = MAX_DATA, most_out: int = MAX_DATA, timeout: float | None = None) -> Stage:
        self.path = self.make(
            Tally(self.words), self._handle, most_in, most_out, timeout, lambda: self.calls.append("busy"),
            lambda: self.calls.append("secure"), lambda *told: self.calls.append(told))
        return self

    def _handle(self, request: Request) -> Any:
        self.requests.append(request)
        return self.respond(request)

    def run(self, flags: int = DONTWAIT, turns: int = 1, waited: int = 0, others: object = False) -> int:
        descriptor = self.connection.fileno()
        outcome: int = self.path.run(self.connection, descriptor, flags, turns, waited, NUMBER, others)
        return outcome

    def said(self, data: bytes) -> None:
        self.stream.sendall(data)

    def heard(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += self.stream.recv(size - len(data))
        return data


@pytest.fixture(params=list(MAKERS))
def stage(request: pytest.FixtureRequest, sock_path: str) -> Iterator[Stage]:
    place = serving.Rendezvous(sock_path)
    place.claim({"pid": os.getpid()})
    place.listen()
    stream = platform.attempt(place.path)
    poller = serving.poller()
    assert place.listener is not None
    poller.register(place.listener.fileno(), serving.READ)
    assert poller.poll(20.0)
    connection = serving.adopt(place.accept())
    poller.close()
    words = Scoreboard(bytearray(board.size(1)), 1).words(0)
    yield Stage(stream, connection, words, MAKERS[request.param]).prepare()
    connection.close()
    stream.close()
    place.close()


def test_a_request_is_answered_and_counted(stage: Stage) -> None:
    stage.said(b"0008ping0000")
    assert stage.run(waited=2_000_000) == straight.ANSWERED
    assert stage.heard(12) == b"0008pong0000"
    assert stage.requests == [b"ping"] and type(stage.requests[0]) is Request
    assert stage.calls == [(4, 4, 2_000_000)] and stage.path.size == 4
    words = stage.words
    assert [words[at] for at in (board.REQUESTS, board.OK, board.BYTES_IN, board.BYTES_OUT)] == [1, 1, 4, 4]
    assert words[board.SINCE_NS] == words[board.CURRENT] == 0
    assert 0 < words[board.BEGAN_NS] <= words[board.LAST_NS]
    assert words[board.BUSY_NS] == words[board.LAST_NS] - words[board.BEGAN_NS]
    assert words[board.HANDLER + board.bucket(words[board.BUSY_NS])] == 1
    assert words[board.WHOLE + board.bucket(words[board.BUSY_NS] + 2_000_000)] == 1


def test_while_it_runs_the_slot_says_since_when_and_whose_it_is(stage: Stage) -> None:
    seen = []
    stage.respond = lambda request: seen.append((stage.words[board.SINCE_NS], stage.words[board.CURRENT])) or b""
    stage.said(b"0008ping0000")
    assert stage.run() == straight.ANSWERED
    assert stage.heard(4) == b"0000"
    assert seen == [(stage.words[board.BEGAN_NS], NUMBER)]


def test_a_request_knows_its_connection_and_its_deadline(stage: Stage) -> None:
    stage.prepare(timeout=2.0).said(b"0008ping0000")
    stage.run()
    request = stage.requests[0]
    assert request.peer is not None and request.peer.pid == os.getpid()
    assert request.deadline == stage.words[board.BEGAN_NS] / 1e9 + 2.0
    assert not request.cancelled and hash(request) == hash(b"ping")


@pytest.mark.parametrize("size", [0, 1, 4, 4095, 65515, 65516])
def test_every_size_that_one_packet_holds(stage: Stage, size: int) -> None:
    data = os.urandom(size)
    stage.respond = bytes if size % 2 else (lambda request: request)
    wire = b"".join(encode(data))
    stage.said(wire)
    assert stage.run() in (straight.ANSWERED, straight.CONVERSE)  # a long one may come in two pieces
    if stage.requests:
        assert stage.requests == [data]
        assert stage.heard(len(wire)) == wire


def test_an_empty_packet_is_an_empty_request(stage: Stage) -> None:
    stage.said(b"00040000")
    assert stage.run() == straight.ANSWERED
    assert stage.requests == [b""]


def test_nothing_to_read_is_silence(stage: Stage) -> None:
    assert stage.run() == straight.SILENT
    assert stage.words[board.CURRENT] == 0
    if stage.connection.wait_at_most(0.01):
        assert stage.run(flags=0) == straight.SILENT


def test_the_clients_end_is_told(stage: Stage) -> None:
    stage.stream.close()
    assert stage.run() == straight.ENDED
    assert stage.words[board.CURRENT] == 0 and not stage.calls


def test_turns_are_reads_and_end_in_silence(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(straight, "SPAN_NS", HOUR_NS)  # whatever else this machine does
    stage.prepare()
    stage.said(b"0008ping0000")
    assert stage.run(turns=5) == straight.SILENT
    assert stage.heard(12) == b"0008pong0000"
    assert len(stage.requests) == 1


def test_turns_end_when_they_take_long(stage: Stage) -> None:
    def long(request: Request) -> bytes:
        stage.words[board.BEGAN_NS] -= straight.SPAN_NS + 1  # as if it had begun so long ago
        if len(stage.requests) < 3:
            stage.said(b"0008ping0000")
        return b""

    stage.respond = long
    stage.said(b"0008ping0000")
    assert stage.run(turns=5) == straight.ANSWERED
    assert len(stage.requests) == 1


@pytest.mark.parametrize("data", [
    b"000", b"0008pin", b"0008ping", b"0008ping000", b"0003", b"00010000", b"0008PING00000", b"zzzzping0000",
    b"0006ab0006cd0000", b"fff1",
])  # fmt: skip
def test_what_is_not_one_whole_request_is_left_for_a_conversation(stage: Stage, data: bytes) -> None:
    stage.said(data)
    assert stage.run() == straight.CONVERSE
    left = stage.path.rest()[0]
    assert data.endswith(left) and len(left) > 0
    assert [b"PING"] * (len(left) < len(data)) == stage.requests
    assert stage.path.rest() == (None, None, None, None)


def test_pipelined_requests_are_answered_in_order_or_left_in_order(stage: Stage) -> None:
    stage.respond = bytes
    wire = b"".join(b"0006%02d0000" % number for number in range(100))
    stage.said(wire)
    assert stage.run() == straight.CONVERSE
    left = stage.path.rest()[0]
    answered = len(wire) - len(left)
    assert wire.endswith(left)
    assert stage.heard(answered) == wire[:answered] if answered else not stage.requests
    assert len(stage.requests) == answered // 10 < 100


def test_a_larger_request_than_may_be_is_left(stage: Stage) -> None:
    stage.prepare(most_in=3).said(b"0008ping0000")
    assert stage.run() == straight.CONVERSE
    assert stage.path.rest()[0] == b"0008ping0000" and not stage.requests


@pytest.mark.parametrize("response", [None, "text", bytearray(b"x"), memoryview(b"x"), [b"x"], b"x" * 5, 5])
def test_a_response_that_is_not_one_small_packet_of_bytes_is_left(stage: Stage, response: object) -> None:
    stage.respond = lambda request: response
    stage.prepare(most_out=4).said(b"0008ping0000")
    assert stage.run() == straight.RESPONSE
    assert stage.path.rest() == (b"0008ping0000", response, None, None)
    assert stage.path.size == 4 and stage.words[board.REQUESTS] == 0 and stage.words[board.SINCE_NS]


def test_what_the_handler_raises_is_told_with_a_traceback_that_begins_in_it(stage: Stage) -> None:
    def fail(request: Request) -> bytes:
        raise ValueError("no")

    stage.path = None
    stage.respond = fail
    stage.prepare().said(b"0008ping0000")
    assert stage.run() == straight.RAISED
    *nothing, error = stage.path.rest()
    assert nothing == [None, None, None] and isinstance(error, ValueError)
    assert error.__traceback__ is not None and error.__traceback__.tb_frame.f_code.co_name == "_handle"
    assert stage.words[board.CURRENT] == NUMBER  # in hand until its client was told


def test_a_client_that_is_gone_before_the_response_is_told(stage: Stage) -> None:
    stage.said(b"0008ping0000")
    stage.respond = lambda request: stage.stream.close() or b"pong"  # type: ignore[func-returns-value]
    assert stage.run() == straight.GONE
    assert stage.words[board.REQUESTS] == 0


def test_what_a_client_does_not_take_at_once_is_left(stage: Stage) -> None:
    stage.respond = lambda request: b"x" * 60_000
    outcome = straight.ANSWERED
    for _ in range(1000):
        stage.said(b"0008ping0000")
        if (outcome := stage.run()) != straight.ANSWERED:
            break
    assert outcome == straight.UNSENT
    data, response, unsent, _ = stage.path.rest()
    assert data == b"0008ping0000" and response == b"x" * 60_000
    assert unsent.endswith(b"0000") and len(unsent) <= 60_008


def test_the_limit_is_said_when_it_is_reached(stage: Stage) -> None:
    stage.path.next_check = 2
    outcomes = []
    for _ in range(3):
        stage.said(b"0008ping0000")
        outcomes.append(stage.run())
    assert outcomes == [straight.ANSWERED, straight.LIMIT, straight.LIMIT]


@pytest.mark.parametrize(("timeout", "others", "watched", "told"), [
    (None, False, 0, []), (None, True, 0, ["busy"]), (5.0, False, 0, ["busy"]), (5.0, True, 1, []),
])  # fmt: skip
def test_the_master_is_told_of_a_request_that_it_must_look_out_for(
    stage: Stage, timeout: float | None, others: bool, watched: int, told: list[str]
) -> None:
    stage.prepare(timeout=timeout)
    stage.words[board.WATCHED] = watched
    stage.said(b"0008ping0000")
    stage.run(others=others)
    assert stage.calls == [*told, (4, 4, 0)]


def test_others_are_secured_before_the_handler_runs(stage: Stage) -> None:
    stage.respond = lambda request: stage.calls.append("handler") or b""
    stage.path.unsecured = True
    stage.said(b"0008ping0000")
    stage.run()
    assert stage.calls == ["secure", "handler", (4, 0, 0)]


def test_a_slow_request_is_remembered_for_a_while(stage: Stage) -> None:
    def slow(request: Request) -> bytes:
        stage.words[board.BEGAN_NS] -= SLOW_NS + 1  # as if it had begun so long ago
        return b""

    stage.respond = slow
    stage.said(b"0008ping0000")
    stage.run()
    remembered = stage.words[board.SLOW]
    stage.respond = lambda request: b""
    stage.said(b"0008ping0000")
    stage.run()
    assert remembered == stage.words[board.SLOW] + 1 > 1


def test_an_error_of_what_it_calls_is_raised(stage: Stage) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("secure")

    stage.path = stage.make(Tally(stage.words), stage._handle, 9, 9, None, fail, fail, None)
    stage.path.unsecured = True
    stage.said(b"0008ping0000")
    with pytest.raises(RuntimeError, match="secure"):
        stage.run()
