"""The server's half of the platform seam: the contract, and the one choice of system for it.

Everything above this floor is the same code on every system.  What a system must offer (each name is
implemented by `posix_serving` and `windows_serving`, and checked by one routine in `tests/contract`):

`Rendezvous(path, ...)`
    The server's place in the world: `claim()` takes the lock for the life of the process, looks at what is at the
    path, clears a stale socket, binds and listens (PROTOCOL.md section 3); `accept()` gives the next raw connection
    or raises `BlockingIOError`; `still_ours()`; `withdraw()` removes the path so that nobody new can come, while
    those who came can still be accepted; `close()` leaves no file behind.
`Connection`, made by `adopt(raw)`
    A connected client in a worker: `recv(size, DONTWAIT)`, `send(data, DONTWAIT)`, `sendmsg(buffers, (), DONTWAIT)`
    with the meaning of the socket calls, `BlockingIOError` where they would wait; `credentials()`, `peer()`,
    `has_said()`, `gone()`, `shutdown_both()`, `close()`, `detach() -> raw`, `fileno()`.
`queue() -> (QueueWriter, QueueReader)`
    The kernel's queue of connections between the master and one generation of workers.  `put(raw, stamp)` hands one
    over and closes the master's copy, or raises `BlockingIOError` when the queue is full; `retire()` makes whichever
    worker takes it leave; closing the writer is the drain.  `get(wait)` gives `(raw, stamp)`, `RETIRE` or `END`.
`channel() -> (Channel, Channel)`
    A private pipe between the master and one child: `tell(kind, body, raw)`, `hear(wait)`; a message may carry a
    connection back, or, to a template, an end of another channel (`adopt_channel(raw)`); `brings_connection()` tells
    before the next one is heard whether it does.  Its end is how either side
    learns that the other died.
`Lifebuoy()` and `rescue(buoy, known) -> [raw]`
    Copies of connections that outlive a worker, put in by it and taken out by the master; used only where workers
    accept for themselves.
`answer_timeouts_with(reply, relieve, log_descriptor)`, `handler_gate()`
    In a worker: how the master's word is heard while the handler runs; and the lock that keeps a thread that hears it
    from the worker's own, or None where a signal handler does (`relief`).
`poller()`
    The interface of `select.epoll`: register, modify, unregister, poll(seconds) -> [(fileno, READ | WRITE | HANGUP)].
`Process(pid)`
    A worker, for the master: `ask_for_stacks()`, `owes_stacks()`, `ask_for_relief()`, `ask_for_last_words()`,
    `kill()`, `close()`.
`SharedMemory(size)`
    `.buffer`, a writable buffer that children see too; travels to a spawned child as an argument.
"""

from __future__ import annotations

import sys

if sys.platform == "win32":
    from .windows.server import (
        DONTWAIT,
        END,
        HANGUP,
        LOST,
        READ,
        RETIRE,
        SHARED,
        WRITE,
        Admission,
        Channel,
        Connection,
        Lifebuoy,
        Listener,
        Process,
        QueueReader,
        QueueWriter,
        Rendezvous,
        SharedMemory,
        SignalInbox,
        accept_raw,
        adopt,
        adopt_channel,
        announce_descriptors,
        answer_timeouts_with,
        backlog_depth,
        become_daemon_child,
        channel,
        child_hygiene,
        close_raw,
        default_start_method,
        descriptor_limit,
        enlarge,
        handler_gate,
        keep_freed_memory,
        lifeline,
        open_descriptors,
        poller,
        queue,
        quiet_about_threads,
        receive_descriptors,
        rescue,
        resident_bytes,
        start_methods,
    )
else:
    from .unix.server import (
        DONTWAIT,
        END,
        HANGUP,
        LOST,
        READ,
        RETIRE,
        SHARED,
        WRITE,
        Admission,
        Channel,
        Connection,
        Lifebuoy,
        Listener,
        Process,
        QueueReader,
        QueueWriter,
        Rendezvous,
        SharedMemory,
        SignalInbox,
        accept_raw,
        adopt,
        adopt_channel,
        announce_descriptors,
        answer_timeouts_with,
        backlog_depth,
        become_daemon_child,
        channel,
        child_hygiene,
        close_raw,
        default_start_method,
        descriptor_limit,
        enlarge,
        handler_gate,
        keep_freed_memory,
        lifeline,
        open_descriptors,
        poller,
        queue,
        quiet_about_threads,
        receive_descriptors,
        rescue,
        resident_bytes,
        start_methods,
    )
