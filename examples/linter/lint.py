"""Lint files: `python lint.py FILE...`. Exits 1 if something was found. The first call starts the server."""

from __future__ import annotations

import os
import sys

import ipcsrv


def main(files: list[str]) -> int:
    """Print what is wrong with the files."""
    path = ipcsrv.default_path("linter-example")
    ipcsrv.ensure_running(path, "linter:Linter()", chdir=os.path.dirname(os.path.abspath(__file__)), idle_exit=600)
    found = 0
    for file in files:
        try:
            result = ipcsrv.call_json(path, {"path": os.path.abspath(file)}, timeout=30)
        except ipcsrv.HandlerError as error:
            result = {"problems": [[1, error.message]]}
        for line, text in result["problems"]:
            print(f"{file}:{line}: {text}")
            found += 1
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
