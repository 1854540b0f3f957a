"""A pool of kept connections to one server, shared by the threads of a process.  Runs in the client's process.

A place in the pool is an object that is in one of two places: in the queue of free places, or in the frame of a call.
An exception that arrives at any moment (a signal handler that raises) at worst destroys the object, and then its
`__del__` puts a new one into the queue: no place is ever lost.  The queue is the C one, whose `put` is reentrant.
"""

from __future__ import annotations

import os
import weakref
from _queue import Empty, SimpleQueue

from ..errors import CallTimeout, ConnectionLost, LocalProtocolError, Progress
from .sync import connect, deadline_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from typing_extensions import Buffer

    from ..deadline import Deadline
    from .sync import CallOptions, Connection, Path, Timeout, Trust

    Places = SimpleQueue["_Place | None"]

FIRST_LOOK = 0.001  # seconds; a server that closes after each response (Git's) does it within microseconds


class _Place:
    """Room for one connection in use; returned to the queue of free places even if it is dropped."""

    __slots__ = ("_free",)

    def __init__(self, free: weakref.ref[Places]) -> None:
        self._free = free

    def __del__(self) -> None:
        free = self._free()
        if free is not None:  # the pool lives
            free.put(_Place(self._free))


class PoolBase:
    """What `ipcsrv.Pool` and `ipcsrv.aio.Pool` share: their arguments, and what they know of the server.

    Attributes:
        path: Where the server listens.
        size: The largest number of connections.
    """

    def __init__(
        self,
        path: Path,
        size: int = 8,
        *,
        trust: Trust = (),
        wait_if_busy: bool = True,
        wait_if_not_found: bool = False,
        max_response_size: int | None = None,
    ) -> None:
        """Make a pool; connections are made when calls need them.

        Args:
            path: Where the server listens.
            size: The largest number of connections.
            trust: As for `ipcsrv.connect`.
            wait_if_busy: As for `ipcsrv.connect`.
            wait_if_not_found: As for `ipcsrv.connect`.
            max_response_size: As for `ipcsrv.connect`.

        Raises:
            ValueError: `size` is below 1.
        """
        if size < 1:
            raise ValueError(f"a pool's size must be at least 1, not {size}")
        self.path = os.fspath(path)
        self.size = size
        self._options: CallOptions = {
            "trust": trust,
            "wait_if_busy": wait_if_busy,
            "wait_if_not_found": wait_if_not_found,
            "max_response_size": max_response_size,
        }
        self._closed = False
        #: Whether the server keeps connections open between exchanges; None until the first one was used again.
        self._kept: bool | None = None
        self._start()

    def _start(self) -> None:
        """Begin without connections: a new pool, or one in a forked child."""
        raise NotImplementedError

    def _note_closed(self) -> None:
        """Note that the server closed a kept connection: either it closes each of them, or it was restarted."""
        self._kept = False if self._kept is None else None


class Pool(PoolBase):
    """Up to `size` kept connections to the server at `path`, shared by the threads of this process.

    A thread takes the connection that was used last, so that no more are open than are needed at the same time, and
    waits for one while all are in use.  Where the server closed a connection while it was idle, the call is repeated
    on another one: nothing had been sent.  Connections to a server that closes after each response, as Git's does,
    are not kept.  A forked child starts with no connections.

    Example:
        >>> with ipcsrv.Pool("./z.sock") as pool:
        ...     pool.call(b"data")

    Attributes:
        path: Where the server listens.
        size: The largest number of connections.
    """

    _free: Places
    _idle: list[Connection]

    def __repr__(self) -> str:
        """Return the path, the connections in use and idle, and the size."""
        in_use = 0 if self._closed else self.size - self._free.qsize()
        state = "closed" if self._closed else f"{in_use} in use, {len(self._idle)} idle of {self.size}"
        return f"<ipcsrv.Pool to {self.path!r}, {state}>"

    def call(self, data: Buffer = b"", timeout: Timeout = None) -> bytes:
        """Send one request on a free connection and return the response.

        Args:
            data: The request, any object with the buffer interface.
            timeout: Seconds for all of it, the wait for a free connection included; None for no limit.

        Returns:
            The response.

        Raises:
            LocalProtocolError: The pool is closed.
            IpcError: What `connect` and `Connection.call` raise.
            ValueError: `timeout` is negative or not a number; nothing was sent.
        """
        deadline = deadline_of(timeout)
        while True:
            place = [self._take_place(deadline)]
            connection, kept = None, False
            try:
                connection = self._idle_connection()
                kept = connection is not None
                if connection is None:
                    connection = connect(self.path, deadline, **self._options)
                response = connection.call(data, deadline)
                if kept:
                    self._kept = True
                return response
            except ConnectionLost as error:
                if not kept:
                    raise
                self._note_closed()
                self._close_idle()
                if error.progress is not Progress.NOTHING_SENT:
                    raise
            finally:
                if connection is not None:
                    self._give_back(connection)
                self._free.put(place.pop())

    def close(self) -> None:
        """Close the idle connections now, and those in use as their calls end; waiting calls raise."""
        self._closed = True
        self._close_idle()
        for _ in range(self.size):
            self._free.put(None)  # wakes a thread that waits for a place

    def __enter__(self) -> Self:
        """Return the pool itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the pool."""
        self.close()

    def _start(self) -> None:
        self._process = os.getpid()
        self._idle = []
        self._free = SimpleQueue()
        for _ in range(self.size):
            self._free.put(_Place(weakref.ref(self._free)))

    def _take_place(self, deadline: Deadline) -> _Place:
        if self._process != os.getpid():
            self._start()  # the parent goes on using the connections that were inherited
        if not self._closed:
            try:
                place = self._free.get(timeout=deadline.remaining())
            except Empty:
                raise CallTimeout(self.path, deadline.timeout) from None
            if place is not None:
                return place
            self._free.put(None)  # for the next thread that waits
        raise LocalProtocolError("the pool is closed", self.path)

    def _idle_connection(self) -> Connection | None:
        """Return a kept connection, or None where there is none that can be used."""
        try:
            connection = self._idle.pop()
        except IndexError:
            return None
        if self._kept is None and connection._ended_within(FIRST_LOOK):
            self._kept = False
            connection.close()
            return None
        return connection

    def _give_back(self, connection: Connection) -> None:
        if connection.closed or self._closed or self._kept is False:
            connection.close()
            return
        self._idle.append(connection)
        if self._closed:  # closed meanwhile, by another thread
            self._close_idle()

    def _close_idle(self) -> None:
        while self._idle:
            try:
                self._idle.pop().close()
            except IndexError:
                pass  # another thread took it
