"""The handler: a token comes, what has changed since then goes back.  Runs in the workers.

The conversation is that of Git's own monitor (git-fsmonitor--daemon(1), githooks(5)): the request is a token of an
earlier answer, the response a new token and the changed paths, each ended by NUL; the path `/` means that everything
may have changed. The hook adds a space and the work tree that Git means; for another one than the configured one the
answer is `/` with a token that no monitor knows, since the index now says what is true of the other one. A token is a
moment, `<boot id>:<nanoseconds of the monotonic clock>`, so every worker understands the tokens of all others, of a
crashed one too.

A token that came with `/` ends in `:all`. Git's untracked cache does not take part in that answer unless the command
lists untracked files (`git checkout` does not), and would be believed from the next answer on. So what is asked next,
with this token, is answered with the listing of every folder suspect.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ipcsrv

from .repository import worktree_of
from .watcher import Watcher

EVERYTHING = b"\0/\0"
AFTER_EVERYTHING = b":all"
ANOTHER_WORK_TREE = b"another-work-tree" + EVERYTHING


class Monitor:
    """Answers for one work tree, which `locate` finds."""

    def __init__(self, locate: Callable[[], str]) -> None:
        self._boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        self._watcher = Watcher(locate)

    def __call__(self, request: bytes) -> Any:
        if request == b"quit":  # what `git fsmonitor--daemon stop` sends
            return ipcsrv.QUIT
        if request == b"status":
            return json.dumps(self._status()).encode()
        if request == b"flush":
            self._watcher.forget()
        token, _, worktree = bytes(request).partition(b" ")
        if worktree and not self._watcher.is_at(worktree):
            return ANOTHER_WORK_TREE
        return self._answer(token)

    def _answer(self, token: bytes) -> bytes:
        moment, mark = self._parsed(token)
        now, changed = self._watcher.changes_since(moment)
        new_token = f"{self._boot}:{now}".encode()
        if changed is None:
            return new_token + AFTER_EVERYTHING + EVERYTHING
        if mark == AFTER_EVERYTHING:
            changed += self._watcher.listings()
        return b"".join(part + b"\0" for part in (new_token, *changed))

    def _parsed(self, token: bytes) -> tuple[int, bytes]:
        """The moment and the mark of a token; one before all others if it is not of this monitor and this boot."""
        boot, colon, rest = token.partition(b":")
        moment, colon, mark = rest.partition(b":")
        known = boot == self._boot.encode() and moment.isdigit()
        return (int(moment), colon + mark) if known else (-1, b"")

    def _status(self) -> dict[str, object]:
        return {
            "worktree": os.fsdecode(self._watcher.root),
            "folders": self._watcher.folders,
            "problem": self._watcher.problem,
        }


def monitor(path: str) -> Monitor:
    """Return the handler of the server at `path`, a socket in a Git folder; called once in each worker."""
    return Monitor(lambda: worktree_of(os.path.dirname(path)))
