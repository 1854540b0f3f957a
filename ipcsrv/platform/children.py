"""Start a server's Python processes: no module of the current folder takes the place of the standard library's.

`python -c` and `python -m` search the current folder first, so a file `signal.py` that lies there would run in each
process of a server.  Our own commands have the option -P (`command`).  multiprocessing makes its own (for spawn and for
its resource tracker); for these the environment variable PYTHONSAFEPATH says the same (`starting`), and the new process
removes it (`started`): the handler's own children are started as in any program.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from ..folders import working_folder

_VARIABLE = "PYTHONSAFEPATH"
_OURS = "ipcsrv"  # the value by which `started` recognises it
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
# This very package is imported from where it is; then its folder is searched last, where it is not searched anyway.
_BOOT = (
    "import sys; sys.path.insert(0, {root!r}); import ipcsrv; root = sys.path.pop(0); "
    "root in sys.path or sys.path.append(root); from {module} import main; main()"
)


def command(module: str) -> list[str]:
    """Return the command that runs the function `main` of a module of this package in a fresh interpreter."""
    return [sys.executable, "-P", "-c", _BOOT.format(root=_ROOT, module=module)]


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """Start multiprocessing's processes in this block: they do not import from the current folder.

    multiprocessing fails where the current folder was deleted: then the block runs in the root folder.
    """
    with contextlib.ExitStack() as after:
        if working_folder() is None:
            _leave_deleted_folder(after)
        if not os.environ.get(_VARIABLE):
            os.environ[_VARIABLE] = _OURS
            after.callback(started)
        yield


def _leave_deleted_folder(after: contextlib.ExitStack) -> None:
    """Change to the root folder, and back to the deleted one at the end, which only a descriptor leads to."""
    descriptor = os.open(os.curdir, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    after.callback(os.close, descriptor)
    os.chdir(os.sep)
    if hasattr(os, "fchdir"):
        after.callback(os.fchdir, descriptor)


def started() -> None:
    """In a process that was started so: remove the variable, before the handler is imported."""
    if os.environ.get(_VARIABLE) == _OURS:
        del os.environ[_VARIABLE]
