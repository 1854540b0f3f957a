"""What the interpreter of a server has loaded before the program: no reload changes it, since a template is a fork.

The *base* is the interpreter itself, the lines of `*.pth` files, the modules that these and `sitecustomize` import, and
the folder of the script, by which the search path is made.  It is recorded when a server starts, in its process, and
compared by each template, which refuses to serve from an old one, and by the starter, which then starts a new server.
"""

from __future__ import annotations

import sys

assert sys.platform != "win32"

import json
import os
import site
import sysconfig
from collections.abc import Iterable
from typing import Any

from . import stamps

Record = dict[str, Any]


def record(script: str, modules: Iterable[str]) -> Record:
    """Return the base of this process as plain values.

    script: the path of the program, or MODULE:MAIN.
    modules: the files of the modules that had been imported at the start of the interpreter.
    """
    interpreter = [sys.executable, os.__file__, os.path.join(sys.prefix, "pyvenv.cfg")]
    files = [*interpreter, *(path for path in sorted(modules) if is_watched(path))]
    found: Record = {"script": script, "files": files, "sites": site_folders()}
    found["state"] = _state(found)
    return found


def is_current(found: Record) -> bool:
    """Return whether a server that is started now would have the same base."""
    return bool(found["state"] == _state(found))


def files_of(found: Record) -> stamps.Stamps:
    """Return the stamps of the base when it was recorded."""
    return {path: (mtime, size, inode) for path, (mtime, size, inode) in found["state"]["files"].items()}


def read(path: str) -> Record | None:
    """Return the base in a file; None where there is none."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            found: Record = json.load(file)
    except (OSError, ValueError):
        return None
    return found


def write(path: str, found: Record) -> None:
    """Write the base into a file, in one step."""
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "w", encoding="utf-8", errors="surrogateescape") as file:
        json.dump(found, file)
    os.rename(temporary, path)


def _state(found: Record) -> dict[str, Any]:
    """Return what may change, as it is now."""
    files = [*found["files"], *(path for folder in found["sites"] for path in _configuration(folder))]
    folder = os.path.dirname(os.path.realpath(found["script"])) if "/" in found["script"] else ""
    return {"folder": folder, "files": {path: list(stamps.stamp_of(path)) for path in files}}


def _configuration(folder: str) -> list[str]:
    """Return the files in a folder of packages that the module `site` reads."""
    try:
        return sorted(os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(".pth"))
    except OSError:
        return []


def site_folders() -> list[str]:
    """Return the folders in which packages may be installed, also those that do not exist yet."""
    if sys.flags.no_site:
        return []
    return [*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]


def is_watched(path: str) -> bool:
    """Return whether a file is not of the standard library, which changes with the interpreter alone."""
    standard = tuple(os.path.join(sysconfig.get_path(name), "") for name in ("stdlib", "platstdlib"))
    return os.path.isabs(path) and (not path.startswith(standard) or "-packages/" in path)
