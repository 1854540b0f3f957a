"""A local IPC server for Python: any callable from bytes to bytes, in a pool of processes, behind a path.

    ipcsrv.serve("./z.sock", "zlib:compress")       # or: ipcsrv run ./z.sock zlib:compress
    ipcsrv.call("./z.sock", b"data")                # from any other process

Nothing is imported before it is used: a short-lived client must not pay for the server, nor for asyncio.
"""

from __future__ import annotations

from ._version import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from . import aio
    from .client.paths import default_path
    from .client.pool import Pool
    from .client.sync import Connection, active_state, call, connect, wait_until_listening
    from .codecs import call_json, json_handler, text_handler
    from .config.keywords import SettingsDict
    from .errors import (
        AddressInUse,
        CallTimeout,
        ConnectionLost,
        Denied,
        HandlerCrashed,
        HandlerError,
        HandlerImportError,
        HandlerTimeout,
        InvalidPath,
        IpcError,
        LocalProtocolError,
        Malformed,
        NotListening,
        PathNotFound,
        Progress,
        ProtocolError,
        ServerBusy,
        ServerError,
        ServerStopping,
        SettingsError,
        SocketStolen,
        StartError,
        StartTimeout,
        TooLarge,
        Untrusted,
    )
    from .peer import Peer
    from .request import QUIT, Request
    from .server.ensure import ensure_running
    from .server.server import Server, serve
    from .server.steering import reload, restart, scale, status, stop
    from .state import State

_HOMES = {
    "client.sync": ("Connection", "active_state", "call", "connect", "wait_until_listening"),
    "client.pool": ("Pool",),
    "codecs": ("call_json", "json_handler", "text_handler"),
    "config.keywords": ("SettingsDict",),
    "errors": (
        "AddressInUse",
        "CallTimeout",
        "ConnectionLost",
        "Denied",
        "HandlerCrashed",
        "HandlerError",
        "HandlerImportError",
        "HandlerTimeout",
        "InvalidPath",
        "IpcError",
        "LocalProtocolError",
        "Malformed",
        "NotListening",
        "PathNotFound",
        "Progress",
        "ProtocolError",
        "ServerBusy",
        "ServerError",
        "ServerStopping",
        "SettingsError",
        "SocketStolen",
        "StartError",
        "StartTimeout",
        "TooLarge",
        "Untrusted",
    ),
    "client.paths": ("default_path",),
    "peer": ("Peer",),
    "request": ("QUIT", "Request"),
    "server.ensure": ("ensure_running",),
    "server.server": ("Server", "serve"),
    "server.steering": ("reload", "restart", "scale", "status", "stop"),
    "state": ("State",),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "QUIT",
    "AddressInUse",
    "CallTimeout",
    "Connection",
    "ConnectionLost",
    "Denied",
    "HandlerCrashed",
    "HandlerError",
    "HandlerImportError",
    "HandlerTimeout",
    "InvalidPath",
    "IpcError",
    "LocalProtocolError",
    "Malformed",
    "NotListening",
    "PathNotFound",
    "Peer",
    "Pool",
    "Progress",
    "ProtocolError",
    "Request",
    "Server",
    "ServerBusy",
    "ServerError",
    "ServerStopping",
    "SettingsDict",
    "SettingsError",
    "SocketStolen",
    "StartError",
    "StartTimeout",
    "State",
    "TooLarge",
    "Untrusted",
    "__version__",
    "active_state",
    "aio",
    "call",
    "call_json",
    "connect",
    "default_path",
    "ensure_running",
    "json_handler",
    "reload",
    "restart",
    "scale",
    "serve",
    "status",
    "stop",
    "text_handler",
    "wait_until_listening",
]


if not TYPE_CHECKING:  # or a type checker would believe in any name

    def __getattr__(name: str) -> object:
        """Import what `name` needs, once: from then on it is an ordinary attribute."""
        if name == "aio":
            return _module("aio")
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(_module(_MODULE_OF[name]), name)
        return value


def _module(name: str) -> object:
    # `__import__` with a list of names gives the module itself; `importlib` would be one more import.
    return __import__(f"{__name__}.{name}", fromlist=("*",))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
