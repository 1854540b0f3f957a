"""`fsmonitor enable|disable|status REPO`, also as `python -m fsmonitor`."""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run by its file name, as the hook does
    sys.path.insert(0, str(Path(__file__).parent.parent))

import ipcsrv
from fsmonitor import commands
from fsmonitor.repository import WAY, Repository, RepositoryError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fsmonitor", description="A file-system monitor for Git on Linux.")
    verbs = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    enable = verbs.add_parser("enable", help="have Git ask a monitor in this repository, and start it")
    way = enable.add_mutually_exclusive_group()
    way.add_argument("--ipc", dest="way", action="store_const", const="ipc", help="Git connects itself")
    way.add_argument("--hook", dest="way", action="store_const", const="hook", help="Git runs a hook that connects")
    enable.add_argument("--no-untracked-cache", dest="untracked_cache", action="store_false",
                        help="leave core.untrackedCache as it is")
    start = verbs.add_parser("start", help="start the monitor unless it runs; the hook does so when needed")
    start.add_argument("--git-dir", action="store_true", help="REPO is the Git folder of the work tree")
    for command in (enable, start):
        command.add_argument("--idle-exit", type=_seconds, metavar="SECONDS",
                             help="stop after so long without a question (default: 3600 with a hook, else never)")
        command.add_argument("--workers", type=_count, default=1, help="processes, each with watches of its own (1)")
    verbs.add_parser("stop", help="stop the monitor")
    verbs.add_parser("disable", help="restore Git's configuration, and stop the monitor")
    verbs.add_parser("status", help="say what is configured and what runs")
    for command in verbs.choices.values():
        command.add_argument("repo", metavar="REPO", nargs="?", default=".", help="a folder of the repository (.)")
    return parser


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (seconds := float(text)) < math.inf:
            return seconds
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")


def _count(text: str) -> int:
    with contextlib.suppress(ValueError):
        if (count := int(text)) > 0:
            return count
    raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    asked = _parser().parse_args(arguments)
    try:
        return _run(asked)
    except (RepositoryError, ipcsrv.IpcError, OSError) as error:
        print(f"fsmonitor: {error}", file=sys.stderr)
        return 1


def _run(asked: argparse.Namespace) -> int:
    if asked.command == "start" and asked.git_dir:
        commands.start(asked.repo, idle_exit=asked.idle_exit, workers=asked.workers)
        return 0
    repository = Repository.find(asked.repo)
    if asked.command == "start":
        by_hook = repository.get(WAY) == "hook"
        idle_exit = commands.IDLE_EXIT if by_hook and asked.idle_exit is None else asked.idle_exit
        commands.start(repository.git_dir, idle_exit=idle_exit, workers=asked.workers)
    elif asked.command == "stop":
        commands.stop(repository.socket)
    elif asked.command == "enable":
        way = commands.enable(repository, way=asked.way, idle_exit=asked.idle_exit, workers=asked.workers,
                              untracked_cache=asked.untracked_cache)
        print(f"enabled by {way}: {repository.worktree}")
        if way == "ipc":
            print(commands.NO_START_ON_DEMAND)
    elif asked.command == "disable":
        print("disabled" if commands.disable(repository) else "it was not enabled")
    else:
        print("\n".join(commands.describe(repository)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
