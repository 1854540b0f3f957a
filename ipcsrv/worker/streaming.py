"""Streamed responses: chunks go out within 5 ms of being yielded, small ones together. In the worker.

A system call and a packet header for each of ten thousand small chunks would cost more than making them. So chunks
gather in a list, and go out together when there is a buffer's worth, or after a few milliseconds. While the handler's
generator makes the next chunk, no other code of the worker's main thread runs: so a second thread, which is started by
the first stream, flushes after these milliseconds.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

from ..buffers import discard
from ..platform.server import DONTWAIT, AcceptedConnection
from ..protocol.pktline import encode_data
from ..supervision.scoreboard import LENT, Phase
from .failures import Gone

FLUSH_INTERVAL = 0.003  # seconds; with the switch interval below it keeps the promise of 5 ms
SWITCH_INTERVAL = 0.001  # seconds for which a busy handler may keep the thread from running, while it streams
GATHER = 32 * 1024  # bytes of chunks that go out without waiting for more
FULL = 256 * 1024  # bytes unsent, at which the handler has to wait for its client
BUFFERS_A_CALL = 64


class Coalescer:
    """One streamed response: chunks in, packets out.

    `add` and `flush` are called by the handler's thread, `flush` also by the flusher's; the lock is for the order on
    the wire. `full` says that the client must read first. words, number: the worker's slot, and the connection there.
    """

    __slots__ = ("_connection", "_gathered", "_lock", "_number", "_packets", "_pending", "_words", "broken", "quiet",
                 "total", "unsent")  # fmt: skip

    def __init__(self, connection: AcceptedConnection, words: memoryview[int], number: int) -> None:
        self._connection, self._words, self._number = connection, words, number
        self._lock = threading.Lock()
        self._pending: list[bytes] = []  # chunks, in order; appended to without the lock (list operations are atomic)
        self._packets: list[Any] = []  # what has been encoded and is not sent yet
        self._gathered = 0
        self.total = 0  # bytes of the response so far
        self.unsent = 0  # bytes in _packets
        self.quiet = True  # nothing has come for an interval: the next chunk goes out at once
        self.broken = False

    def add(self, chunk: bytes) -> bool:
        """Take a chunk; True if it is time to flush."""
        self._pending.append(chunk)
        size = len(chunk)
        self._gathered += size
        self.total += size
        return self.quiet or self._gathered >= GATHER

    @property
    def full(self) -> bool:
        """Whether so much is unsent that the handler has to wait."""
        return self.unsent > FULL

    def finish(self, packets: list[Any]) -> list[Any]:
        """Take the packets that end the response; return all that is not sent."""
        with self._lock:
            self._encode_pending()
            unsent, self._packets, self.unsent = self._packets + packets, [], 0
        return unsent

    def flush(self) -> None:
        """Send what there is, as far as the client takes it; raises `Gone`."""
        self.quiet = False
        self._gathered = 0
        with self._lock:
            self._encode_pending()
            self._push()
        if self.broken:
            raise Gone

    def flush_in_background(self) -> None:
        """Do the same in the flusher's thread, which leaves it to the handler's to raise."""
        if not self._pending and not self._packets:
            self.broken = self.broken or self._connection.gone()
            self.quiet = True
            return
        with self._lock:
            self._encode_pending()
            self._push()
        if self.broken:
            self.quiet = True  # so that the handler's thread learns of it at its next chunk

    def _encode_pending(self) -> None:
        count = len(self._pending)
        if count:
            data = b"".join(self._pending[:count])
            del self._pending[:count]
            packets = encode_data(data)
            self._packets += packets
            self.unsent += sum(map(len, packets))

    def _push(self) -> None:
        words, base = self._words, self._number << 3
        words[LENT] = base | Phase.WRITING
        try:
            while self._packets:
                sent = self._connection.sendmsg(self._packets[:BUFFERS_A_CALL], (), DONTWAIT)
                self.unsent -= sent
                discard(self._packets, sent)
        except BlockingIOError:
            return
        except OSError:
            self.broken = True
            self._packets.clear()
            self.unsent = 0
        words[LENT] = base | Phase.STREAMING  # between two packets: a failure reply could be sent


class Flusher:
    """The thread that keeps the 5 ms for the present stream; started by the first one, asleep between them."""

    def __init__(self) -> None:
        self._streams: set[Coalescer] = set()
        self._wanted = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self, stream: Coalescer) -> None:
        """Flush this stream every few milliseconds, until `forget`."""
        self._streams.add(stream)
        if self._thread is None:
            sys.setswitchinterval(min(SWITCH_INTERVAL, sys.getswitchinterval()))
            self._thread = threading.Thread(target=self._run, name="ipcsrv-flusher", daemon=True)
            self._thread.start()
        self._wanted.set()

    def forget(self, stream: Coalescer) -> None:
        """Leave this stream alone; on return no flush of it is under way."""
        self._streams.discard(stream)
        with stream._lock:
            pass

    def _run(self) -> None:
        while True:
            self._wanted.wait()
            time.sleep(FLUSH_INTERVAL)
            for stream in tuple(self._streams):
                if stream in self._streams:
                    stream.flush_in_background()
            if not self._streams:
                self._wanted.clear()
                if self._streams:  # one came between the look and the clear
                    self._wanted.set()
