"""The monitor with a real Git: `pytest examples/fsmonitor`."""

from __future__ import annotations

import configparser
import contextlib
import errno
import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

if not sys.platform.startswith("linux"):
    pytest.skip("inotify is Linux's", allow_module_level=True)
if shutil.which("git") is None:
    pytest.skip("git is not installed", allow_module_level=True)

from fsmonitor import commands, inotify, mounts, repository, watcher
from fsmonitor.__main__ import main
from random_changes import Tree

import ipcsrv

WAYS = ["hook", "ipc"]


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """A short, private folder, which is current, and home, without a Git configuration."""
    with tempfile.TemporaryDirectory(prefix="f-") as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name).resolve()
        for variable in [name for name in os.environ if name.startswith("GIT_")]:
            patch.delenv(variable)
        patch.setenv("HOME", str(folder))
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        patch.setenv("GIT_CONFIG_NOSYSTEM", "1")
        paths = [str(Path(__file__).parent), str(Path(ipcsrv.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        patch.chdir(folder)
        yield folder


@contextlib.contextmanager
def prepared(folder: Path) -> Iterator[Tree]:
    """A repository with some content, whose monitor is stopped at the end."""
    tree = Tree(folder / "t", seed=1)
    tree.prepare()
    yield tree
    if tree.root.exists():
        commands.disable(repository.Repository.find(str(tree.root)))


@pytest.fixture
def folder() -> Iterator[Path]:
    """A private folder."""
    with private_folder() as folder:
        yield folder


@pytest.fixture
def tree(folder: Path) -> Iterator[Tree]:
    """A repository without a monitor."""
    with prepared(folder) as tree:
        yield tree


@pytest.fixture(scope="module")
def monitored() -> Iterator[Tree]:
    """A repository with a monitor, for tests that need not disturb it: each works in a folder of its own."""
    with private_folder() as folder, prepared(folder) as tree:
        enable(tree)
        yield tree


def enable(tree: Tree, *options: str) -> None:
    """Run the command in the tree; skip if this Git cannot do it."""
    if "--ipc" in options and not repository.git_has_ipc():
        pytest.skip(f"git {'.'.join(map(str, repository.git_version()))} was built without IPC support")
    assert main(["enable", *options, str(tree.root)]) == 0


# -- with Git ----------------------------------------------------------------------------------------------------------


def test_folder_renamed_by_git_is_still_watched(monitored: Tree) -> None:
    tree = monitored
    (tree.root / "renamed" / "q").mkdir(parents=True)
    (tree.root / "renamed" / "q" / "f").write_text("1\n")
    tree.commit()
    tree.git("mv", "renamed", "zrenamed")
    tree.git("commit", "--quiet", "--message=mv")
    tree.git("status")
    (tree.root / "zrenamed" / "q" / "f").write_text("2\n")
    assert tree.git("status", "--short") == " M zrenamed/q/f\n"


def test_empty_folders_in_place_of_a_moved_one_are_seen(monitored: Tree) -> None:
    tree = monitored
    (tree.root / "empty" / "q").mkdir(parents=True)
    (tree.root / "empty" / "tracked").write_text("")
    tree.commit()
    (tree.root / "empty" / "q" / "untracked").write_text("")
    tree.compare()
    tree.compare()
    (tree.root / "empty").rename(tree.root / "zempty")
    (tree.root / "empty" / "q").mkdir(parents=True)
    for _ in range(3):
        tree.compare()


def test_untracked_cache_is_not_believed_after_a_full_answer(monitored: Tree) -> None:
    tree = monitored
    (tree.root / "cache").mkdir()
    (tree.root / "cache" / "tracked").write_text("")
    tree.commit()
    (tree.root / "cache" / "untracked").write_text("")
    tree.compare()
    tree.compare()
    (tree.root / "cache" / "untracked").unlink()
    ipcsrv.call(tree.root / ".git" / repository.SOCKET_NAME, b"flush")
    tree.git("checkout", "--quiet", "one")  # gets the full answer, and has no need of the untracked cache
    for _ in range(3):
        tree.compare()


@pytest.mark.parametrize(("way", "cache"), [("hook", "true"), ("hook", "false"), ("ipc", "true")])
def test_random_changes_are_all_seen(tree: Tree, way: str, cache: str) -> None:
    tree.git("config", "core.untrackedCache", cache)
    enable(tree, f"--{way}", "--workers", "2")
    for _ in range(25):
        for _ in range(3):
            tree.step()
        tree.compare()


@pytest.mark.parametrize("way", WAYS)
def test_git_relies_on_the_monitor(tree: Tree, way: str) -> None:
    enable(tree, f"--{way}")
    # A change behind the monitor's back is not seen: so Git did not look.
    socket = tree.root / ".git" / repository.SOCKET_NAME
    tree.git("status")
    commands.stop(str(socket))
    with ipcsrv.Server(socket, "fsmonitor_that_says_nothing:handle"):
        (tree.root / "first").write_text("changed\n")
        assert "first" not in tree.git("status", "--short")
    assert commands.ask(str(socket), b"") is None


def test_hook_starts_the_monitor_that_stopped(tree: Tree) -> None:
    enable(tree, "--hook", "--idle-exit", "0.1")
    socket = tree.root / ".git" / repository.SOCKET_NAME
    until = time.monotonic() + 20
    while socket.exists():
        assert time.monotonic() < until
        time.sleep(0.01)  # the end of a background process is no event here
    (tree.root / "first").write_text("changed\n")
    assert " M first" in tree.git("status", "--short")
    hook = (tree.root / ".git" / "fsmonitor-hook").read_text()
    assert len(hook.splitlines()) <= 14


def test_socket_that_a_killed_monitor_left_costs_no_wait(tree: Tree) -> None:
    enable(tree, "--hook")
    socket = tree.root / ".git" / repository.SOCKET_NAME

    def kill() -> None:
        descriptor = os.pidfd_open(ipcsrv.status(socket)["pid"])
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        assert select.select([descriptor], [], [], 20)[0]
        os.close(descriptor)

    kill()
    began = time.monotonic()
    (tree.root / "first").write_text("changed\n")
    assert " M first" in tree.git("status", "--short")
    assert commands.details(str(socket)) is not None
    kill()
    assert main(["status", str(tree.root)]) == 0
    assert main(["disable", str(tree.root)]) == 0
    assert time.monotonic() - began < commands.ANSWER_TIMEOUT


@pytest.mark.parametrize("way", ["hook", "ipc"])
def test_enable_says_what_starts_the_monitor_again(tree: Tree, capsys: pytest.CaptureFixture[str], way: str) -> None:
    enable(tree, f"--{way}")
    said = capsys.readouterr().out
    assert said.startswith(f"enabled by {way}: {tree.root}\n")
    assert ("run `fsmonitor enable` again" in said) == (way == "ipc")


@pytest.mark.parametrize("asked_by", ["git", "client"])
def test_socket_of_systemd_starts_the_monitor_when_it_is_asked(tree: Tree, asked_by: str) -> None:
    if asked_by == "git" and not repository.git_has_ipc():
        pytest.skip("this Git does not connect by itself")
    git_dir = tree.root / ".git"
    tree.git("config", "core.fsmonitor", "true" if asked_by == "git" else "false")
    socket_path, command = units(git_dir)
    assert socket_path == str(git_dir / repository.SOCKET_NAME)
    question = (["git", "status", "--short"] if asked_by == "git"
                else [sys.executable, "-m", "ipcsrv", "call", socket_path, "0"])
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(socket_path)
        listener.listen(64)
        for word in ("changed\n", "changed again\n"):  # the second time after the idle exit of the first server
            (tree.root / "first").write_text(word)
            asking = subprocess.Popen(question, cwd=tree.root, stdout=subprocess.PIPE, text=True)
            assert select.select([listener], [], [], 20)[0], "no client connects"
            passed = os.dup(listener.fileno())
            server = subprocess.Popen([sys.executable, "-c", LIKE_SYSTEMD, str(passed), *command], cwd=git_dir,
                                      pass_fds=[passed])
            os.close(passed)
            answer = asking.communicate(timeout=30)[0]
            assert (" M first\n" in answer) if asked_by == "git" else answer.endswith("\0/\0")
            assert server.wait(30) == 0
            assert os.path.exists(socket_path)


LIKE_SYSTEMD = """
import os, sys
passed = int(sys.argv[1])
os.dup2(passed, 3) if passed != 3 else os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS="1", LISTEN_FDNAMES="ipcsrv", LISTEN_PID=str(os.getpid()))
os.execv(sys.executable, [sys.executable, "-m", "ipcsrv", *sys.argv[2:]])
"""


def units(git_dir: Path) -> tuple[str, list[str]]:
    """What the unit files say: where systemd listens, and ipcsrv's arguments, here with a short idle exit."""
    found = {}
    for name in ("socket", "service"):
        parser = configparser.ConfigParser(interpolation=None)
        parser.read(Path(__file__).parent / "systemd" / f"fsmonitor@.{name}")
        found[name] = parser[name.capitalize()]
    program, *arguments = [word.replace("%f", str(git_dir)) for word in shlex.split(found["service"]["ExecStart"])]
    assert program.endswith("/ipcsrv") and found["service"]["WorkingDirectory"] == "%f"
    arguments[arguments.index("--idle-exit") + 1] = "0.2"
    return found["socket"]["ListenStream"].replace("%f", str(git_dir)), arguments


def test_reload_and_crash_cost_one_full_answer(tree: Tree) -> None:
    enable(tree, "--hook")
    socket = str(tree.root / ".git" / repository.SOCKET_NAME)

    def ask(token: bytes) -> tuple[bytes, list[bytes]]:
        answer = ipcsrv.call(socket, token, timeout=20)
        first, *paths = answer.split(b"\0")[:-1]
        return first, paths

    token, paths = ask(b"1234567890")
    assert paths == [b"/"]
    token, paths = ask(token)
    assert b"*" in paths and all(path.endswith(b"*") for path in paths)
    (tree.root / "first").write_text("changed\n")
    assert ask(token)[1] == [b"first"]
    assert ask(ask(token)[0])[1] == []
    ipcsrv.reload(socket)
    assert ask(token)[1] == [b"/"]
    assert ask(ask(token)[0])[1] == paths
    assert ask(ask(b"flush")[0])[1] == paths
    assert ask(token.replace(b"-", b"_"))[1] == [b"/"]  # of another boot


def test_linked_worktree_has_its_own_monitor(tree: Tree) -> None:
    tree.git("worktree", "add", "--quiet", "../linked", "two")
    linked = Tree(tree.root.parent / "linked", seed=2)
    enable(tree)
    assert tree.git("config", "core.fsmonitor").strip() != "true"  # a setting that both share
    linked.git("status")  # the hook starts it
    for _ in range(5):
        linked.step()
        linked.compare()
    status = commands.details(repository.Repository.find(str(linked.root)).socket)
    assert status is not None and status["worktree"] == str(linked.root)
    tree.git("worktree", "move", "--force", "../linked", "../elsewhere")
    tree.git("worktree", "add", "--quiet", "--detach", "../linked")
    linked = Tree(tree.root.parent / "elsewhere", seed=2)
    assert_followed(linked)
    assert commands.disable(repository.Repository.find(str(linked.root)))
    for git_dir in repository.Repository.find(str(tree.root)).git_dirs():
        assert not Path(git_dir, repository.SOCKET_NAME).exists()


def test_submodule_and_its_parent_are_both_right(tree: Tree, folder: Path) -> None:
    inner = Tree(folder / "inner", seed=3)
    inner.prepare()
    tree.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(inner.root), "sub")
    tree.git("commit", "--quiet", "--message=sub")
    submodule = Tree(tree.root / "sub", seed=4)
    for each in (tree, submodule):
        enable(each, "--hook")
        each.compare()
    (submodule.root / "first").write_text("changed\n")
    for each in (tree, submodule):
        each.compare()
    submodule.git("-c", "user.name=n", "-c", "user.email=e", "commit", "--quiet", "--all", "--message=changed")
    for each in (tree, submodule):
        each.compare()
    assert "M sub" in tree.git("status", "--short")
    tree.git("mv", "sub", "moved")
    submodule.root.mkdir()
    submodule = Tree(tree.root / "moved", seed=4)
    assert_followed(submodule)
    hook = repository.Repository.find(str(submodule.root)).hook
    for folder, status in ((submodule.root, 0), (tree.root, 1)):  # `git mv` runs it in the superproject
        done = subprocess.run([hook, "2", "0"], cwd=folder, stdout=subprocess.DEVNULL, check=False)
        assert done.returncode == status
    commands.disable(repository.Repository.find(str(submodule.root)))


def assert_followed(moved: Tree) -> None:
    """Check that the monitor of a work tree that was moved is right, and watches the new place."""
    moved.compare()
    (moved.root / "first").write_text("changed where it is now\n")
    moved.compare()
    status = commands.details(repository.Repository.find(str(moved.root)).socket)
    assert status is not None and (status["worktree"], status["problem"]) == (str(moved.root), "")


def test_monitor_ends_when_the_work_tree_is_deleted(tree: Tree) -> None:
    enable(tree, "--hook")
    socket = tree.root / ".git" / repository.SOCKET_NAME
    descriptor = os.pidfd_open(ipcsrv.status(socket)["pid"])
    shutil.rmtree(tree.root)
    assert select.select([descriptor], [], [], 20)[0]
    os.close(descriptor)


def test_disable_restores_the_configuration(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    tree.git("config", "core.fsmonitor", "my hook")
    tree.git("config", "core.fsmonitorHookVersion", "1")
    before = (tree.root / ".git" / "config").read_text()
    files = set(os.listdir(tree.root / ".git"))
    enable(tree, "--hook")
    enable(tree, "--hook")
    assert main(["status", str(tree.root)]) == 0
    shown = capsys.readouterr().out
    assert "by hook" in shown and "runs, " in shown and "problem" not in shown
    tree.root.rename(tree.root.with_name("moved"))
    assert main(["status", str(tree.root.with_name("moved"))]) == 0
    assert "problem" in capsys.readouterr().out
    tree.root.with_name("moved").rename(tree.root)
    assert main(["disable", str(tree.root)]) == 0
    assert (tree.root / ".git" / "config").read_text() == before
    assert set(os.listdir(tree.root / ".git")) == files
    assert main(["disable", str(tree.root)]) == 0


def test_disable_finds_what_was_enabled_before_sparse_checkout(tree: Tree) -> None:
    enable(tree, "--hook")
    tree.git("sparse-checkout", "set", "--no-cone", "/first")  # turns on configurations of work trees
    enable(tree, "--hook")
    assert main(["disable", str(tree.root)]) == 0
    assert "fsmonitor" not in tree.git("config", "--list").lower()
    assert not (tree.root / ".git" / "fsmonitor-hook").exists()


def test_disable_of_one_work_tree_leaves_the_others_alone(tree: Tree) -> None:
    tree.git("config", "extensions.worktreeConfig", "true")
    tree.git("worktree", "add", "--quiet", "../linked", "two")
    linked = Tree(tree.root.parent / "linked", seed=2)
    found = [repository.Repository.find(str(each.root)) for each in (tree, linked)]
    for each in (tree, linked):
        enable(each, "--hook")
    assert commands.disable(found[1])
    assert [commands.details(each.socket) is not None for each in found] == [True, False]
    assert main(["disable", str(linked.root)]) == 0  # for the second time
    assert os.access(found[0].hook, os.X_OK)
    for each in (tree, linked):
        each.compare()
    assert commands.disable(found[0])
    assert not os.path.exists(found[0].hook)


def test_enable_that_fails_leaves_nothing(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (tree.root / ".git" / "config").read_text(), set(os.listdir(tree.root / ".git"))
    for option in ("--idle-exit=nan", "--idle-exit=-1", "--workers=0"):
        with pytest.raises(SystemExit):
            main(["enable", "--hook", option, str(tree.root)])
    (tree.root / ".git" / repository.SOCKET_NAME).mkdir()  # no server can start there
    assert main(["enable", "--hook", str(tree.root)]) == 1
    (tree.root / ".git" / repository.SOCKET_NAME).rmdir()
    left = set(os.listdir(tree.root / ".git")) - {repository.SOCKET_NAME + ".ipcsrv.lock"}
    assert ((tree.root / ".git" / "config").read_text(), left) == before


def test_commands_at_the_same_time_wait_for_each_other(
    tree: Tree, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "bin").mkdir()
    (folder / "bin" / "git").write_text(SLOW_GIT.format(git=shutil.which("git")))
    (folder / "bin" / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    running = [subprocess.Popen([sys.executable, "-m", "fsmonitor", verb, str(tree.root)], stdout=subprocess.DEVNULL)
               for verb in ("enable", "enable", "disable")]  # fmt: skip
    assert [each.wait(60) for each in running] == [0, 0, 0]
    assert not (folder / "overlap").exists()


SLOW_GIT = """#!/bin/sh
case "$*" in *--replace-all*)
    mkdir "$HOME/writing" || touch "$HOME/overlap"
    sleep 0.1
    {git} "$@"
    status=$?
    rmdir "$HOME/writing"
    exit $status
esac
exec {git} "$@"
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can work in the repository of another user")
def test_root_is_no_user_of_the_monitor_of_another_user(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    enable(tree, "--hook")
    commands.stop(str(tree.root / ".git" / repository.SOCKET_NAME))
    subprocess.run(["git", "config", "--global", "safe.directory", "*"], check=True)
    subprocess.run(["chown", "--recursive", "65534", str(tree.root)], check=True)
    done = subprocess.run(["git", "status"], cwd=tree.root, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert main(["status", str(tree.root)]) == 0
    assert "belongs to user 65534" in capsys.readouterr().out


def test_enable_refuses_what_cannot_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["enable", str(folder)]) == 1  # no repository
    subprocess.run(["git", "init", "--quiet", "--bare", "bare"], check=True)
    assert main(["enable", "bare"]) == 1
    assert main(["start", "--git-dir", "bare"]) == 1
    subprocess.run(["git", "init", "--quiet", "r"], check=True)
    monkeypatch.setattr(commands, "git_version", lambda: (2, 30, 2))
    assert main(["enable", "r"]) == 1
    monkeypatch.undo()
    monkeypatch.setattr(mounts, "file_system", lambda _: "nfs4")
    assert main(["enable", str(folder / "r")]) == 1
    monkeypatch.undo()
    subprocess.run(["git", "init", "--quiet", "--separate-git-dir=apart", "separate"], check=True)
    assert main(["enable", "separate"]) == 1
    said = capsys.readouterr().err
    assert said.count("fsmonitor: ") == 6
    assert said.endswith("configure core.worktree there\n")


@pytest.mark.parametrize("is_named", [True, False])
def test_another_work_tree_of_the_same_git_folder_is_looked_at(monitored: Tree, tmp_path: Path, is_named: bool) -> None:
    tree, other = monitored, tmp_path / "other"
    for _ in range(2):
        tree.git("status")
    shutil.copytree(tree.root, other, ignore=shutil.ignore_patterns(".git"), symlinks=True)
    (other / "first").write_text("changed\n")
    named = [f"--work-tree={other}"] if is_named else []
    command = ["git", f"--git-dir={tree.root / '.git'}", *named, "status", "--short"]
    said = subprocess.run(command, cwd=tree.root if is_named else other, text=True, check=True,
                          stdout=subprocess.PIPE).stdout  # fmt: skip
    assert " M first" in said.splitlines()
    tree.compare()


def test_only_the_repository_says_what_is_watched(tree: Tree, folder: Path) -> None:
    enable(tree, "--hook")
    socket = str(tree.root / ".git" / repository.SOCKET_NAME)
    commands.stop(socket)
    tree.git("-c", f"core.worktree={folder}", "status")  # which starts the monitor
    status = commands.details(socket)
    assert status is not None and status["worktree"] == str(tree.root)


@pytest.mark.parametrize("name", ["e\\.git", ".GIT", "git~1", ".g\u200cit"])
def test_name_that_git_ignores_in_an_answer_is_seen(monitored: Tree, name: str) -> None:
    path = monitored.root / "ignored" / name
    path.parent.mkdir(exist_ok=True)
    for _ in range(2):
        monitored.compare()
    path.touch()
    monitored.compare()
    path.unlink()
    path.mkdir()
    for inner in ("1", "2"):
        (path / inner).touch()
        monitored.compare()
    shutil.rmtree(path)
    monitored.compare()


def test_repository_that_is_made_and_broken_from_inside_is_seen(monitored: Tree) -> None:
    inner = monitored.root / "inner"
    for name in ("refs", "objects"):
        (inner / ".git" / name).mkdir(parents=True)
    (inner / "f").touch()

    def listed() -> str:
        return monitored.git("-c", "status.showUntrackedFiles=all", "status", "--short")

    for _ in range(3):
        assert "inner/f" in listed()
    (inner / ".git" / "HEAD").write_text("ref: refs/heads/one\n")
    assert "inner/f" not in listed()
    (inner / ".git" / "HEAD").unlink()
    assert "inner/f" in listed()
    shutil.rmtree(inner)


def test_stop_and_start_keep_what_is_configured(tree: Tree) -> None:
    enable(tree, "--hook")
    socket = tree.root / ".git" / repository.SOCKET_NAME
    assert main(["stop", str(tree.root)]) == 0
    assert not socket.exists()
    assert main(["start", str(tree.root)]) == 0
    assert ipcsrv.status(socket)["settings"]["idle_exit"] == commands.IDLE_EXIT


def test_code_of_the_work_tree_is_never_imported(tree: Tree) -> None:
    for name in ("json", "ipcsrv", "fsmonitor", "selectors"):
        (tree.root / f"{name}.py").write_text("open('imported', 'w'); raise SystemExit\n")
    enable(tree, "--hook")
    commands.stop(str(tree.root / ".git" / repository.SOCKET_NAME))
    assert "?? json.py" in tree.git("status", "--short")
    assert not (tree.root / "imported").exists()
    assert commands.details(str(tree.root / ".git" / repository.SOCKET_NAME)) is not None


# -- the watcher alone -------------------------------------------------------------------------------------------------


class Clock:
    """Time that goes on by one with each look."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        self.now += 1
        return self.now


@pytest.fixture
def watched(folder: Path) -> Iterator[tuple[Path, watcher.Watcher, Callable[[], list[bytes] | None]]]:
    """A folder, its watcher, and what has changed since the last call."""
    root = folder / "w"
    (root / "a" / "b").mkdir(parents=True)
    clock = Clock()
    found = watcher.Watcher(lambda: str(root), clock)
    moment = clock()

    def changes() -> list[bytes] | None:
        nonlocal moment
        moment, result = found.changes_since(moment)
        return None if result is None else sorted(result)

    yield root, found, changes
    found.close()


Watched = tuple[Path, watcher.Watcher, Callable[[], "list[bytes] | None"]]


def test_changes_are_reported_and_then_done_with(watched: Watched) -> None:
    root, _, changes = watched
    assert changes() == []
    (root / "a" / "f").write_text("")
    assert changes() == [b"a/f"]
    assert changes() == [b"a/f"]  # its time is that of the reading, after the moment of the first answer
    assert changes() == []


def test_git_folder_is_not_watched(watched: Watched) -> None:
    root, found, changes = watched
    (root / ".git" / "refs").mkdir(parents=True)
    assert changes() == []
    (root / "a" / ".git").mkdir()
    (root / "a" / ".git" / "HEAD").write_text("")
    assert set(changes() or []) == {b"a", b"a/", b"a/*", b"a/.git/"}
    changes()
    assert changes() == [b"a/", b"a/*"]  # each time: a change in its `.git` may make it a repository, or none
    assert found.folders == 3


def test_symbolic_link_is_not_followed(watched: Watched) -> None:
    root, found, changes = watched
    (root / "link").symlink_to("a")
    assert changes() == [b"link"]
    assert found.folders == 3


def test_overflow_makes_everything_suspect_once(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    root, _, changes = watched
    lost = inotify.Event(-1, inotify.OVERFLOW, b"")
    monkeypatch.setattr(inotify.Inotify, "queued", lambda self: iter([lost]))
    assert changes() is None
    monkeypatch.undo()
    assert changes() == []
    (root / "a" / "b" / "f").write_text("")
    assert changes() == [b"a/b/f"]


def test_mount_makes_everything_suspect_once(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, changes = watched
    monkeypatch.setattr(mounts.Mounts, "changed", lambda self: True)
    assert changes() is None
    monkeypatch.undo()
    assert changes() == []


def test_limit_of_watches_is_said(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root, found, changes = watched

    def full(self: inotify.Inotify, path: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(inotify.Inotify, "watch", full)
    (root / "c").mkdir()
    assert changes() is None
    assert "fs.inotify.max_user_watches" in found.problem
    assert "fs.inotify.max_user_watches" in caplog.text
    monkeypatch.undo()
    assert changes() is None  # it is tried again after a minute
    monkeypatch.setattr(watcher, "RETRY_NS", 0)
    assert changes() is None
    assert (changes(), found.problem) == ([], "")


def test_folder_that_is_mounted_twice_makes_everything_suspect(folder: Path) -> None:
    for name in ("a", "m"):
        (folder / "w" / name).mkdir(parents=True)
    script = "mount --bind w/a w/m || exit 77; exec " + shlex.join([sys.executable, "-c", MOUNTED])
    done = subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script], capture_output=True,
                          text=True, check=False)  # fmt: skip
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("mounting is not allowed here")
    assert done.stdout == "None the folder is mounted at a second place of the tree\n", done.stderr


MOUNTED = """
from fsmonitor.watcher import Watcher
found = Watcher(lambda: "w")
print(found.changes_since(10 ** 30)[1], found.problem.partition(":")[0])
"""


def test_too_many_changes_make_everything_suspect(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    root, _, changes = watched
    monkeypatch.setattr(watcher, "MOST_CHANGES", 5)
    for number in range(10):
        (root / str(number)).write_text("")
    assert changes() is None
    assert changes() == []


def test_deleted_tree_makes_everything_suspect(watched: Watched) -> None:
    root, found, changes = watched
    shutil.rmtree(root)
    assert changes() is None
    assert "moved or deleted" in found.problem


def test_tree_is_watched_after_a_parent_was_renamed(folder: Path) -> None:
    (folder / "old" / "w" / "a").mkdir(parents=True)
    found = watcher.Watcher(lambda: str(folder / "old" / "w"))
    (folder / "old").rename(folder / "new")
    root = folder / "new" / "w"
    (root / "a" / "b").mkdir()
    now = time.monotonic_ns()
    found.changes_since(now)
    (root / "a" / "b" / "f").write_text("")
    assert b"a/b/f" in (found.changes_since(now)[1] or [])
    found.close()


def test_mount_points_are_read() -> None:
    line = rb"36 35 98:0 /m /mnt\040a rw,noatime master:1 - ext3 /dev/root rw,errors=continue"
    assert mounts._mounts(line) == [(b"36", b"/mnt a", b"ext3")]
    assert mounts.file_system("/proc") == "proc"
