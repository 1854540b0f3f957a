"""rpyc's threaded server over a Unix socket. `python -m benchmarks.servers.rpyc_threaded PATH`."""

from __future__ import annotations

import logging
import sys

import rpyc
from rpyc.utils.server import ThreadedServer


class Ponger(rpyc.Service):
    def exposed_ask(self, request: bytes) -> bytes:
        return b"pong"


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    ThreadedServer(Ponger, socket_path=sys.argv[1]).start()
