"""Every error that ipcsrv raises, in one tree.

Errors carry data, not only text: a caller decides by type and attribute, a person reads `str()`, which is one line
of the form *what, why, what to do*, and the command line exits with the class's `exit_code`. Each error survives
pickle with its attributes, because those of a background server are raised again in the process that started it.

    IpcError                      path                                      exit 1
     +- NotListening              path                                           3
     |   +- PathNotFound          path                                           3
     +- InvalidPath               path, reason                                   7
     +- AddressInUse              path, pid, command, reason                     6
     +- Untrusted                 path, peer, expected                           5
     +- CallTimeout               path, timeout, progress                        4   (also a TimeoutError)
     +- ConnectionLost            path, progress                                 3   (also a ConnectionError)
     +- ProtocolError             reason                                         1
     |   +- LocalProtocolError    reason                                         1
     +- SettingsError             reason, name, source, line, suggestion         2   (also a ValueError)
     +- HandlerImportError        target, traceback_text, reason                 2
     +- StartError                reason, log_path, traceback_text               1
     +- SocketStolen              path                                           8
     +- ServerError               code, message      the server answered `ERR code message`   1
         +- HandlerError          "handler"                                      1
         |   +- HandlerTimeout    "timeout"                                      1
         +- TooLarge              "too-large"                                    1
         +- Malformed             "malformed"                                    1   (also a ProtocolError)
         +- Denied                "denied"                                       5
         +- ServerBusy            "busy"                                         1
         +- ServerStopping        "stopping"                                     1

Imported by the client on its way to its first byte, so it imports nothing itself (`enum` alone would cost a quarter
of what a whole `ipcsrv call` may take).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from .peer import Peer


class Progress(str):
    """How far an exchange got before it failed, which is what says whether it is safe to repeat.

    Exactly three values exist, as class attributes, and each is one object in a process: compare with `is` or `==`.
    """

    __slots__ = ()

    #: Not one byte of the request left: repeating it is safe.
    NOTHING_SENT: Progress
    #: Some or all of the request left, nothing came back: the handler may have run.
    REQUEST_SENT: Progress
    #: Part of the response was read: the handler has run.
    RESPONSE_BEGUN: Progress

    def __new__(cls, value: str) -> Progress:
        return _PROGRESS[value]


def _progress(value: str) -> Progress:
    member = _PROGRESS[value] = str.__new__(Progress, value)
    return member


_PROGRESS: dict[str, Progress] = {}
Progress.NOTHING_SENT = _progress("nothing-sent")
Progress.REQUEST_SENT = _progress("request-sent")
Progress.RESPONSE_BEGUN = _progress("response-begun")

_ADVICE = {
    Progress.NOTHING_SENT: "nothing had been sent: it is safe to try again",
    Progress.REQUEST_SENT: "the request had been sent: the handler may have run",
    Progress.RESPONSE_BEGUN: "part of the response had been read: the handler has run",
}


def _one_line(text: str) -> str:
    """Text that is safe on a terminal and stays one line, whatever a path or a server's message holds."""
    if text.isprintable():
        return text
    line = " ".join(text.splitlines())
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


def _joined(parts: Iterable[str | None]) -> str:
    return ": ".join(part for part in parts if part)


def _restored(cls: type[IpcError], args: tuple[Any, ...], attributes: dict[str, Any]) -> IpcError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(attributes)
    return error


class IpcError(Exception):
    """The root of the tree: whatever ipcsrv raises on purpose is one of these.

    `path` is the path of the server concerned, or None where there is none; `text` becomes `str()`.
    """

    exit_code = 1
    path: str | None

    def __init__(self, text: str = "", path: str | None = None) -> None:
        super().__init__(_one_line(text or _joined((path, "failed"))))
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        # The default repeats the constructor with `args`, which holds the text and not what the constructor takes.
        return _restored, (type(self), self.args, self.__dict__)


class NotListening(IpcError):
    """No server listens at the path."""

    exit_code = 3

    def __init__(self, path: str | None = None) -> None:
        super().__init__(_joined((path, "no server listens there", "start one with `ipcsrv start`")), path)


class PathNotFound(NotListening):
    """Nothing exists at the path, or a folder on the way to it is missing."""

    def __init__(self, path: str | None = None) -> None:
        IpcError.__init__(self, _joined((path, "no such path, so no server", "start one with `ipcsrv start`")), path)


class InvalidPath(IpcError):
    """A server cannot be at this path: it is not a socket, cannot be looked at, is too long; `reason` says which."""

    exit_code = 7

    def __init__(self, path: str | None = None, reason: str = "not a path for a server") -> None:
        super().__init__(_joined((path, reason)), path)
        self.reason = reason


class AddressInUse(IpcError):
    """Another server lives at the path; `pid` and `command` name it where that is known."""

    exit_code = 6

    def __init__(
        self,
        path: str | None = None,
        pid: int | None = None,
        command: str | None = None,
        reason: str | None = None,
    ) -> None:
        owner = f" by process {pid}" if pid is not None else ""
        running = f" ({command})" if command else ""
        text = f"address in use{owner}{running}"
        super().__init__(_joined((path, text, reason or "stop that server, or choose another path")), path)
        self.pid = pid
        self.command = command
        self.reason = reason


class Untrusted(IpcError):
    """The server at the path runs as a user the client does not trust; not a byte was sent to it."""

    exit_code = 5

    def __init__(self, path: str | None = None, peer: Peer | None = None, expected: object = None) -> None:
        who = f"its server runs as user {peer.uid}" if peer is not None else "its server could not be identified"
        trusted = f", not as {expected}" if expected is not None else ""
        advice = "nothing was sent; name that user in `trust` if it is the right one"
        super().__init__(_joined((path, who + trusted, advice)), path)
        self.peer = peer
        self.expected = expected


class CallTimeout(IpcError, TimeoutError):
    """The time given for the call is over; `timeout` is in seconds, `progress` says how far it got."""

    exit_code = 4

    def __init__(
        self,
        path: str | None = None,
        timeout: float | None = None,
        progress: Progress = Progress.NOTHING_SENT,
    ) -> None:
        after = "timed out" if timeout is None else f"timed out after {timeout:g} s"
        super().__init__(_joined((path, after, _ADVICE[progress])), path)
        self.timeout = timeout
        self.progress = progress


class ConnectionLost(IpcError, ConnectionError):
    """The server closed the connection, or died, before its response was whole; `progress` says how far it got."""

    exit_code = 3

    def __init__(self, path: str | None = None, progress: Progress = Progress.NOTHING_SENT) -> None:
        super().__init__(_joined((path, "connection lost", _ADVICE[progress])), path)
        self.progress = progress


class ProtocolError(IpcError):
    """The other side sent what the protocol does not allow; `reason` says what."""

    def __init__(self, reason: str, path: str | None = None) -> None:
        super().__init__(_joined((path, "protocol error", reason)), path)
        self.reason = reason


class LocalProtocolError(ProtocolError):
    """This side tried what the protocol does not allow at this point, such as a second response to one request."""


class SettingsError(IpcError, ValueError):
    """A setting that does not exist, or a value that it cannot have.

    `name` is the setting's, `source` and `line` say where it was given, `suggestion` is the nearest valid name.
    """

    exit_code = 2

    def __init__(
        self,
        reason: str,
        *,
        name: str | None = None,
        source: str | None = None,
        line: int | None = None,
        suggestion: str | None = None,
    ) -> None:
        where = f"{source}, line {line}" if source and line is not None else source
        advice = f"did you mean `{suggestion}`?" if suggestion else None
        super().__init__(_joined((where, name, reason, advice)))
        self.reason = reason
        self.name = name
        self.source = source
        self.line = line
        self.suggestion = suggestion


class HandlerImportError(IpcError):
    """The handler `target` cannot be imported or called; `traceback_text` is the traceback in the server."""

    exit_code = 2

    def __init__(self, target: str, traceback_text: str | None = None, reason: str | None = None) -> None:
        if reason is None:
            reason = _last_line(traceback_text)
        super().__init__(_joined((f"handler {target}", reason or "cannot be imported")))
        self.target = target
        self.traceback_text = traceback_text
        self.reason = reason


class StartError(IpcError):
    """The server could not start, for a reason that has no error of its own; `log_path` is where it logged."""

    def __init__(self, reason: str, log_path: str | None = None, traceback_text: str | None = None) -> None:
        advice = f"see {log_path}" if log_path else None
        super().__init__(_joined(("the server did not start", reason, _last_line(traceback_text), advice)))
        self.reason = reason
        self.log_path = log_path
        self.traceback_text = traceback_text


class SocketStolen(IpcError):
    """The running server's socket was removed or replaced, so that no new client could reach it."""

    exit_code = 8

    def __init__(self, path: str | None = None) -> None:
        advice = "find out what deletes it, then start the server again"
        super().__init__(_joined((path, "the server's socket was taken away from it", advice)), path)


class ServerError(IpcError):
    """The server answered with a failure, `ERR <code> <message>` (PROTOCOL.md section 2)."""

    def __init__(self, code: str, message: str, path: str | None = None) -> None:
        # By name: in Malformed the next class in line is ProtocolError, which takes other arguments.
        IpcError.__init__(self, _joined((path, "the server answered with a failure", code, message)), path)
        self.code = code
        self.message = message


class HandlerError(ServerError):
    """The handler raised; `message` is the exception's type and text, the traceback is in the server's log."""

    def __init__(self, message: str, path: str | None = None) -> None:
        super().__init__("handler", message, path)


class HandlerTimeout(HandlerError):
    """The handler took longer than the server's `request_timeout`."""

    def __init__(self, message: str, path: str | None = None) -> None:
        ServerError.__init__(self, "timeout", message, path)


class TooLarge(ServerError):
    """A message is larger than its receiver accepts. Also raised here, for a response beyond `max_response_size`."""

    def __init__(self, message: str, path: str | None = None) -> None:
        super().__init__("too-large", message, path)
        # Not always the server's answer, so it does not say that it is.
        self.args = (_one_line(_joined((path, "too large", message))),)


class Malformed(ServerError, ProtocolError):
    """The server could not read the request as a message of the protocol."""

    def __init__(self, message: str, path: str | None = None) -> None:
        super().__init__("malformed", message, path)
        self.reason = message


class Denied(ServerError):
    """The server does not serve this user."""

    exit_code = 5

    def __init__(self, message: str, path: str | None = None) -> None:
        super().__init__("denied", message, path)


class ServerBusy(ServerError):
    """The server cannot take the request now."""

    def __init__(self, message: str, path: str | None = None) -> None:
        super().__init__("busy", message, path)


class ServerStopping(ServerError):
    """The server stopped before it could answer."""

    def __init__(self, message: str, path: str | None = None) -> None:
        super().__init__("stopping", message, path)


_BY_CODE = {
    "handler": HandlerError,
    "timeout": HandlerTimeout,
    "too-large": TooLarge,
    "malformed": Malformed,
    "denied": Denied,
    "busy": ServerBusy,
    "stopping": ServerStopping,
}


def from_reply(code: str, message: str, path: str | None = None) -> ServerError:
    """The error for a failure reply; a code from a newer server is a plain `ServerError`."""
    known = _BY_CODE.get(code)
    return known(message, path) if known else ServerError(code, message, path)


def _last_line(text: str | None) -> str | None:
    """What a traceback ends with: the exception's type and text."""
    lines = text.strip().splitlines() if text else []
    return lines[-1] if lines else None
