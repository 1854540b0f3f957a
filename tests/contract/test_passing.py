"""Accepting and passing: one routine on the compiled code and, where that is not used, on the plain one.

The dispatcher is a real one, with a real listener and queue; only the master around it is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from ipcsrv.config.settings import make
from ipcsrv.deadline import Deadline
from ipcsrv.master.dispatcher import Dispatcher
from ipcsrv.platform import client as platform
from ipcsrv.platform import server as serving
from ipcsrv.platform.client import DONTWAIT, Stream
from ipcsrv.platform.compiled import compiled_module
from ipcsrv.supervision import scoreboard as board
from ipcsrv.supervision.dispatch import ConnectionState
from ipcsrv.supervision.messages import Passed, Stage, parse_passed
from ipcsrv.supervision.scoreboard import Scoreboard

KINDS = ["python"] + ["compiled"] * (compiled_module("master._passing") is not None and serving.PASSES_CREDENTIALS)


class FakeTarget:
    """A generation without workers: `number` is its own."""

    number = 1

    def __init__(self) -> None:
        writer, self.reader = serving.queue()
        self.writer: serving.QueueWriter | None = writer
        self.passed = 0

    def taken(self) -> int:
        return 0


class FakeHost:
    """The master: remembers what it is to watch."""

    def __init__(self) -> None:
        self.watched: dict[int, Callable[[], object]] = {}
        self.ignore = lambda *_: None
        self.set_timer = self.connections_gone = self.expect_overdue = self.hear_workers = self.ignore

    def watch(self, key: int, callback: Callable[[], object], mask: int = serving.READ) -> None:
        self.watched[key] = callback

    def unwatch(self, key: int) -> None:
        del self.watched[key]


class Bench:
    """A dispatcher that accepts, and its clients."""

    def __init__(self, rendezvous: serving.Rendezvous, compiled: bool) -> None:
        self.host, self.target, self.poller = FakeHost(), FakeTarget(), serving.poller()
        self.rendezvous = rendezvous
        self.streams: list[Stream] = []
        self.scoreboard = Scoreboard(bytearray(board.size(1)), 1)
        self.dispatcher = Dispatcher(self.host, rendezvous, make(), self.poller)
        assert (self.dispatcher._compiled is not None) == compiled
        self.dispatcher.attach(self.scoreboard, list)
        self.dispatcher.lead_to(self.target)
        self.dispatcher.open()

    def connect(self, data: bytes = b"") -> Stream:
        stream = platform.attempt(self.rendezvous.path)
        self.streams.append(stream)
        if data:
            stream.send(data, DONTWAIT)
        return stream

    def accept(self) -> None:
        """Let the dispatcher accept what has connected."""
        assert self.rendezvous.listener is not None
        self.host.watched[self.rendezvous.listener.fileno()]()

    def know_user(self) -> None:
        """Have the user admitted once: the compiled code knows who was."""
        self.connect()
        connection = serving.adopt(self.rendezvous.accept())
        assert self.dispatcher._admission.admits(connection)
        connection.close()
        self.streams.pop().close()

    def queued(self) -> list[tuple[Passed, bytes]]:
        """Take what is in the queue: messages, and what the clients of their connections have sent."""
        found = []
        while True:
            try:
                item = self.target.reader.get(DONTWAIT)
            except BlockingIOError:
                return found
            assert not isinstance(item, str)
            message, raw, _ = item
            assert raw is not None
            connection = serving.adopt(raw)
            found.append((parse_passed(message), connection.recv(100, DONTWAIT)))
            connection.close()

    def count(self, state: ConnectionState) -> int:
        return sum(record.status is state for record in self.dispatcher.dispatch.all())

    def counted(self, name: str) -> int:
        counted: int = getattr(self.scoreboard.totals(), name)
        return counted

    def close(self) -> None:
        for stream in self.streams:
            stream.close()
        for record in self.dispatcher.dispatch.all():
            self.dispatcher.ended(record.number)
        self.poller.close()
        if self.target.writer is not None:
            self.target.writer.close()
        self.target.reader.close()


@pytest.fixture(params=KINDS)
def bench(request: pytest.FixtureRequest, rendezvous: serving.Rendezvous, monkeypatch: pytest.MonkeyPatch,
          ) -> Iterator[Bench]:  # fmt: skip
    if request.param == "python":
        monkeypatch.setenv("IPCSRV_PURE_PYTHON", "1")
    bench = Bench(rendezvous, request.param == "compiled")
    bench.know_user()
    yield bench
    bench.close()


def test_readable_connection_is_passed(bench: Bench) -> None:
    bench.connect(b"request")
    bench.accept()
    [(passed, data)] = bench.queued()
    assert data == b"request"
    assert passed[:1] + passed[2:] == (1, True, Stage.BETWEEN, 0, None)
    assert passed.queued_ns > 0
    assert bench.count(ConnectionState.QUEUED) == bench.target.passed == 1


def test_first_client_of_a_user_is_passed_too(bench: Bench) -> None:
    bench.dispatcher._admission.known_users = b""
    bench.connect(b"request")
    bench.accept()
    assert [data for _, data in bench.queued()] == [b"request"]


def test_silent_connection_is_watched(bench: Bench) -> None:
    stream = bench.connect()
    bench.accept()
    assert bench.queued() == []
    assert bench.count(ConnectionState.NEW) == len(bench.dispatcher.watched) == 1
    stream.send(b"late", DONTWAIT)
    [(key, _)] = bench.poller.poll(20.0)
    assert key in bench.dispatcher.watched


def test_ended_connection_is_a_probe(bench: Bench) -> None:
    before = bench.counted("probes")
    bench.connect().close()
    bench.accept()
    assert bench.counted("probes") == before + 1
    assert bench.queued() == bench.dispatcher.dispatch.all() == []


def test_numbers_go_by_the_order_of_clients(bench: Bench) -> None:
    bench.connect(b"a")
    bench.connect()
    bench.connect().close()
    bench.connect(b"b")
    bench.connect(b"c")
    bench.accept()
    assert [(passed.number, data) for passed, data in bench.queued()] == [(1, b"a"), (3, b"b"), (4, b"c")]
    assert {record.number for record in bench.dispatcher.dispatch.all()} == {1, 2, 3, 4}
    assert bench.dispatcher.dispatch.find(2).status is ConnectionState.NEW  # type: ignore[union-attr]
    bench.connect(b"d")
    bench.accept()
    assert [passed.number for passed, _ in bench.queued()] == [5]


def test_denied_client_is_told_and_not_passed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.dispatcher._admission.known_users = b""
    monkeypatch.setattr(bench.dispatcher._admission, "admits", lambda connection: False)
    stream = bench.connect(b"0008ping0000")
    bench.accept()
    assert b"ERR denied" in stream.receive(1000, Deadline(20.0))
    assert bench.queued() == []
    assert bench.count(ConnectionState.LINGERING) == 1
    assert bench.counted("denied") == 1


def test_no_more_are_passed_than_the_queue_may_hold(bench: Bench) -> None:
    limit = bench.dispatcher._queue_limit()
    for _ in range(limit + 3):
        bench.connect(b"x")
    bench.accept()
    bench.accept()
    assert [passed.number for passed, _ in bench.queued()] == list(range(1, limit + 1))
    assert bench.count(ConnectionState.READY) == 3


def test_full_queue_keeps_connections_ready_in_order(bench: Bench) -> None:
    writer = bench.target.writer
    assert writer is not None
    with pytest.raises(BlockingIOError):
        while True:
            writer.put_plain(bytes(32))
    for data in (b"a", b"b"):
        bench.connect(data)
    bench.accept()
    assert bench.count(ConnectionState.READY) == 2
    assert bench.target.passed == 0
    while True:
        try:
            bench.target.reader.get(DONTWAIT)
        except BlockingIOError:
            break
    bench.host.watched[writer.fileno()]()
    assert [(passed.number, data) for passed, data in bench.queued()] == [(1, b"a"), (2, b"b")]


def test_connection_that_a_worker_ended_is_closed(bench: Bench) -> None:
    before = len(serving.open_descriptors())
    bench.connect(b"x").close()
    bench.streams.clear()
    words = bench.scoreboard.words(0)
    bench.dispatcher.attach(bench.scoreboard, lambda: [words])
    bench.accept()
    [(passed, _)] = bench.queued()
    assert board.push_ended(words, passed.number)
    bench.dispatcher.reap()
    assert len(serving.open_descriptors()) == before
    assert bench.dispatcher.dispatch.all() == []
