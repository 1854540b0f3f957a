"""The contract with the operating system for the server side, and the choice of system.

What a system must offer (each name is defined in `unix` and in `windows`, and checked by one routine in
tests/contract):

`Rendezvous(path, ...)`
    The server's place at a path: `claim()` takes the lock for the life of the process, looks at what is at the path and
    makes the listener; `listen()` clears a stale socket, binds and listens; `accept()` returns the next raw connection
    or raises `BlockingIOError`; `still_ours()`; `withdraw()` removes the path so that no new client can come, while
    those that came can still be accepted; `close()` leaves no file behind.
`AcceptedConnection`, made by `adopt(raw)`
    A connected client: `recv(size, DONTWAIT)`, `send(data, DONTWAIT)` and `sendmsg(buffers, (), DONTWAIT)` with the
    meaning of the socket calls, `BlockingIOError` where they would wait; `wait_readable(seconds)`, `has_input()`,
    `wait_writable(seconds)`, `gone()`, `end_input()`, `end_output()`, `end()` (acts on every copy), `peer()`,
    `credentials()`, `close()`, `detach() -> raw`, `fileno()`; `linger()`, in the master: see that a client that was
    refused finds the end once it has read why.
`queue() -> (QueueWriter, QueueReader)`, `taken_back(reader)`
    The queue of connections between the master and one generation of workers. `put(raw, message, file)` passes a copy
    of a connection, and of the file with a stalled exchange's state, or raises `BlockingIOError` when it is full;
    closing the writer is the end. `get(flags)` returns `(message, raw, file)` or `END`; `has_ended()`: a process has
    shut the reader down, for all that read. Up to `INLINE_LIMIT` bytes of state fit into a message. `PASSES_OUTPUT`:
    whether an unread response can go back to the master.
`channel() -> (Channel, Channel)`
    A private pipe between the master and one child: `tell(kind, body, descriptor)`, `hear(wait)`. Its end is how either
    side learns that the other died.
`poller()`
    The interface of `select.epoll`: register, modify, unregister, poll(seconds) -> [(fileno, READ | WRITE | HANGUP)].
    `eager_poll(poller)`: its `poll`, which may look for events for a moment before it sleeps; `busy_poll_ns()`: for how
    long that is worth it.
`Process(pid)`
    A worker or template, for the master: `ask_for_stacks()`, `owes_stacks()`, `kill()`, `kill_family()`, `close()`.
`kill_family(pid, itself=True)`
    End a process with what it has started.
`SharedMemory(size)`
    `.buffer`, a writable buffer that children see too; travels to a spawned child as an argument.
In a child: `child_hygiene`, `dump_stacks_on_request`, `end_with_parent`, `end_after`, `protect_children`,
`call_in_forked_children`. Before one is started: `start_resource_tracker`; at the end:
`wake_resource_tracker`.
"""

# The names of each system's modules are the contract: what one of them adds belongs in the list above.
# ruff: noqa: F403

from __future__ import annotations

import faulthandler
import sys

if sys.platform == "win32":
    from .windows.channel import *
    from .windows.connection import *
    from .windows.poller import *
    from .windows.processes import *
    from .windows.queue import *
    from .windows.rendezvous import *
else:
    from .unix.channel import *
    from .unix.connection import *
    from .unix.descriptors import *
    from .unix.poller import *
    from .unix.processes import *
    from .unix.queue import *
    from .unix.rendezvous import *
    from .unix.sockets import DONTWAIT as DONTWAIT
    from .unix.sockets import Listener as Listener


def end_after(seconds: float | None, descriptor: int) -> None:
    """End this process with its stacks in `descriptor` after so many seconds, unless this is called again with None."""
    if seconds is None:
        faulthandler.cancel_dump_traceback_later()
    else:
        faulthandler.dump_traceback_later(seconds, exit=True, file=descriptor)
