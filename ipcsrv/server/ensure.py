"""Have a server run that serves the current code: `ensure_running`.  Runs in the client's process.

Of any number of processes that call it at the same moment one starts the server, and one reload or restart follows a
change of the code.  Nothing heavy is imported where a server runs and is current: its lock file names every file of
its code, and each is looked at (`config.fingerprint`).
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from .._version import __version__
from ..client import control
from ..client import sync as client
from ..config import fingerprint
from ..deadline import Deadline
from ..errors import AddressInUse, ConnectionLost, NotListening, ServerError, StartTimeout, from_fields
from ..folders import absolute
from ..platform import lifecycle
from ..state import State
from .steering import find_record, stop_if

if TYPE_CHECKING:
    from typing import Unpack

    from ..client.sync import Path
    from ..config.handlers import Handler
    from ..config.keywords import OnMismatch, SettingsDict
    from ..config.settings import Settings

_FIRST_PAUSE, _LONGEST_PAUSE = 0.002, 0.05  # seconds between looks at a server that is starting or stopping
_NOT_COMPARED = frozenset({"workers"})  # which `scale` changes
_FILES = frozenset({"log_file", "chdir"})
_CHOICES = ("reload", "restart", "warn", "error")
_MOST_NAMED = 3  # changed files in a message


def ensure_running(path: Path, handler: str | Handler, *, timeout: float | None = None,
                   on_mismatch: OnMismatch = "reload", **settings: Unpack[SettingsDict]) -> bool:
    """Start a server at `path` in the background unless one runs there; return when clients can connect.

    A server that runs is compared: whether a file of its code has changed since it was imported, and whether its
    handler, the settings given here (all but `workers`, which `scale` changes) and its version of ipcsrv are these.
    Of any number of callers at the same moment one starts, reloads or restarts it, and all get what it came to.

    Args:
        path: Where the server listens.
        handler: A callable that can be imported by name, or `MODULE:NAME`.
        timeout: Seconds for all of it; None for as long as a start may take (`startup_timeout` and 5 s).  When it is
            over, a start that has begun goes on for at most `startup_timeout`; Ctrl-C ends it at once.
        on_mismatch: What to do where the server that runs is not the one described here.  "reload": have it import the
            changed code again (after an upgrade of ipcsrv it is restarted), and raise `AddressInUse` for another
            handler or other settings.  "restart": stop it and start this one (a server in the foreground is not
            this call's to stop: `AddressInUse`).  "warn": issue a `RuntimeWarning`.  "error": raise `AddressInUse`.
        **settings: See docs/settings.md.

    Returns:
        Whether this call started the server.

    Raises:
        AddressInUse: The server that runs is another one; the text says in what.
        HandlerImportError: The handler cannot be imported.
        SettingsError: A setting is wrong.
        InvalidPath: A server cannot be at `path`.
        StartTimeout: It did not listen in time.
        StartError: It could not start for another reason.
        ServerError: The reload failed; the server goes on with the old code.
        ValueError: `on_mismatch` or `timeout` is none.

    Example:
        >>> ipcsrv.ensure_running("./z.sock", "zlib:compress", idle_exit=600)
    """
    if on_mismatch not in _CHOICES:
        raise ValueError(f"on_mismatch is one of {', '.join(_CHOICES)}, not {on_mismatch!r}")
    deadline = Deadline(timeout)
    return _Ensurer(absolute(path), handler, dict(settings), on_mismatch, deadline).run()


class _Ensurer:
    """One call of `ensure_running`."""

    def __init__(self, path: str, handler: str | Handler, given: dict[str, Any], on_mismatch: OnMismatch,
                 deadline: Deadline) -> None:
        self._path, self._handler, self._given = path, handler, given
        self._on_mismatch = on_mismatch
        self._deadline, self._is_bounded = deadline, deadline.timeout is not None
        self._loaded: Settings | None = None
        self._pause = _FIRST_PAUSE

    def run(self) -> bool:
        while True:
            if client.active_state(self._path) is State.LISTENING:
                try:
                    if self._is_current():
                        return False
                except (NotListening, ConnectionLost):
                    self._bound()  # it stops just now, or too many callers ask it at the same moment
                except ServerError:
                    if client.active_state(self._path) is State.LISTENING:
                        raise  # or else it stops just now
            else:
                try:
                    self._start()
                    return True
                except AddressInUse as error:
                    if error.reason is not None:
                        raise  # it is not a server of ipcsrv that has the path
                self._wait_for_another()
            if self._deadline.expired:
                raise StartTimeout(self._deadline.timeout)
            time.sleep(self._pause)
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    # -- starting -----------------------------------------------------------------------------------------------------

    def _settings(self) -> Settings:
        if self._loaded is None:
            from ..config.settings import load

            self._loaded = load(self._given, environ=os.environ)[0]
        return self._loaded

    def _start(self) -> None:
        from .starting import START_MARGIN, start_daemon

        settings = self._settings()
        if not self._is_bounded:
            self._deadline = Deadline(settings.startup_timeout + START_MARGIN)
        start_daemon(self._path, self._handler, settings, timeout=self._deadline.remaining(), abandon=True)

    def _bound(self) -> None:
        """Have an end also where the caller has set none and the server does not answer."""
        if self._deadline.timeout is None:
            self._deadline = Deadline(self._settings().startup_timeout)

    def _wait_for_another(self) -> None:
        """Wait until the server that another process is starting listens; raise why it does not."""
        watch = lifecycle.LockWatch(self._path)
        pause = _FIRST_PAUSE
        try:
            while client.active_state(self._path) is not State.LISTENING:
                if not watch.is_locked():
                    failure = watch.record().get("failure")
                    if failure is not None:
                        raise from_fields(failure)
                    return
                if self._deadline.expired:
                    raise StartTimeout(self._deadline.timeout, watch.record().get("log_file"), goes_on=True)
                time.sleep(pause)  # a lock has no event
                pause = min(2 * pause, _LONGEST_PAUSE)
        finally:
            watch.close()

    # -- comparing ----------------------------------------------------------------------------------------------------

    def _is_current(self) -> bool:
        """Whether the server that runs will do; False to look again."""
        record = find_record(self._path)
        if record is None or "fingerprint" not in record:
            return True  # not an ipcsrv of this user's: there is nothing to compare
        other = self._difference(record)
        changed = fingerprint.changed_files(record.get("files") or {})
        if other is None and not changed and record.get("version") == __version__:
            return True
        reason = other or self._what_is_old(record, changed)
        if self._on_mismatch == "warn":
            import warnings

            warnings.warn(f"{self._path}: {reason}", RuntimeWarning, stacklevel=4)
            return True
        if self._on_mismatch == "error" or (other is not None and self._on_mismatch == "reload"):
            advice = "stop that server, choose another path, or call `ensure_running` with on_mismatch='restart'"
            raise AddressInUse(self._path, record.get("pid"), record.get("command"), f"{reason}; {advice}")
        if self._on_mismatch == "reload" and record.get("version") == __version__:
            return self._reload(record)
        return self._restart(record, reason)

    def _difference(self, record: dict[str, Any]) -> str | None:
        """Return in what the running server is another one than was described, or None."""
        target = self._target()
        if record.get("handler") != target:
            return f"its handler is {record.get('handler')}, not {target}"
        if not self._given.keys() - _NOT_COMPARED:
            return None
        wanted, running = self._settings(), record.get("settings") or {}
        import json

        described = json.loads(json.dumps(wanted.to_dict(), default=str))
        if described["log_file"] is None:
            described["log_file"] = running.get("log_file")  # any will do
        for name in self._given.keys() - _NOT_COMPARED:
            ours, theirs = described[name], running.get(name)
            if name in _FILES and ours and theirs:
                ours, theirs = _real(ours), _real(os.path.join(record.get("cwd") or "", theirs))
            if ours != theirs:
                return f"its {name} is {theirs!r}, not {ours!r}"
        return None

    def _target(self) -> str:
        if isinstance(self._handler, str):
            return self._handler
        from ..config.handlers import source_of

        return source_of(self._handler).target

    @staticmethod
    def _what_is_old(record: dict[str, Any], changed: list[str]) -> str:
        if record.get("version") != __version__:
            return f"it runs ipcsrv {record.get('version')}, and this is {__version__}"
        more = f" and {len(changed) - _MOST_NAMED} more" if len(changed) > _MOST_NAMED else ""
        return f"its code has changed since it was imported: {', '.join(changed[:_MOST_NAMED])}{more}"

    # -- replacing ----------------------------------------------------------------------------------------------------

    def _reload(self, record: dict[str, Any]) -> bool:
        """Reload, unless another caller had it done already; True if the code is as new as this call."""
        answer = control.request(self._path, "reload", timeout=self._deadline.remaining(), unless=record["fingerprint"])
        # A reload that was going on, or had been done, may have imported what was there before this call looked.
        return bool(answer.get("began"))

    def _restart(self, record: dict[str, Any], reason: str) -> bool:
        if not record.get("detached"):
            advice = "it runs in the foreground: stop it and run it again"
            raise AddressInUse(self._path, record.get("pid"), record.get("command"), f"{reason}; {advice}")
        stop_if(self._path, record.get("pid"), self._deadline.remaining())
        return False


def _real(file: str) -> str:
    return os.path.realpath(os.path.abspath(file))  # of Windows' NUL the first alone makes a file in this folder
