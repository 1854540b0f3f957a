"""`ipcsrv demo`: a real job, start to end, on this machine's own files.

Every Python file of this interpreter's standard library goes through `ipcsrv.complexity:report`, first on a server
with one worker, then on one with all of them, and the two are compared. This module is the user's side of it: it runs
in the command's own process, starts each server with `Server` as any program would, and asks it from threads, with a
connection for each file, as short-lived commands would. Threads are enough: a client only waits, and nobody looks at
the replies before the clock has stopped.

Ctrl-C must be clean at any point, also in the middle of starting or stopping a server. So the signal handler only
notes it, and the main thread looks at the note where nothing is half done: before each file, and on each reply.
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
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import argparse

TARGET = "ipcsrv.complexity:report"
TOP = 5  # most complex functions shown


class Source(NamedTuple):
    """A file to be reported on: its name under the folder, and what is in it."""

    name: str
    data: bytes


class Reply(NamedTuple):
    """What a client got for one file, and how long it took as the client saw it."""

    name: str
    data: bytes
    seconds: float


class Pass(NamedTuple):
    """One run of the whole work on a server with so many workers."""

    workers: int
    seconds: float
    replies: list[Reply]

    @property
    def rate(self) -> float:
        """Files a second."""
        return len(self.replies) / self.seconds

    def percentile(self, share: float) -> float:
        """The time within which that share of the files was answered."""
        times = sorted(reply.seconds for reply in self.replies)
        return times[min(len(times) - 1, int(share * len(times)))]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The demo's own options; it needs none."""
    parser.add_argument("--workers", type=_count, metavar="N", help="workers of the second run (default: one a CPU)")
    parser.add_argument("--clients", type=_count, metavar="N", help="concurrent clients (default: two a worker)")
    parser.add_argument("--limit", type=_count, metavar="N", help="report on so many files only (default: all)")


def _count(text: str) -> int:
    from argparse import ArgumentTypeError

    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Do the demo; KeyboardInterrupt comes out only when nothing is left behind."""
    workers = args.workers or _cpus()
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
    """Print, and let it be seen now: the next line may take a while."""
    print(text, flush=True)


def _cpus() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _short_folder() -> str | None:
    """Where the socket's folder goes, if not to the temporary folder: on some systems that is too long for a socket."""
    return "/tmp" if len(tempfile.gettempdir()) > 60 and os.path.isdir("/tmp") else None


# -- Interruption


class Interrupted:
    """Ctrl-C (or a request to terminate), noted by the signal handler and raised by whom it suits."""

    def __init__(self) -> None:
        self.by: int | None = None
        self.replies: queue.SimpleQueue[Reply | Exception | None] = queue.SimpleQueue()

    def note(self, number: int, frame: object) -> None:
        """The signal handler; None wakes a main thread that waits for replies (SimpleQueue.put may be called here)."""
        self.by = number
        self.replies.put(None)

    def check(self) -> None:
        """Raise what the signal means, if there was one."""
        if self.by == signal.SIGINT:
            raise KeyboardInterrupt
        if self.by is not None:
            raise SystemExit(128 + self.by)


@contextmanager
def noted_interrupts() -> Iterator[Interrupted]:
    """Note SIGINT and SIGTERM instead of obeying them, and obey at the end at the latest."""
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
    """The standard library's Python files, without what others installed into it."""
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
    """Start a server with so many workers, have it report on every file, and stop it."""
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
    """Send every file from concurrent clients and gather the replies; the first failure ends it.

    The biggest go first, so that no worker has one of them left when the others have nothing.
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
    """One client (in a thread of its own): a connection a file until there are none left."""
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
    """Take the work that is left from the clients, so that they end after the file they have."""
    try:
        while True:
            waiting.get_nowait()
    except queue.Empty:
        pass


class Progress:
    """A bar on standard error, drawn at most ten times a second, and only where someone sees it."""

    WIDTH = 30

    def __init__(self, workers: int, total: int) -> None:
        self._label = plural(workers, "worker")
        self._total = total
        self._shown = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._started = self._drawn = time.monotonic()

    def show(self, done: int) -> None:
        """So many files are done."""
        now = time.monotonic()
        if not self._shown or (now - self._drawn < 0.1 and done < self._total):
            return
        self._drawn = now
        bar = ("#" * (self.WIDTH * done // self._total)).ljust(self.WIDTH, ".")
        rate = done / max(now - self._started, 0.001)
        line = f"{self._label:>10}  [{bar}] {done:>5,}/{self._total:,}  {rate:,.0f} files/s"
        print(f"\r{line}\x1b[K", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Leave the line as it was."""
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


# -- What is said of it


def plural(number: int, noun: str) -> str:
    """`1 worker`, `2 workers`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def introduction(folder: str, sources: Sequence[Source], clients: int) -> str:
    """What is going to be done."""
    megabytes = sum(len(source.data) for source in sources) / 1e6
    return (
        f"{plural(len(sources), 'Python file')} ({megabytes:.1f} MB) of {folder} (Python {platform.python_version()})\n"
        f"through {TARGET}, from {plural(clients, 'client')} at a time, each with a connection a file.\n"
    )


def comparison(passes: Sequence[Pass]) -> str:
    """The passes side by side."""
    lines = ["workers    files/s   speed-up        p50        p99       time"]
    for each in passes:
        speed_up, p50, p99 = each.rate / passes[0].rate, 1000 * each.percentile(0.5), 1000 * each.percentile(0.99)
        lines.append(
            f"{each.workers:>7}  {each.rate:>9,.1f}  {speed_up:>8.2f}x"
            f"  {p50:>6.1f} ms  {p99:>6.1f} ms  {each.seconds:>7.2f} s"
        )
    if len(passes) == 1:
        lines.append("(one worker only: nothing to compare it with)")
    return "\n".join(lines) + "\n"


def findings(passes: Sequence[Pass]) -> str:
    """What the reports say, and whether every pass says the same."""
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
    yield f"The {TOP} most complex functions\n\ncomplexity  lines  function"
    for name, function in sorted(functions, key=lambda found: -found[1]["complexity"])[:TOP]:
        yield f"{function['complexity']:>10}  {function['lines']:>5}  {function['name']}  ({name}:{function['line']})"
    yield ""


def _longest(functions: Sequence[tuple[str, dict[str, Any]]]) -> Iterator[str]:
    if functions:
        name, function = max(functions, key=lambda found: found[1]["lines"])
        place = f"{function['name']} ({name}:{function['line']})"
        yield f"The longest of {plural(len(functions), 'function')} has {plural(function['lines'], 'line')}: {place}."
