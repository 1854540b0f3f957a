"""The contract with the operating system for the client side, and the choice of system.

The packages that use it are the same code on every system.  Imports here are paid by every `ipcsrv call`, so both
systems keep them light.  What a system must offer (implemented in `unix` and in `windows`):

`attempt(path) -> Stream`
    One try to connect, which never waits.  Raises `BlockingIOError` where the server's queue is full (or its pipe
    instances busy), `NotListening` (refused), `PathNotFound`, `InvalidPath`, `Denied`, or the bare `OSError` of
    anything else.
`connect(path, deadline, *, wait_if_busy=True, wait_if_not_found=False) -> Stream`
    The same, repeated for as long as docs/protocol.md section 3 says.  Raises `CallTimeout` where the queue stays full.
`probe(path, timeout=1.0) -> State`
    What is at the path; sends nothing and raises nothing.
`trusted(peer, trust) -> bool`
    Whether a server with these credentials is one's own, root's, or named by `trust` (docs/protocol.md section 5).
`read_within(descriptor, size, deadline, stream=None) -> bytes | None`
    At most `size` bytes of what comes on a descriptor that others made (standard input), `b""` at its end, None where
    nothing has come and the server has said something on `stream`, or ended it. `TimeoutError` past the deadline; the
    descriptor must not be read again then. Any other `OSError` of standard input has that name for its file (on Unix).
`write_all(descriptor, data)`
    Write all of `data` to a descriptor that others made (standard output), however long that takes;
    `BrokenPipeError` where its reader has gone.
`is_blocking(descriptor) -> bool`
    Whether a write to it waits; `write_all` does in any case.
`runtime_folder(override=None) -> str`
    A folder that belongs to this user alone, made if need be, and checked (`InvalidPath` says what is wrong).
`Stream`
    A connection, which the caller of `connect` closes.

    `send(data, DONTWAIT) -> int`      what fits at once; `BlockingIOError` if nothing does
    `recv(size) -> bytes`              waits for ever; `b""` is the peer's end
    `receive(size, deadline) -> bytes` the same within a `Deadline`; `TimeoutError` past it, whatever there is to read
    `transfer(buffers, deadline) -> bytes | None`
                                       send from the front of `buffers` (consumed in place) and listen meanwhile:
                                       bytes as soon as some arrive while sending has to wait, else None once all is
                                       sent or the peer takes no more (what it refused is then left in `buffers`)
    `peer() -> Peer`                   the credentials of the listening process, from the kernel
    `close()`                          may be called twice
    Sending to, or receiving from, a peer that is gone raises `ConnectionError`.
"""

# ruff: noqa: F403, F405

from __future__ import annotations

import sys

if sys.platform == "win32":
    from .windows.client import *
else:
    from .unix.client import *

__all__ = [
    "DONTWAIT", "Stream", "attempt", "connect", "is_blocking", "probe", "read_within", "runtime_folder", "trusted",
    "write_all",
]  # fmt: skip
