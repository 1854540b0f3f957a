"""`run`: serve in the foreground. This process becomes the master."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from . import messages
from ._serving import Program, add_serving_arguments, check, naming_sources, operands, read_program, settings_table
from .messages import OK, UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `run` takes."""
    add_serving_arguments(parser)
    parser.add_argument(
        "--reload", action="store_true", help="reload when a file of the handler is saved (for development)"
    )
    parser.add_argument(
        "--print-settings", action="store_true", help="print every setting and its source, but do not serve"
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve until stopped; returns the server's exit code."""
    program = read_program(arguments)
    messages.use_json(program.settings.log_format == "json")
    if arguments.print_settings:
        sys.stdout.write(settings_table(program))
        return OK
    path, target = operands(program, "run")
    if arguments.check_config:
        print(check(program, "run"))
        return OK
    with _reloading(arguments, program), naming_sources(program):
        from ..server import server

        return server.run_foreground(path, target, program.settings, banner=_banner(program))


def _reloading(arguments: argparse.Namespace, program: Program) -> AbstractContextManager[object]:
    """Return the process that watches files, if --reload asks for one."""
    if not arguments.reload:
        return nullcontext()
    if not program.settings.control:
        raise UsageError("--reload needs the control socket", "leave out --no-control")
    if program.settings.workers == 0:
        raise UsageError("--reload needs workers: with --workers 0 the handler runs in the master",
                         "leave out one of the two")  # fmt: skip
    from .reloading import Watch

    path, target = operands(program, "run")
    return Watch(path, target, as_json=program.settings.log_format == "json")


def _banner(program: Program) -> Any:
    """Return the function that prints the banner; None where standard error is no terminal, or is for JSON."""
    if program.settings.log_format == "json" or sys.stderr is None or not sys.stderr.isatty():
        return None

    def show(server: dict[str, Any]) -> None:
        try:
            print(banner(server, program.file), file=sys.stderr, flush=True)
        except OSError:
            pass  # the terminal was closed meanwhile, which is no reason not to serve, or to stop with an error

    return show


def banner(server: dict[str, Any], file: str | None) -> str:
    """Return what a person wants to know about a server that has started.

    Args:
        server: the record of the master.
        file: the configuration file that was read.
    """
    path = server["path"]
    rows = (
        ("config", file and os.path.abspath(file)),
        ("master", f"pid {server['pid']}"),
        ("workers", f"pids {' '.join(map(str, server.get('workers') or ()))}"),
        ("lock", server.get("lock_file")),
        ("log", server.get("log_file") or "standard error"),
        ("try", f"echo hello | ipcsrv call {path}"),
        ("stop", f"Ctrl-C, or: ipcsrv stop {path}"),
    )
    lines = [f"ipcsrv serves {server['handler']} at {path}", *(f"  {name:8} {text}" for name, text in rows if text)]
    return "\n".join(lines)
