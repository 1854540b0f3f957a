"""A Git repository as the monitor sees it: its folders, its configuration, and what the Git at hand can do."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

SOCKET_NAME = "fsmonitor--daemon.ipc"  # where Git looks for a monitor, in the repository's own folder
OLDEST_GIT = (2, 39)
SECTION = "fsmonitor"  # of the configuration
WAY = f"{SECTION}.way"  # "hook" or "ipc" where the monitor is enabled


class RepositoryError(Exception):
    """Something that the user must know about the repository or about Git."""


def git(*arguments: str, folder: str | None = None, may_fail: bool = False) -> str:
    """Run Git and return what it printed; raises RepositoryError, or returns "" if it may fail."""
    command = ["git", *(() if folder is None else ("-C", folder)), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False)
    except OSError as error:
        raise RepositoryError(f"git cannot be run: {error.strerror}; install it") from None
    if done.returncode != 0 and not may_fail:
        raise RepositoryError(os.fsdecode(done.stderr).strip() or f"`{' '.join(command)}` exited {done.returncode}")
    return os.fsdecode(done.stdout) if done.returncode == 0 else ""


def git_version() -> tuple[int, ...]:
    """Return Git's version, such as (2, 39, 5)."""
    found = re.search(r"\d+(\.\d+)+", git("version"))
    return tuple(map(int, found[0].split("."))) if found else ()


def git_has_ipc() -> bool:
    """Return whether this Git itself asks a monitor at a socket (`core.fsmonitor=true`)."""
    return "feature: fsmonitor--daemon" in git("version", "--build-options").splitlines()


def worktree_of(git_dir: str) -> str:
    """Return the work tree whose Git folder this is (gitrepository-layout(5)). Raises RepositoryError."""
    try:
        with open(os.path.join(git_dir, "gitdir"), encoding="utf-8", errors="surrogateescape") as file:
            return os.path.dirname(os.path.join(git_dir, file.read().rstrip("\n")))  # of `git worktree add`
    except FileNotFoundError:
        pass
    for scope in ("--worktree", "--local"):  # of a submodule; Git takes it from no other place either
        configured = git("--git-dir", git_dir, "config", scope, "core.worktree", may_fail=True).rstrip("\n")
        if configured:
            return os.path.normpath(os.path.join(git_dir, configured))
    if os.path.basename(os.path.realpath(git_dir)) == ".git":
        return os.path.dirname(os.path.realpath(git_dir))
    raise RepositoryError(f"{git_dir} does not say where its work tree is; configure core.worktree there")


@dataclass(frozen=True)
class Repository:
    """A work tree with its Git folder, and the folder that it shares with other work trees of the repository."""

    worktree: str
    git_dir: str
    common_dir: str

    @classmethod
    def find(cls, folder: str) -> Repository:
        """Return the repository that `folder` is in; raises RepositoryError."""
        top = git("rev-parse", "--show-toplevel", folder=folder).rstrip("\n")
        if not top:
            raise RepositoryError(f"{folder} has no work tree; a bare repository has no files to watch")
        own, common = (os.path.realpath(os.path.join(folder, git("rev-parse", option, folder=folder).rstrip("\n")))
                       for option in ("--git-dir", "--git-common-dir"))
        return cls(top, own, common)

    @property
    def socket(self) -> str:
        """The path of this work tree's monitor."""
        return os.path.join(self.git_dir, SOCKET_NAME)

    @property
    def hook(self) -> str:
        """The path of the hook, one for all work trees."""
        return os.path.join(self.common_dir, "fsmonitor-hook")

    def git_dirs(self) -> list[str]:
        """Return the Git folders of all work trees of the repository."""
        linked = os.path.join(self.common_dir, "worktrees")
        names = os.listdir(linked) if os.path.isdir(linked) else []
        return [self.common_dir, *(os.path.join(linked, name) for name in sorted(names))]

    def shares_configuration(self) -> bool:
        """Return whether a setting made here applies to several work trees."""
        return len(self.git_dirs()) > 1 and self.scope == "--local"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Exclude other commands that change the configuration of the repository."""
        import fcntl  # not on Windows, where `enable` says what to do instead

        descriptor = os.open(self.common_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    # -- configuration ------------------------------------------------------------------------------------------------

    def get(self, key: str) -> str | None:
        """Return the value that this repository itself configures, not the user or the system."""
        value = git("config", self.scope, "-z", "--get", key, folder=self.worktree, may_fail=True)
        return value.rstrip("\0") if value else None

    def set(self, key: str, value: str | None) -> None:
        """Configure a value for this repository; None removes it."""
        if value is not None:
            git("config", self.scope, "--replace-all", key, value, folder=self.worktree)
        elif self.get(key) is not None:
            git("config", self.scope, "--unset-all", key, folder=self.worktree)

    def remove_section(self) -> None:
        """Remove what the monitor itself keeps in the configuration."""
        git("config", self.scope, "--remove-section", SECTION, folder=self.worktree, may_fail=True)

    def effective(self, key: str, git_dir: str | None = None) -> str | None:
        """Return the value that Git uses here, or in the work tree of `git_dir`, wherever it is configured."""
        value = git("--git-dir", git_dir or self.git_dir, "config", "-z", "--get", key, may_fail=True)
        return value.rstrip("\0") or None

    @functools.cached_property
    def scope(self) -> str:
        """Where the monitor is enabled; if it is not, where a setting belongs that is for this work tree alone."""
        own = git("config", "--type=bool", "extensions.worktreeConfig", folder=self.worktree, may_fail=True)
        if own.strip() != "true":
            return "--local"
        # That is also turned on later: by `git sparse-checkout set`.
        ways = [git("config", scope, WAY, folder=self.worktree, may_fail=True) for scope in ("--worktree", "--local")]
        return "--local" if ways[1] and not ways[0] else "--worktree"
