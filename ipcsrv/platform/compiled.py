"""The compiled modules, which are optional. In the master and in workers."""

from __future__ import annotations

import importlib
import os
from typing import Any


def compiled_module(name: str) -> Any:
    """Return a compiled module; None where it is not compiled, or not wanted (`IPCSRV_PURE_PYTHON=1`).

    name: below `ipcsrv`, as in `worker._fastpath`.
    """
    if os.environ.get("IPCSRV_PURE_PYTHON"):
        return None
    try:
        return importlib.import_module(f"ipcsrv.{name}")
    except ImportError:  # no compiler where it was built, or a wheel for every system
        return None
