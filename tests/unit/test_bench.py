"""`ipcsrv bench`: its clients, its arithmetic, its figures."""

from __future__ import annotations

import json
import socketserver
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipcsrv.cli import _load, bench, main

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the fake servers are Unix sockets")

REQUEST, RESPONSE, FAILURE = b"0009hello0000", b"0008pong0000", b"0018ERR handler it broke"


class Kept(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while self.request.recv(len(REQUEST)) == REQUEST:
            self.request.sendall(RESPONSE)


class ClosesAfterOne(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        if self.request.recv(len(REQUEST)) == REQUEST:
            self.request.sendall(RESPONSE)


class FailsAfterTheFirst(socketserver.BaseRequestHandler):
    served = 0

    def handle(self) -> None:
        if self.request.recv(len(REQUEST)) == REQUEST:
            type(self).served += 1
            self.request.sendall(RESPONSE if self.served == 1 else FAILURE)


class Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


@pytest.fixture
def listen(tmp_path: Path) -> Iterator[object]:
    """A function that starts a fake server and gives its path."""
    servers: list[Server] = []

    def start(handler: type[socketserver.BaseRequestHandler]) -> str:
        server = Server(str(tmp_path / "s"), handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return str(tmp_path / "s")

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["bench", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(("handler", "flags"), [(ClosesAfterOne, []), (Kept, ["--keep-alive"])])
def test_every_request_of_a_load_is_counted(capsys, listen, handler, flags) -> None:
    code, out, _ = run(capsys, listen(handler), "hello", "-c", "2", "-d", "0.2", "--json", *flags)
    figures = json.loads(out)
    assert code == 0
    assert figures["clients"] == 2
    assert figures["keep_alive"] is bool(flags)
    assert figures["requests"] == sum(number for _, number in figures["histogram"]) > 0
    assert figures["failures"] == {}
    assert figures["rate"] == pytest.approx(figures["requests"] / figures["seconds"])
    assert 0 < figures["latency"]["p50"] <= figures["latency"]["p99.9"] <= figures["latency"]["worst"]


def test_failures_are_counted_by_kind(capsys, listen) -> None:
    code, out, _ = run(capsys, listen(FailsAfterTheFirst), "hello", "-c", "1", "-d", "0.1")
    assert code == 1
    assert "0 answered" in out
    assert "failed: HandlerError" in out


def test_without_a_server_there_is_no_load(capsys, tmp_path) -> None:
    code, out, err = run(capsys, str(tmp_path / "none"), "-d", "60")
    assert code == 3
    assert out == ""
    assert err.startswith("ipcsrv: ")


@pytest.mark.parametrize("clients", ["0", "257", "two"])
def test_impossible_number_of_clients_is_refused(capsys, tmp_path, clients) -> None:
    assert run(capsys, str(tmp_path / "s"), "-c", clients)[0] == 2


def test_bucket_is_narrow() -> None:
    for nanoseconds in [*range(1, 3000), 123_456_789, 10**12]:
        number = _load.bucket(nanoseconds)
        assert _load.upper(number - 1) * 1e9 <= nanoseconds + 1e-3
        assert nanoseconds <= _load.upper(number) * 1e9 <= max(nanoseconds + 1, nanoseconds * 1.07) + 1e-3


def test_reports_of_clients_add_up() -> None:
    one = _load.Report(Counter({5: 1}), Counter({"ConnectionLost": 1}), 1, 2.0, 0.5, 0.1)
    two = _load.Report(Counter({5: 2, 9: 1}), Counter(), 1, 2.5, 0.5, 0.3)
    both = _load.total([one, two])
    assert both == _load.Report(Counter({5: 3, 9: 1}), Counter({"ConnectionLost": 1}), 2, 2.5, 1.0, 0.3)
    assert (both.requests, both.rate, both.busy) == (4, 1.6, 0.2)


def test_percentile_is_that_of_all_requests() -> None:
    histogram = Counter({_load.bucket(1_000_000): 99, _load.bucket(50_000_000): 1})
    report = _load.Report(histogram, Counter(), 1, 1.0, 0.1, 0.05)
    assert report.percentile(0.5) == pytest.approx(0.001, rel=0.07)
    assert report.percentile(0.999) == 0.05
    assert _load.total([report._replace(histogram=Counter())]).percentile(0.5) is None


def test_text_has_rate_latency_and_histogram() -> None:
    histogram = Counter({_load.bucket(1_000_000): 90, _load.bucket(3_000_000): 10})
    text = bench.as_text(_load.Report(histogram, Counter(), 1, 2.0, 1.9, 0.0031), "/run/z.sock", keep=True)
    assert "/run/z.sock: 1 client, one connection per client, 2.0 s" in text
    assert "50.0 requests/s" in text
    assert "90.00%" in text
    assert "computed for 95%" in text


def test_first_row_includes_shorter_latencies() -> None:
    report = _load.Report(Counter({3: 1, _load.bucket(10**12): 1}), Counter(), 1, 1.0, 0.1, 1000.0)
    rows = bench.bars(report)
    assert len(rows) == bench.ROWS
    assert rows[0].endswith("50.00%")
