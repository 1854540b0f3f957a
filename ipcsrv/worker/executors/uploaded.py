"""The modules that servers have uploaded (`upload`). In a process of the engine.

That process may serve more than one upload of one name: the versions before and after a reload, and those of other
servers. Each keeps its own module objects, and `use` puts those of one upload into `sys.modules` before its handler
runs. The files are in a folder for each content, so neither the import system's caches nor bytecode files mix them up.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
import zipfile
from types import ModuleType

from ...config.handlers import load
from ...errors import HandlerImportError
from ...exception_text import trace_of, traceback_text
from ..adapters import check_signature
from .upload import Upload, top_module

_MOST_KEPT = 8  # uploads whose modules are kept while others are used; a dropped one is imported again

_lock = threading.RLock()  # of all below, and of what `use` does to sys.modules
_folders: dict[str, str] = {}  # digest -> where the files are
_current: dict[str, str] = {}  # module -> digest of the upload that is in sys.modules; "" for one that is installed
_kept: dict[tuple[str, str], dict[str, ModuleType]] = {}  # module and digest -> the modules of uploads not in use


def check(upload: Upload, folder: str) -> None:
    """Unpack an upload into a new folder of `folder`, and import its handler once.

    Raises:
        HandlerImportError: with the traceback; requests for this upload get the same.
    """
    target, digest, data = upload.target, upload.digest, upload.data
    with _lock:
        if digest not in _folders:
            own = os.path.join(folder, f"ipcsrv-{digest[:16]}")
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                archive.extractall(own)
            _folders[digest] = own
        before = _current.get(top_module(target), "")
        try:
            use(target, digest)
            check_signature(target, load(target))
        finally:
            use(target, before)  # for the handler that runs now


def use(target: str, digest: str) -> None:
    """Have `sys.modules` contain what `target` belongs to: the upload with this digest, or for "" what is installed.

    Raises:
        HandlerImportError: the upload is not here, or its module cannot be imported; then nothing has changed.
    """
    top = top_module(target)
    with _lock:
        current = _current.get(top, "")
        if current == digest:
            return
        if digest and digest not in _folders:
            raise HandlerImportError(target, reason="its upload has not come to this process; reload the server")
        _kept[top, current] = _taken_out(top)
        try:
            if (modules := _kept.pop((top, digest), None)) is not None:
                sys.modules.update(modules)
            elif digest:
                _import(target, top, _folders[digest])
        except BaseException:
            _taken_out(top)
            sys.modules.update(_kept.pop((top, current)))
            raise
        _current[top] = digest
        for old in [key for key in _kept if key[1]][:-_MOST_KEPT]:
            del _kept[old]


def _taken_out(top: str) -> dict[str, ModuleType]:
    """Take a module with all its submodules out of `sys.modules`."""
    return {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == top}


def _import(target: str, top: str, folder: str) -> None:
    sys.path.insert(0, folder)
    try:
        __import__(top)  # leaves no frames of its own in a traceback
    except BaseException as error:
        own = trace_of(error)
        raise HandlerImportError(target, traceback_text(error, own and own.tb_next)) from None
    finally:
        with contextlib.suppress(ValueError):  # the module has put another list in its place
            sys.path.remove(folder)
