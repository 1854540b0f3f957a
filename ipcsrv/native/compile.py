"""Compile `ipcsrvc`: `python ipcsrv/native/compile.py OUTPUT [COMPILER FLAGS...]`; `setup.py` calls `compile_client`.

The messages and exit codes of the C client are generated from `ipcsrv/errors.py`, so that they are those of the Python
client. The compiler is `$CC`, else `cc`, with `$CFLAGS` and `$LDFLAGS`.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ipcsrv.errors import IpcError

FOLDER = Path(__file__).resolve().parent
SOURCES = ("main.c", "errors.c", "connect.c", "exchange.c", "autostart.c", "program.c", "warm.c")
FLAGS = ("-O2", "-std=c99", "-D_DEFAULT_SOURCE", "-Wall", "-Wextra", "-Wno-missing-field-initializers")

# Stand-ins for the arguments of an error, and what complain() has in their place.
_PATH, _FIRST, _SECOND, _NUMBER = "PATHPATH", "FIRSTFIRST", "SECONDSECOND", 98765
_MARKS = {_PATH: r"\1", _FIRST: r"\2", _SECOND: r"\3", str(_NUMBER): r"\2"}


def compile_client(output: str | os.PathLike[str], flags: Sequence[str] = ()) -> None:
    """Compile the client to the executable `output`.

    Args:
        output: path of the executable.
        flags: further flags for the compiler.

    Raises:
        OSError: there is no compiler.
        subprocess.CalledProcessError: the compiler failed.
    """
    compiler = shlex.split(os.environ.get("CC") or "cc")
    chosen = [*FLAGS, *shlex.split(os.environ.get("CFLAGS", "")), *flags, *shlex.split(os.environ.get("LDFLAGS", ""))]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "messages.h").write_text(messages_header(), encoding="utf-8")
        sources = [str(FOLDER / name) for name in SOURCES]
        subprocess.run([*compiler, "-I", folder, *chosen, "-o", os.fspath(output), *sources, "-lm"], check=True)


def messages_header() -> str:
    """The header `messages.h`: texts and exit codes of errors, failure replies, and which characters are escaped."""
    sys.path.insert(0, str(FOLDER.parent.parent))
    try:
        return "\n".join(_lines()) + "\n"
    finally:
        del sys.path[0]


def _lines() -> Iterator[str]:
    from ipcsrv import errors
    from ipcsrv._version import __version__

    yield "/* Generated from ipcsrv/errors.py by ipcsrv/native/compile.py. */"
    yield f'#define IPCSRV_VERSION "{__version__}"'
    for name, error in _examples():
        yield f"#define TEXT_{name} {_literal(str(error))}"
        yield f"#define EXIT_{name} {error.exit_code}"
    yield "static const struct failure { const char *code, *text; int exit_code; } failures[] = {"
    for code in (*errors._BY_CODE, "control", _FIRST):
        reply = errors.from_reply(code, _SECOND, _PATH)
        shown = "NULL" if code == _FIRST else f'"{code}"'
        yield f"    {{{shown}, {_literal(str(reply))}, {reply.exit_code}}},"
    yield "};"
    yield "enum progress { NOTHING_SENT, REQUEST_SENT, RESPONSE_BEGUN };"
    steps = (errors.Progress.NOTHING_SENT, errors.Progress.REQUEST_SENT, errors.Progress.RESPONSE_BEGUN)
    yield from _texts("TIMEOUT", [errors.CallTimeout(_PATH, float(_NUMBER), progress) for progress in steps])
    yield from _texts("LOST", [errors.ConnectionLost(_PATH, progress) for progress in steps])
    yield "struct range { unsigned first, last; };"
    yield from _ranges("unprintable", lambda character: not character.isprintable())
    yield from _ranges("spaces", str.isspace)


def _texts(name: str, made: Sequence[IpcError]) -> Iterator[str]:
    """The texts of one error, by `enum progress`, and its exit code."""
    yield f"static const char *const TEXTS_{name}[] = {{{', '.join(_literal(str(error)) for error in made)}}};"
    yield f"#define EXIT_{name} {made[0].exit_code}"


def _ranges(name: str, holds: Callable[[str], bool]) -> Iterator[str]:
    """The characters for which `holds`, as a table of ranges that ends with one above all."""
    ranges: list[list[int]] = []
    for code in filter(lambda code: holds(chr(code)), range(sys.maxunicode + 1)):
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    shown = ", ".join(f"{{{first}, {last}}}" for first, last in [*ranges, [sys.maxunicode + 1] * 2])
    yield f"static const struct range {name}[] = {{{shown}}};"


def _examples() -> Iterator[tuple[str, IpcError]]:
    """Return the errors that have one text each, made with the stand-ins."""
    from ipcsrv import errors
    from ipcsrv.peer import Peer

    yield "NOT_LISTENING", errors.NotListening(_PATH)
    yield "PATH_NOT_FOUND", errors.PathNotFound(_PATH)
    yield "INVALID_PATH", errors.InvalidPath(_PATH, _FIRST)
    yield "NO_ACCESS", errors.Denied("its socket's mode does not let this user in", _PATH)
    yield "UNTRUSTED", errors.Untrusted(_PATH, Peer(1, _NUMBER, 1), "you or root")
    yield "PROTOCOL_ERROR", errors.ProtocolError(_FIRST)


def _literal(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    for stand_in, mark in _MARKS.items():
        escaped = escaped.replace(stand_in, mark + '""')  # so that no digit that follows joins the escape
    return f'"{escaped}"'


if __name__ == "__main__":
    compile_client(sys.argv[1], sys.argv[2:])
