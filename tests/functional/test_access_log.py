"""The access log: a line a request, with who, how much, how long and how it ended; nothing at all where it is off."""

from __future__ import annotations

import json
import os
import re
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
import support
from conftest import ServerFactory

import ipcsrv

LINE = re.compile(r"^[\d-]+ [\d:.]+ INFO    \[\d+\] access (\S+) pid=(\S+) uid=(\S+) in=(\d+) out=(\d+) "
                  r"wait=(\d+)us handler=(\d+)us$")


class Logged:
    """A server with an access log, and the log's lines as JSON."""

    def __init__(self, server: ServerFactory, folder: Path, target: str, *options: str) -> None:
        self.log = folder / "log"
        self.running = server(target, "--workers", "1", "--access-log", "--log-file", str(self.log),
                              "--log-format", "json", *options)

    def stop(self) -> list[dict[str, Any]]:
        """The access log's lines, after the server has ended."""
        assert self.running.stop() == 0
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["logger"] == "ipcsrv.access"]


def test_access_log_line_has_peer_sizes_times_and_outcome(server: ServerFactory, tmp_path: Path) -> None:
    logged = Logged(server, tmp_path, "handlers_for_tests:slow")
    with ipcsrv.connect(logged.running.path, timeout=support.TIMEOUT) as connection:
        connection.call(b"1")
        connection.call(b"0050")
    first, second = logged.stop()
    assert (first["outcome"], first["bytes_in"], first["bytes_out"]) == ("ok", 1, 1)
    assert (second["bytes_in"], second["bytes_out"]) == (4, 4)
    assert 50_000 <= second["handler_us"] < 10_000_000
    assert 0 <= second["queue_wait_us"] < 10_000_000
    assert second["level"] == "info"
    if hasattr(os, "getuid"):
        assert second["peer"] == {"pid": os.getpid(), "uid": os.getuid(), "gid": os.getgid()}
    assert first["time"] <= second["time"]


def test_in_text_it_is_a_line_that_reads_well(server: ServerFactory, sock_path: str) -> None:
    running = server("handlers_for_tests:echo", "--workers", "1", "--access-log")
    running.call(b"hello")
    line = running.output.wait_for(" access ")  # while the server runs, and is idle again
    match = LINE.match(line)
    assert match, line
    assert match.group(1, 4, 5) == ("ok", "5", "5")


@pytest.mark.parametrize(
    ("target", "options", "request_", "outcome", "sizes"),
    [
        ("raise_error", (), b"oops", "handler", (4, 0)),
        ("big", (), b"300000", "ok", (6, 300_000)),
        ("echo", (), b"z" * 200_000, "ok", (200_000, 200_000)),
        ("stream", (), b"100", "ok", (3, 890)),
        ("stream_then_raise", (), b"late", "handler", (4, 0)),
        ("big", ("--max-response-size", "1000"), b"5000", "too-large", (4, 0)),
        ("echo", ("--max-request-size", "1000"), b"x" * 5000, "too-large", (0, 0)),
        ("hang", ("--request-timeout", "0.2"), b"stuck", "timeout", (0, 0)),
        ("nothing", (), b"", "ok", (0, 0)),
    ],
)
def test_an_exchange_that_is_not_one_stroke_has_its_line_too(
    server: ServerFactory, tmp_path: Path, target: str, options: tuple[str, ...], request_: bytes, outcome: str,
    sizes: tuple[int, int],
) -> None:  # fmt: skip
    logged = Logged(server, tmp_path, f"handlers_for_tests:{target}", *options)
    try:
        logged.running.call(request_)
    except ipcsrv.IpcError:
        assert outcome != "ok"
    lines = logged.stop()
    assert [(line["outcome"], line["bytes_in"], line["bytes_out"]) for line in lines] == [(outcome, *sizes)]


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="speaks to the socket itself")
def test_malformed_bytes_have_a_line_without_their_content(server: ServerFactory, tmp_path: Path) -> None:
    logged = Logged(server, tmp_path, "handlers_for_tests:echo")
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(logged.running.path)
        stranger.sendall(b"GET /secret HTTP/1.0\r\n\r\n")
        while stranger.recv(1000):
            pass
    (line,) = logged.stop()
    assert line["outcome"] == "malformed"
    assert "secret" not in logged.log.read_text()


def test_pipelined_requests_have_a_line_each(server: ServerFactory, tmp_path: Path) -> None:
    if not hasattr(socket, "AF_UNIX"):
        pytest.skip("speaks to the socket itself")
    logged = Logged(server, tmp_path, "handlers_for_tests:echo")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(logged.running.path)
        client.sendall(b"0005a0000" * 5 + b"0006bc0000")
        received = b""
        while len(received) < 55:
            received += client.recv(1000)
    assert [line["bytes_in"] for line in logged.stop()] == [1, 1, 1, 1, 1, 2]


def test_each_request_of_many_clients_has_one_whole_line(server: ServerFactory, tmp_path: Path) -> None:
    log = tmp_path / "log"
    workers = "3" if support.appends_are_whole else "1"
    running = server("handlers_for_tests:echo", "--workers", workers, "--access-log", "--log-file", str(log))

    def load() -> None:
        with ipcsrv.connect(running.path, timeout=support.TIMEOUT) as connection:
            for size in range(150):
                connection.call(b"x" * size)
        for _ in range(20):
            running.call(b"anew")

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(support.TIMEOUT)
    support.wait_until(lambda: running.status()["totals"]["ok"] == 4 * 170, "all are counted")
    assert running.stop() == 0
    lines = [line for line in log.read_text().splitlines() if " access " in line]
    assert all(LINE.match(line) for line in lines)
    assert len(lines) == 4 * 170


def test_access_log_costs_nothing_when_off() -> None:
    from ipcsrv.config.settings import make
    from ipcsrv.platform.access_log import access_log

    assert access_log(make()) is None


def test_a_programs_own_logging_gets_records_with_fields(sock_path: str) -> None:
    source = """
import logging, os, sys
class Fields(logging.Formatter):
    def format(self, record):
        fields = getattr(record, "fields", {})
        return f"{record.name} {record.getMessage()} {fields.get('outcome')} {fields.get('bytes_in')}"
handler = logging.StreamHandler(sys.stdout)
handler.setFormatter(Fields())
logging.basicConfig(handlers=[handler], level=logging.INFO)
import ipcsrv
from ipcsrv.client import control
path = sys.argv[1]
if not os.fork():
    while ipcsrv.active_state(path) is not ipcsrv.State.LISTENING:
        pass
    ipcsrv.call(path, b"four", timeout=10)
    control.request(path, "stop")
    os._exit(0)
ipcsrv.serve(path, "handlers_for_tests:echo", workers=1, access_log=True)
os.wait()
"""
    if not hasattr(os, "fork"):
        pytest.skip("the program of this test forks its client")
    lines = support.run_python(source, sock_path).splitlines()
    (line,) = [line for line in lines if line.startswith("ipcsrv.access ")]
    assert re.fullmatch(r"ipcsrv.access access ok pid=\d+ uid=\d+ in=4 out=4 wait=\d+us handler=\d+us ok 4", line)
