"""Note what a program reads while it is imported.  In the template, and in a first cold run.

A template has one working folder, one environment and no terminal.  What an import takes from these decides which
server a client uses (`program.Place`), and what it reads from files decides whether the server is up to date.
"""

from __future__ import annotations

import sys

assert sys.platform != "win32"

import builtins
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


class Recorder:
    """Notes which files and variables are read while it is installed."""

    def __init__(self) -> None:
        self.sources: stamps.Stamps = {}  # of modules
        self.files: stamps.Stamps = {}  # other files that are read, or that are looked for and do not exist
        self.variables: set[str] = set()  # also WORKING_FOLDER and TERMINALS
        self.only_imports = False  # note variables only while a module is being imported

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

        with ExitStack() as replaced:
            replaced.enter_context(_replaced(SourceFileLoader, "path_stats", stats))
            replaced.enter_context(_replaced(os._Environ, "__getitem__", item))
            replaced.enter_context(_replaced(os, "getcwd", folder))
            replaced.enter_context(_replaced(os, "getcwdb", folder_bytes))
            if files:
                for owner, name in ((posixpath, "exists"), (posixpath, "isfile"), (Path, "exists"), (Path, "is_file")):
                    replaced.enter_context(_replaced(owner, name, self._asking(getattr(owner, name))))
                replaced.enter_context(_replaced(builtins, "open", opened := self._open()))
                replaced.enter_context(_replaced(io, "open", opened))
            yield

    def note_terminal(self) -> None:
        """Note that it matters which standard streams are terminals."""
        self._note(TERMINALS.decode(), sys._getframe(2))

    def _note(self, name: str, frame: FrameType | None) -> None:
        if not self.only_imports or _importing(frame):
            self.variables.add(name)

    def _note_folder(self, frame: FrameType) -> None:
        if frame.f_globals.get("__name__") not in FOLDERS and _importing(frame):
            self.variables.add(WORKING_FOLDER.decode())

    def _open(self) -> Callable[..., Any]:
        real = io.open
        recorder = self

        def opened(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if not set(mode) & set("wxa+") and not isinstance(file, int):
                recorder._note_file(file)
            return real(file, mode, *arguments, **options)

        return opened

    def _asking(self, real: Callable[..., bool]) -> Callable[..., bool]:
        recorder = self

        def ask(path: Any, *arguments: Any, **options: Any) -> bool:
            found = real(path, *arguments, **options)
            if not found and not isinstance(path, int):
                recorder._note_file(path)
            return found

        return ask

    def _note_file(self, file: Any) -> None:
        path = os.path.abspath(os.fsdecode(file))
        if not path.startswith(("/dev/", "/proc/", "/sys/")) and not os.path.isdir(path):
            self.files.setdefault(path, stamps.stamp_of(path))


@contextmanager
def _replaced(owner: Any, name: str, replacement: Any) -> Iterator[None]:
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
    """A standard stream of the template, which says that it is a terminal where the client's is one."""

    def __init__(self, descriptor: int, recorder: Recorder, *, terminal: bool) -> None:
        super().__init__(descriptor, "w" if descriptor else "r", closefd=False)
        self._recorder, self._terminal = recorder, terminal

    def isatty(self) -> bool:
        """Answer for the client's stream."""
        self._recorder.note_terminal()
        return self._terminal


@contextmanager
def terminals_like(bits: str, recorder: Recorder) -> Iterator[None]:
    """Have the standard streams be terminals where `bits` are 1, for the block."""
    real = os.isatty
    sys.stdin = sys.__stdin__  # multiprocessing replaces it in its children, and a module may keep it
    for descriptor, stream in enumerate((sys.__stdin__, sys.__stdout__, sys.__stderr__)):
        if isinstance(stream, io.TextIOWrapper):
            raw = _Stream(descriptor, recorder, terminal=bits[descriptor] == "1")
            buffer: Any = io.BufferedWriter(raw) if descriptor else io.BufferedReader(raw)
            stream.__init__(buffer, stream.encoding, stream.errors, newline="\n")  # type: ignore[misc]

    def isatty(descriptor: int) -> bool:
        if descriptor not in (0, 1, 2):
            return real(descriptor)
        recorder.note_terminal()
        return bits[descriptor] == "1"

    with _replaced(os, "isatty", isatty):
        yield


