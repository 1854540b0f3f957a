"""The fingerprint of the code that a server runs: which files it imported, and whether they have changed since.

The template, or a worker where there is no template, notes the files after the import (`fingerprint_of_modules`); the
master keeps them in the lock file; a client looks at each of them with stat(2) (`changed_files`), which takes about a
microsecond a file.

Files of the user's own code count each.  Of an installed package (below `site-packages`) its first file counts alone,
because an upgrade replaces it: a large library has thousands of files.  The standard library does not count.
"""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from types import ModuleType
    from typing import Any

    Files = dict[str, str]

CHANGED = "changed"  # in place of a stamp: the file was saved while it was imported, so which text was read is unknown
MISSING = "missing"
_COARSE_CLOCK = 5  # CLOCK_REALTIME_COARSE (linux/time.h), the clock of the kernel's file times
_STANDARD_LIBRARY = os.path.dirname(os.path.abspath(os.__file__)) + os.sep
_INSTALLED = ("site-packages", "dist-packages")


def moment() -> int:
    """Return the time as file systems see it, to be taken before an import.

    Returns:
        Nanoseconds since 1970.  On Linux by the coarse clock that file times are taken from, so that a file saved
        afterwards is never older; elsewhere by the system's.
    """
    clock = getattr(time, "clock_gettime_ns", None)
    if clock is None or not hasattr(os, "pidfd_open"):  # not Linux
        return time.time_ns()
    return int(clock(_COARSE_CLOCK))


def fingerprint_of_modules(modules: Iterable[ModuleType], since: int) -> Files:
    """Return the files behind imported modules, each with a stamp of its size and time.

    Args:
        modules: The modules of the process, `list(sys.modules.values())`.
        since: When the import began, by `moment`.  A file that was saved later gets a stamp that no file has.

    Returns:
        Stamps by absolute path, sorted.
    """
    files: Files = {}
    for path in {path for module in modules for path in _files_of(module)}:
        files[path] = stamp(path, since)
    return dict(sorted(files.items()))


def _files_of(module: ModuleType) -> Iterator[str]:
    try:
        name, path = getattr(module, "__name__", None), getattr(module, "__file__", None)
    except BaseException:  # an object of the user's that imports what it stands for when it is looked at
        return
    if type(name) is not str or type(path) is not str or name.split(".")[0] == "ipcsrv":
        return
    path = os.path.abspath(path)
    installed = any(f"{os.sep}{folder}{os.sep}" in path for folder in _INSTALLED)
    if "." not in name if installed else not path.startswith(_STANDARD_LIBRARY):
        yield path


def stamp(path: str, since: int | None = None) -> str:
    """Return what tells one state of a file from another.

    Args:
        path: The file.
        since: When an import began, by `moment`; None to look only.

    Returns:
        Its size and time of modification as text; `MISSING` where there is no such file, `CHANGED` where it was saved
        after `since`.
    """
    try:
        info = os.stat(path)
    except OSError:
        return MISSING
    if since is not None and since <= info.st_mtime_ns <= time.time_ns():  # a time in the future says nothing
        return CHANGED
    return f"{info.st_size:x}-{info.st_mtime_ns:x}"


def changed_files(files: Mapping[str, str]) -> list[str]:
    """Return those of the files that are no longer as they were imported.

    Args:
        files: What `fingerprint_of_modules` returned.

    Returns:
        Their paths; those that are gone included.
    """
    return [path for path, known in files.items() if stamp(path) != known]


def digest(files: Mapping[str, str], settings: Mapping[str, Any], version: str) -> str:
    """Return one short text for the code, the settings and the version of ipcsrv; never empty.

    Args:
        files: What `fingerprint_of_modules` returned.
        settings: The server's settings by name.
        version: The version of ipcsrv.

    Returns:
        20 hexadecimal digits.
    """
    import json
    from hashlib import blake2b

    text = json.dumps([version, sorted(files.items()), settings], sort_keys=True, default=str)
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=10).hexdigest()


def pieces(files: Mapping[str, str], limit: int) -> Iterator[Files]:
    """Split the files for messages of limited size.

    Args:
        files: What `fingerprint_of_modules` returned.
        limit: Bytes of JSON that one message takes.

    Yields:
        Parts of `files`, at least one, which may be empty.
    """
    part: Files = {}
    size = 2
    for path, known in files.items():
        # Six times: JSON writes a character that is not ASCII as \uXXXX.
        room = (len(path) if path.isascii() else 6 * len(path)) + len(known) + 8
        if part and size + room > limit:
            yield part
            part, size = {}, 2
        part[path] = known
        size += room
    yield part
