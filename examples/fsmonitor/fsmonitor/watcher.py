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
import re
import time
from collections.abc import Callable, Iterable

from . import inotify
from .mounts import Mounts
from .repository import RepositoryError

_APPEARED = inotify.CREATE | inotify.MOVED_TO | inotify.ATTRIB
_VANISHED = inotify.DELETE | inotify.MOVED_FROM
_GONE = "the folder was moved or deleted"
_LOST = inotify.OVERFLOW | inotify.UNMOUNT

#: Names that Git ignores in an answer, so that nothing can be said of what is in such a folder: `.git` and what other
#: systems take for it (`verify_path` in Git's read-cache.c). A backslash is a separator here.
_IGNORED_BY_GIT = re.compile(rb"(?:^|[/\\])(?:\.git|git~1)[. ]*(?:$|[:/\\])", re.IGNORECASE)
_NOT_ASCII = re.compile(rb"[^ -~]+")  # with core.protectHFS some of these characters do not count

MOST_CHANGES = 100_000  # remembered paths; with more, everything is suspect once
RETRY_NS = 60 * 1_000_000_000  # between attempts to watch a tree that could not be watched

log = logging.getLogger("fsmonitor")


class Watcher:
    """The changes below the folder that `locate` names; `clock` gives nanoseconds that never go back.

    `problem` says why nothing is watched, or is empty. While it says something, `changes_since` knows nothing.
    """

    def __init__(self, locate: Callable[[], str], clock: Callable[[], int] = time.monotonic_ns) -> None:
        self.root = b""
        self.problem = self._logged = ""
        self._locate = locate
        self._clock = clock
        self._mounts: Mounts | None = None
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

    def is_at(self, folder: bytes) -> bool:
        """Return whether `folder` is the root; a root that was moved there is watched from now on."""
        asked = _identity(folder)
        if asked != self._identity and asked == self._located():
            self.forget()
        return asked is not None and asked == self._identity

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
        if self.problem or self._ignored or moment < self._began:
            return self._clock(), None  # the caller looks at everything, so at what happened until now
        changed = []
        for path in reversed(self._changed_at):  # in the order of time
            if self._changed_at[path] <= moment:
                break
            changed.append(path)
        always = self._unreadable | self._repositories
        return now, changed + [part for path in always for part in (path + b"/", path + b"/*")]

    # -- beginning and ending ------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._path_of: dict[int, bytes] = {}
        self._watch_of: dict[bytes, int] = {}
        self._unreadable: set[bytes] = set()
        self._repositories: set[bytes] = set()  # what happens in the `.git` of each has no event
        self._ignored: set[bytes] = set()
        self._changed_at: dict[bytes, int] = {}
        self._attempted = self._clock()
        self.problem = ""
        self._identity: tuple[int, int] | None = None
        try:
            self.root = os.fsencode(self._locate())  # anew: linked work trees and submodules may be moved
            self._mounts = Mounts(os.path.realpath(self.root))
            # Through a descriptor the tree is found even after a folder above it was renamed.
            self._root_fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._identity = _identity(self._root_fd)
            self._events = inotify.Inotify()
            self._scan(b"")
            if b"" not in self._watch_of:
                raise FileNotFoundError(errno.ENOENT, "the folder is gone", os.fsdecode(self.root))
            self._logged = ""
        except (OSError, RepositoryError) as error:
            self._give_up(_explained(error))
        self._began = self._clock()  # not before: until now a change could escape

    def _stop(self) -> None:
        if self._events is not None:
            self._events.close()
            self._events = None
        if self._mounts is not None:
            self._mounts.close()
            self._mounts = None
        if self._root_fd >= 0:
            os.close(self._root_fd)
            self._root_fd = -1

    def _give_up(self, problem: str) -> None:
        """Watch nothing: whatever is watched in part costs kernel memory and answers nothing."""
        self._stop()
        self._watch_of.clear()
        self.problem = problem
        if problem == _GONE:
            self._identity = None
        if problem == self._logged:
            return
        self._logged = problem
        log.warning("cannot watch %s: %s; every answer is that everything may have changed", os.fsdecode(self.root),
                    problem)

    # -- events --------------------------------------------------------------------------------------------------------

    def _drain(self) -> None:
        """Take in what the kernel has queued."""
        if self._mounts is not None and self._mounts.changed():
            self.forget()
        elif self._events is None:
            if self._identity is None or self._clock() - self._attempted > RETRY_NS:
                self._begin()
        elif os.fstat(self._root_fd).st_nlink == 0:  # no event of a folder's end comes while a descriptor is open
            self._give_up(_GONE)
        else:
            try:
                self._take(self._events.queued())
            except OSError as error:
                self._give_up(_explained(error))

    def _located(self) -> tuple[int, int] | None:
        """What is now at the place where the root should be."""
        try:
            return _identity(os.fsencode(self._locate()))
        except RepositoryError:
            return None

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
            if name == b".git":
                if folder == b"":
                    continue
                (self._repositories.discard if mask & _VANISHED else self._repositories.add)(folder)
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
        if _is_ignored_by_git(name):
            suspect.add(_joined(folder, b"*"))
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
            location = self._location(folder)
            suspect.add(_joined(folder, b"*"))
            self._forget_kinds(folder)
            if _is_ignored_by_git(folder):
                self._ignored.add(folder)
            try:
                self._add(folder, self._events.watch(location))
                with os.scandir(location) as entries:  # after the watch: what is not listed yet will be an event
                    for entry in entries:
                        if entry.name != b".git":
                            if entry.is_dir(follow_symlinks=False):
                                stack.append(_joined(folder, entry.name))
                        elif folder:
                            self._repositories.add(folder)
            except (FileNotFoundError, NotADirectoryError):
                continue  # gone again, or another kind of file by now: an event will tell
            except PermissionError:
                # Without the right to enter nothing in it is visible to Git; a change of the rights will be an event.
                if os.access(location, os.X_OK):
                    self._unreadable.add(folder)
        return suspect

    def _location(self, folder: bytes) -> bytes:
        return b"/proc/self/fd/%d/%s" % (self._root_fd, folder or b".")

    def _add(self, folder: bytes, watch: int) -> None:
        before = self._path_of.get(watch)
        if before is not None and before != folder and self._watch_of.get(before) == watch:
            if _identity(self._location(before)) == _identity(self._location(folder)):  # one watch cannot tell which
                raise OSError(errno.ELOOP, "the folder is mounted at a second place of the tree", os.fsdecode(folder))
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
        known = (*self._watch_of, *self._unreadable, *self._ignored)
        below_it = [path for path in known if path.startswith(prefix)] if below else []
        for path in (folder, *below_it):
            self._forget_kinds(path)
            if path in self._watch_of:
                watch = self._watch_of[path]
                self._drop(watch)
                self._events.unwatch(watch)


    def _forget_kinds(self, folder: bytes) -> None:
        for folders in (self._unreadable, self._repositories, self._ignored):
            folders.discard(folder)


def _identity(folder: bytes | int) -> tuple[int, int] | None:
    """Device and inode of a folder that is there, by whatever path."""
    try:
        found = os.stat(folder)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def _is_ignored_by_git(path: bytes) -> bool:
    return _IGNORED_BY_GIT.search(_NOT_ASCII.sub(b"", path)) is not None


def _joined(folder: bytes, name: bytes) -> bytes:
    return folder + b"/" + name if folder else name


def _parents(path: bytes) -> list[bytes]:
    return [path[:position] for position in range(len(path)) if path[position : position + 1] == b"/"]


def _explained(error: OSError | RepositoryError) -> str:
    if isinstance(error, RepositoryError):
        return str(error)
    if error.errno == errno.ENOSPC:
        return "the limit of watched folders is reached; raise it with `sysctl fs.inotify.max_user_watches=1048576`"
    if error.errno == errno.EMFILE:
        return "the limit of inotify instances is reached; raise it with `sysctl fs.inotify.max_user_instances=1024`"
    return f"{error.strerror}: {error.filename}"
