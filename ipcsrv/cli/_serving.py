"""What `run` and `start` have in common: their arguments, settings, configuration file and handler."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from ..config import files, settings
from ..config.values import LOG_STREAMS, NO_STREAMS
from ..errors import SettingsError
from ._parser import add_path, add_settings, socket_path
from .messages import UsageError

_NOTES = (
    "SIZE is bytes or has a unit (4096, 64MiB, 1G); TIME is seconds or has a unit (30, 250ms, 5m, 1h); use `none` to "
    "unset a value. Precedence: flags, environment variables (IPCSRV_WORKERS), configuration file. The file is that of "
    "--config; without PATH and MODULE:HANDLER it is ipcsrv.toml of the current folder, which then has the keys `path` "
    "and `handler` too."
)
_TARGET = re.compile(r"[A-Za-z_][\w./]*:[A-Za-z_][\w.]*(\(\))?")


class Program(NamedTuple):
    """What to serve, where, and how; `file` is the configuration file that was read."""

    path: str | None
    target: str | None
    settings: settings.Settings
    sources: dict[str, settings.Source]
    file: str | None


def add_serving_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what both commands take."""
    add_path(parser, nargs="?")  # optional for argparse: the configuration file may have both operands
    parser.add_argument(
        "target", metavar="MODULE:HANDLER", nargs="?", help="a function from bytes to bytes, such as zlib:compress"
    )
    parser.add_argument("-c", "--config", metavar="FILE", help="read settings from this TOML file (see below)")
    parser.add_argument(
        "--check-config", action="store_true", help="check the settings and import the handler, but do not serve"
    )
    level = parser.add_mutually_exclusive_group()
    level.add_argument(
        "-v", "--verbose", dest="verbosity", action="store_const", const="debug", help="same as --log-level debug"
    )
    level.add_argument(
        "-q", "--quiet", dest="verbosity", action="store_const", const="warning", help="same as --log-level warning"
    )
    add_settings(parser)
    parser.epilog = _NOTES


def read_program(arguments: argparse.Namespace) -> Program:
    """Read settings and operands from flags, variables and the configuration file."""
    path, target = arguments.path, arguments.target
    file = arguments.config or (files.project_file("") if path is None else None)
    given = {name: getattr(arguments, name) for name in settings.BY_NAME if hasattr(arguments, name)}
    if arguments.verbosity is not None:
        given.setdefault("log_level", arguments.verbosity)
    chosen, sources = settings.load(given, environ=os.environ, files=[file] if file else [], how="flag")
    named = files.operands(file) if file else {}
    if "path" in named:
        socket_path(named["path"])
    if target is None and path is not None and "path" in named and _TARGET.fullmatch(path):
        path, target = None, path
    _check_folder(chosen, sources)
    path = named.get("path") if path is None else path
    target = named.get("handler") if target is None else target
    return Program(path, target, chosen, sources, file)


def operands(program: Program, command: str) -> tuple[str, str]:
    """Return PATH and MODULE:HANDLER; raises UsageError with a command line that is likely to work."""
    path, target = program.path, program.target
    if path is not None and target is not None:
        if _TARGET.fullmatch(path) and not os.path.exists(path) and (":" not in target or "/" in target):
            raise UsageError("PATH comes before MODULE:HANDLER", f"try `ipcsrv {command} {target} {path}`")
        return path, target
    if path and _TARGET.fullmatch(path):
        from ..config.suggestions import well_formed

        target = well_formed(path) or path
        socket = f"./{target.partition(':')[0].rpartition('.')[2]}.sock"
        raise UsageError("PATH is missing", f"try `ipcsrv {command} {socket} {target}`")
    if program.file is not None:
        key = "handler" if path else "path" if target else "path and handler"
        raise UsageError(f"{program.file}: no {key}", f"add it, or use `ipcsrv {command} PATH MODULE:HANDLER`")
    if path:
        raise UsageError("MODULE:HANDLER is missing", f"try `ipcsrv {command} {_with_handler(path)}`")
    example = f"try `ipcsrv {command} ./z.sock zlib:compress`"
    raise UsageError("PATH and MODULE:HANDLER are missing, and there is no ipcsrv.toml here", example)


def _with_handler(path: str) -> str:
    """Return operands for a single one without a handler; a Python file is no path for a socket, but may have one."""
    module, suffix = os.path.splitext(os.path.basename(path))
    return f"./{module}.sock {module}:FUNCTION" if suffix == ".py" else f"{path} zlib:compress"


@contextmanager
def naming_sources(program: Program) -> Iterator[None]:
    """Name the flag, variable or file of a setting in the error of a server that refuses its value."""
    try:
        yield
    except SettingsError as error:
        source = program.sources.get(error.name or "")
        if source is None or error.source is not None:
            raise
        raise settings.refusal(error.reason, error.name or "", source, error.suggestion) from None


def check(program: Program, command: str) -> str:
    """Import the handler and the hooks as a worker would; returns what was checked, in one line."""
    path, target = operands(program, command)
    from ..config.handlers import source_of
    from ..platform.server import Admission
    from ..worker.main import load_checked

    with naming_sources(program):
        Admission(program.settings.allow)
        _check_log(program.settings.log_file, in_background=command == "start")
        load_checked(source_of(target), program.settings)
    return f"{program.file or 'the configuration'} is valid: {path} serves {target}"


def _check_log(file: str | None, *, in_background: bool) -> None:
    """Refuse a log that the server could not open, as far as that is known without making it."""
    if file is None:
        return
    if file in LOG_STREAMS:
        if in_background:
            raise SettingsError(NO_STREAMS, name="log_file")
        return
    folder = os.path.dirname(os.path.abspath(file))
    if not os.path.isdir(folder):
        raise SettingsError(f"there is no folder {folder}", name="log_file")
    if os.path.isdir(file):
        raise SettingsError(f"{file} is a folder", name="log_file")


def settings_table(program: Program) -> str:
    """Return each setting with its value and its source, one line each."""
    chosen, sources = program.settings, program.sources
    rows = [(s.name, s.show(getattr(chosen, s.name)) or "none", str(sources[s.name])) for s in settings.TABLE]
    names, values = (max(len(row[column]) for row in rows) for column in (0, 1))
    return "".join(f"{name:{names}}  {value:{values}}  {source}\n" for name, value, source in rows)


def started_line(path: str, server: dict[str, Any], file: str | None = None) -> str:
    """Return what `start` and `restart` say of the server that listens now, with the configuration file."""
    config = f", settings of {file}" if file else ""
    return f"{path}: listening, pid {server['pid']}, log {server.get('log_file') or 'nowhere'}{config}"


def _check_folder(chosen: settings.Settings, sources: dict[str, settings.Source]) -> None:
    """Refuse a missing chdir here: in a worker it would be a traceback."""
    if chosen.chdir is None or os.path.isdir(chosen.chdir):
        return
    reason = "is not a folder" if os.path.exists(chosen.chdir) else "does not exist"
    source = sources["chdir"]
    raise SettingsError(f"the folder {chosen.chdir} {reason}", source=source.where, line=source.line)
