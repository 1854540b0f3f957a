"""List, stop and restart warm servers, and write launchers.  In the command."""

from __future__ import annotations

import sys

assert sys.platform != "win32"

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import Any

from ..client import control
from ..errors import IpcError
from ..platform import client as platform
from ..server import server
from . import stamps, starting
from .program import FOLDER, LAUNCHER, OVERRIDE, Place, Program, ProgramError, find, read_lines, stems
from .template import write_lines

_SHEBANG_LIMIT = 120  # bytes; the kernel's of old


def servers() -> Iterator[tuple[str, str]]:
    """Yield the program and the socket's path of each warm server of this user."""
    for program, _, path in _known_servers():
        if os.path.exists(path):
            yield program, path


def _known_servers() -> Iterator[tuple[str, bytes, str]]:
    """Yield program, key and the socket's path of each server that there is or was."""
    folder = _folder()
    for name in sorted(os.listdir(folder) if os.path.isdir(folder) else ()):
        found = stamps.read(os.path.join(folder, name)) if name.endswith(".stamps") else None
        if found is not None:
            program = os.fsdecode(found[1].split(b"\0")[4])
            yield program, found[1], os.path.join(folder, name.removesuffix(".stamps") + ".sock")


def _folder() -> str:
    return os.path.join(platform.runtime_folder(os.environ.get(OVERRIDE)), FOLDER)


def show_servers() -> int:
    """Print a line for each server: program, process, busy workers, runs and memory."""
    rows = [("PROGRAM", "PID", "BUSY", "RUNS", "MEMORY", "SOCKET")]
    for program, path in servers():
        try:
            rows.append((program, *_figures(control.request(path, "status")), path))
        except IpcError:
            continue
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        print("  ".join([*(f"{text:{width}}" for text, width in zip(row, widths, strict=False)), row[-1]]))
    return 0


def _figures(status: dict[str, Any]) -> tuple[str, str, str, str]:
    workers = status["workers"]
    busy = sum(worker["state"] == "busy" for worker in workers)
    memory = sum(worker["rss_bytes"] or 0 for worker in workers)
    runs = status["totals"]["requests"]
    return str(status["pid"]), f"{busy}/{len(workers)}", str(runs), f"{memory / 2**20:.0f} MiB"


def stop(name: str | None) -> int:
    """Stop the servers of a program, or all, and forget what was learned of it; runs in progress end first."""
    found = None if name is None else find(name)
    for program, path in servers():
        if found is None or program == found.path:
            server.stop(path)
    learned = [] if found is None else [Place(found).learned]
    for program, key, _ in _known_servers():
        if found is None or program == found.path:
            learned += (f"{stem}.learned" for stem in stems(_folder(), program, key))
    for path in learned:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    return 0


def restart(name: str, options: dict[str, str]) -> int:
    """Start a server for a program or have it import everything again; returns when it serves.

    Raises:
        IpcError: it does not start.
    """
    program = find(name)
    place = Place(program)
    place.make_folder()
    starting.start_where_it_is_found(program, place, options)
    return 0


def remember_preload(name: str, modules: str) -> int:
    """Add modules, with commas between, to those that servers of the program import; one that runs is stale now."""
    place = Place(find(name))
    place.make_folder()
    known = read_lines(place.preload)
    names = [os.fsencode(module) for module in modules.split(",")]
    if not set(names) <= set(known):
        write_lines(place.preload, dict.fromkeys([*known, *names]))
    return 0


def install(name: str, folder: str) -> int:
    """Write a launcher for a program, and say where.

    Raises:
        ProgramError: a file that is no launcher is in its place.
    """
    program = find(name)
    file_name = os.path.basename(program.path).partition(":")[0]
    target = os.path.join(folder or os.path.expanduser("~/.local/bin"), file_name)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.lexists(target) and not _is_launcher(target):
        raise ProgramError(f"{target}: there is a file already; choose another folder", target)
    temporary = f"{target}.{os.getpid()}"
    with open(temporary, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(launcher(program))
    os.chmod(temporary, 0o755)
    os.rename(temporary, target)
    print(target)
    return 0


def launcher(program: Program) -> str:
    """Return the text of a launcher: run by the native client where it is installed, else by a shell."""
    native = os.path.join(os.path.dirname(os.path.abspath(sys.argv[0])), "ipcsrvc")
    found = native if os.access(native, os.X_OK) else shutil.which("ipcsrvc")
    if found and not program.is_module and len(found) < _SHEBANG_LIMIT and " " not in found:
        return f"#!{found} {LAUNCHER.partition(' ')[2]}\n{program.path}\n"
    import shlex

    command = [found] if found else [sys.executable, "-m", "ipcsrv"]
    return f'#!/bin/sh\nexec {shlex.join([*command, "warm", program.path, "--"])} "$@"\n'


def _is_launcher(path: str) -> bool:
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(1024)
    except (OSError, ValueError):
        return False
    return LAUNCHER in text or (text.startswith("#!/bin/sh\nexec ") and " warm " in text)
