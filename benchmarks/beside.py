"""How fast a call is beside what programs use today: the table of the README.

    python -m benchmarks.beside [--rounds N] [--write README.md docs/performance.md] [--svg docs/figures/beside.svg]

Every row is a way to have a Python function run in another process of the machine, with what the standard library has
for it. Two figures are taken, in interleaved rounds, in which the rows take turns; the medians are reported:

- the time of one call that does nothing: connect, ask, be answered, close (or start a program), by one client;
- calls per second of a function that computes in Python for a millisecond, by four clients at the same time.

`--write` puts the table between the comments `<!-- figures: beside -->` and `<!-- end -->` of each file; `--svg`
draws it.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from . import chart
from .coldstart import COMPILE

ROOT = Path(__file__).parent.parent
CLIENTS = 4
WORK = """
import time

def work(request: bytes) -> bytes:
    if request == b"work":
        end = time.thread_time() + 0.001
        while time.thread_time() < end:
            pass
    return b"done"
"""
PROGRAM = "import sys, work; sys.stdout.buffer.write(work.work(sys.stdin.buffer.read()))"
SERVERS = {
    "xmlrpc.server": """
import socketserver, sys, work
from xmlrpc.server import SimpleXMLRPCRequestHandler, SimpleXMLRPCServer

class Server(socketserver.ThreadingMixIn, SimpleXMLRPCServer):
    daemon_threads = True

server = Server(("127.0.0.1", 0), SimpleXMLRPCRequestHandler, logRequests=False, use_builtin_types=True)
server.register_function(work.work, "work")
open(sys.argv[1], "w").write(str(server.server_address[1]))
server.serve_forever()
""",
    "http.server": """
import sys, work
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = work.work(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
open(sys.argv[1], "w").write(str(server.server_address[1]))
server.serve_forever()
""",
    "socketserver": """
import socketserver, sys, work

class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(work.work(self.rfile.readline().strip()) + b"\\n")

class Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 128

Server(sys.argv[1], Handler).serve_forever()
""",
    "multiprocessing.connection": """
import sys, threading, work
from multiprocessing.connection import Listener

def serve(connection):
    with connection:
        connection.send_bytes(work.work(connection.recv_bytes()))

with Listener(sys.argv[1], "AF_UNIX", backlog=128, authkey=b"secret") as listener:
    while True:
        threading.Thread(target=serve, args=(listener.accept(),), daemon=True).start()
""",
}
Ask = Callable[[bytes], object]


class Row(NamedTuple):
    """A way to call: its name in the table, and a function that, given the folder, makes the function that calls."""

    name: str
    asker: Callable[[str], Ask]


def by_program(folder: str) -> Ask:
    command = [sys.executable, "-c", PROGRAM]

    def ask(request: bytes) -> object:
        return subprocess.run(command, input=request, capture_output=True, cwd=folder, check=True)

    return ask


def by_native_command(folder: str) -> Ask:
    command = Path(folder, "ipcsrvc")
    if not command.exists():
        subprocess.run([sys.executable, str(COMPILE), str(command)], check=True)

    def ask(request: bytes) -> object:
        return subprocess.run([command, "call", "ipcsrv", request], capture_output=True, cwd=folder, check=True)

    return ask


def by_xmlrpc(folder: str) -> Ask:
    from xmlrpc.client import ServerProxy

    port = Path(folder, "xmlrpc.server").read_text()

    def ask(request: bytes) -> object:
        with ServerProxy(f"http://127.0.0.1:{port}", use_builtin_types=True) as proxy:
            return proxy.work(request)

    return ask


def by_http(folder: str) -> Ask:
    from http.client import HTTPConnection

    port = int(Path(folder, "http.server").read_text())

    def ask(request: bytes) -> object:
        connection = HTTPConnection("127.0.0.1", port)
        connection.request("POST", "/", request)
        with connection.getresponse() as response:
            return response.read()

    return ask


def by_socket(folder: str) -> Ask:
    import socket

    def ask(request: bytes) -> object:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{folder}/socketserver")
            client.sendall(request + b"\n")
            return client.recv(65536)

    return ask


def by_connection(folder: str) -> Ask:
    from multiprocessing.connection import Client

    def ask(request: bytes) -> object:
        with Client(f"{folder}/multiprocessing.connection", "AF_UNIX", authkey=b"secret") as client:
            client.send_bytes(request)
            return client.recv_bytes()

    return ask


def by_ipcsrv(folder: str) -> Ask:
    import ipcsrv

    return lambda request: ipcsrv.call(f"{folder}/ipcsrv", request)


def by_kept_connection(folder: str) -> Ask:
    import ipcsrv

    return ipcsrv.connect(f"{folder}/ipcsrv").call


ROWS = (
    Row("start a Python program for each call", by_program),
    Row("`xmlrpc.server`, threads", by_xmlrpc),
    Row("`http.server`, threads", by_http),
    Row("`multiprocessing.connection`, threads", by_connection),
    Row("`socketserver` on a Unix socket, threads", by_socket),
    Row("**ipcsrv**, start `ipcsrvc` for each call", by_native_command),
    Row("**ipcsrv**, `ipcsrv.call`", by_ipcsrv),
    Row("**ipcsrv**, a kept connection", by_kept_connection),
)


@contextlib.contextmanager
def servers(folder: str) -> Iterator[None]:
    """Every server, in its own process, listening."""
    Path(folder, "work.py").write_text(WORK)
    env = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    commands = {name: [sys.executable, "-c", source, f"{folder}/{name}"] for name, source in SERVERS.items()}
    serve = ["run", f"{folder}/ipcsrv", "work:work", "--log-level", "error"]
    commands["ipcsrv"] = [sys.executable, "-m", "ipcsrv", *serve]
    running = [subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL) for command in commands.values()]
    try:
        for name in commands:
            while not _listens(Path(folder, name)):
                time.sleep(0.01)
        yield
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


def _listens(path: Path) -> bool:
    """Whether the server's socket is there, or the file with its port."""
    return path.exists() and (path.is_socket() or path.stat().st_size > 0)


def one_call(row: Row, folder: str, seconds: float) -> float:
    """Seconds for a call, the median of as many as fit."""
    ask, times, end = row.asker(folder), [], time.perf_counter() + seconds
    ask(b"nothing")
    while time.perf_counter() < end or len(times) < 5:
        begin = time.perf_counter()
        ask(b"nothing")
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def throughput(row: Row, folder: str, seconds: float) -> float:
    """Calls per second of all clients together, each of a millisecond of computing."""
    context = multiprocessing.get_context("fork")
    ready, counts = context.Barrier(CLIENTS), context.SimpleQueue()
    arguments = (row, folder, seconds, ready, counts)
    clients = [context.Process(target=_client, args=arguments) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    total = sum(counts.get() for _ in clients)
    for client in clients:
        client.join()
    return total / seconds


def _client(row: Row, folder: str, seconds: float, ready: object, counts: object) -> None:
    ask, count = row.asker(folder), 0
    ready.wait()  # type: ignore[attr-defined]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        ask(b"work")
        count += 1
    counts.put(count)  # type: ignore[attr-defined]


class Figures(NamedTuple):
    """The medians of a row: seconds for a call that does nothing, and calls per second of one that computes."""

    name: str
    call: float
    rate: float


def measured(rounds: int, seconds: float) -> list[Figures]:
    """Measure every row in every round, in turn."""
    calls: dict[str, list[float]] = {row.name: [] for row in ROWS}
    rates: dict[str, list[float]] = {row.name: [] for row in ROWS}
    with tempfile.TemporaryDirectory(prefix="b-", dir="/tmp") as folder, servers(folder):
        for _ in range(rounds):
            for row in ROWS:
                calls[row.name].append(one_call(row, folder, seconds))
                rates[row.name].append(throughput(row, folder, seconds))
    return [Figures(name, statistics.median(calls[name]), statistics.median(rates[name])) for name in calls]


def table(figures: list[Figures]) -> str:
    """The figures as Markdown, with what they were taken on."""
    lines = ["| a function is called by | one call | 1 ms of Python, 4 clients |", "|---|---|---|"]
    lines += [f"| {row.name} | {duration(row.call)} | {row.rate:,.0f} calls/s |" for row in figures]
    return "\n".join([*lines, "", method()])


def picture(figures: list[Figures]) -> str:
    """The figures as two panels of bars."""
    panels = (
        ("A call that does nothing, 1 client", {row.name: 1 / row.call for row in figures}),
        (f"A call that computes for 1 ms in Python, {CLIENTS} clients", {row.name: row.rate for row in figures}),
    )
    body, top = [], 0
    for title, rates in panels:
        body += chart.panel(title, [(re.sub("[*`]", "", name), rate) for name, rate in rates.items()], top)
        top += chart.HEAD + len(rates) * chart.ROW + 24
    return chart.drawing("Calls per second of ipcsrv and of what the standard library has", body, top)


def duration(seconds: float) -> str:
    """Two significant digits, in milliseconds or microseconds."""
    scale, unit = (1e3, "ms") if seconds >= 1e-3 else (1e6, "µs")
    return f"{float(f'{seconds * scale:.2g}'):g} {unit}"


def method() -> str:
    """What the figures were taken on."""
    return (f"Medians of `python -m benchmarks.beside` on {os.cpu_count()} cores, {platform.system()} "
            f"{platform.release().split('-')[0]}, Python {platform.python_version()}.")


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.beside", description="The table of the README.")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="interleaved rounds (default 5)")
    parser.add_argument("--seconds", type=float, default=0.5, metavar="S", help="of each figure (default 0.5)")
    parser.add_argument("--write", type=Path, nargs="+", default=[], metavar="FILE", help="put the table into these")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the figures there")
    options = parser.parse_args()
    figures = measured(options.rounds, options.seconds)
    text = table(figures)
    print(text)
    if options.svg:
        options.svg.write_text(picture(figures), "utf-8")
    for file in options.write:
        write(file, text, options.svg)


def write(file: Path, text: str, svg: Path | None) -> None:
    """Put the table into a page, with the picture if that is below the page's folder (the README has one already)."""
    if svg is not None and file.resolve().parent in svg.resolve().parents and file.name != "README.md":
        text += f"\n\n![Calls per second of the same]({os.path.relpath(svg, file.parent)})"
    part = re.compile(r"(<!-- figures: beside -->\n).*?(<!-- end -->)", re.DOTALL)
    page = part.sub(lambda match: f"{match[1]}\n{text}\n\n{match[2]}", file.read_text("utf-8"))
    file.write_text(page, "utf-8")


if __name__ == "__main__":
    main()
