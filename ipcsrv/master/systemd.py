"""Socket activation and notification of systemd (sd_listen_fds(3), sd_notify(3)). In the master.

**Socket activation.** systemd listens before the server runs and passes it the descriptor, so that clients can connect
from the boot on, wait while the server starts or restarts, and can be the reason that it is started. The master takes
the descriptor that is named `ipcsrv` (`FileDescriptorName=`), or the one that is bound to its path. A socket at another
path is refused rather than ignored: its clients would wait for ever.

**Notification** (`Type=notify` or `notify-reload`). READY once clients can connect, RELOADING and STOPPING as they
begin, a STATUS for `systemctl status`, and WATCHDOG at half the interval that the unit asks for: it comes from the
master's one loop, so a master that hangs is noticed, and a worker that computes for an hour is not mistaken for one.

Other supervisors with the same protocol work too. Without the variables that systemd sets (or with those meant for
another process) everything here does nothing.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping, MutableMapping
from time import monotonic_ns
from typing import Any

from ..errors import InvalidPath

FIRST_DESCRIPTOR = 3  # SD_LISTEN_FDS_START
NAME = "ipcsrv"  # of the server's descriptor, whatever its place among several
PATIENCE = 1.0  # seconds for which a full queue of systemd's may delay the master
_UNIX = getattr(socket, "AF_UNIX", -1)
_LISTEN = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
_NOTIFY = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


# -- socket activation ------------------------------------------------------------------------------------------------


def take_listener(path: str, environ: MutableMapping[str, str], *, strict: bool = True) -> socket.socket | None:
    """Return the listening socket for `path` among the descriptors that systemd passed to this process, or None.

    strict: this process is the server and nothing else, so a socket that is not for `path` is a mistake: `InvalidPath`.
    Otherwise (a library's caller may have sockets of its own) it is left alone, and the variables with it.
    """
    passed = _passed(environ)
    if strict:
        for variable in _LISTEN:
            environ.pop(variable, None)  # they are not for child processes
    chosen = _choose(path, [descriptor for descriptor, name in passed if name == NAME] or
                     [descriptor for descriptor, _ in passed])
    if chosen is None and passed and strict:
        raise InvalidPath(path, "systemd passed no socket that listens there but "
                                f"{', '.join(_describe(descriptor) for descriptor, _ in passed)}; "
                                "name the same path in ListenStream= and ExecStart=")
    if chosen is None:
        return None
    os.set_inheritable(chosen, False)
    return socket.socket(fileno=chosen)


def _passed(environ: Mapping[str, str]) -> list[tuple[int, str]]:
    """Return descriptors and names if they were meant for this process, and not for one that started it."""
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    try:
        count = int(environ.get("LISTEN_FDS", "0"))
    except ValueError:
        return []
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    return [(FIRST_DESCRIPTOR + i, names[i] if i < len(names) else "") for i in range(count)]


def _choose(path: str, candidates: list[int]) -> int | None:
    """Return the descriptor that listens at `path`."""
    wanted = os.path.realpath(path)
    for descriptor in candidates:
        address = _address(descriptor)
        if isinstance(address, str) and address and os.path.realpath(address) == wanted:
            return descriptor
    return None


def _address(descriptor: int) -> Any:
    """Return where a descriptor listens; None if it is no listening Unix stream socket."""
    try:
        passed = socket.socket(fileno=descriptor)
    except OSError:
        return None
    try:
        listens = passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        usable = listens and passed.family == _UNIX and passed.type == socket.SOCK_STREAM
        return passed.getsockname() if usable else None
    finally:
        passed.detach()


def _describe(descriptor: int) -> str:
    address = _address(descriptor)
    return f"descriptor {descriptor} ({'no Unix stream listener' if address is None else os.fsdecode(address)})"


# -- notification -----------------------------------------------------------------------------------------------------


class Notifier:
    """Tells systemd the state of the server.

    address: NOTIFY_SOCKET, a path or `@abstract`; None: there is no supervisor to tell.
    watchdog: seconds between two signs of life (half of what systemd waits), None: none are wanted.
    `in_reload` is true between `reloading` and the `ready` that must follow.
    """

    def __init__(self, address: str | None = None, watchdog: float | None = None) -> None:
        self.watchdog = watchdog if address else None
        self._address = "\0" + address[1:] if address and address.startswith("@") else address
        self._socket: socket.socket | None = None
        self.in_reload = False
        if address:  # kept open: the watchdog must be told also when there is no descriptor left
            self._socket = socket.socket(_UNIX, socket.SOCK_DGRAM)
            self._socket.settimeout(PATIENCE)

    def ready(self, status: str) -> None:
        """Clients can connect; or, if that was going on, the reload is over."""
        self.in_reload = False
        self._tell("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """A reload begins; `ready` follows, however it ends."""
        if not self.in_reload:
            self.in_reload = True
            self._tell("RELOADING=1", f"MONOTONIC_USEC={monotonic_ns() // 1000}", "STATUS=reloading")

    def stopping(self) -> None:
        """No new client can come from now on; requests in progress are finished."""
        self._tell("STOPPING=1", "STATUS=draining")

    def alive(self) -> None:
        """The master's loop runs."""
        self._tell("WATCHDOG=1")

    def close(self) -> None:
        """There is no more to tell."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _tell(self, *lines: str) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):  # a supervisor that has gone need not know
                self._socket.sendto("\n".join(lines).encode(), self._address)  # type: ignore[arg-type]


def take_notifier(environ: MutableMapping[str, str]) -> Notifier:
    """Return the notifier that the environment asks for, and remove the variables: handlers must not use them."""
    address, microseconds, pid = (environ.pop(variable, None) for variable in _NOTIFY)
    meant = pid is None or pid == str(os.getpid())
    watchdog = int(microseconds) / 2e6 if meant and microseconds is not None and microseconds.isdecimal() else None
    if _UNIX < 0 or not address or address[0] not in "/@":  # vsock is for whole machines
        return Notifier()
    return Notifier(address, watchdog or None)
