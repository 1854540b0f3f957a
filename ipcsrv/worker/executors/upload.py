"""The handler's module on its way to an engine (`upload_module`). In a worker; `uploaded` has the engine's side."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ...config.handlers import current_folder_first
from ...errors import HandlerImportError


@dataclass(frozen=True)
class Upload:
    """A module or package as a ZIP file; target: the handler's name; digest: of the content."""

    target: str
    digest: str
    data: bytes


def upload_of(target: str) -> Upload:
    """Return the module or the package that the handler `target` belongs to, read from its files.

    Raises:
        HandlerImportError: there is no such module, or it has no file.
    """
    top = top_module(target)
    with current_folder_first(top):  # as a worker without an executor finds it
        spec = importlib.util.find_spec(top)
    if spec is None or not spec.has_location or spec.origin is None:
        raise HandlerImportError(target, reason=f"there is no file of a module {top!r} to upload")
    folder, file = os.path.split(spec.origin)
    is_package = spec.submodule_search_locations is not None
    data = _zipped(folder, _package_files(folder), top) if is_package else _zipped(folder, [file], "")
    return Upload(target, hashlib.sha256(data).hexdigest(), data)


def top_module(target: str) -> str:
    """Return the name of the module, or of the outermost package, that the handler `target` belongs to."""
    return target.partition(":")[0].partition(".")[0]


def _package_files(folder: str) -> Iterator[str]:
    """Yield the regular files of a package; not pipes, and not links that lead nowhere (those of an editor)."""
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        paths = (os.path.join(where, name) for name in sorted(files))
        yield from (os.path.relpath(path, folder) for path in paths if os.path.isfile(path))


def _zipped(folder: str, names: Iterable[str], prefix: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            inside = zipfile.ZipInfo(os.path.join(prefix, name))  # with a constant date: equal files, equal digest
            with open(os.path.join(folder, name), "rb") as source:
                archive.writestr(inside, source.read(), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()
