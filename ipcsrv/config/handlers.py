"""Finding the handler: `MODULE:NAME` to a callable, and a callable to something another process can find.

A server's processes are started fresh or forked from a template, so the handler travels as a `HandlerSource`: a
name to import, or, from a library's caller, a pickled callable (which the pickle module again finds by name).
Runs in whichever process starts the server (to make the source) and in the template or worker (to load it).
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from typing import Any

from ..errors import HandlerImportError
from ..exception_text import is_interrupt, trace_of, traceback_text, type_name
from ..folders import working_folder
from .values import name_of

Handler = Callable[..., Any]

FACTORY_PARAMETERS = ("path", "settings")


@dataclass(frozen=True)
class Factory:
    """What `MODULE:NAME()` leads to: a callable that each worker calls once, and that returns the handler."""

    target: str
    function: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        """Never called by a server (see `make`): it makes a factory pass for what a handler is, a callable."""
        raise TypeError(f"{self.target} is a factory, not a handler")

    def check(self) -> None:
        """Raise `HandlerImportError` if the factory asks for something that a server cannot give."""
        self._arguments(dict.fromkeys(FACTORY_PARAMETERS))

    def make(self, **offered: Any) -> Any:
        """Call the factory with those of the offered arguments that it has parameters for, by name."""
        return self.function(**self._arguments(offered))

    def _arguments(self, offered: dict[str, Any]) -> dict[str, Any]:
        signature = _signature(self.function)
        if signature is None:
            return {}
        chosen = {name: value for name, value in offered.items() if name in signature.parameters}
        try:
            signature.bind(**chosen)
        except TypeError as error:
            reason = f"it is a factory that asks for more than {' and '.join(FACTORY_PARAMETERS)} ({error})"
            raise HandlerImportError(self.target, reason=reason) from None
        return chosen


@dataclass(frozen=True)
class HandlerSource:
    """Where a process finds the handler.

    `target` is its name for people and, if there is nothing else, what is imported; `pickled` is a pickled callable;
    `callable` is the object itself, which only forked processes can be given.
    """

    target: str
    pickled: bytes | None = None
    callable: Handler | None = None

    def load(self) -> Handler:
        """The handler; raises `HandlerImportError` with the traceback."""
        if self.callable is not None:
            return self.callable
        return load(self.target) if self.pickled is None else unpickled(self.target, self.pickled)


def source_of(handler: str | Handler, *, inherit: bool = False) -> HandlerSource:
    """How another process is to find `handler`.

    handler: `MODULE:NAME`, or a callable; inherit: the process will be forked from this one, so any callable will do.
    Raises `HandlerImportError` for what is neither, or cannot be found by name.
    """
    if isinstance(handler, str):
        check_target(handler)
        return HandlerSource(handler)
    if not callable(handler):
        raise HandlerImportError(repr(handler), reason="it is neither callable nor the text MODULE:NAME")
    if inherit:
        return HandlerSource(name_of(handler), callable=handler)
    return HandlerSource(name_of(handler), pickled=pickled(handler))


def pickled(function: Callable[..., object], what: str = "handler") -> bytes:
    """Return a handler or hook as bytes from which another process has it; raises `HandlerImportError`."""
    import pickle

    try:
        return pickle.dumps(function)
    except Exception as error:
        reason = f"another process cannot find it by name ({error}); define it at the top level of a module"
        raise HandlerImportError(name_of(function), reason=reason, what=what) from None


def check_target(target: str) -> None:
    """Raise `HandlerImportError` unless `target` has the form MODULE:NAME or MODULE:NAME()."""
    module, colon, name = target.removesuffix("()").partition(":")
    if not (colon and all(part.isidentifier() for part in (*module.split("."), *name.split(".")))):
        from .suggestions import well_formed

        reason = "it is not MODULE:NAME, such as zlib:compress"
        if "-" in module and "/" not in module:
            reason = "a module whose name has a dash cannot be imported; rename it"
        raise HandlerImportError(target, reason=reason, suggestion=well_formed(target))


def load(target: str) -> Handler:
    """Import `MODULE:NAME` (NAME may be dotted) and return the callable; for `MODULE:NAME()` a `Factory`.

    Raises `HandlerImportError`; where the module itself raised, with its traceback from the module's own frames on.
    """
    check_target(target)
    module_name, _, name = target.removesuffix("()").partition(":")
    found = _import(target, module_name)
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            from .suggestions import existing_name

            raise HandlerImportError(target, reason=f"module {module_name} has no {name!r}{_hint(module_name)}",
                                     suggestion=existing_name(found, part, target)) from None  # fmt: skip
        except BaseException as error:
            raise _failed(target, error) from None
    if not callable(found):
        raise HandlerImportError(target, reason=f"it is of type {type_name(found)}, which cannot be called")
    handler: Handler = Factory(target, found) if target.endswith("()") else found
    return handler


def load_hook(hook: str | Callable[..., object] | None, name: str, *arguments: object) -> Callable[..., object] | None:
    """Return a hook as a callable, or None.

    Args:
        hook: the setting's value.
        name: of the setting.
        arguments: such as the hook will be called with.

    Raises:
        HandlerImportError: under the hook's own name, if it cannot be imported or called with these arguments.
    """
    if hook is None:
        return None
    try:
        found = load(hook) if isinstance(hook, str) else hook
    except HandlerImportError as error:
        raise HandlerImportError(error.target, error.traceback_text, error.reason, error.suggestion, name) from None
    if (reason := cannot_be_called(found, *arguments)) is not None:
        target = hook if isinstance(hook, str) else getattr(hook, "__qualname__", repr(hook))
        raise HandlerImportError(target, reason=reason, what=name)
    return found


def cannot_be_called(function: Callable[..., object], *arguments: object) -> str | None:
    """Why `function` cannot be called with so many arguments, or None if it can as far as its signature tells."""
    signature = _signature(function)
    if signature is None:
        return None
    try:
        signature.bind(*arguments)
    except TypeError as error:
        number = {0: "without arguments", 1: "with one argument, the request"}.get(len(arguments))
        how = number or f"with {len(arguments)} arguments"
        try:
            shown = f"; its signature is {signature}"
        except BaseException:  # a default value of the user's that cannot be printed
            shown = ""
        return f"it cannot be called {how}: {error}{shown}"
    return None


def _signature(function: Callable[..., object]) -> inspect.Signature | None:
    """Return the signature of a callable, None where there is none to look at.

    Some functions that are written in C have none, and an object of the user's may raise anything when it is looked at.
    """
    try:
        return inspect.signature(function)
    except BaseException:
        return None


class _FolderFinder:
    """Finds one top-level module or package in a folder, before the import system looks anywhere else."""

    def __init__(self, name: str, folder: str) -> None:
        self._name, self._folder = name, folder

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        """As a finder of `sys.meta_path`; a folder without __init__.py is left to the usual search."""
        if name != self._name:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, [self._folder])
        return spec if spec is not None and spec.loader is not None and spec.has_location else None


@contextlib.contextmanager
def current_folder_first(module_name: str) -> Iterator[None]:
    """Have the handler's own module found in the current folder first, and what it imports there last.

    The folder goes to the end of `sys.path`: a file `json.py` that lies there must not become part of other modules.
    For the same reason a name of the standard library is never looked for there.
    """
    folder, name = working_folder(), module_name.partition(".")[0]
    if folder is None:
        yield
        return
    if "" not in sys.path and folder not in sys.path:
        sys.path.append(folder)
    if name in sys.stdlib_module_names:
        yield
        return
    finder = _FolderFinder(name, folder)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the module has put another list in its place
            sys.meta_path.remove(finder)


def _import(target: str, module_name: str) -> Any:
    try:
        with current_folder_first(module_name):
            return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        name = ImportError.__dict__["name"].__get__(error)
        if type(name) is str and (module_name == name or module_name.startswith(f"{name}.")):
            from .suggestions import existing_module

            reason = f"there is no module {name!r} (searched from {working_folder() or 'a deleted folder'} on)"
            raise HandlerImportError(target, reason=reason, suggestion=existing_module(name, target)) from None
        raise _failed(target, error) from None
    except BaseException as error:
        raise _failed(target, error) from None


def _hint(module_name: str) -> str:
    """What to say where a file of the current folder has the name of a standard module, which is imported instead."""
    file = os.path.join(working_folder() or os.sep, f"{module_name}.py")
    if module_name not in sys.stdlib_module_names or not os.path.exists(file):
        return ""
    return f": {module_name} is a module of the standard library; rename {module_name}.py in the current folder"


def _failed(target: str, error: BaseException, what: str = "handler") -> BaseException:
    """Return what is raised in place of what the user's code has raised: Ctrl-C remains what it is."""
    return error if is_interrupt(error) else HandlerImportError(target, _own_frames(error), what=what)


def _own_frames(error: BaseException) -> str:
    """Return the exception with its traceback without our frames and the import system's."""
    tail = trace_of(error)
    while tail is not None and tail.tb_next is not None and _is_machinery(tail.tb_frame.f_code.co_filename):
        tail = tail.tb_next
    return traceback_text(error, tail)


def _is_machinery(filename: str) -> bool:
    return filename == __file__ or filename.startswith("<frozen importlib") or filename == importlib.__file__


def unpickled(target: str, pickled: bytes, what: str = "handler") -> Handler:
    """Return what `pickled` made bytes of; raises `HandlerImportError` under the name `target`."""
    import pickle

    try:
        handler: Handler = pickle.loads(pickled)  # from the server's own starter, over a private pipe
    except BaseException as error:
        raise _failed(target, error, what) from None
    return handler
