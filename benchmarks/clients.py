"""The load in Python, for protocols that the C load does not speak: `python -m benchmarks.clients ...`.

Each client is a process. The clients of our own protocol and of HTTP are as bare as can be (a socket, one send, one
receive), so that it is the servers that are compared; the others use their own library, for there is no other way.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

Ask = Callable[[], Any]
Close = Callable[[], Any]

HTTP = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


def _over_socket(path: str, request: bytes, ending: bytes) -> tuple[Ask, Close]:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)

    def ask() -> None:
        connection.sendall(request)
        while not (data := connection.recv(65536)).endswith(ending):
            if not data:
                raise ConnectionError("the server closed the connection")

    return ask, connection.close


def open_ipc(path: str) -> tuple[Ask, Close]:
    return _over_socket(path, b"0008ping0000", b"0008pong0000")


def open_http(path: str) -> tuple[Ask, Close]:
    return _over_socket(path, HTTP, b"pong")


def open_multiprocessing(path: str) -> tuple[Ask, Close]:
    from multiprocessing.connection import Client

    connection = Client(path, "AF_UNIX")

    def ask() -> None:
        connection.send_bytes(b"ping")
        connection.recv_bytes()

    return ask, connection.close


def open_zmq(path: str) -> tuple[Ask, Close]:
    import zmq

    connection = zmq.Context.instance().socket(zmq.REQ)
    connection.connect(f"ipc://{path}")

    def ask() -> None:
        connection.send(b"ping")
        connection.recv()

    return ask, lambda: connection.close(0)


def open_pyro(path: str) -> tuple[Ask, Close]:
    import Pyro5.api

    proxy = Pyro5.api.Proxy(f"PYRO:ponger@./u:{path}")
    return lambda: proxy.ask("ping"), proxy._pyroRelease


def open_rpyc(path: str) -> tuple[Ask, Close]:
    import rpyc

    connection = rpyc.utils.factory.unix_connect(path)
    return lambda: connection.root.ask(b"ping"), connection.close


def open_grpc(path: str) -> tuple[Ask, Close]:
    import grpc

    channel = grpc.insecure_channel(f"unix:{path}")
    method = channel.unary_unary("/bench/ask")
    return lambda: method(b"ping", wait_for_ready=True), channel.close


OPENERS: dict[str, Callable[[str], tuple[Ask, Close]]] = {
    "ipc": open_ipc,
    "http": open_http,
    "multiprocessing": open_multiprocessing,
    "zmq": open_zmq,
    "pyro": open_pyro,
    "rpyc": open_rpyc,
    "grpc": open_grpc,
}


def client(protocol: str, path: str, mode: str, seconds: float, begin: Callable[[], Any]) -> tuple[int, int]:
    """Ask for so long from `begin` on, all imports done; returns how many requests were answered and how many not."""
    opener = OPENERS[protocol]
    answered = failed = 0
    ask, close = opener(path)
    ask()
    begin()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if mode == "connect":
                close()
                ask, close = opener(path)
            ask()
            answered += 1
        except Exception:
            failed += 1
            if mode == "keep":
                break
    close()
    return answered, failed


def _child(ready: int, go: int, report: int, *arguments: Any) -> None:
    """One client's process: says that it is ready, waits for all the others, reports."""

    def begin() -> None:
        os.write(ready, b"x")
        os.read(go, 1)

    try:
        os.write(report, struct.pack("QQ", *client(*arguments, begin)))
    finally:
        os._exit(0)


def load(protocol: str, path: str, mode: str, clients: int, seconds: float) -> dict[str, float]:
    """Drive the server at `path` with so many processes for so long."""
    ready, tell_ready = os.pipe()
    go, tell_go = os.pipe()
    report, tell_report = os.pipe()
    for _ in range(clients):
        if os.fork() == 0:
            _child(tell_ready, go, tell_report, protocol, path, mode, seconds)
    os.close(tell_ready)
    os.close(tell_report)
    for _ in range(clients):
        os.read(ready, 1)  # or its end, if all the others died
    os.write(tell_go, b"x" * clients)
    reports = [os.read(report, 16) for _ in range(clients)]
    totals = [struct.unpack("QQ", each or bytes(16)) for each in reports]
    return {"requests": sum(t[0] for t in totals), "failures": sum(t[1] for t in totals), "seconds": seconds}


if __name__ == "__main__":
    protocol, path, mode, clients, seconds = sys.argv[1:6]
    print(json.dumps(load(protocol, path, mode, int(clients), float(seconds))))
