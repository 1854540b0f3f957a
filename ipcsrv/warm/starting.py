"""Run a program cold, and have a server started for the next run.  In the client, and in a process beside it.

No run waits for a server: where none is up to date the program runs cold, as if it had been called by itself, and a
detached process, the *starter*, has a server started or reloaded.  One starter works at a time for each server; a lock
that the kernel releases when it ends says so.
"""

from __future__ import annotations

import sys

assert sys.platform != "win32"

import contextlib
import fcntl
import importlib.util
import json
import os
import secrets
import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from ..client import control, sync
from ..cpus import whole_cpus
from ..errors import IpcError, StartError
from ..state import State
from . import base, stamps
from .program import WORKING_FOLDER, Place, Program, ProgramError, read_lines
from .template import LEARN_NOTHING, OUR_PACKAGES, write_lines

RETRY_AFTER = 60.0  # seconds after a start that failed, in which no other is tried
START_TIMEOUT = 60.0  # seconds
EPOCH = b"IPCSRV_WARM_EPOCH_"  # in the file of variables: a name that no environment has
OPTIONS = {"idle-exit": "1h", "drain-timeout": "1d", "startup-timeout": "60s"}  # of a server; a run may last long
_LEFT_OUT = 5  # modules that a start leaves out of what has been learned, before it leaves out all
_BOOTSTRAP = str(Path(__file__).with_name("bootstrap.py"))
_KEPT_SETTINGS = ("IPCSRV_RUNTIME_DIR", "IPCSRV_PURE_PYTHON")


def workers() -> int:
    """Return how many runs at a time a server has room for, unless the user says another number."""
    return min(8, max(2, whole_cpus()))


def run_cold(program: Program, arguments: list[str]) -> NoReturn:
    """Become the program, in the ordinary way."""
    command = program.cold_command(arguments)
    try:
        os.execv(command[0], command)
    except OSError as error:
        raise ProgramError(f"{program.path}: cannot be run: {error.strerror}", program.path) from None


def run_cold_and_start(program: Program, place: Place, arguments: list[str], options: dict[str, str]) -> NoReturn:
    """Become the program, while a starter starts the server; a first run shows what the program imports."""
    first = not os.path.exists(place.learned)
    _fork_starter(program, place, options, wait_for=os.getpid() if first else None)
    if not first:
        run_cold(program, arguments)
    spec = json.dumps(spec_of(program, place))
    command = [program.interpreter, *program.flags, _BOOTSTRAP, "learn", spec, *arguments]
    try:
        os.execv(command[0], command)
    except OSError:
        run_cold(program, arguments)


def spec_of(program: Program, place: Place) -> dict[str, Any]:
    """Return what the server's processes must know, as plain values."""
    return {
        "path": program.path, "argv0": program.argv0, "is_module": program.is_module, "source": program.source,
        "interpreter": program.interpreter, "flags": program.flags, "comm": program.path.rpartition("/")[2],
        "key": place.key.hex(), "stamps": place.stamps, "learned": place.learned, "preload": place.preload,
        "cold": program.cold_command([]), "variables": place.variables, "socket": place.socket,
        "lock": place.lock, "folders": _own_folders(),
        "base_file": place.base_file, "folder": _import_folder(place), "terminals": place.terminals,
    }  # fmt: skip


def _import_folder(place: Place) -> str:
    """Return the folder in which the program is imported: the working folder where that matters to it."""
    return os.getcwd() if WORKING_FOLDER in read_lines(place.variables) else "/"


def _own_folders() -> dict[str, str]:
    """Return where ipcsrv's packages are, for an interpreter in which they are not installed."""
    found = {}
    for name in OUR_PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            found[name] = os.path.dirname(os.path.dirname(os.path.abspath(spec.origin)))
    return found


# -- the starter ------------------------------------------------------------------------------------------------------


def _fork_starter(program: Program, place: Place, options: dict[str, str], wait_for: int | None) -> None:
    """Fork a detached process that starts or reloads the server, after the process `wait_for` has ended."""
    if os.path.exists(place.failed) and time.time() - os.stat(place.failed).st_mtime < RETRY_AFTER:
        return
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return
    try:
        os.setsid()
        if os.fork() == 0:
            null = os.open(os.devnull, os.O_RDWR)
            for standard in (0, 1, 2):
                os.dup2(null, standard)
            with lock(place.lock) as locked:
                if locked:
                    if wait_for is not None:
                        _wait_for_end(wait_for)
                    ensure_current(program, place, options)
    finally:
        os._exit(0)


@contextlib.contextmanager
def lock(path: str) -> Iterator[bool]:
    """Hold the lock of starters; gives False where another has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(descriptor)


def _wait_for_end(pid: int) -> None:
    """Wait for a process that is not a child: by a descriptor where there are such, else by asking now and then."""
    with contextlib.suppress(ProcessLookupError):
        if hasattr(os, "pidfd_open"):
            descriptor = os.pidfd_open(pid)
            poller = select.poll()
            poller.register(descriptor, select.POLLIN)
            poller.poll()
            os.close(descriptor)
            return
        while True:
            os.kill(pid, 0)
            time.sleep(0.05)


def ensure_current(program: Program, place: Place, options: dict[str, str]) -> None:
    """Start the server, or have it reload; what goes wrong is written to the file `failed`."""
    if not os.path.exists(place.learned):
        write_lines(place.learned, ())  # the first run did not end in an orderly way: it is not repeated for this
    place = place.again()  # which the first run may have moved
    try:
        start_where_it_is_found(program, place, options)
    except (IpcError, OSError, subprocess.SubprocessError) as error:
        write_lines(place.failed, [str(error).encode()])
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(place.failed)


def start_where_it_is_found(program: Program, place: Place, options: dict[str, str]) -> None:
    """Start or reload the server, if need be without what has been learned, which may be what it fails of.

    Raises:
        IpcError: it does not start, or not with the new code; the old one goes on.
    """
    learned = read_lines(place.learned)
    for _ in range(_LEFT_OUT):
        try:
            return _start_where_it_is_found(program, place, options)
        except (IpcError, subprocess.SubprocessError):
            before, learned = learned, read_lines(place.learned)
            if all(name.startswith(LEARN_NOTHING) for name in before):
                raise
            if learned == before:  # the template has not found the module that is at fault
                break
    write_lines(place.learned, [LEARN_NOTHING])
    try:
        _start_where_it_is_found(program, place, options)
    except (IpcError, subprocess.SubprocessError):
        write_lines(place.learned, learned)
        raise


def _start_where_it_is_found(program: Program, place: Place, options: dict[str, str]) -> None:
    """Start or reload the server, once more if it has found on what else it depends: the next client looks there."""
    place = start_or_reload(program, place, options)
    while (moved := place.again()).socket != place.socket:
        with contextlib.suppress(IpcError):
            control.request(place.socket, "stop")
        place = start_or_reload(program, moved, options)


def start_or_reload(program: Program, place: Place, options: dict[str, str]) -> Place:
    """Start the server of a program, or replace its processes by new ones; returns when it serves, and where.

    Raises:
        IpcError: it does not start, or not with the new code; the old one goes on.
    """
    if sync.active_state(place.socket) is State.LISTENING:
        found = base.read(place.base_file)
        if found is not None and base.is_current(found):
            control.request(place.socket, "reload", timeout=START_TIMEOUT)
            return place
        _abandon_servers(place)
        place = place.again()
    settings = {"workers": str(workers()), **OPTIONS, **options}
    command = [
        program.interpreter, *program.flags, _BOOTSTRAP, "start", json.dumps(spec_of(program, place)),
        "start", place.socket, "ipcsrv.warm.worker:handle", "--on-worker-start", "ipcsrv.warm.worker:prepare",
        "--on-worker-stop", "ipcsrv.warm.worker:release", "--start-method", "fork", "--receive-descriptors",
        "--max-request-size", "64MiB", "--log-file", f"{place.socket}.log", "--name", f"warm:{program.path}",
        *(word for name, value in settings.items() for word in (f"--{name}", value)),
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith("IPCSRV_")}
    environment |= {name: os.environ[name] for name in _KEPT_SETTINGS if name in os.environ}
    done = subprocess.run(command, env=environment, cwd="/", stdin=subprocess.DEVNULL, capture_output=True,
                          timeout=START_TIMEOUT, check=False)  # fmt: skip
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        reason = said[-1].rpartition("the server did not start: ")[2] if said else f"exit status {done.returncode}"
        raise StartError(reason.removeprefix("ipcsrv: "))
    return place


def _abandon_servers(place: Place) -> None:
    """Name all servers of the program anew, and have those of the old names end when their runs have ended.

    The name is changed by a variable that no environment has, since a run in progress may keep a server for long.
    """
    known = [name for name in read_lines(place.variables) if not name.startswith(EPOCH)]
    write_lines(place.variables, [*known, EPOCH + secrets.token_hex(4).encode()])
    for name in os.listdir(place.folder):
        found = stamps.read(os.path.join(place.folder, name)) if name.endswith(".stamps") else None
        if found is not None and found[1].startswith(place.start_of_key):
            with contextlib.suppress(IpcError):
                control.request(os.path.join(place.folder, name.removesuffix(".stamps") + ".sock"), "stop")


def failure(place: Place) -> str:
    """Return why the last start failed, "" if it did not."""
    return b" ".join(read_lines(place.failed)).decode(errors="replace")
