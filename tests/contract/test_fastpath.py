"""The fast path: one routine, run unchanged on the one in Python and, where it was compiled, on the one in C.

Each path has a slot of a real scoreboard, a real queue and both ends of a real connection.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from time import monotonic_ns
from typing import Any

import pytest
import support

from ipcsrv.deadline import Deadline
from ipcsrv.platform import server as serving
from ipcsrv.platform.client import DONTWAIT, Stream
from ipcsrv.protocol.pktline import HEADER_SIZE, MAX_DATA, MAX_PACKET, encode
from ipcsrv.request import Request
from ipcsrv.supervision import scoreboard as board
from ipcsrv.supervision.messages import PASSED_SIZE, ExchangeState, Passed, pack_passed, parse_passed
from ipcsrv.supervision.messages import Stage as Progress
from ipcsrv.supervision.scoreboard import Phase, Scoreboard, lent, parse_lent, take_ended
from ipcsrv.worker import fastpath
from ipcsrv.worker.stats import Stats

HOUR_NS = 3600 * 10**9
LONG_NS = fastpath.LONG_WAIT_NS + 1
NUMBER = 7  # of the connection
KINDS = ["python"] + ["compiled"] * (fastpath.compiled_path() is not None)
Pair = tuple[Stream, serving.AcceptedConnection]


@dataclass
class Bench:
    """A path and what is around it: `calls` is what it called, in order; `respond` is the handler."""

    stream: Stream
    connection: serving.AcceptedConnection
    words: memoryview[int]
    writer: serving.QueueWriter
    reader: serving.QueueReader
    pure: bool
    respond: Callable[[Request], Any] = lambda request: b"pong"
    calls: list[Any] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)
    path: Any = None

    def make(self, most_in: int = MAX_DATA, most_out: int = MAX_DATA, timeout: float | None = None) -> Bench:
        self.path = fastpath.fast_path(Stats(self.words), self.handle, most_in, most_out, timeout,
                                       lambda: self.calls.append("busy"), self.note_answered, pure=self.pure)
        return self

    def handle(self, request: Request) -> Any:
        self.requests.append(request)
        self.phases.append(self.phase)
        return self.respond(request)

    def note_answered(self, *told: int) -> None:
        self.calls.append(told)
        self.phases.append(self.phase)

    def run(self, waited: int = 0, patience: int = 0, asked: bool = False) -> int:
        outcome: int = self.path.run(self.connection, NUMBER, waited, patience, asked)
        return outcome

    def take(self, ring: bool = True) -> int:
        outcome: int = self.path.take(self.reader, 0, ring)
        return outcome

    def put(self, waited: int = 0, accepted: bool = True) -> None:
        queued = monotonic_ns() - waited
        self.writer.put(self.connection.fileno(), pack_passed(Passed(NUMBER, queued, accepted)))

    def send(self, data: bytes) -> None:
        assert self.stream.send(data, DONTWAIT) == len(data)

    def receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.stream.receive(size - len(data), Deadline(20.0))
            assert part
            data += part
        return data

    @property
    def phase(self) -> Phase:
        number, phase = parse_lent(self.words[board.LENT])
        assert number == (NUMBER if phase else 0)
        return phase

    def count(self, *counters: int) -> list[int]:
        return [self.words[counter] for counter in counters]


@pytest.fixture(params=KINDS)
def bench(request: pytest.FixtureRequest, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(fastpath, "SPAN_NS", HOUR_NS)  # whatever else this machine does
    writer, reader = serving.queue()
    words = Scoreboard(bytearray(board.size(1)), 1).words(0)
    bench = Bench(*pair, words, writer, reader, request.param == "python").make()
    bench.words[board.LENT] = lent(NUMBER, Phase.TAKEN)
    yield bench
    if bench.path.connection is not None:
        bench.path.connection.close()
    writer.close()
    reader.close()


# -- run --------------------------------------------------------------------------------------------------------------


def test_request_is_answered_and_counted(bench: Bench) -> None:
    bench.send(b"0008ping0000")
    assert bench.run(waited=500_000) == fastpath.SILENT
    assert bench.receive(12) == b"0008pong0000"
    assert bench.requests == [b"ping"]
    assert type(bench.requests[0]) is Request
    assert bench.phases == [Phase.HANDLING, Phase.BETWEEN]
    assert bench.phase is Phase.BETWEEN
    assert bench.calls == [(4, 4, 500_000)]
    assert bench.path.size == 4
    words = bench.words
    assert bench.count(board.REQUESTS, board.OK, board.BYTES_IN, board.BYTES_OUT, board.SINCE_NS) == [1, 1, 4, 4, 0]
    took = words[board.LAST_NS] - words[board.BEGAN_NS]
    assert words[board.BUSY_NS] == took >= 0  # a clock of Windows moves every 15 ms
    assert bench.count(board.HANDLER + board.bucket(took), board.WHOLE + board.bucket(took + 500_000)) == [1, 1]


def test_request_has_its_peer_and_deadline(bench: Bench) -> None:
    since = []
    bench.respond = lambda request: since.append(bench.words[board.SINCE_NS]) or b""  # type: ignore[func-returns-value]
    bench.make(timeout=2.0).send(b"0008ping0000")
    bench.run()
    request = bench.requests[0]
    assert request.peer is not None
    assert request.peer.pid == os.getpid()
    assert since == [bench.words[board.BEGAN_NS]]
    assert request.deadline == since[0] / 1e9 + 2.0
    assert not request.cancelled


@pytest.mark.parametrize("size", [0, 1, 4095, MAX_DATA])
def test_one_packet_of_any_size_is_answered(bench: Bench, size: int) -> None:
    data = os.urandom(size)
    bench.respond = bytes if size % 2 else (lambda request: request)
    wire = b"".join(encode(data))
    bench.send(wire)
    assert bench.run() == fastpath.SILENT
    assert bench.requests == [data]
    assert bench.receive(len(wire)) == wire


def test_silent_client_changes_nothing(bench: Bench) -> None:
    assert bench.run() == fastpath.SILENT
    assert bench.run(patience=1000, asked=True) == fastpath.SILENT
    assert bench.phase is Phase.TAKEN
    assert bench.calls == []


def test_end_of_the_client_is_told(bench: Bench) -> None:
    bench.stream.close()
    assert bench.run() == fastpath.ENDED
    assert bench.path.hung_up
    assert bench.phase is Phase.TAKEN


def test_client_that_left_after_a_long_wait_is_counted(bench: Bench) -> None:
    bench.send(b"0008ping0000")
    bench.stream.close()
    assert bench.run(waited=LONG_NS) == fastpath.ENDED
    assert bench.path.hung_up
    assert bench.count(board.CANCELLED, board.PROBES, board.REQUESTS) == [1, 0, 0]
    assert bench.requests == []


def test_probe_that_left_after_a_long_wait_is_counted(bench: Bench) -> None:
    bench.stream.close()
    assert bench.run(waited=LONG_NS) == fastpath.ENDED
    assert bench.count(board.CANCELLED, board.PROBES) == [0, 1]


def test_client_that_left_after_its_next_request_is_counted(bench: Bench) -> None:
    bench.send(b"0008ping0000")
    bench.stream.close()
    assert bench.run(patience=10**9, asked=True) == fastpath.ENDED
    assert bench.path.hung_up
    assert bench.count(board.CANCELLED, board.PROBES, board.REQUESTS) == [1, 0, 0]
    assert bench.requests == []


def test_client_that_left_between_requests_is_not_counted(bench: Bench) -> None:
    bench.stream.close()
    assert bench.run(patience=10**9, asked=True) == fastpath.ENDED
    assert bench.path.hung_up
    assert bench.count(board.CANCELLED, board.PROBES, board.REQUESTS) == [0, 0, 0]


def test_turn_ends_after_its_requests(bench: Bench) -> None:
    bench.respond = lambda request: bench.send(b"0008ping0000") or b""  # type: ignore[func-returns-value]
    bench.make().send(b"0008ping0000")
    assert bench.run(patience=HOUR_NS) == fastpath.TURN_OVER
    assert len(bench.requests) == fastpath.TURNS


def test_turn_ends_when_it_takes_long(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fastpath, "SPAN_NS", -1)  # over at once, also by a clock of 15 ms
    bench.respond = lambda request: bench.send(b"0008ping0000") or b""  # type: ignore[func-returns-value]
    bench.make().send(b"0008ping0000")
    assert bench.run(patience=HOUR_NS) == fastpath.TURN_OVER
    assert len(bench.requests) == 1


@pytest.mark.parametrize("data", [
    b"000", b"0008pin", b"0008ping", b"0008ping000", b"0003", b"00010000", b"zzzzping0000", b"0006ab0006cd0000",
    b"fff1",
])  # fmt: skip
def test_data_that_is_no_whole_request_is_left(bench: Bench, data: bytes) -> None:
    bench.send(data)
    assert bench.run() == fastpath.PARTIAL
    assert bench.phase is Phase.READING
    assert bench.path.rest() == (data, None, None, None)
    assert bench.path.rest() == (None, None, None, None)


def test_pipelined_requests_are_answered_or_left_in_order(bench: Bench) -> None:
    bench.respond = bytes
    wire = b"".join(b"0006%02d0000" % number for number in range(100))
    bench.send(wire)
    assert bench.run() == fastpath.PARTIAL
    assert bench.phase is Phase.READING
    left = bench.path.rest()[0]
    answered = len(wire) - len(left)
    assert wire.endswith(left)
    assert bench.receive(answered) == wire[:answered]
    assert len(bench.requests) == answered // 10 < 100


def test_larger_request_than_allowed_is_left(bench: Bench) -> None:
    bench.make(most_in=3).send(b"0008ping0000")
    assert bench.run() == fastpath.PARTIAL
    assert bench.path.rest()[0] == b"0008ping0000"
    assert bench.requests == []


@pytest.mark.parametrize("response", [None, "text", bytearray(b"x"), [b"x"], b"x" * 5, 5])
def test_response_that_is_no_small_packet_is_left(bench: Bench, response: object) -> None:
    bench.respond = lambda request: response
    bench.make(most_out=4).send(b"0008ping0000")
    assert bench.run() == fastpath.RESPONSE
    assert bench.phase is Phase.HANDLING
    assert bench.path.rest() == (b"0008ping0000", response, None, None)
    assert bench.words[board.SINCE_NS]
    assert bench.count(board.REQUESTS) == [0]


def test_error_of_the_handler_has_its_traceback(bench: Bench) -> None:
    def fail(request: Request) -> bytes:
        raise ValueError("no")

    bench.respond = fail
    bench.send(b"0008ping0000")
    assert bench.run() == fastpath.RAISED
    assert bench.phase is Phase.HANDLING
    *nothing, error = bench.path.rest()
    assert nothing == [None, None, None]
    assert isinstance(error, ValueError)
    assert error.__traceback__ is not None
    assert error.__traceback__.tb_frame.f_code.co_name == "handle"


def test_client_gone_before_its_response_is_told(bench: Bench) -> None:
    bench.send(b"0008ping0000")
    bench.respond = lambda request: bench.stream.close() or b"pong"  # type: ignore[func-returns-value]
    assert bench.run() == fastpath.GONE
    assert bench.phase is Phase.WRITING
    assert bench.count(board.REQUESTS) == [0]


def test_output_that_the_client_does_not_read_is_left(bench: Bench) -> None:
    bench.respond = lambda request: b"x" * 60_000
    outcome = fastpath.SILENT
    for _ in range(1000):
        bench.send(b"0008ping0000")
        if (outcome := bench.run()) != fastpath.SILENT:
            break
    assert outcome == fastpath.UNSENT
    assert bench.phase is Phase.WRITING
    data, response, unsent, _ = bench.path.rest()
    assert (data, response) == (b"0008ping0000", b"x" * 60_000)
    assert unsent.endswith(b"0000")
    assert len(unsent) <= 60_008


def test_limit_is_told_when_it_is_reached(bench: Bench) -> None:
    bench.path.next_check = 2
    outcomes = []
    for _ in range(3):
        bench.send(b"0008ping0000")
        outcomes.append(bench.run())
    assert outcomes == [fastpath.SILENT, fastpath.LIMIT, fastpath.LIMIT]


@pytest.mark.parametrize(("timeout", "watched", "told"), [(None, 0, []), (5.0, 0, ["busy"]), (5.0, 1, [])])
def test_watchdog_is_told_of_a_request_once(bench: Bench, timeout: float | None, watched: int, told: list[str]) -> None:
    bench.make(timeout=timeout).words[board.WATCHED] = watched
    bench.send(b"0008ping0000")
    bench.run()
    assert bench.calls == [*told, (4, 4, 0)]


# -- take -------------------------------------------------------------------------------------------------------------


def test_empty_and_closed_queues_leave_the_slot_free(bench: Bench) -> None:
    assert bench.take() == fastpath.EMPTY
    assert bench.words[board.LENT] == 0
    bench.writer.close()
    assert bench.take() == fastpath.CLOSED
    assert bench.words[board.LENT] == 0


@pytest.mark.parametrize("accepted", [True, False])
def test_taken_connection_is_served(bench: Bench, accepted: bool) -> None:
    bench.send(b"0008ping0000")
    bench.put(waited=400_000, accepted=accepted)
    assert bench.take() == fastpath.SILENT
    assert bench.receive(12) == b"0008pong0000"
    assert bench.path.number == NUMBER
    assert bench.path.waited >= 400_000
    assert bench.phase is Phase.BETWEEN
    assert bench.count(board.TAKEN, board.QUEUE_WAIT + board.bucket(bench.path.waited)) == [1, int(accepted)]


def test_probe_goes_into_the_ring_and_is_closed(bench: Bench) -> None:
    bench.put()
    bench.stream.close()
    assert bench.take() == fastpath.DONE
    assert take_ended(bench.words) == [NUMBER]
    assert bench.words[board.LENT] == 0
    assert bench.path.connection is None


def test_ended_connection_is_told_when_the_ring_may_not(bench: Bench) -> None:
    bench.put()
    bench.stream.close()
    assert bench.take(ring=False) == fastpath.ENDED
    assert take_ended(bench.words) == []
    assert bench.path.connection is not None


def test_ended_connection_is_told_when_the_ring_is_full(bench: Bench) -> None:
    bench.words[board.RING_HEAD] = board.RING_SIZE
    bench.put()
    bench.stream.close()
    assert bench.take() == fastpath.ENDED
    assert bench.words[board.RING_HEAD] == board.RING_SIZE


def test_message_with_a_state_is_left(bench: Bench) -> None:
    passed = Passed(NUMBER, 1, False, Progress.READING, 2, ExchangeState(body=b"half"))
    bench.writer.put(bench.connection.fileno(), pack_passed(passed))
    assert bench.take() == fastpath.OTHER
    message, raw, file = bench.path.message
    assert parse_passed(message) == passed
    assert file is None
    serving.close_raw(raw)
    assert bench.words[board.LENT] == board.TAKING


def test_message_without_a_connection_is_left(bench: Bench) -> None:
    bench.writer.put_plain(pack_passed(Passed(0, 5)))
    assert bench.take() == fastpath.OTHER
    message, *descriptors = bench.path.message
    assert parse_passed(message) == Passed(0, 5)
    assert descriptors == [None, None]


def test_malformed_message_is_left(bench: Bench) -> None:
    bench.writer.put(bench.connection.fileno(), b"\xff" * PASSED_SIZE)
    assert bench.take() == fastpath.OTHER
    message, raw, _ = bench.path.message
    assert message[:PASSED_SIZE] == b"\xff" * PASSED_SIZE
    serving.close_raw(raw)


# -- looking for a moment before sleeping -----------------------------------------------------------------------------


def test_request_that_follows_at_once_is_answered(bench: Bench) -> None:
    """Whether the path looks for it or is woken: 200 times, so that both happen."""
    answered = []

    def ask() -> None:
        for _ in range(200):
            bench.send(b"0008ping0000")
            answered.append(bench.receive(12))

    client = threading.Thread(target=ask)
    client.start()
    while len(answered) < 200 and bench.run(patience=2 * 10**9, asked=True) == fastpath.TURN_OVER:
        pass
    client.join(20)
    assert answered == [b"0008pong0000"] * 200


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="a timer of Unix")
def test_silence_ends_although_a_timer_interrupts_each_wait(bench: Bench) -> None:
    """As a profiler's does; the interval is far shorter than the patience."""
    ticks = []

    def tick(*_: object) -> None:
        ticks.append(None)
        if len(ticks) > 20_000:
            raise TimeoutError

    before = signal.signal(signal.SIGALRM, tick)
    signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
    try:
        assert bench.run(patience=50_000_000, asked=True) == fastpath.SILENT
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert ticks


def test_long_silence_ends_after_its_patience(bench: Bench) -> None:
    """The path stops looking after some times in vain, and then sleeps at once."""
    for _ in range(40):
        began = monotonic_ns()
        assert bench.run(patience=200_000, asked=True) == fastpath.SILENT
        assert monotonic_ns() - began >= 150_000
    bench.send(b"0008ping0000")
    assert bench.run(patience=10**9, asked=True) == fastpath.SILENT
    assert bench.receive(12) == b"0008pong0000"


def test_compiled_path_has_the_numbers_of_the_python_one() -> None:
    source = (support.ROOT / "ipcsrv" / "worker" / "_fastpath.c").read_text("utf-8")
    defined = {name: int(value) for name, value in re.findall(r"^#define (\w+) (\d+)(?:ULL)?\b", source, re.MULTILINE)}
    own = {"MOST_VAIN", "SKIPPED", "LONG_YIELD_NS", "LEAST_PAUSE_NS", "MOST_PAUSE_NS"}
    if sys.platform != "win32":
        from ipcsrv.platform.unix import poller

        assert {name: defined[name] for name in own} == {name: getattr(poller, name) for name in own}
    assert defined["RECEIVE_SIZE"] == fastpath.RECEIVE_SIZE
    assert (defined["HEADER"], defined["MAX_PACKET"]) == (HEADER_SIZE, MAX_PACKET)
    outcomes = _enumerators(source, "outcome")
    assert outcomes.pop("BROKEN") == -1
    assert outcomes == {name: getattr(fastpath, name) for name in outcomes}
    phases = _enumerators(source, "phase")
    assert phases.pop("TAKING") == Phase.TAKEN
    assert phases == {name: Phase[name] for name in phases}


def _enumerators(source: str, name: str) -> dict[str, int]:
    """The enumerators of an enum in C, with their values."""
    found, following = {}, 0
    for part in source.partition(f"enum {name} {{")[2].partition("}")[0].split(","):
        enumerator, _, value = (word.strip() for word in part.partition("="))
        following = int(value or following)
        found[enumerator] = following
        following += 1
    return found
