"""`run --reload`: a process beside the server that watches the handler's files and has the server reload (development).

A process of its own, because a server that forks its workers has no threads, and what watches files may have some.  It
lives as long as its standard input, which the command that serves holds open: killed or stopped, that takes it along.

What is watched: the Python files of the handler's package, or, for a handler that lies in the current folder, of that
whole folder, since what it imports lies there as well.  `watchfiles` is used if it is there (the extra `watch`); else
the files are looked at twice a second.  What the reload comes to, the server's log says: new workers, or the
traceback of code that does not import, with the old workers serving on until the next save.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

from ..client import control
from ..errors import IpcError

INTERVAL = 0.5  # seconds between two looks at the files, where nothing tells us of changes
_SKIPPED = {"__pycache__", "node_modules", "site-packages"}
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Watch:
    """The watching process, for as long as the block runs."""

    def __init__(self, path: str, target: str) -> None:
        self._command = [sys.executable, "-m", "ipcsrv.cli.reloading", path, *places(target)]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Watch:
        sys.dont_write_bytecode = True  # two saves within a second have the same stamp, and the first one's bytecode
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        search = os.pathsep.join(filter(None, (_ROOT, os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, env={**os.environ, "PYTHONPATH": search})
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def places(target: str) -> list[str]:
    """The files and folders to watch for a handler `MODULE:NAME`; nothing is imported."""
    from importlib.machinery import PathFinder

    here = os.getcwd()
    name = target.partition(":")[0].partition(".")[0]
    spec = PathFinder.find_spec(name, [here, *sys.path])
    if spec is None or not (spec.origin or spec.submodule_search_locations):
        return [here]
    found = list(spec.submodule_search_locations or [spec.origin or here])
    parent = os.path.dirname(os.path.abspath(found[0]))
    return [here] if parent == here else found


def python_files(places: list[str]) -> Iterator[str]:
    """Every Python file there, but those of installed packages and hidden folders."""
    for place in places:
        if os.path.isfile(place):
            yield place
        for folder, folders, files in os.walk(place):
            folders[:] = [name for name in folders if name not in _SKIPPED and not name.startswith(".")]
            yield from (os.path.join(folder, name) for name in files if name.endswith(".py"))


def stamps(places: list[str]) -> dict[str, tuple[int, int]]:
    """What changes of a file when it is saved: its time of modification and its size."""
    found = {}
    for file in python_files(places):
        try:
            info = os.stat(file)
        except OSError:
            continue  # it is being replaced: the next look finds it
        found[file] = (info.st_mtime_ns, info.st_size)
    return found


def changes(places: list[str], over: threading.Event, ready: Callable[[], None]) -> Iterator[list[str]]:
    """The files that were changed, each time that some were, until `over`; `ready` is called when none is missed."""
    try:
        from watchfiles import PythonFilter, watch
    except ImportError:
        yield from changes_by_looking(places, over, ready)
        return
    before: dict[str, tuple[int, int]] | None = stamps(places)
    ready()
    for found in watch(*places, watch_filter=PythonFilter(), stop_event=over, raise_interrupt=False,
                       rust_timeout=int(INTERVAL * 1000), yield_on_timeout=True):  # fmt: skip
        files = {file for _, file in found}
        if before is not None:  # it watches from now on: what was saved until then is seen by looking
            files |= differences(before, stamps(places))
            before = None
        if files:
            yield sorted(files)


def changes_by_looking(places: list[str], over: threading.Event, ready: Callable[[], None]) -> Iterator[list[str]]:
    """The same without watchfiles."""
    before = stamps(places)
    ready()
    while not over.wait(INTERVAL):
        now = stamps(places)
        if files := differences(before, now):
            yield sorted(files)
        before = now


def differences(before: dict[str, tuple[int, int]], now: dict[str, tuple[int, int]]) -> set[str]:
    """The files that came, went or were saved between two looks."""
    return {file for file in now.keys() | before.keys() if now.get(file) != before.get(file)}


def reload(path: str, files: list[str], say: Callable[[str], None]) -> None:
    """Have the server at `path` reload because of these files."""
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    say(f"{os.path.relpath(files[0])}{more} changed: reloading")
    try:
        answer = control.request(path, "reload", timeout=None)
    except IpcError as error:
        say(f"not reloaded, the workers that there are serve on: {error}")
    else:
        say(f"generation {answer['generation']} serves")


def main() -> None:
    """Watch until standard input ends."""
    path, *watched = sys.argv[1:]
    over = threading.Event()

    def wait_for_the_end() -> None:
        sys.stdin.buffer.read()
        over.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    def say(text: str) -> None:
        print(f"ipcsrv: {text}", file=sys.stderr, flush=True)

    try:
        for files in changes(watched, over, lambda: say(f"watching {', '.join(watched)}")):
            reload(path, files, say)
    except KeyboardInterrupt:
        pass  # the terminal's Ctrl-C reaches us too; the server says what there is to say


if __name__ == "__main__":
    main()
