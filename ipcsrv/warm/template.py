"""Import the program beforehand, and write down what was imported.  In the template, once for each generation."""

from __future__ import annotations

import sys

assert sys.platform != "win32"

import ast
import atexit
import gc
import importlib
import io
import os
import secrets
import signal
import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import takewhile
from types import ModuleType
from typing import Any

from ..errors import HandlerImportError
from ..platform.unix.descriptors import open_descriptors
from . import base, recording, stamps
from .program import WORKING_FOLDER, read_lines
from .recording import Recorder

VARIABLE = "IPCSRV_WARM_SPEC"
LEARN_NOTHING = b"-"  # a line in the file of learned modules; before a name: not this one
OUR_PACKAGES = ("ipcsrv", "filelock")


def take_out_packages() -> dict[str, ModuleType]:
    """Take the packages of the server out of `sys.modules`: the program imports its own copies, of its own versions."""
    names = [name for name in sys.modules if name.partition(".")[0] in OUR_PACKAGES]
    return {name: sys.modules.pop(name) for name in names}


@contextmanager
def packages_taken_out(kept: dict[str, ModuleType]) -> Iterator[None]:
    """Take out what finds and is the server's packages for the block; what is imported of them in it goes to `kept`."""
    finders = own_finders()
    sys.meta_path[:] = [finder for finder in sys.meta_path if finder not in finders]
    packages = take_out_packages()
    try:
        yield
    finally:
        kept.update(take_out_packages())
        sys.modules.update(packages)
        sys.meta_path[:0] = finders


def own_finders() -> list[Any]:
    """Return the finder of `bootstrap`, if it is installed: no other one is of a class that `__main__` defines."""
    return [finder for finder in sys.meta_path if type(finder).__module__ == "__main__"]


class ImportEffects:
    """What the import of a program has changed in the process, beside its modules; a run begins with the same."""

    def __init__(self) -> None:
        self.environment: dict[bytes, bytes | None] = {}
        self.signals: dict[int, Any] = {}
        self.path: list[str] = []
        self.descriptors: frozenset[int] = frozenset()
        self.exit_functions: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []
        self.files: list[weakref.ref[Any]] = []  # that are open: what is not flushed in them is written by each run
        self.output: list[tuple[int, bytes]] = []  # of what every run imports, as in `Recorder`

    @contextmanager
    def observed(self) -> Iterator[None]:
        """Note the changes of the block."""
        environment, handlers, descriptors = os.environb.copy(), _handlers(), open_descriptors()
        files = _open_files()
        with self._exit_functions_noted():
            yield
        self.files = [weakref.ref(file) for file in _open_files() if not any(file is known for known in files)]
        for name in {*environment, *os.environb}:
            if os.environb.get(name) != environment.get(name):
                self.environment[name] = os.environb.get(name)
        self.signals = {number: now for number, now in _handlers().items() if now is not handlers[number]}
        self.path = list(sys.path)
        self.descriptors = frozenset(open_descriptors() - descriptors)

    @contextmanager
    def _exit_functions_noted(self) -> Iterator[None]:
        """Note what is registered with `atexit`, which is for the runs and not for the template."""
        real, real_unregister, noting = atexit.register, atexit.unregister, True

        def register(function: Any, /, *arguments: Any, **options: Any) -> Any:
            if not noting:  # called by a module that has kept it
                return real(function, *arguments, **options)
            self.exit_functions.append((function, arguments, options))
            return function

        def unregister(function: Any, /) -> None:
            self.exit_functions = [entry for entry in self.exit_functions if entry[0] != function]
            real_unregister(function)

        with recording.replaced(atexit, "register", register), recording.replaced(atexit, "unregister", unregister):
            yield
        noting = False


def _open_files() -> list[Any]:
    kinds = (io.BufferedWriter, io.BufferedRandom, io.TextIOWrapper)
    return [thing for thing in gc.get_objects() if isinstance(thing, kinds)]


def _handlers() -> dict[int, Any]:
    return {number: signal.getsignal(number) for number in range(1, 32)}


class Template:
    """What every run of this generation has in common."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        self.token = secrets.token_hex(8)
        self.code: Any = None  # of a script
        self._first: list[ast.stmt] = []  # the imports with which the program begins
        self.effects = ImportEffects()
        self.modules: frozenset[str] = frozenset()  # names of all that are imported
        self.learned = stamps.ABSENT  # of the file, when it was read
        self.packages: dict[str, ModuleType] = {}  # the program's own copies of packages that the server has too
        self._imported: dict[str, stamps.Stamp] = {}

    def load(self) -> None:
        """Import everything.

        Raises:
            HandlerImportError: the program cannot be run from a template.
        """
        sys.path[:] = self.spec["search_path"]
        os.chdir(self.spec["folder"])
        try:
            self._load()
        finally:
            os.chdir("/")

    def _load(self) -> None:
        recorder, arguments = Recorder(), list(sys.argv)
        recorder.elsewhere = WORKING_FOLDER not in read_lines(self.spec["variables"])
        self.learned = stamps.stamp_of(self.spec["learned"])
        script = None if self.spec["is_module"] else stamps.stamp_of(self.spec["path"])
        if script is None:
            self._first = ast.parse(f"import {self.spec['path'].partition(':')[0]}").body
        else:
            self.code, self._first = _compile(self.spec["path"])
        preload, learned = read_lines(self.spec["preload"]), read_lines(self.spec["learned"])
        sys.argv[:] = [self.spec["path"]]  # the list itself: a module may keep it
        with packages_taken_out(self.packages):
            streams = recording.terminals_like(self.spec["terminals"], recorder)
            with self.effects.observed(), recorder.installed(), streams:
                self._import_first()
                recording.flush_streams()
                self.effects.output = list(recorder.output)
                import_all(map(os.fsdecode, preload))
                self._import_learned(learned, recorder)
            self.modules = frozenset(sys.modules)
            self._imported = self._stamps(recorder.sources)
        sys.argv[:] = arguments
        for path, stamp in recorder.files.items():
            if base.is_watched(path) and "\n" not in path:
                self._imported.setdefault(path, stamp)
        if threading.active_count() > 1:
            raise HandlerImportError(self.spec["path"], reason="starts threads when it is imported")
        if script is not None:
            self._imported[self.spec["path"]] = script
        self._note_variables(recorder.variables)
        if not base.is_current(self.spec["base"]):
            raise HandlerImportError(self.spec["path"], reason="its interpreter has changed; start a new server")

    def publish(self) -> None:
        """Write the stamps, by which clients choose this generation: when a worker is ready, the first of them all."""
        found = stamps.read(self.spec["stamps"])
        if found is None or found[0] != self.token:
            base.write(self.spec["base_file"], self.spec["base"])
            stamps.write(self.spec["stamps"], self.token, bytes.fromhex(self.spec["key"]), self._imported)

    def _import_learned(self, lines: list[bytes], recorder: Recorder) -> None:
        """Import what a run has shown, but for modules of which another run would notice it.

        Raises:
            HandlerImportError: a module is one of these; the next template leaves it out.
        """
        for line in [line for line in lines if not line.startswith(LEARN_NOTHING)]:
            recording.flush_streams()
            written, threads = len(recorder.output), threading.active_count()
            import_all([os.fsdecode(line)])
            recording.flush_streams()
            if len(recorder.output) > written or threading.active_count() > threads:
                write_lines(self.spec["learned"], [*(other for other in lines if other != line), LEARN_NOTHING + line])
                reason = f"its module {os.fsdecode(line)} prints or starts threads when it is imported"
                raise HandlerImportError(self.spec["path"], reason=reason)

    def _import_first(self) -> None:
        """Import what the program imports in any case, up to an import that fails: the run then says why."""
        path = "<string>" if self.spec["is_module"] else self.spec["path"]
        namespace = {"__name__": "__main__", "__file__": path}  # where a warning says that it comes from
        for statement in self._first:
            try:
                exec(compile(ast.Module([statement], []), path, "exec", dont_inherit=True), namespace)
            except (Exception, SystemExit):
                return

    def _stamps(self, read: dict[str, stamps.Stamp]) -> dict[str, stamps.Stamp]:
        """Return the stamps of all that a change would make stale; those of source files as of their reading."""
        files = {module.__file__ for module in list(sys.modules.values()) if getattr(module, "__file__", None)}
        found: stamps.Stamps = {}
        for path in sorted(file for file in files if isinstance(file, str) and base.is_watched(file)):
            found.update(_stamp_of_module(path, read))
        for folder in (*base.site_folders(), *sys.path):
            if folder.endswith("-packages"):  # a package that is installed or removed changes its folder
                found[folder] = stamps.stamp_of(folder)
        found.update(base.files_of(self.spec["base"]))  # as of the start: a reload has not read them again
        found[self.spec["preload"]] = stamps.stamp_of(self.spec["preload"])
        return found

    def _note_variables(self, names: set[str]) -> None:
        """Add variables to those that name the server's path: the next client that has others finds another server."""
        known = read_lines(self.spec["variables"])
        note_variables(self.spec["variables"], known, names)


def _stamp_of_module(path: str, read: dict[str, stamps.Stamp]) -> stamps.Stamps:
    """Return the stamp of a module's file as of its reading; for one in an archive, that of the archive."""
    while not os.path.lexists(path) and not os.path.isdir(os.path.dirname(path)) and len(path) > 1:
        path = os.path.dirname(path)
    return {path: read.get(path) or stamps.stamp_of(path)}


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


def _compile(path: str) -> tuple[Any, list[ast.stmt]]:
    """Return the code of a script, and the imports with which it begins."""
    with open(path, "rb") as file:
        source = file.read()
    return compile(source, path, "exec", dont_inherit=True), first_imports(ast.parse(source))


def first_imports(script: ast.Module) -> list[ast.stmt]:
    """Return the imports that every run of a script does: before it calls, decides or changes anything."""
    statements = takewhile(lambda statement: _is_import(statement) or _only_defines(statement), _in_turn(script.body))
    return list(filter(_is_import, statements))


def _in_turn(statements: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements in the order in which they are executed if none raises an exception."""
    for statement in statements:
        if isinstance(statement, ast.Try):
            yield from _in_turn([*statement.body, *statement.orelse, *statement.finalbody])
        elif isinstance(statement, ast.If) and ast.unparse(statement.test) == "__name__ == '__main__'":
            yield from _in_turn(statement.body)
        else:
            yield statement


def _is_import(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Import | ast.ImportFrom)


def _only_defines(statement: ast.stmt) -> bool:
    """Return whether the statement is a function, a docstring, or gives a name a constant value."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
        return not statement.decorator_list
    if isinstance(statement, ast.Assign) and not all(isinstance(target, ast.Name) for target in statement.targets):
        return False
    if not isinstance(statement, ast.Assign | ast.Expr):
        return isinstance(statement, ast.Pass)
    try:
        ast.literal_eval(statement.value)
    except (TypeError, ValueError):
        return False
    return True


def import_all(names: Iterable[str]) -> None:
    """Import modules; one that cannot be imported is left to the run, which then says why."""
    for name in names:
        try:
            importlib.import_module(name)
        except (Exception, SystemExit):
            sys.modules.pop(name, None)
