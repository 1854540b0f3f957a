"""Find a program, its interpreter, and the path of the server that runs it warm.  In the client.

Everything here is done once more in C (ipcsrv/native/program.c), and must give the same paths; a test compares them.
A server is named for its *key*: the interpreter with its flags, the program, the version of ipcsrv, the groups of the
user's process, and the variables that the interpreter reads before any program could change them.
"""

from __future__ import annotations

import sys

assert sys.platform != "win32"

import os

from .._version import __version__
from ..errors import IpcError
from ..platform.unix.folder import runtime_folder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

FORMAT = "ipcsrv-warm 1"
FOLDER = "warm"
OVERRIDE = "IPCSRV_RUNTIME_DIR"
LAUNCHER = "ipcsrvc warm"  # in the first line of a launcher; the program is named in the second
#: Variables that a process reads when it starts; a server keeps the values that it was started with.
STARTUP_VARIABLES = (
    b"DYLD_INSERT_LIBRARIES", b"DYLD_LIBRARY_PATH", b"HOME", b"LANG", b"LD_LIBRARY_PATH", b"LD_PRELOAD",
)  # fmt: skip
STARTUP_PREFIXES = (b"LC_", b"PYTHON")
WORKING_FOLDER, TERMINALS = b".", b"/tty"  # in the file of variables: what else decides how an import ends
_LONGEST_NAME = 32  # bytes of the program's name in the socket's name
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
_FNV_OFFSET, _FNV_PRIME = 0xCBF29CE484222325, 0x100000001B3


class ProgramError(IpcError):
    """The program does not exist, or is not one that Python runs; `path` names it."""

    exit_code = 2


class NotPython(ProgramError):
    """The program exists, but no Python interpreter runs it: it can only run cold."""

    path: str


class Program:
    """A program as found: `path` is the script, absolute, or MODULE:MAIN; `argv0` is its name for itself.

    `by_launcher` says that a launcher has named it, whose arguments are all the program's.
    """

    __slots__ = ("argv0", "by_launcher", "flags", "interpreter", "is_module", "path")

    def __init__(
        self, path: str, argv0: str, interpreter: str, flags: list[str], *, is_module: bool, by_launcher: bool = False
    ) -> None:
        self.path = path
        self.argv0 = argv0
        self.interpreter = interpreter
        self.flags = flags
        self.is_module = is_module
        self.by_launcher = by_launcher

    @property
    def source(self) -> str:
        """The program that Python runs with -c for MODULE:MAIN; "" for a script."""
        if not self.is_module:
            return ""
        module, _, name = self.path.partition(":")
        first = name.partition(".")[0]
        return f"import sys; sys.argv[0] = {self.argv0!r}; from {module} import {first}; sys.exit({name}())"

    def cold_command(self, arguments: list[str]) -> list[str]:
        """Return the command line of a run without a server."""
        if self.is_module:
            return [self.interpreter, *self.flags, "-c", self.source, *arguments]
        if os.access(self.argv0, os.X_OK):
            return [self.argv0, *arguments]
        return [self.interpreter, *self.flags, self.argv0, *arguments]


def find(name: str) -> Program:
    """Return the program that `name` means: a name in PATH, a path, or MODULE:MAIN for the own interpreter.

    Raises:
        ProgramError: there is no such program.
        NotPython: it is not run by Python.
    """
    if ":" in name and "/" not in name:
        if not all(map(_is_dotted_name, name.split(":", 1))):
            raise ProgramError(f"{name}: not a program, nor MODULE:MAIN", name)
        return Program(name, name, sys.executable, ["-P"], is_module=True)
    path = name if "/" in name else _in_path(name)
    if not os.path.isfile(path):
        raise ProgramError(f"{name}: no such program", name)
    lines = _first_lines(path)
    by_launcher = lines[0].startswith(b"#!") and LAUNCHER.encode() in lines[0]
    if by_launcher:
        path = os.fsdecode(lines[1])
        lines = _first_lines(path)
    interpreter, flags = _interpreter(path, lines)
    return Program(os.path.abspath(path), path, interpreter, flags, is_module=False, by_launcher=by_launcher)


def _is_dotted_name(text: str) -> bool:
    from keyword import iskeyword

    return all(part.isidentifier() and not iskeyword(part) for part in text.split("."))


def _in_path(name: str) -> str:
    for folder in os.environ.get("PATH", os.defpath).split(":"):
        path = os.path.join(folder or ".", name)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    raise ProgramError(f"{name}: no such program in PATH; give its file, or MODULE:MAIN", name)


def _first_lines(path: str) -> list[bytes]:
    """Return the first two lines of a script, each b"" where it is missing."""
    try:
        with open(path, "rb") as file:
            lines = file.read(2048).split(b"\n")
    except OSError as error:
        raise ProgramError(f"{path}: cannot be read: {error.strerror}", path) from None
    return [*lines, b""][:2]


def _interpreter(path: str, lines: list[bytes]) -> tuple[str, list[str]]:
    """Return the Python that the script's first line names, and its flags."""
    words = os.fsdecode(lines[0].removeprefix(b"#!")).split() if lines[0].startswith(b"#!") else []
    if words[:1] == ["/bin/sh"] and lines[1].startswith(b"'''exec' "):  # pip's way around a long or spaced path
        quoted = os.fsdecode(lines[1].removeprefix(b"'''exec' "))
        words = [quoted[1:].partition('"')[0]] if quoted.startswith('"') else quoted.split(" ")[:1]
    elif len(words) == 2 and os.path.basename(words[0]) == "env":
        words = [_in_path(words[1])]
    known = bool(words) and os.path.basename(words[0]).startswith(("python", "pypy")) and words[0].startswith("/")
    if not known or os.path.basename(words[0]).startswith("python2"):
        raise NotPython(f"{path}: not a Python program", path)
    return words[0], words[1:]


# -- the server's path ------------------------------------------------------------------------------------------------


class Place:
    """Where the server of a program is: `socket`, and the files beside it.

    `key` is the text whose hash names them.  `learned`, `preload` and `variables` are named for the key alone; the
    rest also for the values of the variables in the file `variables`: names that the program reads while it is
    imported, so that a server is never asked by a client in whose environment the import would have been different.
    `start_of_key` is the part of the key that all servers of the program have in common.
    """

    def __init__(self, program: Program, terminals: str | None = None) -> None:
        environ = os.environb.copy()
        self.program, self.terminals = program, _terminals() if terminals is None else terminals
        folder = os.path.join(runtime_folder(os.environ.get(OVERRIDE)), FOLDER)
        key = _key(program, environ)
        self.folder, self.start_of_key = folder, key
        *_, stem = stems(folder, program.path, key)
        self.learned, self.preload, self.variables = (f"{stem}.{name}" for name in ("learned", "preload", "env"))
        self.lock = f"{stem}.starting"
        for name in read_lines(self.variables):
            value = self._value_of(name, environ)
            key += name + (b"\0" if value is None else b"=" + value + b"\0")
        self.key = key
        *_, stem = stems(folder, program.path, key)
        self.socket, self.stamps, self.failed, self.base_file = (
            f"{stem}.{name}" for name in ("sock", "stamps", "failed", "base")
        )

    def _value_of(self, name: bytes, environ: dict[bytes, bytes]) -> bytes | None:
        """Return what a server depends on by this name."""
        if name == WORKING_FOLDER:
            return os.getcwdb()
        return self.terminals.encode() if name == TERMINALS else environ.get(name)

    def again(self) -> Place:
        """Return where the server of the same client is now: files beside it may have changed."""
        return Place(self.program, self.terminals)

    def make_folder(self) -> None:
        """Make the folder of all servers that run warm; its parent is this user's alone."""
        os.makedirs(self.folder, mode=0o700, exist_ok=True)


def _terminals() -> str:
    """Return a digit for each standard stream: 1 for a terminal, 0 for anything else."""
    return "".join(str(int(os.isatty(descriptor))) for descriptor in (0, 1, 2))


def read_lines(path: str) -> list[bytes]:
    """Return the lines of a file, none if it does not exist."""
    try:
        with open(path, "rb") as file:
            return file.read().split()
    except FileNotFoundError:
        return []


def _key(program: Program, environ: dict[bytes, bytes]) -> bytes:
    texts = [FORMAT, __version__, program.interpreter, " ".join(program.flags), program.path]
    searched = environ.get(b"PYTHONPATH", b"")
    relative = any(not folder.startswith(b"/") for folder in searched.split(b":")) if searched else False
    texts.append(os.getcwd() if relative else "")
    texts.append(" ".join(map(str, (os.getgid(), os.getegid(), *os.getgroups()))))
    found = sorted(name for name in environ if name in STARTUP_VARIABLES or name.startswith(STARTUP_PREFIXES))
    return b"".join(os.fsencode(text) + b"\0" for text in texts) + b"".join(
        name + b"=" + environ[name] + b"\0" for name in found
    )


def _short(path: str) -> str:
    """Return the program's name as far as it is plain in a file's name."""
    name = os.fsencode(path.rpartition("/")[2])[:_LONGEST_NAME]
    return bytes(byte if byte in _PLAIN else ord("_") for byte in name).decode()


def stems(folder: str, path: str, key: bytes) -> Iterator[str]:
    """Yield the paths of files without their ends for each beginning of a key, up to the whole.

    The hash is FNV-1a of 64 bits: names only; what decides is the key itself, in the file of stamps.
    """
    value = _FNV_OFFSET
    for byte in key:
        value = (value ^ byte) * _FNV_PRIME & 0xFFFFFFFFFFFFFFFF
        if not byte:
            yield os.path.join(folder, f"{_short(path)}-{value:016x}")
