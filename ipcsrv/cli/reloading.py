"""`run --reload`: a process beside the server that watches the handler's files and reloads the server (development).

It is a process of its own because a server that forks its workers has no threads, and a file watcher may have some. It
exits at the end of its standard input, which the process of the server holds open, so it never outlives the server. A
terminal's Ctrl-C does not reach it: the server drains first.

It watches the Python files of the handler's package, or, for a handler in the current folder, of that whole folder. It
uses `watchfiles` if that is installed (the extra `watch`), else it checks the files twice a second. If the new code
does not import, the server's log has the traceback, and the old workers serve on until the next save.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

from ..client import control
from ..errors import IpcError
from ..folders import working_folder
from ..platform import children, lifecycle
from . import messages

INTERVAL = 0.5  # seconds between two checks of the files, without watchfiles
_SKIPPED = {"__pycache__", "node_modules", "site-packages"}


class Watch:
    """The watching process, for as long as a `with` block runs."""

    def __init__(self, path: str, target: str, *, as_json: bool = False) -> None:
        form = "json" if as_json else "text"
        self._command = [*children.command(__name__), form, path, *places(target)]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Watch:
        sys.dont_write_bytecode = True  # after two saves within a second the bytecode of the first would be used
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, **lifecycle.detached())
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def places(target: str) -> list[str]:
    """Return the files and folders to watch for a handler `MODULE:NAME`; nothing is imported."""
    from importlib.machinery import PathFinder

    here = working_folder() or os.sep
    name = target.partition(":")[0].partition(".")[0]
    spec = PathFinder.find_spec(name, [here, *sys.path])
    if spec is None or not (spec.origin or spec.submodule_search_locations):
        return [here]
    found = list(spec.submodule_search_locations or [spec.origin or here])
    parent = os.path.dirname(os.path.abspath(found[0]))
    return [here] if parent == here else found


def python_files(places: list[str]) -> Iterator[str]:
    """Yield every Python file there, except those of installed packages and hidden folders."""
    for place in places:
        if os.path.isfile(place):
            yield place
        for folder, folders, files in os.walk(place):
            folders[:] = [name for name in folders if name not in _SKIPPED and not name.startswith(".")]
            yield from (os.path.join(folder, name) for name in files if name.endswith(".py"))


def stamps(places: list[str]) -> dict[str, tuple[int, int]]:
    """Return what changes of a file when it is saved: its time of modification and its size."""
    found = {}
    for file in python_files(places):
        try:
            info = os.stat(file)
        except OSError:
            continue  # it is being replaced: the next check finds it
        found[file] = (info.st_mtime_ns, info.st_size)
    return found


def changes(places: list[str], over: threading.Event, ready: Callable[[], None]) -> Iterator[list[str]]:
    """Yield the changed files after each change, until `over`; `ready` is called once no change can be missed."""
    try:
        from watchfiles import PythonFilter, watch
    except ImportError:
        yield from changes_by_polling(places, over, ready)
        return
    before: dict[str, tuple[int, int]] | None = stamps(places)
    ready()
    for found in watch(*places, watch_filter=PythonFilter(), stop_event=over, raise_interrupt=False,
                       rust_timeout=int(INTERVAL * 1000), yield_on_timeout=True):  # fmt: skip
        files = {file for _, file in found}
        if before is not None:  # watchfiles sees changes only from now on
            files |= differences(before, stamps(places))
            before = None
        if files:
            yield sorted(files)


def changes_by_polling(places: list[str], over: threading.Event, ready: Callable[[], None]) -> Iterator[list[str]]:
    """Do the same without watchfiles."""
    before = stamps(places)
    ready()
    while not over.wait(INTERVAL):
        now = stamps(places)
        if files := differences(before, now):
            yield sorted(files)
        before = now


def differences(before: dict[str, tuple[int, int]], now: dict[str, tuple[int, int]]) -> set[str]:
    """Return the files that were added, removed or saved between two checks."""
    return {file for file in now.keys() | before.keys() if now.get(file) != before.get(file)}


def reload(path: str, files: list[str], say: Callable[[str, str], None]) -> None:
    """Reload the server at `path` because these files changed."""
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    say(f"{os.path.relpath(files[0])}{more} changed: reloading", "info")
    try:
        answer = control.request(path, "reload", timeout=None)
    except IpcError as error:
        say(f"not reloaded: {error}; the old workers serve on", "error")
    else:
        say(f"reloaded, generation {answer['generation']} serves", "info")


def main() -> None:
    """Watch until standard input ends."""
    form, path, *watched = sys.argv[1:]
    messages.use_json(form == "json")
    over = threading.Event()

    def wait_for_end() -> None:
        # Not by way of `sys.stdin`: the interpreter's end would abort while this thread holds the lock of its buffer.
        while os.read(0, 4096):
            pass
        over.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    try:
        for files in changes(watched, over, lambda: messages.complain(f"watching {', '.join(watched)}", "info")):
            reload(path, files, messages.complain)
    except KeyboardInterrupt:
        pass  # of a signal to this process alone: the server serves on
