"""pyzmq: a ROUTER in front, DEALER behind, two worker threads, as in its guide. `... PATH`."""

from __future__ import annotations

import sys
import threading

import zmq


def work(context: zmq.Context) -> None:
    socket = context.socket(zmq.REP)
    socket.connect("inproc://workers")
    while True:
        socket.recv()
        socket.send(b"pong")


def main(path: str) -> None:
    context = zmq.Context()
    front, back = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    front.bind(f"ipc://{path}")
    back.bind("inproc://workers")
    for _ in range(2):
        threading.Thread(target=work, args=(context,), daemon=True).start()
    zmq.proxy(front, back)


if __name__ == "__main__":
    main(sys.argv[1])
