"""`run`, `start`, `stop`, `restart` and `reload`: the command line's half of a server's life.

Each reads its settings from flags, environment and files, hands over to `ipcsrv.server`, and says what happened.
`run` becomes the master itself; the others talk to a master in another process.  Arguments are declared by functions
that import argparse's side when they are called: a plain `start` does without (`_simple_start`).
"""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager, nullcontext

from ..config import settings
from ..config.files import project_file
from .messages import OK, UsageError, complain

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from types import SimpleNamespace
    from typing import Any

_VALUES = (
    "SIZE is bytes or has a unit (4096, 64MiB, 1G); TIME is seconds or has a unit (30, 250ms, 5m, 1h); `none` is the "
    "value of what is not set. Every setting can also come from its variable (IPCSRV_WORKERS) or from a file "
    "(--config FILE; without PATH and MODULE:HANDLER, ipcsrv.toml of the current folder). A flag wins over a variable, "
    "that over a file."
)


def run_arguments(parser: argparse.ArgumentParser) -> None:
    """What `run` takes."""
    _serving_arguments(parser)
    parser.add_argument(
        "--reload", action="store_true", help="reload whenever a file of the handler's is saved (for development)"
    )
    parser.add_argument(
        "--print-settings", action="store_true", help="show every setting and where it comes from, and serve nothing"
    )


def start_arguments(parser: argparse.ArgumentParser) -> None:
    """What `start` takes; `_simple_start` must take the same."""
    from ._parser import add_timeout

    _serving_arguments(parser)
    add_timeout(parser, "give up if it does not listen within this time (default: startup_timeout and 5 s)")


def stop_arguments(parser: argparse.ArgumentParser) -> None:
    """What `stop` takes."""
    from ._parser import add_path, add_timeout

    add_path(parser)
    parser.add_argument(
        "--now", action="store_true", help="do not wait for requests in progress; with --timeout, wait that long first"
    )
    add_timeout(parser, "give up after this time (default: the server's drain_timeout and a little more)")


def restart_arguments(parser: argparse.ArgumentParser) -> None:
    """What `restart` takes."""
    from ._parser import add_path, add_timeout

    add_path(parser)
    add_timeout(parser, "give up if stop and start are not done within this time")


def reload_arguments(parser: argparse.ArgumentParser) -> None:
    """What `reload` takes."""
    from ._parser import add_path

    add_path(parser)


def _serving_arguments(parser: argparse.ArgumentParser) -> None:
    from ._parser import add_path, add_settings

    # To argparse the operands are optional, because --print-settings needs neither.
    add_path(parser, nargs="?")
    parser.add_argument(
        "target", metavar="MODULE:HANDLER", nargs="?", help="a callable from bytes to bytes, such as zlib:compress"
    )
    parser.add_argument("--config", metavar="FILE", help="read settings from this TOML file (see below)")
    add_settings(parser)
    parser.epilog = _VALUES


def run(arguments: argparse.Namespace) -> int:
    """Serve in this process until stopped; returns the server's exit code."""
    chosen, sources = _settings(arguments)
    if arguments.print_settings:
        sys.stdout.write(settings_table(chosen, sources))
        return OK
    _require_operands(arguments)
    with _reloading(arguments, chosen):
        from ..server import server

        return server.run_foreground(arguments.path, arguments.target, chosen, banner=_print_banner)


def _reloading(arguments: argparse.Namespace, chosen: settings.Settings) -> AbstractContextManager[object]:
    """What `--reload` asks for, if it was given."""
    if not arguments.reload:
        return nullcontext()
    if not chosen.control:
        raise UsageError("--reload needs the control socket: leave out --no-control")
    if chosen.workers == 0:
        raise UsageError("--reload needs workers: with --workers 0 the handler is in the server's own process")
    from .reloading import Watch

    return Watch(arguments.path, arguments.target)


def start(arguments: argparse.Namespace | SimpleNamespace) -> int:
    """Start a server in the background and say where it is."""
    chosen, _ = _settings(arguments)
    _require_operands(arguments)
    from ..server import server

    timeout = chosen.startup_timeout + 5.0 if arguments.timeout is None else arguments.timeout
    _say_started(arguments.path, server.start_daemon(
        arguments.path, arguments.target, chosen, timeout=timeout, may_fork=True))
    return OK


def stop(arguments: argparse.Namespace) -> int:
    """Stop the server: gracefully, or at once, or gracefully for a while and then at once."""
    from ..errors import CallTimeout
    from ..server import server

    path, timeout = arguments.path, arguments.timeout
    if not arguments.now or timeout is not None:
        try:
            server.stop(path, timeout=timeout, report=complain)
            return OK
        except CallTimeout:
            if not arguments.now:
                raise
    server.stop(path, now=True, report=complain)
    return OK


def restart(arguments: argparse.Namespace) -> int:
    """Stop the server and start it with the settings that it had."""
    from ..server import server

    _say_started(arguments.path, server.restart(arguments.path, arguments.timeout))
    return OK


def reload(arguments: argparse.Namespace) -> int:
    """New workers with new code, while the old ones finish what they have."""
    from ..server import server

    reply = server.reload(arguments.path)
    print(f"{arguments.path}: generation {reply.get('generation', '?')} serves")
    return OK


def _settings(
    arguments: argparse.Namespace | SimpleNamespace,
) -> tuple[settings.Settings, dict[str, settings.Source]]:
    if arguments.config:
        files = [arguments.config]
    else:  # without arguments the user asks for this folder's program
        found = project_file("") if arguments.path is None else None
        files = [] if found is None else [found]
    given = {name: getattr(arguments, name) for name in settings.BY_NAME if hasattr(arguments, name)}
    return settings.load(given, environ=os.environ, files=files, how="flag")


def _require_operands(arguments: argparse.Namespace | SimpleNamespace) -> None:
    if arguments.target is None:
        missing = "MODULE:HANDLER is missing" if arguments.path else "PATH and MODULE:HANDLER are missing"
        raise UsageError(f"{missing}: see `ipcsrv {arguments.command} --help`")


def settings_table(chosen: settings.Settings, sources: dict[str, settings.Source]) -> str:
    """Each setting with its value and where that came from, a line each."""
    rows = [(s.name, s.show(getattr(chosen, s.name)) or "nobody", str(sources[s.name])) for s in settings.TABLE]
    names, values = (max(len(row[column]) for row in rows) for column in (0, 1))
    return "".join(f"{name:{names}}  {value:{values}}  {source}\n" for name, value, source in rows)


def _say_started(path: str, server: dict[str, Any]) -> None:
    print(f"{path}: listening, pid {server['pid']}, log {server.get('log_file') or 'nowhere'}")


def _print_banner(server: dict[str, Any]) -> None:
    """What a person wants to know of the server that has just begun to listen, in one write."""
    path = server["path"]
    rows = (
        ("master", f"pid {server['pid']}"),
        ("workers", f"pids {' '.join(map(str, server.get('workers') or ()))}"),
        ("lock", server.get("lock_file")),
        ("log", server.get("log_file") or "standard error"),
        ("try", f"echo hello | ipcsrv call {path}"),
        ("stop", f"Ctrl-C, or: ipcsrv stop {path}"),
    )
    lines = [f"ipcsrv serves {server['handler']} at {path}", *(f"  {name:8} {text}" for name, text in rows if text)]
    print("\n".join(lines), file=sys.stderr, flush=True)
