"""Import the program beforehand, and write down what was imported.  In the template, once for each generation."""

from __future__ import annotations

import sys

assert sys.platform != "win32"

import importlib
import os
import secrets
import signal
import sysconfig
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder, SourceFileLoader
from typing import Any

from ..errors import HandlerImportError
from ..platform.unix.descriptors import open_descriptors
from . import stamps
from .program import read_lines

VARIABLE = "IPCSRV_WARM_SPEC"
LEARN_NOTHING = b"-"  # in the file of learned modules


class Recorder:
    """Notes which source files and environment variables are read while it is installed."""

    def __init__(self) -> None:
        self.files: dict[str, stamps.Stamp] = {}
        self.variables: set[str] = set()
        self.only_imports = False  # note variables only while a module is being imported

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Note what is read within the block."""
        path_stats, getitem = SourceFileLoader.path_stats, os._Environ.__getitem__
        recorder = self

        def stats(loader: SourceFileLoader, path: Any) -> Any:
            recorder.files.setdefault(str(path), stamps.stamp_of(path))  # before it is read
            return path_stats(loader, path)

        def item(environ: Any, name: Any) -> Any:
            if not recorder.only_imports or _importing():
                recorder.variables.add(os.fsdecode(name))
            return getitem(environ, name)

        SourceFileLoader.path_stats = stats  # type: ignore[method-assign, assignment]
        os._Environ.__getitem__ = item  # type: ignore[method-assign]
        try:
            yield
        finally:
            SourceFileLoader.path_stats = path_stats  # type: ignore[method-assign]
            os._Environ.__getitem__ = getitem  # type: ignore[method-assign]


def _importing() -> bool:
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def is_foreign(search_path: list[str]) -> bool:
    """Return whether ipcsrv is not installed for this interpreter."""
    return PathFinder.find_spec("ipcsrv", search_path) is None


class ImportEffects:
    """What the import of a program has changed in the process, beside its modules; a run begins with the same."""

    def __init__(self) -> None:
        self.environment: dict[bytes, bytes | None] = {}
        self.signals: dict[int, Any] = {}
        self.path: list[str] = []
        self.descriptors: frozenset[int] = frozenset()

    @contextmanager
    def observed(self) -> Iterator[None]:
        """Note the changes of the block."""
        environment, handlers, descriptors = os.environb.copy(), _handlers(), open_descriptors()
        yield
        for name in {*environment, *os.environb}:
            if os.environb.get(name) != environment.get(name):
                self.environment[name] = os.environb.get(name)
        self.signals = {number: now for number, now in _handlers().items() if now is not handlers[number]}
        self.path = list(sys.path)
        self.descriptors = frozenset(open_descriptors() - descriptors)


def _handlers() -> dict[int, Any]:
    return {number: signal.getsignal(number) for number in range(1, 32)}


class Template:
    """What every run of this generation has in common."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        self.token = secrets.token_hex(8)
        self.foreign = is_foreign(spec["search_path"])
        self.code: Any = None  # of a script
        self.effects = ImportEffects()
        self.modules: frozenset[str] = frozenset()  # names of all that are imported
        self.learned = stamps.ABSENT  # of the file, when it was read
        self._imported: dict[str, stamps.Stamp] = {}

    def load(self) -> None:
        """Import everything.

        Raises:
            HandlerImportError: the program cannot be run from a template.
        """
        sys.path[:] = self.spec["search_path"]
        recorder = Recorder()
        self.learned = stamps.stamp_of(self.spec["learned"])
        script = None if self.spec["is_module"] else stamps.stamp_of(self.spec["path"])
        with self.effects.observed(), recorder.installed():
            if script is not None:
                self.code = _compile(self.spec["path"])
            import_all(self._wanted())
        self.modules = frozenset(sys.modules)
        if threading.active_count() > 1:
            write_lines(self.spec["learned"], [LEARN_NOTHING])  # the next time without late imports
            raise HandlerImportError(self.spec["path"], reason="starts threads when it is imported")
        self._imported = self._stamps(recorder.files)
        if script is not None:
            self._imported[self.spec["path"]] = script
        self._note_variables(recorder.variables)

    def publish(self) -> None:
        """Write the stamps, by which clients choose this generation: when a worker is ready, the first of them all."""
        found = stamps.read(self.spec["stamps"])
        if found is None or found[0] != self.token:
            stamps.write(self.spec["stamps"], self.token, bytes.fromhex(self.spec["key"]), self._imported)

    def _wanted(self) -> list[str]:
        """Return the modules to import: the program's own, those named by the user, and those that a run has shown."""
        names = _imported_by(self.code) if self.code is not None else [self.spec["path"].partition(":")[0]]
        for path in (self.spec["preload"], self.spec["learned"]):
            names += [os.fsdecode(name) for name in read_lines(path) if name != LEARN_NOTHING]
        return list(dict.fromkeys(names))

    def _stamps(self, read: dict[str, stamps.Stamp]) -> dict[str, stamps.Stamp]:
        """Return the stamps of all that a change would make stale; those of source files as of their reading."""
        standard = tuple(os.path.join(sysconfig.get_path(name), "") for name in ("stdlib", "platstdlib"))
        files = {module.__file__ for module in list(sys.modules.values()) if getattr(module, "__file__", None)}
        found: dict[str, stamps.Stamp] = {}
        for path in sorted(file for file in files if isinstance(file, str) and os.path.isabs(file)):
            if not path.startswith(standard) or "-packages/" in path:
                found[path] = read.get(path) or stamps.stamp_of(path)
        for folder in sys.path:
            if folder.endswith("-packages"):  # a package that is installed or removed changes its folder
                found[folder] = stamps.stamp_of(folder)
        for path in (sys.executable, os.__file__, os.path.join(sys.prefix, "pyvenv.cfg"), self.spec["preload"]):
            found[path] = stamps.stamp_of(path)
        return found

    def _note_variables(self, names: set[str]) -> None:
        """Add variables to those that name the server's path: the next client that has others finds another server."""
        known = read_lines(self.spec["variables"])
        note_variables(self.spec["variables"], known, names)


def note_variables(path: str, known: list[bytes], names: Iterable[str]) -> None:
    """Write the names of variables that an import has read, beside those known, if there are new ones."""
    new = {os.fsencode(name) for name in names if _matters(name)} - set(known)
    if new:
        write_lines(path, sorted({*known, *new}))


def _matters(name: str) -> bool:
    return not name.startswith(("PYTHON", "IPCSRV_")) and not any(letter.isspace() for letter in name)


def write_lines(path: str, lines: Iterable[bytes]) -> None:
    """Write a file of lines in one step."""
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "wb") as file:
        file.write(b"".join(line + b"\n" for line in lines))
    os.rename(temporary, path)


def _compile(path: str) -> Any:
    with open(path, "rb") as file:
        return compile(file.read(), path, "exec", dont_inherit=True)


def _imported_by(code: Any) -> list[str]:
    """Return the names that a script's own lines import."""
    import dis

    return [str(i.argval) for i in dis.get_instructions(code) if i.opname == "IMPORT_NAME" and i.argval != "__future__"]


def import_all(names: Iterable[str]) -> None:
    """Import modules; one that cannot be imported is left to the run, which then says why."""
    for name in names:
        try:
            importlib.import_module(name)
        except (Exception, SystemExit):
            sys.modules.pop(name, None)
