"""Clients for asyncio: `ipcsrv.aio.call`, `ipcsrv.aio.connect` and the rest of `ipcsrv.client.aio`."""

from .client.aio import Connection, active_state, call, connect

__all__ = ["Connection", "active_state", "call", "connect"]
