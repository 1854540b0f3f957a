"""Pyro5 over a Unix socket. `python -m benchmarks.servers.pyro PATH`."""

from __future__ import annotations

import sys

import Pyro5.api


@Pyro5.api.expose
class Ponger:
    def ask(self, request: str) -> str:
        return "pong"


if __name__ == "__main__":
    with Pyro5.api.Daemon(unixsocket=sys.argv[1]) as daemon:
        daemon.register(Ponger, "ponger")
        daemon.requestLoop()
