"""Note what a program reads while it is imported.  In the template, and in a first cold run.

A template has one working folder, one environment and no terminal.  What an import takes from these decides which
server a client uses (`program.Place`), and what it reads from files decides whether the server is up to date.
"""

from __future__ import annotations

import sys

assert sys.platform != "win32"

import errno
import io
import os
import posixpath
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from . import stamps
from .program import TERMINALS, WORKING_FOLDER

#: Names that hold the working folder of the import and no more: a run sets them (`set_folders`).
FOLDERS = {"multiprocessing.process": "ORIGINAL_DIR", "rich": "_IMPORT_CWD", "pip._vendor.rich": "_IMPORT_CWD"}
#: Audit events of which the first arguments are paths, and how many.
_PATHS = {
    "open": 1, "os.chdir": 1, "os.listdir": 1, "os.mkdir": 1, "os.remove": 1, "os.rename": 2, "os.rmdir": 1,
    "os.scandir": 1,
}  # fmt: skip
_QUESTIONS = (
    (posixpath, "exists"), (posixpath, "isfile"), (posixpath, "isdir"),
    (Path, "exists"), (Path, "is_file"), (Path, "is_dir"),
)  # fmt: skip
_is_folder = posixpath.isdir
_audited: Recorder | None = None


class Recorder:
    """Notes which files and variables are read while it is installed, and what is written to standard streams."""

    def __init__(self) -> None:
        self.sources: stamps.Stamps = {}  # of modules
        self.files: stamps.Stamps = {}  # other files that are read, or that are looked for and do not exist
        self.variables: set[str] = set()  # also WORKING_FOLDER and TERMINALS
        self.only_imports = False  # note variables only while a module is being imported
        self.output: list[tuple[int, bytes]] = []  # of an import: descriptor and data
        self.elsewhere = False  # whether the working folder is not the client's: a relative path finds nothing in it

    @contextmanager
    def installed(self, *, files: bool = True) -> Iterator[None]:
        """Note what is read within the block; not which files are where a traceback could show it."""
        path_stats, getitem, getcwd, getcwdb = (
            SourceFileLoader.path_stats, os._Environ.__getitem__, os.getcwd, os.getcwdb,
        )  # fmt: skip
        recorder = self

        def stats(loader: SourceFileLoader, path: Any) -> Any:
            recorder.sources.setdefault(str(path), stamps.stamp_of(path))  # before it is read
            return path_stats(loader, path)

        def item(environ: Any, name: Any) -> Any:
            recorder._note(os.fsdecode(name), sys._getframe(1))
            return getitem(environ, name)

        def folder() -> str:
            recorder._note_folder(sys._getframe(1))
            return getcwd()

        def folder_bytes() -> bytes:
            recorder._note_folder(sys._getframe(1))
            return getcwdb()

        with ExitStack() as stack:
            stack.enter_context(replaced(SourceFileLoader, "path_stats", stats))
            stack.enter_context(replaced(os._Environ, "__getitem__", item))
            stack.enter_context(replaced(os, "getcwd", folder))
            stack.enter_context(replaced(os, "getcwdb", folder_bytes))
            if files:
                for owner, name in _QUESTIONS:
                    stack.enter_context(replaced(owner, name, self._asking(getattr(owner, name))))
                stack.enter_context(self._auditing())
            yield

    def note_terminal(self) -> None:
        """Note that it matters which standard streams are terminals."""
        self._note(TERMINALS.decode(), sys._getframe(2))

    def _note(self, name: str, frame: FrameType | None) -> None:
        if not self.only_imports or _importing(frame):
            self.variables.add(name)

    def _note_folder(self, frame: FrameType) -> bool:
        found = frame.f_globals.get("__name__") not in FOLDERS and _importing(frame)
        if found:
            self.variables.add(WORKING_FOLDER.decode())
        return found

    @contextmanager
    def _auditing(self) -> Iterator[None]:
        """Note what files are opened and which paths are relative.  The hook stays, as there is no way to remove it."""
        global _audited
        sys.addaudithook(_audit)
        _audited = self
        try:
            yield
        finally:
            _audited = None

    def _note_use(self, event: str, arguments: tuple[Any, ...], frame: FrameType) -> None:
        for path in arguments[: _PATHS[event]]:
            if isinstance(path, int):
                continue
            if not os.path.isabs(path or ".") and self._note_folder(frame) and self.elsewhere:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)  # nothing is written here
            if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
                self._note_file(path)

    def _asking(self, real: Callable[..., bool]) -> Callable[..., bool]:
        recorder = self

        def ask(path: Any, *arguments: Any, **options: Any) -> bool:
            found = real(path, *arguments, **options)
            if not isinstance(path, int) and not os.path.isabs(path):
                recorder._note_folder(sys._getframe(1))
            if not found and not isinstance(path, int):
                recorder._note_file(path)
            return found

        return ask

    def _note_file(self, file: Any) -> None:
        path = os.path.abspath(os.fsdecode(file))
        if not path.startswith(("/dev/", "/proc/", "/sys/")) and not path.endswith(".pyc") and not _is_folder(path):
            self.files.setdefault(path, stamps.stamp_of(path))


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _audited is not None and event in _PATHS:
        _audited._note_use(event, arguments, sys._getframe(1))


@contextmanager
def replaced(owner: Any, name: str, replacement: Any) -> Iterator[None]:
    """Replace an attribute, in the block and in no module that has taken it over by then."""
    original = getattr(owner, name)
    setattr(owner, name, replacement)
    try:
        yield
    finally:
        setattr(owner, name, original)
        if isinstance(owner, ModuleType):
            _replace_copies(replacement, original)


def _replace_copies(replacement: Any, original: Any) -> None:
    for module in list(sys.modules.values()):
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if value is replacement:
                setattr(module, name, original)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def hide_frames(error: BaseException) -> None:
    """Take the frames of this module out of a traceback, and of those of the exceptions that led to it."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        found = waiting.pop()
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        waiting += [found.__cause__, found.__context__]
        entry = found.__traceback__
        while entry is not None and entry.tb_next is not None:
            if entry.tb_next.tb_frame.f_code.co_filename == __file__:
                entry.tb_next = entry.tb_next.tb_next
            else:
                entry = entry.tb_next


def set_folders() -> None:
    """Have the modules that keep the working folder of their import keep that of this run."""
    for name, attribute in FOLDERS.items():
        module = sys.modules.get(name)
        if module is not None and hasattr(module, attribute):
            setattr(module, attribute, os.getcwd())


# -- terminals --------------------------------------------------------------------------------------------------------


class _Stream(io.FileIO):
    """A standard stream of the template, which says that it is a terminal where the client's is one.

    What is written during the import is kept for the runs.
    """

    def __init__(self, descriptor: int, recorder: Recorder, *, terminal: bool) -> None:
        super().__init__(descriptor, "w" if descriptor else "r", closefd=False)
        self._recorder, self._terminal = recorder, terminal
        self.keeps_output = True

    def write(self, data: Any) -> int:
        """Keep the data, while the program is imported."""
        if not self.keeps_output:
            return super().write(data)
        self._recorder.output.append((self.fileno(), bytes(data)))
        return memoryview(data).nbytes

    def isatty(self) -> bool:
        """Answer for the client's stream."""
        self._recorder.note_terminal()
        return self._terminal


@contextmanager
def terminals_like(bits: str, recorder: Recorder) -> Iterator[None]:
    """Have the standard streams be terminals where `bits` are 1, for the block."""
    real = os.isatty
    raws = []
    sys.stdin = sys.__stdin__  # multiprocessing replaces it in its children, and a module may keep it
    for descriptor, stream in enumerate((sys.__stdin__, sys.__stdout__, sys.__stderr__)):
        if isinstance(stream, io.TextIOWrapper):
            raw = _Stream(descriptor, recorder, terminal=bits[descriptor] == "1")
            raws.append(raw)
            buffer: Any = io.BufferedWriter(raw) if descriptor else io.BufferedReader(raw)
            stream.__init__(  # type: ignore[misc]
                buffer, stream.encoding, stream.errors, newline="\n", line_buffering=bool(descriptor)
            )

    def isatty(descriptor: int) -> bool:
        if descriptor not in (0, 1, 2):
            return real(descriptor)
        recorder.note_terminal()
        return bits[descriptor] == "1"

    with replaced(os, "isatty", isatty):
        yield
    flush_streams()
    for raw in raws:
        raw.keeps_output = False


def flush_streams() -> None:
    """Have everything that has been printed in `Recorder.output`."""
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None and not stream.closed:
            stream.flush()
