"""The settings of a server: one table, from which everything else that knows a setting is made.

A field of `Settings` below is the only place where a setting is written down. Its keyword, its `--flag`, its
`IPCSRV_*` variable, its key in a configuration file, its range, its help and its entry in docs/settings.md all come
from there, so that they cannot disagree.

A keyword or flag wins over an environment variable, which wins over a configuration file, which wins over the default.
The process that starts a server reads them (the command line, or the caller of the library); the server's processes get
the finished `Settings` as JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ..cpus import whole_cpus
from ..errors import SettingsError
from . import values as kinds

ENVIRONMENT_PREFIX = "IPCSRV_"
_YEAR = 365 * 86400.0  # the longest time: what select() and friends take on every system
_NOTHING_WORDS = frozenset({"none", "auto", ""})

Hook = Callable[..., object] | str | None


@dataclass(frozen=True)
class Setting:
    """What is to know of one setting. `nothing` is the meaning of None, where None is allowed."""

    name: str
    default: Any
    kind: kinds.Kind
    group: str
    help: str
    nothing: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()

    @property
    def flag(self) -> str:
        """Its flag; a switch has one that begins with --no- too."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return ENVIRONMENT_PREFIX + self.name.upper()

    @property
    def metavar(self) -> str:
        """What stands for its value in help: the choices, where there are few."""
        return "|".join(self.choices) if self.choices else self.kind.metavar

    def parse(self, value: Any) -> Any:
        """`value` as the setting's own type; ValueError says how it is wrong ("is below 1")."""
        if self.nothing is not None and (value is None or isinstance(value, str) and value.lower() in _NOTHING_WORDS):
            return None
        parsed = self.kind.parse(value)
        if self.choices and parsed not in self.choices:
            raise ValueError(f"is not one of {', '.join(self.choices)}")
        if self.minimum is not None and parsed < self.minimum:
            raise ValueError(f"is below {self.kind.show(self.minimum)}")
        if self.maximum is not None and parsed > self.maximum:
            raise ValueError(f"is above {self.kind.show(self.maximum)}")
        return parsed

    def show(self, value: Any) -> str:
        """Text that `parse` reads back; "none" for None."""
        return "none" if value is None else str(self.kind.show(value))


def _setting(default: Any, kind: kinds.Kind, group: str, help: str, **rest: Any) -> Any:
    """Return the field of a setting; the table below adds the name."""
    return field(default=default, metadata={"kind": kind, "group": group, "help": help, **rest})


_WORKERS, _LIMITS, _TIMES, _RECYCLE = "Workers", "Limits", "Timeouts", "Recycling and idling"
_ACCESS, _LOGS, _HOOKS, _PROCESS = "Who may connect", "Logging", "Hooks", "The process"
_EXECUTOR = "More than one machine"


@dataclass(frozen=True)
class Settings:
    """Validated settings; make one with `make` or `load`, which check, not with the constructor."""

    # fmt: off  (a setting reads as its value, then its words, then its bounds)
    workers: int | None = _setting(
        None, kinds.COUNT, _WORKERS, "Number of worker processes. 0 runs the handler in the master, for a debugger.",
        nothing="one for each CPU this process may use", minimum=0, maximum=1024)
    start_method: str = _setting(
        "auto", kinds.TEXT, _WORKERS, "How workers are started. auto is fork on Linux and spawn elsewhere.",
        choices=("auto", "fork", "forkserver", "spawn"))
    preload: bool = _setting(
        True, kinds.SWITCH, _WORKERS, "Import the handler once, before workers are forked: they share its memory.")

    backlog: int = _setting(
        1024, kinds.COUNT, _LIMITS, "Connections that the kernel queues; further clients wait to connect.",
        minimum=1, maximum=65535)
    max_request_size: int | None = _setting(
        256 << 20, kinds.SIZE, _LIMITS, "A longer request is answered with ERR too-large.",
        nothing="no limit", minimum=1)
    max_response_size: int | None = _setting(
        None, kinds.SIZE, _LIMITS, "A longer response is replaced or cut off by ERR too-large.",
        nothing="no limit", minimum=1)
    max_buffered_size: int | None = _setting(
        1 << 30, kinds.SIZE, _LIMITS,
        "Bytes held for all requests and responses that are in progress; beyond it the slowest get ERR busy.",
        nothing="no limit", minimum=1 << 16)

    read_timeout: float = _setting(
        30.0, kinds.SECONDS, _TIMES, "Time for a request to arrive, from its first byte to its last.",
        minimum=0.001, maximum=_YEAR)
    write_timeout: float = _setting(
        30.0, kinds.SECONDS, _TIMES, "Drop a client that reads nothing of its response for this time.",
        minimum=0.001, maximum=_YEAR)
    request_timeout: float | None = _setting(
        None, kinds.SECONDS, _TIMES,
        "Time limit for the handler; then ERR timeout, a stack dump in the log and a new worker.",
        nothing="no limit", minimum=0.001, maximum=_YEAR)
    startup_timeout: float = _setting(
        30.0, kinds.SECONDS, _TIMES, "Time for a worker to start, the import of the handler included.",
        minimum=0.001, maximum=_YEAR)
    drain_timeout: float = _setting(
        30.0, kinds.SECONDS, _TIMES, "Time that a stop waits for requests in progress; the rest get ERR stopping.",
        minimum=0.0, maximum=_YEAR)

    max_requests: int | None = _setting(
        None, kinds.COUNT, _RECYCLE, "Replace a worker after this number of requests, between two of them. "
        "N:JITTER sets max_requests_jitter too.", nothing="never", minimum=1)
    max_requests_jitter: int = _setting(
        0, kinds.COUNT, _RECYCLE, "Add a random number up to this to max_requests of each worker, "
        "so that not all are replaced at once.", minimum=0)
    max_rss: int | None = _setting(
        None, kinds.SIZE, _RECYCLE, "Replace a worker whose resident memory exceeds this, between two requests.",
        nothing="never", minimum=1 << 20)
    idle_exit: float | None = _setting(
        None, kinds.SECONDS, _RECYCLE, "Stop the server after this idle time, without any client.",
        nothing="never", minimum=0.001, maximum=_YEAR)

    mode: int = _setting(
        0o600, kinds.MODE, _ACCESS, "Permissions of the socket, set at the moment of bind.",
        minimum=0, maximum=0o777)
    allow: tuple[str, ...] = _setting(
        (), kinds.ALLOW, _ACCESS, "Also serve these users, beside the server's own and root: uid:N, gid:N, user:NAME, "
        "group:NAME, or Windows SIDs.")
    insecure_dir: bool = _setting(
        False, kinds.SWITCH, _ACCESS, "Allow a folder in which other users could replace the socket.")

    log_level: str = _setting(
        "info", kinds.TEXT, _LOGS, "Minimum log level.",
        choices=("debug", "info", "warning", "error", "critical"))
    log_file: str | None = _setting(
        None, kinds.LOG_FILE, _LOGS,
        "Append the log to this file; safe to rotate while the server runs. - is standard error.",
        nothing="standard error")
    log_format: str = _setting(
        "text", kinds.TEXT, _LOGS, "Text lines, or one JSON object per line.", choices=("text", "json"))
    access_log: bool = _setting(
        False, kinds.SWITCH, _LOGS, "Log one line per request: peer, bytes, queue wait, handler time, outcome.")

    on_worker_start: Hook = _setting(
        None, kinds.HOOK, _HOOKS, "Function called in each worker before its first request, without arguments.",
        nothing="none")
    on_worker_stop: Hook = _setting(
        None, kinds.HOOK, _HOOKS, "Function called in each worker that exits normally, without arguments.",
        nothing="none")
    on_request_start: Hook = _setting(
        None, kinds.HOOK, _HOOKS, "Function called in the worker with the request, before the handler.", nothing="none")
    on_request_end: Hook = _setting(
        None, kinds.HOOK, _HOOKS, "Function called in the worker with the request and the exception, or None.",
        nothing="none")

    receive_descriptors: bool = _setting(
        False, kinds.SWITCH, _PROCESS, "Give handlers the file descriptors that come with a request, as "
        "`Request.descriptors`; not on Windows.")
    control: bool = _setting(
        True, kinds.SWITCH, _PROCESS, "Answer status, reload and other commands on PATH.control.")
    name: str | None = _setting(
        None, kinds.TEXT, _PROCESS, "Name of this server in status, logs and process titles.",
        nothing="its handler's name")
    chdir: str | None = _setting(
        None, kinds.FOLDER, _PROCESS, "Change to this folder before importing the handler.",
        nothing="the folder it was started in")

    executor: str | None = _setting(
        None, kinds.EXECUTOR, _EXECUTOR, "Run the handler on this engine instead, such as dask:tcp://HOST:8786; "
        "each worker submits one request at a time.", nothing="in the workers")
    executor_retries: int = _setting(
        0, kinds.COUNT, _EXECUTOR, "Repeat a request that the executor lost, up to so many times; only for a handler "
        "that may run twice.", minimum=0, maximum=100)
    upload_module: bool = _setting(
        False, kinds.SWITCH, _EXECUTOR,
        "Send the handler's module or package to the executor; otherwise it must be installed there.")
    # fmt: on

    def resolved(self, default_start_method: str) -> Settings:
        """These settings with what depends on the machine filled in; the platform's own start method is passed in."""
        workers = whole_cpus() if self.workers is None else self.workers
        method = default_start_method if self.start_method == "auto" else self.start_method
        return replace(self, workers=workers, start_method=method)

    def to_dict(self) -> dict[str, Any]:
        """Plain values by name, fit for JSON and for `make`; a hook that is a callable becomes MODULE:CALLABLE."""
        values = {setting.name: getattr(self, setting.name) for setting in TABLE}
        return {name: kinds.show_hook(value) if callable(value) else value for name, value in values.items()}


TABLE: tuple[Setting, ...] = tuple(Setting(found.name, found.default, **found.metadata) for found in fields(Settings))
BY_NAME: Mapping[str, Setting] = {setting.name: setting for setting in TABLE}


@dataclass(frozen=True)
class Source:
    """Where a value came from: `how` is keyword, flag, variable, file or default; `where` is what to look at."""

    how: str
    where: str
    line: int | None = None

    def __str__(self) -> str:
        return self.where if self.line is None else f"{self.where}:{self.line}"


@dataclass(frozen=True)
class _Given:
    """A value as someone wrote it, and where."""

    value: Any
    source: Source


def make(**keywords: Any) -> Settings:
    """Settings from keywords and defaults alone: no environment, no files. Raises SettingsError."""
    return _parsed(_from_keywords(keywords, "keyword"))[0]


def load(
    keywords: Mapping[str, Any],
    *,
    environ: Mapping[str, str],
    files: Iterable[str] = (),
    how: str = "keyword",
) -> tuple[Settings, dict[str, Source]]:
    """Settings from every source, and the source of each; of two files that set a key the first wins.

    `how` says what the keywords are to the user: "keyword" or "flag". Raises SettingsError naming the place.
    """
    given: dict[str, _Given] = {}
    for path in reversed(tuple(files)):
        given |= _from_file(path)
    given |= _from_environment(environ)
    given |= _from_keywords(keywords, how)
    return _parsed(given)


def _from_keywords(keywords: Mapping[str, Any], how: str) -> dict[str, _Given]:
    given: dict[str, _Given] = {}
    for name, value in keywords.items():
        where = "--" + name.replace("_", "-") if how == "flag" else name
        given |= _entry(name, value, Source(how, where))
    return given


def _from_environment(environ: Mapping[str, str]) -> dict[str, _Given]:
    """What IPCSRV_* says. A name of that kind that we do not know is an error only if it looks like a slip."""
    given: dict[str, _Given] = {}
    for variable in sorted(name for name in environ if name.startswith(ENVIRONMENT_PREFIX)):
        name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        if name in BY_NAME or nearest(name, cutoff=0.8):
            given |= _entry(name, environ[variable], Source("variable", variable))
    return given


def _from_file(path: str) -> dict[str, _Given]:
    from . import files

    given: dict[str, _Given] = {}
    for name, value, line in files.read(path):
        if name not in files.OPERANDS:
            given |= _entry(name.replace("-", "_"), value, Source("file", path, line))
    return given


def _entry(name: str, value: Any, source: Source) -> dict[str, _Given]:
    """One setting as given, or two for max_requests N:JITTER; refuses a name that is none."""
    if name not in BY_NAME and isinstance(value, dict):
        raise refusal("a configuration file has no sections; put the settings above the first one", name, source)
    if name not in BY_NAME:
        raise refusal("there is no such setting", name, source, nearest(name))
    if name == "max_requests" and isinstance(value, str) and ":" in value:
        count, _, jitter = value.partition(":")
        return {name: _Given(count, source), "max_requests_jitter": _Given(jitter, source)}
    return {name: _Given(value, source)}


def _parsed(given: Mapping[str, _Given]) -> tuple[Settings, dict[str, Source]]:
    values = {}
    for name, entry in given.items():
        try:
            values[name] = BY_NAME[name].parse(entry.value)
        except ValueError as error:
            raise refusal(f"{entry.value!r} {error}", name, entry.source) from None
    sources = {setting.name: Source("default", "default") for setting in TABLE}
    sources |= {name: entry.source for name, entry in given.items()}
    return Settings(**values), sources


def refusal(reason: str, name: str, source: Source, suggestion: str | None = None) -> SettingsError:
    """The error for a setting as given at `source`; a flag or a variable says the setting's name already."""
    if source.how == "file":
        return SettingsError(reason, name=name, source=source.where, line=source.line, suggestion=suggestion)
    error = SettingsError(reason, source=source.where, suggestion=suggestion)
    error.name = name
    return error


def nearest(name: str, cutoff: float = 0.6) -> str | None:
    """The setting whose name is most like `name`, if one is."""
    import difflib

    matches = difflib.get_close_matches(name.replace("-", "_"), BY_NAME, 1, cutoff)
    return matches[0] if matches else None
