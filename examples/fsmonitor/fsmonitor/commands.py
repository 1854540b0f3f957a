"""Enable and disable the monitor for a repository, start and stop its server.  Runs in the command."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import sys
import tempfile
import time
from pathlib import Path

import ipcsrv

from . import mounts
from .repository import (
    OLDEST_GIT,
    SECTION,
    SOCKET_NAME,
    WAY,
    Repository,
    RepositoryError,
    git_has_ipc,
    git_version,
    worktree_of,
)

IDLE_EXIT = 3600.0  # seconds without a question, for a monitor that a hook can start again
STARTUP_TIMEOUT = 600.0  # seconds for the watches of a large tree on a cold disk
FIRST_TIMEOUT = 0.5  # seconds for nearly every answer; a socket that a killed monitor left refuses for so long
ANSWER_TIMEOUT = 10  # seconds that a hook waits; then Git looks at every file
NO_START_ON_DEMAND = """\
Where no monitor listens, this Git starts its own: run `fsmonitor enable` again after a restart of the machine,
or use --hook, or the systemd units of this example, with which the first question starts the monitor."""
KEYS = ("core.fsmonitor", "core.fsmonitorHookVersion", "core.untrackedCache")

HOOK = """\
#!/bin/sh
# Git's fsmonitor hook, protocol version 2 (githooks(5)): print what has changed since the token $2.
# Written by `fsmonitor enable`, removed by `fsmonitor disable`. Where it fails, Git looks at every file.
dir=${{GIT_DIR:-.git}}
[ -d "$dir" ] || read -r _ dir <"$dir"  # a linked work tree or a submodule: "gitdir: FOLDER"
# Not for another user, nor in the place of another repository: Git runs a submodule's hook in the superproject too.
[ "$1" = 2 ] && [ -O "$dir" ] && {{ [ "$dir" -ef "${{0%/*}}" ] || [ "$dir/.." -ef "${{0%/*}}/worktrees" ]; }} || exit 1
ask() {{ {call} "$dir/{socket}" "$2 $PWD" --timeout "$1" 2>/dev/null; }}  # from which work tree, too
ask {first} "$2" && exit
case $? in
3) {start} "$dir" >&2 ;;  # no server
4) ;;  # it takes longer
*) exit 1 ;;
esac && ask {timeout} "$2"
"""


# -- the server --------------------------------------------------------------------------------------------------------


def start(git_dir: str, *, idle_exit: float | None = IDLE_EXIT, workers: int = 1) -> bool:
    """Start the monitor of a work tree unless it runs; return whether this call started it.

    git_dir: the Git folder of the work tree; idle_exit: seconds, None for never.  Raises as `ipcsrv.ensure_running`,
    and RepositoryError if the folder has no work tree.
    """
    worktree_of(git_dir)
    # Not the work tree: Python would import what a cloned repository brings along.
    os.chdir(git_dir)
    path = os.path.join(os.getcwd(), SOCKET_NAME)
    return ipcsrv.ensure_running(
        path, "fsmonitor.monitor:monitor()", name="fsmonitor", workers=workers, idle_exit=idle_exit,
        startup_timeout=STARTUP_TIMEOUT, timeout=STARTUP_TIMEOUT,
    )  # fmt: skip


def ask(path: str, request: bytes) -> bytes | None:
    """Return a monitor's response, None where no monitor of this kind answers."""
    if ipcsrv.active_state(path) is not ipcsrv.State.LISTENING:
        return None  # a call would wait for a socket that refuses
    try:
        return ipcsrv.call(path, request, timeout=ANSWER_TIMEOUT)
    except ipcsrv.IpcError:
        return None


def details(path: str) -> dict[str, object] | None:
    """Return what the monitor at `path` says of itself, None if it is Git's own or none."""
    answer = ask(path, b"status")
    try:
        return dict(json.loads(answer)) if answer else None
    except ValueError:
        return None


def stop(path: str) -> None:
    """Stop the monitor at `path`, ours or Git's, if there is one; return when it is gone."""
    if details(path) is not None:
        with contextlib.suppress(ipcsrv.NotListening, ipcsrv.PathNotFound):  # it may have ended by itself
            ipcsrv.stop(path)
        return
    if ask(path, b"quit") is None:
        return
    until = time.monotonic() + ANSWER_TIMEOUT
    while ipcsrv.active_state(path) is ipcsrv.State.LISTENING and time.monotonic() < until:
        time.sleep(0.01)  # Git's monitor cannot be waited for in another way


# -- the repository ----------------------------------------------------------------------------------------------------


def enable(repository: Repository, *, way: str | None = None, idle_exit: float | None = None, workers: int = 1,
           untracked_cache: bool = True) -> str:
    """Configure Git to ask a monitor, and start that; return "ipc" or "hook". One that fails leaves nothing behind.

    way: "ipc" or "hook", None asks the Git that is there.  idle_exit: seconds.
    """
    _check(repository)
    with repository.locked():
        was_enabled = repository.get(WAY) is not None
        try:
            return _enable(repository, way, idle_exit, workers, untracked_cache)
        except BaseException:
            if not was_enabled:
                _disable(repository)
            raise


def _enable(
    repository: Repository, way: str | None, idle_exit: float | None, workers: int, untracked_cache: bool
) -> str:
    has_ipc = git_has_ipc()
    if way == "ipc" and not has_ipc:
        raise RepositoryError("this Git was built without IPC support; use --hook")
    chosen = way or ("ipc" if has_ipc and not repository.shares_configuration() else "hook")
    _save(repository)
    if chosen == "ipc":
        _take_over(repository, idle_exit, workers)
        repository.set("core.fsmonitor", "true")
        _remove_unused_hook(repository)
    else:
        _write_hook(repository, IDLE_EXIT if idle_exit is None else idle_exit, workers)
        repository.set("core.fsmonitor", _as_configured(repository.hook))
        repository.set("core.fsmonitorHookVersion", "2")
        if details(repository.socket) is None:
            stop(repository.socket)  # Git's own
        start(repository.git_dir, idle_exit=IDLE_EXIT if idle_exit is None else idle_exit, workers=workers)
    if untracked_cache and repository.effective("core.untrackedCache") is None:
        repository.set("core.untrackedCache", "true")
    repository.set(WAY, chosen)
    return chosen


def disable(repository: Repository) -> bool:
    """Restore what was configured, and stop the monitors; return False if it was not enabled.

    A work tree with a configuration of its own (`extensions.worktreeConfig`) is disabled alone.
    """
    with repository.locked():
        return _disable(repository)


def _disable(repository: Repository) -> bool:
    was_enabled = repository.get(WAY) is not None
    if was_enabled:
        for key in KEYS:
            repository.set(key, repository.get(_saved(key)))
        repository.remove_section()
    _remove_unused_hook(repository)
    for git_dir in repository.git_dirs():
        path = os.path.join(git_dir, SOCKET_NAME)
        if repository.effective(WAY, git_dir) is None and details(path) is not None:
            stop(path)
    return was_enabled


def _remove_unused_hook(repository: Repository) -> None:
    """Remove the hook unless a work tree of the repository has Git run it."""
    used = [repository.effective("core.fsmonitor", git_dir) for git_dir in repository.git_dirs()]
    if _as_configured(repository.hook) not in used:
        Path(repository.hook).unlink(missing_ok=True)


def _check(repository: Repository) -> None:
    if not sys.platform.startswith("linux"):
        raise RepositoryError("this monitor is for Linux; Git has one for macOS and Windows: "
                              "git config core.fsmonitor true")
    if git_version() < OLDEST_GIT:
        raise RepositoryError(f"Git {'.'.join(map(str, OLDEST_GIT))} or newer is needed")
    if os.path.realpath(worktree_of(repository.git_dir)) != os.path.realpath(repository.worktree):
        raise RepositoryError(f"{repository.git_dir} names another work tree; correct its core.worktree")
    kind = mounts.file_system(repository.worktree)
    if kind.startswith(mounts.REMOTE):
        raise RepositoryError(f"{repository.worktree} is on a file system ({kind}) that other machines change "
                              "without notice; it cannot be watched")


def _save(repository: Repository) -> None:
    """Remember the configuration as it was before the first `enable`."""
    if repository.get(WAY) is None:
        for key in KEYS:
            repository.set(_saved(key), repository.get(key))
        repository.set(WAY, "none")


def _saved(key: str) -> str:
    return f"{SECTION}.saved-{key.replace('.', '-')}"


def _as_configured(hook: str) -> str:
    return shlex.quote(hook)  # Git gives it to a shell


def _take_over(repository: Repository, idle_exit: float | None, workers: int) -> None:
    """Have our monitor where Git's own may be, and may be started again by any Git command."""
    for attempt in range(5):
        if details(repository.socket) is None:
            stop(repository.socket)
        with contextlib.suppress(ipcsrv.AddressInUse):
            start(repository.git_dir, idle_exit=idle_exit, workers=workers)
        if details(repository.socket) is not None:
            return
        time.sleep(0.1 * attempt)
    raise RepositoryError(f"another monitor keeps {repository.socket}; run `git fsmonitor--daemon stop`")


def _write_hook(repository: Repository, idle_exit: float, workers: int) -> None:
    native = shutil.which("ipcsrvc")
    python = [sys.executable, "-P"]  # not from the work tree, in which Git runs the hook
    call = [native, "call"] if native else [*python, "-m", "ipcsrv", "call"]
    begin = [*python, str(Path(__file__).with_name("__main__.py")), "start", "--idle-exit", f"{idle_exit:g}",
             "--workers", str(workers), "--git-dir"]  # fmt: skip
    text = HOOK.format(call=shlex.join(call), start=shlex.join(begin), first=FIRST_TIMEOUT, timeout=ANSWER_TIMEOUT,
                       socket=SOCKET_NAME)
    descriptor, new = tempfile.mkstemp(prefix="fsmonitor-hook.", dir=repository.common_dir)
    with open(descriptor, "w") as file:
        file.write(text)
    os.chmod(new, 0o755)
    os.replace(new, repository.hook)


def describe(repository: Repository) -> list[str]:
    """Return what there is to know, as lines."""
    way = repository.get(WAY)
    configured = repository.effective("core.fsmonitor")
    lines = [f"work tree  {repository.worktree}",
             f"enabled    {'no' if way is None else 'by ' + way}",
             f"Git asks   {configured or 'no monitor'}"]  # fmt: skip
    found = details(repository.socket)
    owner = os.stat(repository.git_dir).st_uid
    if owner != os.geteuid():
        lines.append(f"monitor    is not asked by this user: the Git folder belongs to user {owner}")
    elif found is not None:
        lines.append(f"monitor    runs, {found['folders']} folders watched")
        if found["problem"]:
            lines.append(f"problem    {found['problem']}")
    elif ipcsrv.active_state(repository.socket) is ipcsrv.State.LISTENING:
        lines.append("monitor    another one answers, such as Git's own; run `enable` to replace it")
    else:
        lines.append("monitor    does not run" + ("; the next Git command starts it" if way == "hook" else ""))
    if way == "hook" and (configured != _as_configured(repository.hook) or not os.access(repository.hook, os.X_OK)):
        lines.append(f"problem    Git cannot run {repository.hook}; run `enable` again")
    return lines
