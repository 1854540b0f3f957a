"""`demo`: a real job on this machine's own files, with one worker and with one per CPU.

Every Python file of this interpreter's standard library is a request to `ipcsrv.cli.complexity:report`, first on a
server with one worker, then on one with all, and the two are compared. This module runs in the command's process: it
starts each server with `Server`, as any program would, and sends requests from threads, one connection per file, as
short-lived commands would. Threads are enough, since a client only waits.

Ctrl-C must be clean at any moment, also while a server starts or stops. So the signal handler only records it, and the
main thread checks the record where nothing is half done: before each file, and at each reply.
"""

from __future__ import annotations

import json
import os
import platform
import queue
import signal
import sys
import sysconfig
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from ..cpus import whole_cpus
from . import _style, _text
from ._text import plural

if TYPE_CHECKING:
    import argparse

TARGET = "ipcsrv.cli.complexity:report"
TOP = 5  # most complex functions shown


class Source(NamedTuple):
    """A file to report on: its name below the folder, and its contents."""

    name: str
    data: bytes


class Reply(NamedTuple):
    """The reply for one file, and the time that it took at the client."""

    name: str
    data: bytes
    seconds: float


class Pass(NamedTuple):
    """One run of the whole job on a server with this number of workers."""

    workers: int
    seconds: float
    replies: list[Reply]

    @property
    def rate(self) -> float:
        """Files per second."""
        return len(self.replies) / self.seconds

    def percentile(self, share: float) -> float:
        """Return the time within which that share of the files was answered."""
        times = sorted(reply.seconds for reply in self.replies)
        return times[min(len(times) - 1, int(share * len(times)))]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `demo` takes."""
    from ._parser import whole_number

    number = whole_number(1, 10**6)
    parser.add_argument("-w", "--workers", type=number, metavar="N",
                        help="workers of the second run (default: one per CPU)")  # fmt: skip
    parser.add_argument("--clients", type=number, metavar="N", help="concurrent clients (default: two per worker)")
    parser.add_argument("--limit", type=number, metavar="N", help="report on the first N files only (default: all)")


def run(args: argparse.Namespace) -> int:
    """Run the demo; KeyboardInterrupt is raised only when nothing is left behind."""
    workers = args.workers or whole_cpus()
    clients = args.clients or 2 * workers
    with noted_interrupts() as interrupted:
        folder = sysconfig.get_path("stdlib")
        sources = read_sources(folder, args.limit, interrupted)
        say(introduction(folder, sources, clients))
        with tempfile.TemporaryDirectory(prefix="ipcsrv-demo-", dir=_short_folder()) as place:
            path = os.path.join(place, "demo")
            passes = [measure(path, sources, number, clients, interrupted) for number in sorted({1, workers})]
    say(comparison(passes))
    say(findings(passes))
    return 0


def say(text: str) -> None:
    """Print and flush: the next line may take a while."""
    print(text, flush=True)


def _short_folder() -> str | None:
    """Return /tmp where the path of the temporary folder is too long for a socket."""
    return "/tmp" if len(tempfile.gettempdir()) > 60 and os.path.isdir("/tmp") else None


# -- Interruption


class Interrupted:
    """Ctrl-C or SIGTERM, recorded by the signal handler and raised by the main thread."""

    def __init__(self) -> None:
        self.by: int | None = None
        self.replies: queue.SimpleQueue[Reply | Exception | None] = queue.SimpleQueue()

    def note(self, number: int, frame: object) -> None:
        """Handle a signal; None wakes a main thread that waits for replies (SimpleQueue.put is reentrant)."""
        self.by = number
        self.replies.put(None)

    def check(self) -> None:
        """Raise KeyboardInterrupt or SystemExit if there was a signal."""
        if self.by == signal.SIGINT:
            raise KeyboardInterrupt
        if self.by is not None:
            raise SystemExit(128 + self.by)


@contextmanager
def noted_interrupts() -> Iterator[Interrupted]:
    """Record SIGINT and SIGTERM during the block, and obey them at its end at the latest."""
    interrupted = Interrupted()
    former = {number: signal.signal(number, interrupted.note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupted
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        interrupted.check()


# -- The work


def read_sources(folder: str, limit: int | None, interrupted: Interrupted) -> list[Source]:
    """Return the Python files of the standard library, without installed packages."""
    sources = []
    for name in sorted(_python_files(folder))[:limit]:
        interrupted.check()
        with open(os.path.join(folder, name), "rb") as file:
            sources.append(Source(name, file.read()))
    return sources


def _python_files(folder: str) -> Iterator[str]:
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in ("site-packages", "dist-packages", "__pycache__")]
        for name in files:
            if name.endswith(".py"):
                yield os.path.relpath(os.path.join(place, name), folder)


def measure(path: str, sources: Sequence[Source], workers: int, clients: int, interrupted: Interrupted) -> Pass:
    """Start a server with this number of workers, send it every file, and stop it."""
    from .. import Server
    from .complexity import report

    interrupted.check()
    with Server(path, report, workers=workers, log_level="warning"):
        started = time.perf_counter()
        replies = ask(path, sources, clients, interrupted, Progress(workers, len(sources)))
        return Pass(workers, time.perf_counter() - started, replies)


def ask(
    path: str, sources: Sequence[Source], clients: int, interrupted: Interrupted, progress: Progress
) -> list[Reply]:
    """Send every file from concurrent clients and collect the replies; the first failure ends it.

    The biggest files go first, so that no worker has a big one left when the others are idle.
    """
    waiting: queue.SimpleQueue[Source] = queue.SimpleQueue()
    for source in sorted(sources, key=lambda source: -len(source.data)):
        waiting.put(source)
    threads = [threading.Thread(target=_client, args=(path, waiting, interrupted.replies)) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        return _gather(len(sources), interrupted, progress)
    finally:
        _empty(waiting)
        for thread in threads:
            thread.join()
        progress.clear()


def _gather(expected: int, interrupted: Interrupted, progress: Progress) -> list[Reply]:
    replies: list[Reply] = []
    while len(replies) < expected:
        reply = interrupted.replies.get()
        interrupted.check()
        if isinstance(reply, Exception):
            raise reply
        if reply is not None:
            replies.append(reply)
            progress.show(len(replies))
    return replies


def _client(path: str, waiting: queue.SimpleQueue[Source], replies: queue.SimpleQueue[Any]) -> None:
    """Run one client in a thread: one connection per file until no file is left."""
    from ..client.sync import call

    try:
        while True:
            source = waiting.get_nowait()
            started = time.perf_counter()
            data = call(path, source.data)
            replies.put(Reply(source.name, data, time.perf_counter() - started))
    except queue.Empty:
        pass
    except Exception as error:
        replies.put(error)


def _empty(waiting: queue.SimpleQueue[Source]) -> None:
    """Take the remaining files away, so that the clients end after their current one."""
    try:
        while True:
            waiting.get_nowait()
    except queue.Empty:
        pass


class Progress:
    """A progress bar on standard error, drawn at most ten times a second, and only on a terminal."""

    WIDTH = 30

    def __init__(self, workers: int, total: int) -> None:
        self._label = plural(workers, "worker")
        self._total = total
        self._shown = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._started = self._drawn = time.monotonic()

    def show(self, done: int) -> None:
        """Draw the bar for this number of files."""
        now = time.monotonic()
        if not self._shown or (now - self._drawn < 0.1 and done < self._total):
            return
        self._drawn = now
        bar = ("#" * (self.WIDTH * done // self._total)).ljust(self.WIDTH, ".")
        rate = done / max(now - self._started, 0.001)
        line = f"{self._label:>10}  [{bar}] {done:>5,}/{self._total:,}  {rate:,.0f} files/s"
        print(f"\r{line}\x1b[K", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Erase the bar."""
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


# -- Results


def introduction(folder: str, sources: Sequence[Source], clients: int) -> str:
    """Return what is going to be done."""
    megabytes = sum(len(source.data) for source in sources) / 1e6
    title = f"{plural(len(sources), 'Python file')} ({megabytes:.1f} MB) of Python {platform.python_version()}"
    rows = (("folder", folder), ("handler", TARGET), ("clients", f"{clients} at a time, one connection per file"))
    return "\n".join([_style.styled(title, "title"), *(f"  {name:8} {text}" for name, text in rows)]) + "\n"


def comparison(passes: Sequence[Pass]) -> str:
    """Return the passes side by side."""
    lines = [_style.styled("workers    files/s   speed-up        p50        p99       time", "heading")]
    for each in passes:
        speed_up, p50, p99 = each.rate / passes[0].rate, 1000 * each.percentile(0.5), 1000 * each.percentile(0.99)
        lines.append(
            f"{each.workers:>7}  {each.rate:>9,.1f}  {speed_up:>8.2f}x"
            f"  {p50:>6.1f} ms  {p99:>6.1f} ms  {each.seconds:>7.2f} s"
        )
    if len(passes) == 1:
        lines.append("(one worker only: nothing to compare with)")
    return "\n".join(lines) + "\n"


def findings(passes: Sequence[Pass]) -> str:
    """Return the results of the job; raises RuntimeError if the passes differ."""
    reports = [{reply.name: reply.data for reply in each.replies} for each in passes]
    if any(other != reports[0] for other in reports):
        raise RuntimeError("the same files gave different reports with different numbers of workers")
    files = {name: json.loads(data) for name, data in sorted(reports[0].items())}
    functions = [(name, function) for name, report in files.items() for function in report.get("functions", ())]
    undocumented = sum(len(report.get("undocumented", ())) for report in files.values())
    unparsed = sum("error" in report for report in files.values())
    rest = f"{plural(undocumented, 'public name')} without a docstring; {plural(unparsed, 'file')} did not parse."
    return "\n".join([*_most_complex(functions), *_longest(functions), rest])


def _most_complex(functions: Sequence[tuple[str, dict[str, Any]]]) -> Iterator[str]:
    yield _style.styled(f"The {TOP} most complex functions", "title")
    yield _style.styled("complexity  lines  function", "heading")
    for name, function in sorted(functions, key=lambda found: -found[1]["complexity"])[:TOP]:
        row = f"{function['complexity']:>10}  {function['lines']:>5}  {function['name']}  ({name}:{function['line']})"
        yield _text.cut(row, _style.columns()) if sys.stdout.isatty() else row
    yield ""


def _longest(functions: Sequence[tuple[str, dict[str, Any]]]) -> Iterator[str]:
    if functions:
        name, function = max(functions, key=lambda found: found[1]["lines"])
        place = f"{function['name']} ({name}:{function['line']})"
        text = f"The longest of {plural(len(functions), 'function')} has {plural(function['lines'], 'line')}: {place}."
        yield from textwrap.wrap(text, _style.columns(), break_on_hyphens=False)
