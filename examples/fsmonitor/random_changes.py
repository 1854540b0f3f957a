"""Random changes of a work tree, and the comparison of `git status` with the monitor and without."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

NAMES = ("a", "b", "c", "d.txt", "e-f", "g h", "\u00e9", ".hidden")
MOST_FOLDERS = 40


class Difference(AssertionError):
    """The monitor was wrong: what was done, and both answers."""


class Tree:
    """A repository with a monitor, to which random things happen; equal seeds do equal things."""

    def __init__(self, root: Path, seed: int, git: str = "git") -> None:
        self.root = root
        self.git_command = git
        self.random = random.Random(seed)
        self.done: list[str] = []
        self._actions: list[tuple[Callable[[], None], int]] = [
            (self.edit, 20), (self.create, 15), (self.delete, 8), (self.make_folder, 6), (self.rename_file, 8),
            (self.rename_folder, 10), (self.move_back, 3), (self.delete_folder, 4), (self.replace_folder, 4),
            (self.to_symlink, 2), (self.change_mode, 3), (self.ignore, 2), (self.move_out_and_in, 3),
            (self.commit, 8), (self.git_mv, 5), (self.branch, 5), (self.stash, 4), (self.reset, 2), (self.clean, 1),
            (self.nest, 1), (self.skeleton, 4),
        ]  # fmt: skip

    # -- Git -----------------------------------------------------------------------------------------------------------

    def git(self, *arguments: str, check: bool = True) -> str:
        """Run Git in the tree."""
        done = subprocess.run([self.git_command, *arguments], cwd=self.root, capture_output=True, text=True,
                              errors="surrogateescape", check=False)
        if check and done.returncode:
            raise AssertionError(f"git {arguments}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def prepare(self) -> None:
        """Make the repository with some content."""
        self.root.mkdir(parents=True, exist_ok=True)
        self.git("init", "--quiet", "--initial-branch=one")
        for key, value in (("user.name", "n"), ("user.email", "n@example.org"), ("core.safecrlf", "false"),
                           ("advice.detachedHead", "false"), ("gc.auto", "0"), ("commit.gpgSign", "false")):
            self.git("config", key, value)
        for _ in range(30):
            self.random.choice((self.create, self.create, self.make_folder))()
        (self.root / "first").write_text("first\n")
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message=first")
        self.git("branch", "two")
        self.done.clear()

    def compare(self) -> None:
        """Raise Difference unless Git says the same with the monitor and without."""
        listing = self.random.choices(("--untracked-files=normal", "--untracked-files=all"), (4, 1))[0]
        question = ("status", "--porcelain=v2", "-z", listing)
        seen = self.git(*question)
        truth = self.git("--no-optional-locks", "-c", "core.fsmonitor=false", "-c", "core.untrackedCache=false",
                         *question)
        if seen != truth:
            wrong = set(seen.split("\0")) ^ set(truth.split("\0"))
            raise Difference(f"{sorted(wrong)} after\n" + "\n".join(self.done[-40:]))

    # -- what happens --------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Do one thing."""
        actions, weights = zip(*self._actions, strict=True)
        self.random.choices(actions, weights)[0]()

    def _note(self, *what: object) -> None:
        self.done.append(" ".join(map(str, what)))

    def folders(self) -> list[Path]:
        """Every folder of the tree but Git's, in an order that a seed decides."""
        found = [Path(path) for path, names, _ in os.walk(self.root) if _not_of_git(names)]
        return sorted(found)

    def _folder(self) -> Path:
        return self.random.choice(self.folders())

    def _inner(self) -> Path | None:
        inner = self.folders()[1:]
        return self.random.choice(inner) if inner else None

    def _file(self) -> Path | None:
        files = sorted(path for folder in self.folders() for path in folder.iterdir()
                       if path.is_file() and not path.is_symlink() and path.name != ".git")
        return self.random.choice(files) if files else None

    def _free(self, folder: Path) -> Path:
        path = folder / self.random.choice(NAMES)
        while os.path.lexists(path):
            path = folder / f"{self.random.choice(NAMES)}{self.random.randrange(1000)}"
        return path

    def edit(self) -> None:
        """Change a file; now and then to the same size, in place."""
        if (path := self._file()) is not None:
            with path.open("r+" if self.random.random() < 0.5 else "a") as file:
                file.write(f"{self.random.randrange(10)}\n")
            self._note("edit", path)

    def create(self) -> None:
        """Make a file."""
        path = self._free(self._folder())
        path.write_text(f"{self.random.randrange(1000)}\n")
        self._note("create", path)

    def delete(self) -> None:
        """Delete a file."""
        if (path := self._file()) is not None:
            path.unlink()
            self._note("delete", path)

    def make_folder(self) -> None:
        """Make a folder, now and then with something in it."""
        if len(self.folders()) < MOST_FOLDERS:
            path = self._free(self._folder())
            path.mkdir()
            if self.random.random() < 0.6:
                (path / "x").mkdir()
                (path / "x" / self.random.choice(NAMES)).write_text("x\n")
            self._note("make folder", path)

    def rename_file(self) -> None:
        """Rename a file, now and then onto another one."""
        path, other = self._file(), self._file()
        if path is not None and other is not None:
            target = other if self.random.random() < 0.3 else self._free(self._folder())
            path.rename(target)
            self._note("rename", path, target)

    def rename_folder(self) -> None:
        """Rename a folder, and perhaps change something in it at once."""
        path = self._inner()
        if path is not None:
            target = self._free(self.random.choice([at for at in self.folders() if path not in (at, *at.parents)]))
            path.rename(target)
            self._note("rename folder", path, target)
            if self.random.random() < 0.5:
                (target / "new").write_text("new\n")
                self._note("create", target / "new")

    def move_back(self) -> None:
        """Rename a folder and change it there; then rename it back."""
        if (path := self._inner()) is not None:
            away = self._free(self.root)
            path.rename(away)
            (away / "moved").write_text(f"{self.random.randrange(1000)}\n")
            away.rename(path)
            self._note("move away and back", path)

    def delete_folder(self) -> None:
        """Delete a folder with all in it."""
        if (path := self._inner()) is not None:
            shutil.rmtree(path)
            self._note("delete folder", path)

    def replace_folder(self) -> None:
        """Put another folder in the place of one."""
        if (path := self._inner()) is not None:
            shutil.rmtree(path)
            path.mkdir()
            (path / self.random.choice(NAMES)).write_text("replaced\n")
            self._note("replace folder", path)

    def skeleton(self) -> None:
        """Rename a folder, and make the same folders without files in its place."""
        if (path := self._inner()) is not None:
            inner = [at.relative_to(path) for at in self.folders() if path in at.parents]
            target = self._free(self.root)
            path.rename(target)
            for folder in (path, *(path / at for at in inner)):
                folder.mkdir()
            self._note("skeleton", path, "of", target)

    def to_symlink(self) -> None:
        """Put a symbolic link to a folder in the place of a file or folder."""
        path = self._file() if self.random.random() < 0.7 else self._inner()
        if path is not None:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            path.symlink_to(self.random.choice(("..", ".", "nowhere")))
            self._note("symlink", path)

    def change_mode(self) -> None:
        """Make a file executable, or touch a folder."""
        if self.random.random() < 0.3:
            os.utime(self._folder())
        elif (path := self._file()) is not None:
            path.chmod(path.stat().st_mode ^ 0o111)
            self._note("change mode", path)

    def ignore(self) -> None:
        """Write ignore rules somewhere."""
        path = self._folder() / ".gitignore"
        path.write_text(f"{self.random.choice(NAMES)}\n")
        self._note("ignore", path)

    def move_out_and_in(self) -> None:
        """Move a folder out of the tree, change it, and move it in somewhere."""
        if (path := self._inner()) is not None:
            outside = self.root.with_name(self.root.name + ".outside")
            path.rename(outside)
            (outside / "outside").write_text(f"{self.random.randrange(1000)}\n")
            target = self._free(self._folder())
            outside.rename(target)
            self._note("move out and in", path, target)

    def commit(self) -> None:
        """Commit everything, or what is tracked."""
        self.git("add", self.random.choice(("--all", "--update")), check=False)  # a repository inside is refused
        self.git("commit", "--quiet", "--allow-empty", "--message=m")
        self._note("commit")

    def git_mv(self) -> None:
        """Rename by Git itself, and commit that."""
        if (path := self._inner()) is not None:
            target = self._free(self.root)
            self.git("mv", str(path), str(target), check=False)
            self.git("commit", "--quiet", "--message=mv", check=False)
            self._note("git mv", path, target)

    def branch(self) -> None:
        """Switch to the other branch."""
        name = self.random.choice(("one", "two"))
        self.git("checkout", "--quiet", *(() if self.random.random() < 0.5 else ("--force",)), name, check=False)
        self._note("checkout", name)

    def stash(self) -> None:
        """Stash, or get it back."""
        action = self.random.choice((("push", "--quiet", "--include-untracked"), ("push", "--quiet"),
                                     ("pop", "--quiet")))  # fmt: skip
        self.git("stash", *action, check=False)
        if self.git("ls-files", "--unmerged"):
            self.git("reset", "--quiet", "--hard")
        self._note("stash", *action)

    def reset(self) -> None:
        """Go back to what is committed."""
        self.git("reset", "--quiet", "--hard")
        self._note("reset")

    def clean(self) -> None:
        """Delete what is not tracked."""
        self.git("clean", "--quiet", "-d", "--force")
        self._note("clean")

    def nest(self) -> None:
        """Make a repository in a folder, or one that is there a folder again."""
        path = self._inner()
        if path is None:
            return
        inner = path / ".git"
        if inner.is_dir():
            shutil.rmtree(inner)
        elif not self.git("ls-files", "--", str(path)):
            subprocess.run([self.git_command, "init", "--quiet", str(path)], check=True, capture_output=True)
        self._note("nest", path)


def _not_of_git(names: list[str]) -> bool:
    """Have os.walk leave out Git's folders, and visit the others in a fixed order."""
    names[:] = sorted(name for name in names if name != ".git")
    return True
