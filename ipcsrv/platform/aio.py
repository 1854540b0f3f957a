"""The client's contract for asyncio, and the choice of system.

`AsyncStream(stream)`
    The same connection for the running asyncio loop, which owns it from then on: `send_now(data)` gives how much fits
    at once, `await send(data)` sends all of it (`ConnectionError` where the peer takes no more), `await recv(size)`
    returns what comes next; send and recv may wait at the same time, in two tasks, and either be cancelled; `close()`.
"""

from __future__ import annotations

import sys

if sys.platform == "win32":
    from .windows.aio import AsyncStream
else:
    from .unix.aio import AsyncStream

__all__ = ["AsyncStream"]
