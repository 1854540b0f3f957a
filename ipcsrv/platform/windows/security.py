"""Who may use a server on Windows: the security descriptor of its pipes."""

from __future__ import annotations

import sys

assert sys.platform == "win32"

from collections.abc import Iterable

from ...errors import SettingsError
from .pipe import PIPE_ACCESS
from .win32 import SYSTEM_SID, own_sid, sid_of_account


def pipe_sddl(allow: Iterable[str] = ()) -> str:
    """The security descriptor of a server's pipe (docs/protocol.md section 4).

    allow: beside the owner and SYSTEM, users and groups as the setting names them: a SID, `user:NAME`, `group:NAME`.
    Raises `SettingsError` for one that this system does not know.
    """
    full = "".join(f"(A;;GA;;;{sid})" for sid in (own_sid(), SYSTEM_SID))
    others = "".join(f"(A;;0x{PIPE_ACCESS:08x};;;{_sid_allowed(entry)})" for entry in allow)
    return f"O:{own_sid()}D:P{full}{others}"


def _sid_allowed(entry: str) -> str:
    kind, colon, name = entry.partition(":")
    if colon and kind in ("uid", "gid"):
        raise SettingsError(f"{entry}: Windows has no numbers for users; give a SID or user:NAME", name="allow")
    sid = sid_of_account(name if colon and kind in ("user", "group") else entry)
    if sid is None:
        raise SettingsError(f"there is no {entry!r} on this system", name="allow")
    return sid
