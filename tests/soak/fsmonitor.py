"""The Git monitor of examples/fsmonitor under random changes: `python tests/soak/fsmonitor.py [ROUNDS] [SEED] [GIT]`.

Each round does a few random things to a repository and compares `git status` with the monitor and without. The way in
(hook, and IPC where the Git can) and the untracked cache (on, off) take turns, the number of workers is random; now and
then a worker is killed, the server reloaded or stopped. Prints what it did; exits 1 at the first difference.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "examples" / "fsmonitor"
sys.path[:0] = [str(ROOT), str(EXAMPLE)]

from fsmonitor import repository  # noqa: E402
from random_changes import Difference, Tree  # noqa: E402

import ipcsrv  # noqa: E402

ROUNDS_OF_A_TREE = 50


def monitor(*arguments: str) -> None:
    """Run the example's command."""
    subprocess.run([sys.executable, "-m", "fsmonitor", *arguments], check=True, stdout=subprocess.DEVNULL)


def disturb(socket: str, chance: random.Random, way: str) -> str:
    """Do something to the server; return what."""
    # With IPC, Git would start its own monitor in the place of a stopped one.
    what = chance.choice(("kill", "reload", "stop") if way == "hook" else ("kill", "reload"))
    try:
        if what == "kill":
            workers = ipcsrv.status(socket)["workers"]
            os.kill(chance.choice(workers)["pid"], signal.SIGKILL)
        elif what == "reload":
            ipcsrv.reload(socket)
        else:
            ipcsrv.stop(socket)
    except ipcsrv.IpcError as error:
        return f"{what}: {error}"
    return what


def one_tree(folder: Path, seed: int, rounds: int, way: str, cache: str) -> None:
    """A repository and its rounds."""
    chance = random.Random(seed)
    tree = Tree(folder / f"t{seed}", seed)
    tree.prepare()
    tree.git("config", "core.untrackedCache", cache)
    workers = chance.choice(("1", "1", "2", "3"))
    monitor("enable", f"--{way}", "--workers", workers, str(tree.root))
    socket = str(tree.root / ".git" / repository.SOCKET_NAME)
    try:
        for _ in range(rounds):
            for _ in range(chance.randrange(1, 6)):
                tree.step()
            if chance.random() < 0.05:
                tree.done.append(disturb(socket, chance, way))
            tree.compare()
    except Difference:
        print(f"seed {seed}, {way}, untracked cache {cache}, {workers} workers; the repository is {tree.root}")
        raise
    finally:
        monitor("disable", str(tree.root))


def main(rounds: str = "500", seed: str = "1", git: str = "") -> int:
    """Rounds until there were enough."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(EXAMPLE), os.environ.get("PYTHONPATH", "")])
    if git:
        os.environ["PATH"] = os.pathsep.join([os.path.dirname(os.path.abspath(git)), os.environ["PATH"]])
    ways = ("hook", "ipc") if repository.git_has_ipc() else ("hook",)
    print(f"Git {'.'.join(map(str, repository.git_version()))}, {' and '.join(ways)}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="fsm-"))
    turns = itertools.cycle(itertools.product(ways, ("true", "false")))
    done: Counter[str] = Counter()
    for number, (way, cache) in zip(itertools.count(int(seed)), turns):
        some = min(ROUNDS_OF_A_TREE, int(rounds) - done.total())
        if not some:
            break
        try:
            one_tree(folder, number, some, way, cache)
        except Difference as difference:
            print(f"after {done.total()} rounds: {difference}")
            return 1
        done[f"{way}, untracked cache {cache}"] += some
        parts = "; ".join(f"{count} by {how}" for how, count in done.items())
        print(f"{done.total()} rounds, none different ({parts})", flush=True)
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
