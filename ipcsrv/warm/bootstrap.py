"""Start a program's server, or learn what it imports: run by path in the program's own interpreter.

    PYTHON [FLAGS] .../bootstrap.py start SPEC ARGUMENTS-OF-START...
    PYTHON [FLAGS] .../bootstrap.py learn SPEC ARGUMENTS-OF-THE-PROGRAM...

SPEC is JSON (`starting.spec_of`).  ipcsrv and filelock need not be installed for this interpreter: they are found in
the folders that SPEC names, which are not on `sys.path`, so that the program imports what it would import cold.
"""

from __future__ import annotations  # for an interpreter that is too old, which is told so

import sys

assert sys.platform != "win32"

import json
import os
import runpy
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any


class Finder:
    """Finds our own packages, and nothing else, in the folders where the client has them."""

    def __init__(self, folders: dict[str, str]) -> None:
        self._folders = folders

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Return the spec of one of our packages, for the import system."""
        folder = self._folders.get(name)
        return None if folder is None else PathFinder.find_spec(name, [folder])


def set_search_path(spec: dict[str, Any]) -> None:
    """Make `sys.path` what it is in a cold run: this file's folder is not on it, that of the script is."""
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = os.path.dirname(os.path.realpath(str(spec["path"])))


def prepare(spec: dict[str, Any]) -> None:
    """Make our packages importable; raises ImportError where the interpreter is too old for them."""
    if sys.version_info < (3, 11):  # noqa: UP036  (it is the program's interpreter, not one that we were installed for)
        raise ImportError("ipcsrv needs Python 3.11 or newer")
    set_search_path(spec)
    sys.meta_path.append(Finder(spec["folders"]))


def main() -> int:
    """Do what the command line says; returns the exit status."""
    spec = json.loads(sys.argv[2])
    arguments = sys.argv[3:]
    if sys.argv[1] == "learn":
        try:
            prepare(spec)
            from ipcsrv.warm.learning import run_and_learn
        except Exception:  # nothing of ours may keep the program from running
            os.execv(spec["cold"][0], [*spec["cold"], *arguments])
        return run_and_learn(spec, arguments)
    prepare(spec)
    spec["search_path"] = list(sys.path)
    spec["streams"] = [[stream.encoding, stream.errors] for stream in (sys.stdin, sys.stdout, sys.stderr)]
    os.environ["IPCSRV_WARM_SPEC"] = json.dumps(spec)
    sys.argv = ["ipcsrv", *arguments]
    runpy.run_module("ipcsrv", run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
