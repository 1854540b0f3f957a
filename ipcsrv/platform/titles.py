"""The title by which `ps` and `top` show a process of the server.  In each of its processes.

With setproctitle installed the whole command line is replaced; without it the short name alone (`ps -o comm`), of
which Linux keeps 15 bytes (PR_SET_NAME in prctl(2); /proc/self/comm sets the same without ctypes).
"""

from __future__ import annotations

import contextlib

SHORT = 15  # bytes


def set_title(role: str, name: str | None) -> None:
    """Make the title `ipcsrv: ROLE: NAME`, or the short name `ROLE:NAME`; without a name do nothing."""
    if name is None:
        return
    try:
        import setproctitle
    except ImportError:
        with contextlib.suppress(OSError), open("/proc/self/comm", "wb") as file:  # a system without it has no title
            file.write(f"{role}:{name}".encode("utf-8", "replace")[:SHORT])
    else:
        setproctitle.setproctitle(f"ipcsrv: {role}: {name}")
