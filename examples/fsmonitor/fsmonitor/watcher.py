"""What has changed below a folder since a moment.

Every folder of the tree has an inotify watch. The kernel queues the events; they are read when someone asks. What is
answered is never too little: where an event may have been lost, everything is suspect until the next question.

A change is reported as a path relative to the tree: `a/f` for a file, `a/` for a folder that appeared, vanished or
moved (all below it is suspect), and `a/*` where the list of what is in the folder is suspect.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Iterable

from . import inotify
from .mounts import Mounts

_APPEARED = inotify.CREATE | inotify.MOVED_TO | inotify.ATTRIB
_VANISHED = inotify.DELETE | inotify.MOVED_FROM
_GONE = "the folder was moved or deleted"
_LOST = inotify.OVERFLOW | inotify.UNMOUNT

MOST_CHANGES = 100_000  # remembered paths; with more, everything is suspect once
RETRY_NS = 60 * 1_000_000_000  # between attempts to watch a tree that could not be watched

log = logging.getLogger("fsmonitor")


class Watcher:
    """The changes below `root`, an existing folder; `clock` gives nanoseconds that never go back.

    `problem` says why nothing is watched, or is empty: then `changes_since` knows nothing.
    """

    def __init__(self, root: str | os.PathLike[str], clock: Callable[[], int] = time.monotonic_ns) -> None:
        self.root = os.fsencode(root)
        self.problem = ""
        self._clock = clock
        self._mounts = Mounts(os.path.realpath(self.root))
        self._events: inotify.Inotify | None = None
        self._root_fd = -1
        self._begin()

    @property
    def folders(self) -> int:
        """The number of watched folders."""
        return len(self._watch_of)

    def listings(self) -> list[bytes]:
        """Return `folder/*` for every folder."""
        return [_joined(folder, b"*") for folder in self._watch_of]

    def close(self) -> None:
        """Release every watch and descriptor."""
        self._stop()
        self._mounts.close()

    def forget(self) -> None:
        """Watch the tree anew: everything is suspect."""
        self._stop()
        self._begin()

    def changes_since(self, moment: int) -> tuple[int, list[bytes] | None]:
        """Return the moment to ask for next time, and the paths that changed after `moment`, by the clock.

        None in place of the paths: everything may have changed.  What happened before this call is taken into account.
        """
        # Before the events are read: another process, asked next, may have read those of the time in between by now.
        now = self._clock()
        self._drain()
        if self.problem or moment < self._began:
            return self._clock(), None  # the caller looks at everything, so at what happened until now
        changed = []
        for path in reversed(self._changed_at):  # in the order of time
            if self._changed_at[path] <= moment:
                break
            changed.append(path)
        return now, changed + [part for path in self._unreadable for part in (path + b"/", path + b"/*")]

    # -- beginning and ending ------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._path_of: dict[int, bytes] = {}
        self._watch_of: dict[bytes, int] = {}
        self._unreadable: set[bytes] = set()
        self._changed_at: dict[bytes, int] = {}
        self._attempted = self._clock()
        self.problem = ""
        try:
            # Through a descriptor the tree is found even after a folder above it was renamed.
            self._root_fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._events = inotify.Inotify()
            self._scan(b"")
            if b"" not in self._watch_of:
                raise FileNotFoundError(errno.ENOENT, "the folder is gone", os.fsdecode(self.root))
        except OSError as error:
            self._give_up(_explained(error))
        self._began = self._clock()  # not before: until now a change could escape

    def _stop(self) -> None:
        if self._events is not None:
            self._events.close()
            self._events = None
        if self._root_fd >= 0:
            os.close(self._root_fd)
            self._root_fd = -1

    def _give_up(self, problem: str) -> None:
        """Watch nothing: whatever is watched in part costs kernel memory and answers nothing."""
        self._stop()
        self._watch_of.clear()
        self.problem = problem
        log.warning("cannot watch %s: %s; every answer is that everything may have changed", os.fsdecode(self.root),
                    problem)

    # -- events --------------------------------------------------------------------------------------------------------

    def _drain(self) -> None:
        """Take in what the kernel has queued."""
        if self._mounts.changed():
            self.forget()
        elif self._events is None:
            if self._clock() - self._attempted > RETRY_NS:
                self._begin()
        elif os.fstat(self._root_fd).st_nlink == 0:  # no event of a folder's end comes while a descriptor is open
            self._give_up(_GONE)
        else:
            try:
                self._take(self._events.queued())
            except OSError as error:
                self._give_up(_explained(error))

    def _take(self, events: Iterable[inotify.Event]) -> None:
        changed: set[bytes] = set()
        to_scan: set[bytes] = set()
        for watch, mask, name in events:
            if mask & _LOST:
                self.forget()
                return
            folder = self._path_of.get(watch)
            if folder is None:
                continue  # of a watch that we ended: its folder was moved, and is scanned at its new place
            if mask & inotify.IGNORED:
                self._drop(watch)
            if not name:
                if folder == b"" and mask & inotify.MOVE_SELF:
                    self._give_up(_GONE)
                    return
                continue  # the folder itself: its parent's watch tells the same by name
            if name == b".git" and folder == b"":
                continue
            changed |= self._paths(folder, name, mask)
            if mask & inotify.IS_FOLDER and name != b".git":
                path = _joined(folder, name)
                if mask & _VANISHED:
                    self._drop_all(path, below=bool(mask & inotify.MOVED_FROM))
                elif mask & _APPEARED:
                    to_scan.add(path)
        # After the last event: what was moved is looked for at its last place only.
        for path in sorted(to_scan):
            if not any(parent in to_scan for parent in _parents(path)):
                changed |= self._scan(path)
        self._remember(changed)

    def _paths(self, folder: bytes, name: bytes, mask: int) -> set[bytes]:
        """What an event makes suspect."""
        path = _joined(folder, name)
        suspect = {path + b"/"} if mask & inotify.IS_FOLDER else {path}
        if name[:4].lower() in (b".git", b"git~"):
            suspect.add(_joined(folder, b"*"))  # Git takes no notice of some paths of this kind
        if name == b".git":
            suspect.add(folder)  # a repository inside this one appears or vanishes
        return suspect

    def _remember(self, changed: set[bytes]) -> None:
        """Every change gets a time that is not before it: this one."""
        now = self._clock()
        for path in changed:
            self._changed_at.pop(path, None)  # to the end of the dictionary, which is in the order of time
            self._changed_at[path] = now
        if len(self._changed_at) > MOST_CHANGES:
            self._changed_at.clear()
            self._began = now

    # -- watches -------------------------------------------------------------------------------------------------------

    def _scan(self, top: bytes) -> set[bytes]:
        """Watch a folder and all below it; return what is suspect, which is all of it."""
        assert self._events is not None
        suspect, stack = set(), [top]
        while stack:
            folder = stack.pop()
            location = b"/proc/self/fd/%d/%s" % (self._root_fd, folder or b".")
            suspect.add(_joined(folder, b"*"))
            self._unreadable.discard(folder)
            try:
                self._add(folder, self._events.watch(location))
                with os.scandir(location) as entries:  # after the watch: what is not listed yet will be an event
                    stack += [_joined(folder, entry.name) for entry in entries
                              if entry.name != b".git" and entry.is_dir(follow_symlinks=False)]
            except (FileNotFoundError, NotADirectoryError):
                continue  # gone again, or another kind of file by now: an event will tell
            except PermissionError:
                # Without the right to enter nothing in it is visible to Git; a change of the rights will be an event.
                if os.access(location, os.X_OK):
                    self._unreadable.add(folder)
        return suspect

    def _add(self, folder: bytes, watch: int) -> None:
        before = self._path_of.get(watch)
        if before is not None and before != folder and self._watch_of.get(before) == watch:
            del self._watch_of[before]
        self._path_of[watch] = folder
        self._watch_of[folder] = watch

    def _drop(self, watch: int) -> None:
        """The watch has ended."""
        folder = self._path_of.pop(watch)
        if self._watch_of.get(folder) == watch:
            del self._watch_of[folder]

    def _drop_all(self, folder: bytes, below: bool) -> None:
        """End the watch of a folder that is not there any more; a moved one takes those below with it."""
        assert self._events is not None
        prefix = folder + b"/"
        below_it = [path for path in (*self._watch_of, *self._unreadable) if path.startswith(prefix)] if below else []
        for path in (folder, *below_it):
            self._unreadable.discard(path)
            if path in self._watch_of:
                watch = self._watch_of[path]
                self._drop(watch)
                self._events.unwatch(watch)


def _joined(folder: bytes, name: bytes) -> bytes:
    return folder + b"/" + name if folder else name


def _parents(path: bytes) -> list[bytes]:
    return [path[:position] for position in range(len(path)) if path[position : position + 1] == b"/"]


def _explained(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "the limit of watched folders is reached; raise it with `sysctl fs.inotify.max_user_watches=1048576`"
    if error.errno == errno.EMFILE:
        return "the limit of inotify instances is reached; raise it with `sysctl fs.inotify.max_user_instances=1024`"
    return f"{error.strerror}: {error.filename}"
