"""Start a program's server, or learn what it imports: run by path in the program's own interpreter.

    PYTHON [FLAGS] .../bootstrap.py start SPEC ARGUMENTS-OF-START...
    PYTHON [FLAGS] .../bootstrap.py learn SPEC ARGUMENTS-OF-THE-PROGRAM...

SPEC is JSON (`starting.spec_of`).  ipcsrv and filelock need not be installed for this interpreter: they are found in
the folders that SPEC names, which are not on `sys.path`, so that the program imports what it would import cold.

The syntax is that of old versions too, with types in comments: an interpreter that is too old for ipcsrv must still be
able to run the program cold.
"""

import sys

assert sys.platform != "win32"

import json
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec  # noqa: F401  (in comments)
    from typing import Any  # noqa: F401


class Finder(object):  # noqa: UP004
    """Finds ipcsrv and filelock, and nothing else, in the folders where the client has them."""

    def __init__(self, folders):
        # type: (dict[str, str]) -> None
        self._folders = folders

    def find_spec(self, name, path=None, target=None):
        # type: (str, object, object) -> ModuleSpec | None
        """Return the spec of one of these packages, for the import system."""
        folder = self._folders.get(name)
        if folder is None:
            return None
        from importlib.machinery import PathFinder

        return PathFinder.find_spec(name, [folder])


def prepare(spec):
    # type: (dict[str, Any]) -> None
    """Make these packages importable; raises ImportError where the interpreter is too old for them."""
    if sys.version_info < (3, 11):  # noqa: UP036
        raise ImportError("ipcsrv needs Python 3.11 or newer")
    if not sys.flags.safe_path:  # in a cold run the script's folder is there in place of this file's
        sys.path[0] = os.path.dirname(os.path.realpath(spec["path"]))
    sys.meta_path.insert(0, Finder(spec["folders"]))  # the environment may have other versions for the program


def main():
    # type: () -> int
    """Do what the command line says; returns the exit status."""
    spec, arguments = json.loads(sys.argv[2]), sys.argv[3:]
    if sys.argv[1] == "learn":
        try:
            prepare(spec)
            from ipcsrv.warm.learning import run_and_learn
        except Exception:  # no fault of ipcsrv may keep the program from running
            os.execv(spec["cold"][0], spec["cold"] + arguments)
        return run_and_learn(spec, arguments)
    imported = [module.__file__ for module in sys.modules.values() if getattr(module, "__file__", None)]
    prepare(spec)
    import runpy

    from ipcsrv.warm import base

    spec["base"] = base.record(spec["path"], [path for path in imported if path and path != __file__])
    spec["search_path"] = list(sys.path)
    spec["streams"] = [[stream.encoding, stream.errors] for stream in (sys.stdin, sys.stdout, sys.stderr)]
    os.environ["IPCSRV_WARM_SPEC"] = json.dumps(spec)
    sys.argv = ["ipcsrv"] + arguments  # noqa: RUF005
    runpy.run_module("ipcsrv", run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
