"""A pytest plugin: servers for tests (docs/pytest.md).  Runs in the test process.

pytest loads this module wherever ipcsrv is installed, so it imports nothing at its top that pytest has not. All else is
loaded when a test asks for a fixture.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import threading

    import ipcsrv

MayFail = bool | type[BaseException] | tuple[type[BaseException], ...]
ServerFactory = Callable[..., "TestServer"]

TIMEOUT = 20.0  # seconds for a start, a stop and each call, unless the test says otherwise
MARK = "PYTEST_IPCSRV_MARK"  # environment variable by which every process of a server is found

_ENTRY = re.compile(r"^(?=\d{4}-\d\d-\d\d |\{\")", re.M)  # the start of a log entry, as text or JSON
_RAISED = re.compile(r"the handler failed: ")
_NOT_LOGGED = re.compile(r"(\d+) more not logged: handler failures")  # of many in one second
_FRAMES = "Traceback (most recent call last):\n"
_ERROR_TYPE = re.compile(r"^ {0,2}(?:  \| )?([\w.]+)(?::|$)", re.M)  # its line is indented less than the frames are
_CRASHED = re.compile(r"worker \d+(?: \(pid \d+\))? (exited|was killed|ended)")


@pytest.fixture
def ipcsrv_path() -> Iterator[str]:
    """Return a path at which there is nothing yet, in a new private folder, short enough for a socket."""
    import shutil
    import tempfile

    # Not tmp_path: it is too long for a socket on macOS (104 bytes).
    folder = tempfile.mkdtemp(prefix="i-", dir="/tmp" if os.sep == "/" and os.path.isdir("/tmp") else None)
    yield os.path.join(folder, "s")
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def ipcsrv_server(request: pytest.FixtureRequest, ipcsrv_path: str) -> Iterator[ServerFactory]:
    """Return a function that starts servers: `ipcsrv_server(handler, workers=2)`; see `TestServer`.

    Each listens when the call returns and is stopped after the test, which then fails if the handler failed although
    `may_fail` does not say so, or if a process or a file of the server is left. A failed test shows the server's log.
    """
    _show_logs(request.config)
    servers: list[TestServer] = request.node.stash.setdefault(_SERVERS, [])

    def start(handler: str | Callable[..., Any], *, path: str | os.PathLike[str] | None = None, inline: bool = False,
              may_fail: MayFail = False, **settings: Any) -> TestServer:
        __tracebackhide__ = True
        where = os.fspath(path) if path is not None else ipcsrv_path + (str(len(servers) + 1) if servers else "")
        log_file = f"{ipcsrv_path}-logs/{len(servers) + 1}"
        settings["log_file"] = settings.get("log_file") or log_file
        server = TestServer(where, handler, inline=inline, may_fail=may_fail, **settings)
        servers.append(server)
        server.start()
        return server

    yield start
    problems = [problem for server in reversed(servers) for problem in server.finish()]
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


class TestServer:
    """A server of a test; its attributes are those that a test needs.

    Args:
        path: of the socket.
        handler: `MODULE:NAME`, or a callable: with `inline` any, else one that another process can import.
        inline: serve in a thread of this process, one request at a time, so that closures, monkeypatch and coverage
            reach the handler. No request is timed out, and there is no reload.
        may_fail: whether the handler may raise and workers may crash; or the exceptions that it may raise.
        settings: as `ipcsrv.serve` takes them.
    """

    __test__ = False  # pytest takes no class of this name for a group of tests

    def __init__(self, path: str, handler: str | Callable[..., Any], *, inline: bool = False,
                 may_fail: MayFail = False, **settings: Any) -> None:
        import functools

        import ipcsrv

        self.path = os.path.abspath(path)
        self.inline = inline
        self.may_fail = may_fail
        self.log_file = os.path.abspath(os.fspath(settings["log_file"]))
        self._mark = f"{os.getpid()}-{os.urandom(6).hex()}"
        self._failed = 0  # requests, as the server counts them
        self._stopped = False
        self._is_anothers = False  # what is at the path
        self._last_log: str | None = None  # its file is deleted before the report is made
        self._thread: threading.Thread | None = None
        self._ending: BaseException | None = None
        os.makedirs(os.path.dirname(self.log_file), mode=0o700, exist_ok=True)
        if inline:
            if settings.get("workers", 0) != 0 or not settings.get("control", True):
                raise ValueError("inline=True excludes workers and control=False")
            from .server.server import serve_telling

            inline_settings = {**settings, "workers": 0}
            self._serve = functools.partial(serve_telling, path=self.path, handler=handler, settings=inline_settings)
        else:
            try:
                self._server = ipcsrv.Server(self.path, handler, **{"log_level": "info", **settings})
            except ipcsrv.HandlerImportError as error:
                if callable(handler):
                    error.add_note("With inline=True it is served in this process, and can be any callable.")
                raise

    def start(self) -> None:
        """Start the server and return when clients can connect; raises what kept the server from it."""
        __tracebackhide__ = True
        import ipcsrv

        try:
            if self.inline:
                self._start_inline()
                return
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv(MARK, self._mark)
                self._server.start()
        except BaseException as error:
            self._stopped = True
            self._is_anothers = isinstance(error, ipcsrv.AddressInUse)
            raise

    def _start_inline(self) -> None:
        __tracebackhide__ = True
        import queue
        import threading

        reports: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()

        def serve() -> None:
            try:
                self._serve(reports.put)
            except BaseException as error:
                self._ending = error
            reports.put(None)

        self._thread = threading.Thread(target=serve, name=f"ipcsrv-inline-{self.path}", daemon=True)
        self._thread.start()
        try:
            record = reports.get(timeout=TIMEOUT)
        except queue.Empty:
            raise TimeoutError(f"the server at {self.path} does not listen after {TIMEOUT:g} s") from None
        if record is None:
            raise self._ending or RuntimeError(f"the server at {self.path} has ended already")

    def call(self, request: bytes = b"", timeout: float | None = TIMEOUT) -> bytes:
        """Send one request and return the response.

        Args:
            request: the bytes to send.
            timeout: seconds for all of it; None waits for ever.

        Raises:
            IpcError: as `ipcsrv.call`.
        """
        import ipcsrv

        return ipcsrv.call(self.path, request, timeout=timeout)

    def connect(self, timeout: float | None = TIMEOUT) -> ipcsrv.Connection:
        """Return a connection for several requests.

        Args:
            timeout: seconds for connecting, and for each call unless that has one; None waits for ever.

        Raises:
            IpcError: as `ipcsrv.connect`.
        """
        import ipcsrv

        return ipcsrv.connect(self.path, timeout=timeout)

    def status(self) -> dict[str, Any]:
        """Return what the server says of itself (docs/control.md)."""
        import ipcsrv

        return ipcsrv.status(self.path, timeout=TIMEOUT)

    def reload(self) -> None:
        """Replace the workers by new ones with freshly imported code; not for an inline server."""
        import ipcsrv

        ipcsrv.reload(self.path, timeout=TIMEOUT)

    @property
    def log(self) -> str:
        """Return what the server has logged until now."""
        if self._last_log is not None:
            return self._last_log
        try:
            with open(self.log_file, encoding="utf-8", errors="replace") as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def stop(self) -> None:
        """Let the server finish its requests and stop; a stopped server is left alone.

        Raises:
            TimeoutError: a request takes too long.
        """
        if self._stopped:
            return
        self._stopped = True
        import ipcsrv

        try:
            self._failed = self.status()["totals"]["handler_errors"]
        except (ipcsrv.IpcError, KeyError):
            pass  # the log has it too
        if not self.inline:
            self._server.stop(TIMEOUT)
            return
        assert self._thread is not None
        from .client import control

        try:
            control.request(self.path, "stop", timeout=TIMEOUT)  # ipcsrv.stop waits for the end of the process
        except ipcsrv.IpcError:
            pass  # it has stopped by itself
        self._thread.join(TIMEOUT)
        if self._thread.is_alive():
            raise TimeoutError(f"the handler has not returned within {TIMEOUT:g} s")
        if self._ending is not None:
            raise self._ending

    def finish(self) -> list[str]:
        """Stop the server and return what is wrong after the test, one text for each problem."""
        problems = []
        try:
            self.stop()
        except Exception as error:
            problems.append(f"the server did not stop: {type(error).__name__}: {error}")
        self._last_log = self.log
        problems += self._failures()
        left = self._processes_left()
        if left:
            problems.append(f"processes are left: {', '.join(left)}")
        files = [] if self._is_anothers else self._files_left()
        if files:
            problems.append(f"files are left: {', '.join(files)}")
        return [f"ipcsrv server at {self.path}: {problem}" for problem in problems]

    # -- what is wrong -------------------------------------------------------------------------------------------------

    def _failures(self) -> list[str]:
        """The failures of the handler that the test did not expect."""
        if self.may_fail is True:
            return []
        log = self.log
        raised = [_message(entry) for entry in _ENTRY.split(log) if _RAISED.search(entry)]
        unexpected = [entry for entry in raised if not self._expected(entry)]
        problems = [f"the handler raised:\n{_RAISED.split(entry, maxsplit=1)[1]}" for entry in unexpected]
        unlogged = self._failed - len(raised) - sum(map(int, _NOT_LOGGED.findall(log)))
        if unlogged > 0 and TypeError not in self._allowed():  # a response of a wrong type is one, and has no traceback
            problems.append(f"the handler raised in {unlogged} requests, which are not in the log, or returned what is "
                            "no response")
        problems += [entry.strip() for entry in _ENTRY.split(log) if _CRASHED.search(entry)]
        return problems

    def _allowed(self) -> set[type[BaseException]]:
        """The exceptions that the handler may raise."""
        if isinstance(self.may_fail, bool):
            return set()
        return _with_subclasses(self.may_fail if isinstance(self.may_fail, tuple) else (self.may_fail,))

    def _expected(self, message: str) -> bool:
        raised = _raised_type(message)
        return any(raised in (kind.__name__, f"{kind.__module__}.{kind.__qualname__}") for kind in self._allowed())

    def _processes_left(self) -> list[str]:
        """The processes that were started with this server's mark (Linux), after a moment for them to end."""
        import time

        until = time.monotonic() + 1.0
        while (left := _marked(self._mark)) and time.monotonic() < until:
            time.sleep(0.01)  # another process's child has no event here
        for pid in left:
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                pass
        return [f"{pid} ({command})" for pid, command in left.items()]

    def _files_left(self) -> list[str]:
        folder, name = os.path.split(self.path)
        own = os.path.basename(os.path.dirname(self.log_file))
        names = os.listdir(folder) if os.path.isdir(folder) else []
        suffixes = ("", ".ipcsrv.lock", ".control", ".lock")
        return sorted(found for found in names if found != own and found in {name + suffix for suffix in suffixes})


def _message(entry: str) -> str:
    """Return the text of a log entry."""
    if not entry.startswith("{"):
        return entry.rstrip()
    import json

    return str(json.loads(entry)["message"])


def _raised_type(message: str) -> str:
    """Return the name of the exception's type as the message about a failed handler has it."""
    # A group's own traceback comes first, then those in it; of a chain the last one is what was raised.
    chain, group, rest = message.partition(f"Exception Group {_FRAMES}")
    found = _ERROR_TYPE.search(rest if group else chain.rpartition(_FRAMES)[2])
    return found[1] if found else ""


def _with_subclasses(kinds: Iterable[type[BaseException]]) -> set[type[BaseException]]:
    """Return exception types and all types that are derived from them."""
    found = set(kinds)
    for kind in kinds:
        found |= _with_subclasses(kind.__subclasses__())
    return found


def _marked(mark: str) -> dict[int, str]:
    """The living processes that have `mark` in their environment, and their command lines."""
    if not os.path.exists("/proc/self/environ"):
        return {}
    wanted = f"{MARK}={mark}".encode()
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/environ", "rb") as file:
                if wanted not in file.read().split(b"\0"):
                    continue
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                command = file.read().rstrip(b"\0").replace(b"\0", b" ")
        except OSError:
            continue  # it has ended, or is another user's
        found[int(entry)] = command.decode("utf-8", "replace")[:200]
    return found


# -- the report --------------------------------------------------------------------------------------------------------

_SERVERS = pytest.StashKey[list[TestServer]]()
_LOGS = "ipcsrv-logs"


def _show_logs(config: pytest.Config) -> None:
    """From now on the report of a failed test has the logs of its servers."""
    if not config.pluginmanager.has_plugin(_LOGS):
        config.pluginmanager.register(_Logs(), _LOGS)


class _Logs:
    """Registered when a test first asks for a server: until then reports cost nothing more."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if report.failed:
            for server in item.stash.get(_SERVERS, []):
                report.sections.append((f"ipcsrv log of {server.path}", server.log or "(empty)"))
        return report
