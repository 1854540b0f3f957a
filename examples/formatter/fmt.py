"""Format files: `python fmt.py [--check] FILE...`. The first call starts the daemon, later ones find it warm.

Exits 0 if nothing was to do or everything was done, 1 if a file is not formatted (--check) or cannot be.
"""

from __future__ import annotations

import sys
from pathlib import Path

import ipcsrv


def main(arguments: list[str]) -> int:
    """Format the files on one connection."""
    check = "--check" in arguments
    path = ipcsrv.default_path("formatter-example")
    ipcsrv.ensure_running(path, "tidy:handle", chdir=str(Path(__file__).parent.resolve()), idle_exit=600)
    failed = False
    with ipcsrv.connect(path, timeout=30) as daemon:
        for file in [Path(name) for name in arguments if name != "--check"]:
            source = file.read_bytes()
            try:
                formatted = daemon.call(source)
            except ipcsrv.HandlerError as error:
                print(f"{file}: {error.message}", file=sys.stderr)
                failed = True
                continue
            if formatted != source:
                print(f"{file}: {'is not formatted' if check else 'formatted'}")
                failed |= check
                if not check:
                    file.write_bytes(formatted)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
