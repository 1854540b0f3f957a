"""Where a worker's connections come from: the listener, and its generation's queue.  In the worker.

New clients wait in the backlog of the listener, from which every idle worker accepts; the kernel wakes one for each.
What the master hands over comes by the queue: connections that were silent for a while (all connections, where workers
cannot accept for themselves), the word to leave, and, as its end, the end of the work.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from time import monotonic_ns
from typing import Any, Protocol

from ..platform import logs
from ..platform.server import (
    DONTWAIT,
    END,
    LOST,
    READ,
    RETIRE,
    SHARED,
    Channel,
    Connection,
    Listener,
    QueueReader,
    adopt,
)
from ..supervision import scoreboard as board
from ..supervision.messages import PACED, PASSING
from ..supervision.scoreboard import CONNECTIONS
from .keeping import Keeping
from .stats import Tally

log = logs.get("ipcsrv.worker")

ACCEPTS_A_TURN = 16  # clients served one after the other before other events have their turn
NOT_EAGER = 32  # turns in which we accept once, after accepting again did not pay
EXHAUSTED_PAUSE = 0.1  # seconds without accepting when descriptors have run out
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class Host(Protocol):
    """The worker, to which connections are brought."""

    def welcome(self, listener: Listener) -> bool: ...
    def begin(self, connection: Connection, stamp: int, waited: int) -> None: ...
    def leave(self) -> None: ...
    def stop_taking(self) -> None: ...


class Intake:
    """Brings connections to `host` from the listener (None: the master accepts) and the queue.

    `again_at` is when to accept again after descriptors ran out (monotonic seconds), 0 if they have not.
    """

    def __init__(self, host: Host, queue: QueueReader, listener: Listener | None, channel: Channel, poller: Any,
                 keeping: Keeping, tally: Tally) -> None:
        self._host, self._queue, self._listener, self._channel = host, queue, listener, channel
        self._poller, self._keeping, self._tally = poller, keeping, tally
        self.queue_key = queue.fileno()
        self.listener_key = -1 if listener is None else listener.fileno()
        self._sources = (self.queue_key,) if listener is None else (self.queue_key, self.listener_key)
        self._watched: set[int] = set()
        self._modest = 0  # turns left in which we accept once
        self.again_at = 0.0

    def accept(self) -> None:
        """Serve who waits in the backlog: one, or one after the other while that pays."""
        assert self._listener is not None
        if self._tally.words[board.SHORT]:
            self._pause()
            return
        served = 0
        try:
            for served in range(1 if self._modest else ACCEPTS_A_TURN):
                if not self._host.welcome(self._listener):
                    if not served:
                        self._backlog_empty()
                    break
        except OSError as error:
            self._accept_failed(error)
        if self._modest:
            self._modest -= 1
        elif served < 2:
            self._modest = NOT_EAGER

    def pass_on(self) -> None:
        """Give who waits in the backlog to the master, for another worker: we were woken for it, and cannot serve.

        Not where the server stops: there the master has no queue any more, and who has come is served by us all.
        """
        assert self._listener is not None
        if self._tally.words[board.VERDICT] == board.STOPPING:
            return
        with contextlib.suppress(OSError):  # there is none left
            for _ in range(ACCEPTS_A_TURN):
                self._keeping.tell("new", b"", self._listener.accept_raw())
                self._tally.count(CONNECTIONS)

    def _backlog_empty(self) -> None:
        """Somebody else was quicker; or the listener refuses new clients, and would wake us for ever."""
        if self._listener is not None and self._listener.refuses():
            self._unwatch(self.listener_key)

    def _accept_failed(self, error: OSError) -> None:
        if error.errno == errno.EINVAL:
            self._unwatch(self.listener_key)  # it refuses new clients, and has none left
        elif error.errno in _EXHAUSTED:
            self._keeping.give_back_all()
            self._pause()
            self._keeping.tell("full", os.strerror(error.errno or 0).encode())
        elif error.errno not in PASSING:
            raise error

    def _pause(self) -> None:
        """Clients wait in the backlog for a while."""
        self._unwatch(self.listener_key)
        self.again_at = time.monotonic() + EXHAUSTED_PAUSE

    def take(self) -> None:
        """Bring what the queue has, if another worker was not quicker."""
        try:
            item = self._queue.get(DONTWAIT)
        except BlockingIOError:
            return  # another worker was quicker
        if isinstance(item, str):
            self._told(item)
            return
        raw, stamp = item
        waited = monotonic_ns() - (stamp & ~PACED)
        self._tally.waited(waited)
        self._host.begin(adopt(raw), stamp, waited)

    def _told(self, word: str) -> None:
        if word == END:
            self._serve_the_last()
            self._host.stop_taking()
        elif word == RETIRE:
            self._host.leave()
        elif word == LOST:
            self._tally.count(board.LOST)
            log.error("lost a connection: this worker has no descriptor left for it; raise its limit (ulimit -n)")

    def _serve_the_last(self) -> None:
        """The work has ended.  If the server has, serve the backlog to its end; a newer generation may have it else."""
        listener = self._listener
        if listener is None:
            return
        if self._master_is_dead():
            listener.refuse()  # or connects would succeed, and hang for ever
        if not listener.refuses():
            return
        try:
            while True:
                connection = adopt(listener.accept_raw())
                self._tally.count(CONNECTIONS)
                self._host.begin(connection, 0, 0)
        except OSError:
            pass  # there is none left

    def _master_is_dead(self) -> bool:
        try:
            return self._channel.hear(wait=False) is None
        except BlockingIOError:
            return False

    def watch(self, watch: bool) -> None:
        """Whether to take connections: not when leaving, nor with most of our descriptors in stalled clients."""
        for key in self._sources:
            if watch and key not in self._watched:
                self._watched.add(key)
                self._poller.register(key, READ | SHARED)
            elif not watch:
                self._unwatch(key)

    def _unwatch(self, key: int) -> None:
        if key in self._watched:
            self._watched.remove(key)
            self._poller.unregister(key)
