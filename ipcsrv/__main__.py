"""`python -m ipcsrv` is the command `ipcsrv`."""

from __future__ import annotations

import sys

from .cli import main

if __name__ == "__main__":
    if not sys.flags.safe_path:  # `python -m` has put the current folder first; see `ipcsrv.platform.children`
        sys.path.append(sys.path.pop(0))
    sys.exit(main())
