"""ipcsrv for asyncio: clients, pools, and servers that are started on demand.  Runs in the caller's event loop.

Example:
    response = await ipcsrv.aio.call(path, data)
    async with ipcsrv.aio.connect(path) as connection:
        async for piece in connection.stream(data): ...
    async with ipcsrv.aio.Pool(path) as pool:
        response = await pool.call(data)
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

from .client.aio import Connection, Pool, active_state, call, connect, wait_until_listening

if TYPE_CHECKING:
    import os
    from collections.abc import Callable
    from typing import Any, Unpack

    from .config.keywords import OnMismatch, SettingsDict

__all__ = ["Connection", "Pool", "active_state", "call", "connect", "ensure_running", "wait_until_listening"]


async def ensure_running(
    path: str | os.PathLike[str],
    handler: str | Callable[..., Any],
    *,
    timeout: float | None = None,
    on_mismatch: OnMismatch = "reload",
    **settings: Unpack[SettingsDict],
) -> bool:
    """Start a server at `path` in the background unless one runs there.

    It does what `ipcsrv.ensure_running` does, in a thread.  Where the task is cancelled, a start that has begun goes
    on, for at most `startup_timeout`.

    Args:
        path: Where the server listens.
        handler: A callable, or `MODULE:NAME`.
        timeout: Seconds for all of it; None for as long as a start may take.
        on_mismatch: What to do where the running server does not serve the current code.
        **settings: See docs/settings.md.

    Returns:
        Whether this call started the server.

    Raises:
        IpcError: What `ipcsrv.ensure_running` raises.

    Example:
        >>> await ipcsrv.aio.ensure_running("./z.sock", "zlib:compress", idle_exit=600)
    """
    from .server.ensure import ensure_running as ensure

    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[bool] = loop.create_future()

    def set_outcome(started: bool, error: BaseException | None) -> None:
        if not outcome.done():  # the task may have been cancelled
            if error is None:
                outcome.set_result(started)
            else:
                outcome.set_exception(error)

    def run() -> None:
        started, failure = False, None
        try:
            started = ensure(path, handler, timeout=timeout, on_mismatch=on_mismatch, **settings)
        except BaseException as error:
            failure = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(set_outcome, started, failure)

    # A daemon thread, and not `asyncio.to_thread`: after Ctrl-C the event loop would wait for it to finish.
    threading.Thread(target=run, name="ipcsrv-ensure-running", daemon=True).start()
    return await outcome
