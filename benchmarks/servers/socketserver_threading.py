"""socketserver with a thread a connection. `python -m benchmarks.servers.socketserver_threading PATH`."""

from __future__ import annotations

import socketserver
import sys


class Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while data := self.request.recv(65536):
            self.request.sendall(b"0008pong0000" * data.count(b"0000"))


class Server(socketserver.ThreadingUnixStreamServer):
    request_queue_size = 1024
    daemon_threads = True


if __name__ == "__main__":
    with Server(sys.argv[1], Handler) as server:
        server.serve_forever()
