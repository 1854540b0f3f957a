"""`git status` in a large tree, with and without the monitor of examples/fsmonitor: `python -m benchmarks.fsmonitor`.

Makes a synthetic tree, and takes turns: the median time of `git status` in an unchanged tree, and that of the first one
after an edit of one file. By hook, and by IPC where the Git can; `ipcsrvc` is used by the hook if it is in PATH.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "fsmonitor"
FILES_OF_A_FOLDER = 20


def git(tree: Path, *arguments: str) -> str:
    """Run Git in the tree."""
    return subprocess.run(["git", *arguments], cwd=tree, check=True, capture_output=True, text=True).stdout


def fsmonitor(*arguments: str) -> None:
    """Run the example's command."""
    paths = os.pathsep.join([str(ROOT), str(EXAMPLE)])
    command = [sys.executable, "-m", "fsmonitor", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": paths})


def make_tree(tree: Path, files: int) -> None:
    """Make a repository with so many files, 20 in each folder, 30 folders in each folder above."""
    for number in range(-(-files // FILES_OF_A_FOLDER)):
        folder = tree / f"part{number // 30:03}" / f"module{number % 30:02}"
        folder.mkdir(parents=True)
        for index in range(min(FILES_OF_A_FOLDER, files - number * FILES_OF_A_FOLDER)):
            (folder / f"file{index:02}.txt").write_text(f"{number} {index}\n" * 20)
    git(tree, "init", "--quiet")
    for key, value in (("user.name", "n"), ("user.email", "n@example.org"), ("gc.auto", "0")):
        git(tree, "config", key, value)
    git(tree, "add", ".")
    git(tree, "commit", "--quiet", "--message=all")


def seconds_of_status(tree: Path) -> float:
    """The time that one `git status` takes."""
    began = time.perf_counter()
    git(tree, "status", "--porcelain")
    return time.perf_counter() - began


def measure(tree: Path, rounds: int) -> tuple[float, float]:
    """Median milliseconds in an unchanged tree, and after an edit."""
    edited = tree / "part000" / "module00" / "file00.txt"
    unchanged, changed = [], []
    for _ in range(3):
        seconds_of_status(tree)
    for number in range(rounds):
        unchanged.append(seconds_of_status(tree))
        edited.write_text(f"{number}\n")
        changed.append(seconds_of_status(tree))
        seconds_of_status(tree)
    return statistics.median(unchanged) * 1e3, statistics.median(changed) * 1e3


def start_own(tree: Path) -> None:
    """Have Git's own monitor in the place of ours."""
    fsmonitor("disable", str(tree))
    git(tree, "config", "core.untrackedCache", "true")
    git(tree, "config", "core.fsmonitor", "true")
    command = ["git", "fsmonitor--daemon", "start"]
    subprocess.run(command, cwd=tree, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def ways(tree: Path) -> dict[str, Callable[[], object]]:
    """How each contestant is switched on."""
    sys.path[:0] = [str(ROOT), str(EXAMPLE)]
    from fsmonitor.repository import git_has_ipc

    found: dict[str, Callable[[], object]] = {
        "no monitor": lambda: git(tree, "config", "core.untrackedCache", "false"),
        "no monitor, untracked cache": lambda: git(tree, "config", "core.untrackedCache", "true"),
        "monitor by hook": lambda: fsmonitor("enable", "--hook", str(tree)),
    }
    if git_has_ipc():
        found["Git's own monitor"] = lambda: start_own(tree)
        found["monitor by IPC"] = lambda: fsmonitor("enable", "--ipc", str(tree))
    return found


def main() -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--files", type=int, default=60_000, metavar="N")
    parser.add_argument("--rounds", type=int, default=20, metavar="N", help="git status commands for each median")
    parser.add_argument("--git", metavar="FOLDER", help="the folder of the Git to use (default: that in PATH)")
    asked = parser.parse_args()
    if asked.git:
        os.environ["PATH"] = os.path.abspath(asked.git) + os.pathsep + os.environ["PATH"]
    with tempfile.TemporaryDirectory(prefix="fsm-") as name:
        tree = Path(name) / "t"
        make_tree(tree, asked.files)
        client = "ipcsrvc" if shutil.which("ipcsrvc") else "ipcsrv call"
        print(f"{git(tree, 'version').strip()}, {platform.system()} {platform.release()}, {os.cpu_count()} CPUs, "
              f"{asked.files} files, the hook uses {client}; milliseconds, medians of {asked.rounds}\n")  # fmt: skip
        print("| | unchanged | after an edit |\n|---|---|---|")
        try:
            for label, switch_on in ways(tree).items():
                switch_on()
                print("| {} | {:.1f} | {:.1f} |".format(label, *measure(tree, asked.rounds)), flush=True)
        finally:
            fsmonitor("disable", str(tree))
    return 0


if __name__ == "__main__":
    sys.exit(main())
