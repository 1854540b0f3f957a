"""multiprocessing.connection with a thread a connection. `python -m benchmarks.servers.mp_connection PATH`."""

from __future__ import annotations

import sys
import threading
from multiprocessing.connection import Connection, Listener


def serve_client(connection: Connection) -> None:
    try:
        while True:
            connection.recv_bytes()
            connection.send_bytes(b"pong")
    except (EOFError, OSError):
        connection.close()


if __name__ == "__main__":
    with Listener(sys.argv[1], "AF_UNIX", backlog=1024) as listener:
        while True:
            threading.Thread(target=serve_client, args=(listener.accept(),), daemon=True).start()
