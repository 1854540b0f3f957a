"""Every error that ipcsrv raises, in one tree.

Errors carry data: a program decides by type and attribute. `str()` is one line, *what failed: why; what to do next*,
and the command line exits with the class's `exit_code`. Each error survives pickle with its attributes, because the
errors of a background server are raised again in the process that started it.

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
     +- HandlerImportError        target, traceback_text, reason, suggestion     2
     +- StartError                reason, log_path, traceback_text               1
     |   +- StartTimeout          timeout                                        4   (also a TimeoutError)
     +- SocketStolen              path                                           8
     +- ServerError               code, message      the server answered `ERR code message`   1
         +- HandlerError          "handler"                                      1
         |   +- HandlerTimeout    "timeout"                                      1
         |   +- HandlerCrashed    "crashed"                                      1
         +- TooLarge              "too-large"                                    1
         +- Malformed             "malformed"                                    1   (also a ProtocolError)
         +- Denied                "denied"                                       5
         +- ServerBusy            "busy"                                         1
         +- ServerStopping        "stopping"                                     1

Every `ipcsrv call` imports this module, so it imports nothing itself (`enum` alone would cost a quarter of the time
of a call).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from .peer import Peer


class Progress(str):
    """How far an exchange got before it failed: it says whether a repetition is safe.

    There are three values, as class attributes, each one object per process: compare with `is` or `==`.
    """

    __slots__ = ()

    #: No byte of the request was sent: a repetition is safe.
    NOTHING_SENT: Progress
    #: Some of the request was sent, or all of it and nothing was received: the request may have been executed.
    REQUEST_SENT: Progress
    #: The whole request was sent and part of the response was received: the request was executed.
    RESPONSE_BEGUN: Progress

    def __new__(cls, value: str) -> Progress:
        """Return the one object of this value."""
        return _PROGRESS[value]


def _progress(value: str) -> Progress:
    member = _PROGRESS[value] = str.__new__(Progress, value)
    return member


_PROGRESS: dict[str, Progress] = {}
Progress.NOTHING_SENT = _progress("nothing-sent")
Progress.REQUEST_SENT = _progress("request-sent")
Progress.RESPONSE_BEGUN = _progress("response-begun")

_ADVICE = {
    Progress.NOTHING_SENT: "nothing was sent, so it is safe to try again",
    Progress.REQUEST_SENT: "the request may have been executed",
    Progress.RESPONSE_BEGUN: "part of the response was received, so the request was executed",
}


def one_line(text: str) -> str:
    """Return text that stays one line and is safe on a terminal, whatever a path or a server's message contains."""
    if text.isprintable():
        return text
    line = " ".join(text.splitlines())
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


def _message(parts: Iterable[str | None], advice: str | None = None) -> str:
    """Return *what failed: why; what to do next* without the parts that are empty."""
    text = ": ".join(part for part in parts if part)
    return f"{text}; {advice}" if advice else text


def _at(what: str, path: str | None) -> str:
    return f"{what} at {path}" if path else what


def _restored(cls: type[IpcError], args: tuple[Any, ...], attributes: dict[str, Any]) -> IpcError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(attributes)
    return error


class IpcError(Exception):
    """The root of the tree: every error that ipcsrv raises on purpose.

    Args:
        text: the message, one line.
        path: the path of the server concerned, if there is one.
    """

    exit_code = 1
    path: str | None

    def __init__(self, text: str = "", path: str | None = None) -> None:
        super().__init__(one_line(text or _message((path, "failed"))))
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        """Take the attributes along."""
        # The default calls the constructor with `args`: the text, which is not what the constructors take.
        return _restored, (type(self), self.args, self.__dict__)


class NotListening(IpcError):
    """No server listens at the path."""

    exit_code = 3

    def __init__(self, path: str | None = None, reason: str = "nothing listens on the socket") -> None:
        super().__init__(_message((_at("no server", path), reason), "start one with `ipcsrv start`"), path)


class PathNotFound(NotListening):
    """Nothing exists at the path, or a folder of the path is missing."""

    def __init__(self, path: str | None = None) -> None:
        super().__init__(path, "the socket does not exist")


class InvalidPath(IpcError):
    """A server cannot be at this path; `reason` says why: not a socket, too long, not accessible."""

    exit_code = 7

    def __init__(self, path: str | None = None, reason: str = "not a path for a server") -> None:
        advice = None if ";" in reason else "choose another path"
        super().__init__(_message((path, reason), advice), path)
        self.reason = reason


class AddressInUse(IpcError):
    """Another server has the path; `pid` and `command` are its process and command line where they are known."""

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
        advice = None if reason and ";" in reason else "stop that server, or choose another path"
        super().__init__(_message((path, f"address in use{owner}{running}", reason), advice), path)
        self.pid = pid
        self.command = command
        self.reason = reason


class Untrusted(IpcError):
    """The server at the path runs as a user that the client does not trust; nothing was sent."""

    exit_code = 5

    def __init__(self, path: str | None = None, peer: Peer | None = None, expected: object = None) -> None:
        what = f"the server runs as user {peer.uid}" if peer is not None else "the server could not be identified"
        trusted = f", not as {expected}" if expected is not None else ""
        advice = "nothing was sent; if it is the right server, name its user in `trust`"
        super().__init__(_message((path, what + trusted), advice), path)
        self.peer = peer
        self.expected = expected


class CallTimeout(IpcError, TimeoutError):
    """The time for the call is over; `timeout` is in seconds, `progress` says how far the call got."""

    exit_code = 4

    def __init__(
        self,
        path: str | None = None,
        timeout: float | None = None,
        progress: Progress = Progress.NOTHING_SENT,
    ) -> None:
        after = "timed out" if timeout is None else f"timed out after {timeout:g} s"
        super().__init__(_message((path, after), _ADVICE[progress]), path)
        self.timeout = timeout
        self.progress = progress


class ConnectionLost(IpcError, ConnectionError):
    """The server closed the connection before the response was complete; `progress` says how far the call got."""

    exit_code = 3

    def __init__(self, path: str | None = None, progress: Progress = Progress.NOTHING_SENT) -> None:
        closed = "connection closed before the response was complete"
        super().__init__(_message((path, closed), _ADVICE[progress]), path)
        self.progress = progress


class ProtocolError(IpcError):
    """The peer sent what the protocol does not allow; `reason` says what."""

    def __init__(self, reason: str, path: str | None = None) -> None:
        super().__init__(_message((path, "protocol error", reason)), path)
        self.reason = reason


class LocalProtocolError(ProtocolError):
    """This side tried what the protocol does not allow in this state, such as a second response to one request."""


class SettingsError(IpcError, ValueError):
    """A setting that does not exist, or a value that it cannot have.

    `name` is the name of the setting, `source` and `line` the place where it was given, `suggestion` the nearest name
    that exists.
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
        super().__init__(_message((where, name, reason), advice))
        self.reason = reason
        self.name = name
        self.source = source
        self.line = line
        self.suggestion = suggestion


class HandlerImportError(IpcError):
    """The handler (or hook) `target` cannot be imported or called.

    `traceback_text` is the traceback of its module: the last frames are in the message, all of it is a note of the
    exception. `suggestion` is a target that probably was meant. A `reason` that is the whole text of such an error, as
    another process reported it, stays the text.
    """

    exit_code = 2

    def __init__(
        self,
        target: str,
        traceback_text: str | None = None,
        reason: str | None = None,
        suggestion: str | None = None,
        what: str = "handler",
    ) -> None:
        if reason is None:
            reason = _last_line(traceback_text)
        frames = _last_frames(traceback_text)
        advice = f"see {' and '.join(frames)}" if frames else None
        if suggestion:
            advice = f"did you mean `{suggestion}`?"
        if reason is not None and reason.startswith(_CANNOT_LOAD):
            super().__init__(reason)
        else:
            super().__init__(_message((f"{_CANNOT_LOAD}{what} {target}", reason), advice))
        self.target = target
        self.traceback_text = traceback_text
        self.reason = reason
        self.suggestion = suggestion
        if traceback_text and frames:
            self.add_note(traceback_text.rstrip())


_CANNOT_LOAD = "cannot load "


class StartError(IpcError):
    """The server could not start, for a reason that has no error of its own; `log_path` is the path of its log."""

    def __init__(self, reason: str, log_path: str | None = None, traceback_text: str | None = None) -> None:
        advice = f"see {log_path}" if log_path else None
        last = _innermost(traceback_text) or _last_line(traceback_text)
        cause = None if last and _without_module(last) in reason else last
        super().__init__(_message(("the server did not start", reason, cause), advice))
        self.reason = reason
        self.log_path = log_path
        self.traceback_text = traceback_text


class StartTimeout(StartError, TimeoutError):
    """The server did not listen in time; `timeout` is in seconds.

    Where only the caller's own time is over, the start goes on (the text says so), for at most `startup_timeout`.
    """

    exit_code = 4

    def __init__(self, timeout: float | None = None, log_path: str | None = None, *, goes_on: bool = False) -> None:
        within = "in time" if timeout is None else f"within {timeout:.3g} s"
        reason = f"it did not listen {within}" + (", and is still starting" if goes_on else "")
        super().__init__(reason, log_path)
        self.timeout = timeout


class SocketStolen(IpcError):
    """The socket of the running server was removed or replaced, so no new client could reach it."""

    exit_code = 8

    def __init__(self, path: str | None = None) -> None:
        advice = "find out what deletes it, then start the server again"
        super().__init__(_message((path, "the socket of the running server was removed or replaced"), advice), path)


class ServerError(IpcError):
    """The server answered with a failure, `ERR <code> <message>`, or refused a command of the control socket."""

    def __init__(self, code: str, message: str, path: str | None = None) -> None:
        shown = (message,) if code == "control" else ("the server reported a failure", code, message)
        # Not super(): in Malformed the next class is ProtocolError, which takes other arguments.
        IpcError.__init__(self, _message((path, *shown)), path)
        self.code = code
        self.message = message

    def _explain(self, what: str, advice: str | None = None) -> None:
        """Set the text of a failure whose code is known."""
        self.args = (one_line(_message((self.path, what), advice)),)


class HandlerError(ServerError):
    """The handler raised; `message` is the exception's type and text, the traceback is in the server's log."""

    def __init__(self, message: str, path: str | None = None) -> None:
        super().__init__("handler", message, path)
        self._explain(f"handler raised {message}".rstrip(), "the traceback is in the server's log (`ipcsrv logs`)")


class HandlerTimeout(HandlerError):
    """The handler took longer than `request_timeout`, or the request than `read_timeout`; `message` says which."""

    def __init__(self, message: str, path: str | None = None) -> None:
        ServerError.__init__(self, "timeout", message, path)
        self._explain(_message(("timed out", message)), "see the server's log (`ipcsrv logs`)")


class HandlerCrashed(HandlerError):
    """The process of the handler died; `message` says how. The request may have been executed."""

    def __init__(self, message: str, path: str | None = None) -> None:
        ServerError.__init__(self, "crashed", message, path)
        self._explain(_message(("the handler's process died", message)), "the request may have been executed")


class TooLarge(ServerError):
    """A message is larger than its receiver accepts; also raised by the client for its own `max_response_size`."""

    def __init__(self, message: str, path: str | None = None) -> None:
        super().__init__("too-large", message, path)
        self._explain(_message(("too large", message)), "raise the limit, or send less")


class Malformed(ServerError, ProtocolError):
    """The server could not read the request as a message of the protocol."""

    def __init__(self, message: str, path: str | None = None) -> None:
        super().__init__("malformed", message, path)
        self._explain(_message(("the server rejected the request as malformed", message)))
        self.reason = message


class Denied(ServerError):
    """The server does not serve this user."""

    exit_code = 5

    def __init__(self, message: str, path: str | None = None) -> None:
        super().__init__("denied", message, path)
        self._explain(_message(("permission denied", message)), "ask the server's owner for --allow and --mode")


class ServerBusy(ServerError):
    """The server cannot take the request now."""

    def __init__(self, message: str, path: str | None = None) -> None:
        super().__init__("busy", message, path)
        self._explain(_message(("the server is busy", message)), "try again later")


class ServerStopping(ServerError):
    """The server stopped before it answered."""

    def __init__(self, message: str, path: str | None = None) -> None:
        super().__init__("stopping", message, path)
        self._explain(_message(("the server is stopping", message)), "try again when it runs again")


_BY_CODE = {
    "handler": HandlerError,
    "crashed": HandlerCrashed,
    "timeout": HandlerTimeout,
    "too-large": TooLarge,
    "malformed": Malformed,
    "denied": Denied,
    "busy": ServerBusy,
    "stopping": ServerStopping,
}


def from_reply(code: str, message: str, path: str | None = None) -> ServerError:
    """Return the error for a failure reply; for an unknown code (of a newer server) a plain `ServerError`."""
    known, message = _BY_CODE.get(code), message.rstrip()
    return known(message, path) if known else ServerError(code, message, path)


def to_fields(error: IpcError) -> dict[str, Any]:
    """Return an error as plain values, for JSON; `from_fields` makes it again in another process."""
    return {"kind": type(error).__name__, "args": list(error.args), "attributes": dict(error.__dict__)}


def from_fields(fields: dict[str, Any]) -> IpcError:
    """Return the error that `to_fields` took apart; a `StartError` where it is not one of this version."""
    kind = globals().get(str(fields.get("kind")))
    arguments, attributes = fields.get("args"), fields.get("attributes")
    known = isinstance(kind, type) and issubclass(kind, IpcError)
    if known and isinstance(arguments, list) and isinstance(attributes, dict):
        return _restored(kind, tuple(arguments), attributes)  # type: ignore[arg-type]
    return StartError(str(arguments))


def _last_line(text: str | None) -> str | None:
    """Return the last line of a traceback: the exception's type and text."""
    lines = text.strip().splitlines() if text else []
    return lines[-1] if lines else None


_STACK = "(most recent call first):"  # in what faulthandler writes


def _innermost(text: str | None) -> str | None:
    """Return where a stack that faulthandler wrote was, outside of the import system; None for a traceback."""
    if text is None or _STACK not in text:
        return None
    current = text.partition("Current thread")[2] or text
    stack = current.partition(_STACK)[2].partition("\n\n")[0].splitlines()
    frames = [line for line in stack if line.startswith(_FRAME) and not line.startswith(f"{_FRAME}<")]
    if not frames:
        return None
    file, _, rest = frames[0].removeprefix(_FRAME).partition('", line ')
    return f"it was at {file}:{rest.partition(' ')[0]}"


def _without_module(last_line: str) -> str:
    """Return the last line of a traceback with the exception's name alone, as in a reason."""
    name, colon, text = last_line.partition(":")
    return name.rpartition(".")[2] + colon + text


_FRAME = '  File "'
_FRAMES_SHOWN = 2


def _last_frames(traceback_text: str | None) -> list[str]:
    """Return the last frames of a traceback, the innermost first, as `FILE:LINE`."""
    frames = []
    for line in (traceback_text or "").splitlines():
        if line.startswith(_FRAME):
            file, _, rest = line.removeprefix(_FRAME).partition('", line ')
            if not file.startswith("<"):  # of the import system
                frames.append(f"{file}:{rest.partition(',')[0]}")
    return list(dict.fromkeys(reversed(frames)))[:_FRAMES_SHOWN]
