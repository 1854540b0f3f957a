"""Start a program's server, or learn what it imports: run by path in the program's own interpreter.

    PYTHON [FLAGS] .../bootstrap.py start SPEC ARGUMENTS-OF-START...
    PYTHON [FLAGS] .../bootstrap.py learn SPEC ARGUMENTS-OF-THE-PROGRAM...

SPEC is JSON (`starting.spec_of`).  ipcsrv and filelock need not be installed for this interpreter: they are found in
the folders that SPEC names, which are not on `sys.path`, so that the program imports what it would import cold.
"""

import sys

assert sys.platform != "win32"

import json
import os
import runpy
from importlib.machinery import ModuleSpec, PathFinder


class Finder:
    """Finds our own packages, and nothing else, in the folders where the client has them."""

    def __init__(self, folders: dict[str, str]) -> None:
        self._folders = folders

    def find_spec(self, name: str, path: object = None, target: object = None) -> "ModuleSpec | None":
        """Return the spec of one of our packages, for the import system."""
        folder = self._folders.get(name)
        return None if folder is None else PathFinder.find_spec(name, [folder])


def set_search_path(spec: "dict[str, object]") -> None:
    """Make `sys.path` what it is in a cold run: this file's folder is not on it, that of the script is."""
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = os.path.dirname(os.path.realpath(str(spec["path"])))


def main() -> int:
    """Do what the command line says; returns the exit status."""
    spec = json.loads(sys.argv[2])
    set_search_path(spec)
    sys.meta_path.append(Finder(spec["folders"]))
    arguments = sys.argv[3:]
    if sys.argv[1] == "learn":
        from ipcsrv.warm.learning import run_and_learn

        return run_and_learn(spec, arguments)
    spec["search_path"] = list(sys.path)
    spec["streams"] = [[stream.encoding, stream.errors] for stream in (sys.stdin, sys.stdout, sys.stderr)]
    os.environ["IPCSRV_WARM_SPEC"] = json.dumps(spec)
    sys.argv = ["ipcsrv", *arguments]
    runpy.run_module("ipcsrv", run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
