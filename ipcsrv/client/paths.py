"""Where an application's socket belongs, so that server and clients agree without being told.  Runs in either.

The folder is one that no other user can enter (`platform.runtime_folder`); the name is the application's and, for a
program with one server a repository, project or profile, a key's. The same user, application and key give the same
path in every process. Names stay short, since a socket's path may have about 100 bytes, and lower case, since not
every file system tells upper case from it: names and keys that are not short and plain are replaced by their hash.
"""

from __future__ import annotations

import os

from ..errors import InvalidPath
from ..platform import client as platform

PLAIN = frozenset("abcdefghijklmnopqrstuvwxyz0123456789._-")
LONGEST_APP = 32  # characters
LONGEST_KEY = 24  # characters; a longer one is hashed
HASH_BYTES = 10  # 20 hexadecimal digits: two of a million keys collide once in 10**12 users
OVERRIDE = "IPCSRV_RUNTIME_DIR"


def default_path(app: str, key: str = "", *, runtime_dir: str | os.PathLike[str] | None = None) -> str:
    """Return a safe, short path for the socket of an application, the same in every process of a user.

    It is `<folder>/<app>.sock`, `<app>+<key>.sock` or `<app>~<hash>.sock`.  The folder is made if it is missing, and
    checked each time: it must be the user's, with mode 0700 (docs/protocol.md section 5).

    Args:
        app: The application's name.
        key: Anything, such as the path of a project; "" where there is one server for each user.
        runtime_dir: The folder, else that of IPCSRV_RUNTIME_DIR, else `ipcsrv` in XDG_RUNTIME_DIR, else
            `ipcsrv-<uid>` in the temporary folder.

    Returns:
        The absolute path.

    Raises:
        InvalidPath: The folder is not safe, or `app` is empty.

    Example:
        >>> path = ipcsrv.default_path("words")
    """
    folder = os.fspath(runtime_dir) if runtime_dir is not None else os.environ.get(OVERRIDE)
    name = _name(app, key)  # before the folder is made
    return os.path.join(platform.runtime_folder(folder), name)


def _name(app: str, key: str) -> str:
    if not app:
        raise InvalidPath(app, "an application's name must not be empty")
    if _plain(app, LONGEST_APP) and not key:
        return f"{app}.sock"
    if _plain(app, LONGEST_APP) and _plain(key, LONGEST_KEY):
        return f"{app}+{key}.sock"
    shown = "".join(c for c in app.lower() if c in PLAIN).lstrip("._-")[:LONGEST_APP]
    return f"{shown}~{_hash(app, key)}.sock"


def _plain(name: str, longest: int) -> bool:
    return len(name) <= longest and PLAIN.issuperset(name) and name[0] not in "._-"


def _hash(app: str, key: str) -> str:
    try:
        from _blake2 import blake2b  # hashlib would load OpenSSL, for longer than a call takes
    except ImportError:
        from hashlib import blake2b
    # Not the locale's encoding: that may be another in another process.
    return blake2b(f"{app}\0{key}".encode("utf-8", "surrogatepass"), digest_size=HASH_BYTES).hexdigest()
