"""`doctor`: what is wrong with a path, if anything, a line for each thing that was looked at.

It changes nothing and sends nothing but a `status` to a trusted server's control socket.  What systems differ in is
looked at by `platform.inspection`; here it is put together with what servers say.  Runs in the client's process.
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
from ..errors import Denied, InvalidPath, IpcError, NotListening
from ..peer import Peer
from ..platform import client as platform
from ..platform import inspection
from ..platform.findings import Finding, Level, LockHolder, failure, ok, warning
from ..worker.fastpath import compiled_path
from . import _text
from ._parser import add_path
from .messages import FAILED, OK

WIDTH = 80
FEW_DESCRIPTORS = 1024  # each connected client is one
_COLUMNS = "{:<8} {:<13} "  # how bad, and about what
_INDENT = len(_COLUMNS.format("", ""))
_CONTROL_TIMEOUT = 2.0  # seconds; a living master answers within 50 ms
_COMMAND_WIDTH = 200  # characters of a command line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `doctor` takes."""
    add_path(parser)
    parser.epilog = "exit code 1 if a line says failure; warnings alone leave it 0"


def run(arguments: argparse.Namespace) -> int:
    """Look, and say what was found."""
    findings = list(examine(arguments.path))
    for finding in findings:
        sys.stdout.write(described(finding))
    sys.stdout.write("\n" + _summary(findings))
    return FAILED if any(finding.level is Level.FAILURE for finding in findings) else OK


def described(finding: Finding) -> str:
    """A finding as lines of at most 80 columns, whatever is in it."""
    head = _COLUMNS.format(finding.level.value, finding.subject)
    lines = _wrapped(finding.text, head)
    if finding.advice:
        lines += _wrapped(finding.advice, " " * (_INDENT - 3) + "-> ")
    return "".join(f"{line}\n" for line in lines)


def _wrapped(text: str, head: str) -> list[str]:
    printable = _text.cut(text, 2000)
    return textwrap.wrap(printable, WIDTH, initial_indent=head, subsequent_indent=" " * _INDENT,
                         break_on_hyphens=False) or [head.rstrip()]  # fmt: skip


def _summary(findings: list[Finding]) -> str:
    levels = [finding.level for finding in findings]
    failures, warnings = levels.count(Level.FAILURE), levels.count(Level.WARNING)
    if failures:
        return f"{_counted(failures, 'failure')}, {_counted(warnings, 'warning')}\n"
    return f"nothing is wrong, {_counted(warnings, 'warning')}\n" if warnings else "nothing is wrong\n"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def examine(path: str) -> Iterator[Finding]:
    """Everything that can be found out about a path, from the outside in."""
    found = list(inspection.place(path))
    yield from found
    if any(finding.subject in ("folder", "path") and finding.level is Level.FAILURE for finding in found[:2]):
        return
    holder = inspection.lock_holder(path)
    listener = _listener(path)
    yield _who_listens(listener, holder)
    yield _who_holds(holder)
    trusted = isinstance(listener, Peer) and platform.trusted(listener, ())
    server = _asked(path) if trusted else None
    if trusted:
        yield _control(server)
    yield from _versions(server, holder)
    yield from _descriptors(holder)


# -- who is there -----------------------------------------------------------------------------------------------------


def _listener(path: str) -> Peer | Exception:
    """Who listens, or why nobody could be reached; sends nothing."""
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


def _who_listens(listener: Peer | Exception, holder: LockHolder | None) -> Finding:
    if isinstance(listener, Peer):
        return _named_listener(listener)
    if isinstance(listener, BlockingIOError):
        return warning("listens", "a server whose queue is full", "see `ipcsrv status`: it may be busy, or hang")
    if isinstance(listener, NotListening) and holder is None:
        return ok("listens", "nobody; `ipcsrv start` starts a server")
    if isinstance(listener, NotListening):
        text = "nobody, though a server holds the lock"
        return warning("listens", text, "it is starting, or draining, or lost its socket: see its log")
    if isinstance(listener, Denied):
        return failure("listens", "the socket's mode does not let you in", "ask its owner for --mode and --allow")
    why = str(listener) if isinstance(listener, InvalidPath) else f"cannot be told: {listener}"
    return failure("listens", why, "choose another path, or remove what is there")


def _named_listener(peer: Peer) -> Finding:
    user = inspection.user_of(peer.uid)
    text = f"pid {peer.pid or 'unknown'} of {user}"
    command = inspection.command_of(peer.pid) if peer.pid else None
    if command:
        text += f": {_text.cut(command, _COMMAND_WIDTH)}"
    if not platform.trusted(peer, ()):
        return failure("listens", text, f"clients refuse it: name {user} in `trust` if it is the right one")
    return ok("listens", text)


def _who_holds(holder: LockHolder | None) -> Finding:
    if holder is None:
        return ok("lock", "free")
    pid = holder.pid or holder.record.get("pid")
    if pid is None:
        return warning("lock", "held by a process that cannot be seen from here", "it may be in another container")
    text = f"held by pid {pid}"
    if holder.pid is not None and holder.record.get("pid") not in (None, holder.pid):
        return warning("lock", f"{text}, but its file names pid {holder.record['pid']}",
                       f"see what {holder.pid} is; end it if it is what a killed server left")
    if not holder.record:
        return warning("lock", f"{text}, which says nothing of itself", "it is just starting, or no ipcsrv")
    return ok("lock", f"{text}, serving {holder.record.get('handler')}")


def _asked(path: str) -> dict[str, Any] | IpcError:
    """The server's own status, or why there is none."""
    try:
        return control.request(os.fspath(path), "status", timeout=_CONTROL_TIMEOUT)
    except IpcError as error:
        return error


def _control(server: dict[str, Any] | IpcError | None) -> Finding:
    if not isinstance(server, dict):
        return warning("control", f"the server cannot be asked about itself: {server}",
                       "fine for a server of another program; else see its log")
    workers = server.get("workers", [])
    busy = sum(worker.get("state") == "busy" for worker in workers)
    return ok("control", f"the server is {server.get('state')}, {busy} of {_counted(len(workers), 'worker')} busy")


# -- what it is made of -----------------------------------------------------------------------------------------------


def _versions(server: dict[str, Any] | IpcError | None, holder: LockHolder | None) -> Iterator[Finding]:
    record: dict[str, Any] = server if isinstance(server, dict) else holder.record if holder is not None else {}
    compiled = "compiled" if compiled_path() is not None else "in Python alone"
    ours = f"ipcsrv {__version__}, {compiled}, Python {sys.version.split()[0]}"
    theirs = record.get("version")
    if theirs is None:
        yield ok("version", ours)
    elif theirs == __version__:
        yield ok("version", f"{ours}; the server has the same ipcsrv")
    else:
        yield warning("version", f"{ours}; the server has ipcsrv {theirs}", "`ipcsrv restart` brings them together")


def _descriptors(holder: LockHolder | None) -> Iterator[Finding]:
    pids: Iterable[int | None] = (None, holder.pid) if holder is not None and holder.pid else (None,)
    for pid in pids:
        limits = inspection.descriptor_limits(pid)
        if limits is not None:
            yield _descriptor_limit("you" if pid is None else "the server", *limits)


def _descriptor_limit(whose: str, soft: int, hard: int) -> Finding:
    text = f"{whose} may open {soft:,}"
    if soft >= FEW_DESCRIPTORS:
        return ok("descriptors", text)
    advice = f"`ulimit -n {min(hard, 1 << 16)}` before the start, or LimitNOFILE= in its unit"
    return warning("descriptors", f"{text}; each connected client takes one", advice)
