"""`doctor`: diagnose problems with a socket path, one line for each thing that is checked.

It changes nothing, and sends nothing but a `status` to the control socket of a trusted server. `platform.inspection`
checks what differs between systems; this module combines it with what servers report. Runs in the client's process.
"""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

from .._version import __version__
from ..client import control
from ..errors import Denied, InvalidPath, IpcError, NotListening, PathNotFound
from ..peer import Peer
from ..platform import client as platform
from ..platform import inspection, lifecycle
from ..platform.findings import Finding, Level, LockHolder, failure, ok, warning
from ..worker.fastpath import compiled_path
from . import _style, _text
from ._parser import add_path
from .messages import FAILED, OK
from .status import missing_workers

WIDEST = 120  # columns; longer lines of text are hard to read
FEW_DESCRIPTORS = 1024  # each connection needs at least one
_COLUMNS = "{:<8} {:<13} "  # level and subject
_STYLES = {Level.OK: "good", Level.WARNING: "warning", Level.FAILURE: "failure"}
_INDENT = len(_COLUMNS.format("", ""))
_CONTROL_TIMEOUT = 2.0  # seconds; a living master answers within 50 ms
_COMMAND_WIDTH = 200  # characters of a command line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `doctor` takes."""
    add_path(parser)
    parser.epilog = "Exit codes: 1 if there is a failure, 0 if there are only warnings or nothing."


def run(arguments: argparse.Namespace) -> int:
    """Print the findings."""
    findings = list(examine(arguments.path))
    for finding in findings:
        sys.stdout.write(described(finding, min(_style.columns(), WIDEST)))
    sys.stdout.write("\n" + _summary(findings))
    return FAILED if any(finding.level is Level.FAILURE for finding in findings) else OK


def described(finding: Finding, width: int = _style.LEAST_WIDTH) -> str:
    """Return a finding as lines of at most `width` columns, whatever it contains."""
    head = _COLUMNS.format(finding.level.value, finding.subject)
    lines = _wrapped(finding.text, head, width)
    if finding.advice:
        lines += _wrapped(finding.advice, " " * (_INDENT - 3) + "-> ", width)
    level = finding.level.value
    lines[0] = _style.styled(level, _STYLES[finding.level]) + lines[0].removeprefix(level)
    return "".join(f"{line}\n" for line in lines)


def _wrapped(text: str, head: str, width: int) -> list[str]:
    printable = _text.cut(text, 2000)
    return textwrap.wrap(printable, width, initial_indent=head, subsequent_indent=" " * _INDENT,
                         break_on_hyphens=False) or [head.rstrip()]  # fmt: skip


def _summary(findings: list[Finding]) -> str:
    levels = [finding.level for finding in findings]
    failures, warnings = levels.count(Level.FAILURE), levels.count(Level.WARNING)
    if failures:
        return f"{_text.plural(failures, 'failure')}, {_text.plural(warnings, 'warning')}\n"
    return f"no failure, {_text.plural(warnings, 'warning')}\n" if warnings else "no problems found\n"


def examine(path: str) -> Iterator[Finding]:
    """Yield the findings about a path: folder and files first, then the server, then its limits."""
    found = list(inspection.place(path))
    yield from found
    if any(finding.subject in ("folder", "path") and finding.level is Level.FAILURE for finding in found[:2]):
        return
    holder = inspection.lock_holder(path)
    listener = _listener(path)
    yield _listening(path, listener, holder)
    yield _lock(holder)
    trusted = isinstance(listener, Peer) and platform.trusted(listener, ())
    server = _asked(path) if trusted else None
    if trusted:
        yield _control(server)
    yield from _versions(server, holder)
    yield from _descriptors(holder)


# -- the server -------------------------------------------------------------------------------------------------------


def _listener(path: str) -> Peer | Exception:
    """Return the credentials of the listening process, or the error of the attempt to connect; sends nothing."""
    try:
        stream = platform.attempt(path)
    except (OSError, IpcError) as error:
        return error
    try:
        return stream.peer()
    except OSError as error:
        return error
    finally:
        stream.close()


def _listening(path: str, listener: Peer | Exception, holder: LockHolder | None) -> Finding:
    if isinstance(listener, Peer):
        return _named_listener(listener)
    if isinstance(listener, BlockingIOError):
        return warning("listens", "a server whose queue is full", "`ipcsrv status` shows whether it is busy or hangs")
    if isinstance(listener, NotListening) and holder is None and not isinstance(listener, PathNotFound):
        left = ", ".join(map(os.path.basename, lifecycle.remains(path) or [path]))
        advice = "`ipcsrv stop` removes them, the next start replaces them"
        return warning("listens", f"no server; a killed one left its files ({left})", advice)
    if isinstance(listener, NotListening) and holder is None:
        return ok("listens", "no server; `ipcsrv start` starts one")
    if isinstance(listener, NotListening):
        text = "no server, although one holds the lock"
        return warning("listens", text, "it starts, drains, or its socket was removed: see its log")
    if isinstance(listener, Denied):
        return failure("listens", "the socket's mode denies you access", "ask its owner for --mode and --allow")
    why = str(listener) if isinstance(listener, InvalidPath) else f"unknown: {listener}"
    return failure("listens", why, "choose another path, or remove what is there")


def _named_listener(peer: Peer) -> Finding:
    user = inspection.user_of(peer.uid)
    text = f"pid {peer.pid or 'unknown'} of {user}"
    command = inspection.command_of(peer.pid) if peer.pid else None
    if command:
        text += f": {_text.cut(command, _COMMAND_WIDTH)}"
    if not platform.trusted(peer, ()):
        return failure("listens", text, f"clients do not trust it; if it is the right server, name {user} in `trust`")
    return ok("listens", text)


def _lock(holder: LockHolder | None) -> Finding:
    if holder is None:
        return ok("lock", "free")
    pid = holder.pid or holder.record.get("pid")
    if pid is None:
        return warning("lock", "held by a process that is not visible here", "it may be in another container")
    text = f"held by pid {pid}"
    if lifecycle.is_elsewhere(holder.record):
        known = f"pid {holder.record.get('pid')} of another pid namespace"
        text = f"held by {known}" if holder.pid is None else f"{text}, which is {known}"
    elif holder.pid is not None and holder.record.get("pid") not in (None, holder.pid):
        return warning("lock", f"{text}, but its file names pid {holder.record['pid']}",
                       f"check what process {holder.pid} is; end it if a killed server left it")
    if not holder.record:
        return warning("lock", f"{text}, which left no record in it", "it is just starting, or not an ipcsrv server")
    return ok("lock", f"{text}, serving {holder.record.get('handler')}")


def _asked(path: str) -> dict[str, Any] | IpcError:
    """Return the server's status, or why there is none."""
    try:
        return control.request(os.fspath(path), "status", timeout=_CONTROL_TIMEOUT)
    except IpcError as error:
        return error


def _control(server: dict[str, Any] | IpcError | None) -> Finding:
    if not isinstance(server, dict):
        return warning("control", f"no status from the server: {server}",
                       "normal for a server of another program; otherwise see its log")
    workers = server.get("workers", [])
    busy = sum(worker.get("state") == "busy" for worker in workers)
    text = f"the server is {server.get('state')}, {_text.plural(len(workers), 'worker')}, {busy} busy"
    missing = missing_workers(server)
    if not missing:
        return ok("control", text)
    return failure("control", f"{text}, {missing} of {server['workers_wanted']} missing",
                   f"see why workers do not start: `ipcsrv logs {server.get('path')}`")  # fmt: skip


# -- versions and limits ----------------------------------------------------------------------------------------------


def _versions(server: dict[str, Any] | IpcError | None, holder: LockHolder | None) -> Iterator[Finding]:
    record: dict[str, Any] = server if isinstance(server, dict) else holder.record if holder is not None else {}
    compiled = "with" if compiled_path() is not None else "without"
    client = f"ipcsrv {__version__} {compiled} the compiled fast path, Python {sys.version.split()[0]}"
    version = record.get("version")
    if version is None:
        yield ok("version", client)
    elif version == __version__:
        yield ok("version", f"{client}; the server has the same version")
    else:
        yield warning("version", f"{client}; the server has ipcsrv {version}", "`ipcsrv restart` updates the server")


def _descriptors(holder: LockHolder | None) -> Iterator[Finding]:
    pids: Iterable[int | None] = (None, holder.pid) if holder is not None and holder.pid else (None,)
    for pid in pids:
        limits = inspection.descriptor_limits(pid)
        if limits is not None:
            yield _descriptor_limit("this shell" if pid is None else "the server", *limits)


def _descriptor_limit(process: str, soft: int, hard: int) -> Finding:
    text = f"{process} may open {soft:,} files"
    if soft >= FEW_DESCRIPTORS:
        return ok("descriptors", text)
    advice = f"`ulimit -n {min(hard, 1 << 16)}` before the start, or LimitNOFILE= in its unit"
    return warning("descriptors", f"{text}; each connection needs at least one", advice)
