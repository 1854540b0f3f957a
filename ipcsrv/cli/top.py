"""`ipcsrv top`: a live view of a server, a row a worker, with keys to reload it, scale it and see its stacks.

Runs in the user's terminal: it asks the master for its status once a second, and draws what `_dashboard` makes of it.
Drawn by rich where that is installed (the extra `top`), by plain escape sequences elsewhere. A server that goes away
is waited for, so that a restart can be watched.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, Self

from ..errors import IpcError, NotListening
from ._dashboard import History, Line, screen
from ._parser import add_path, argument_type, positive_seconds
from ._terminal import Keys
from .messages import OK, UsageError

_STYLE_CODES = {"title": "1", "heading": "7", "busy": "32", "warning": "33", "quiet": "2"}  # ECMA-48, SGR
_RICH_STYLES = {"title": "bold", "heading": "reverse", "busy": "green", "warning": "yellow", "quiet": "dim"}
_NOTICE_SECONDS = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `top` takes."""
    add_path(parser)
    parser.add_argument(
        "--interval",
        metavar="TIME",
        type=argument_type(positive_seconds),
        default=1.0,
        help="time between two looks at the server (default: 1s)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Show the server until q or Ctrl-C."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError(f"top needs a terminal: try `ipcsrv status {arguments.path}`")
    from ..server import server

    facts = server.status(arguments.path)  # where no server is, say so and leave the terminal alone
    view = View(arguments.path, facts, arguments.interval)
    with _canvas() as canvas, Keys() as keys:
        try:
            while view.act(keys.read(view.pause())):
                view.look()
                canvas.draw(view.lines(*shutil.get_terminal_size()))
        except KeyboardInterrupt:
            pass
    return OK


class View:
    """What is known of the server, and what the keys do. `notice` is said in the last line for a while."""

    def __init__(self, path: str, facts: dict[str, Any], interval: float = 1.0) -> None:
        self._path = path
        self._facts = facts
        self._interval = interval
        self._history = History(interval / 2)
        self._ascii_only = not (sys.stdout.encoding or "ascii").lower().startswith("utf")
        self._notice = ""
        self._notice_until = 0.0
        self._looked = False

    def pause(self) -> float:
        """Seconds to wait for a key before the next look: none before the first."""
        return self._interval if self._looked else 0.0

    def look(self) -> None:
        """Ask the server how it is; one that is gone is said to be, and asked again next time."""
        from ..server import server

        self._looked = True
        try:
            self._facts = server.status(self._path)
            self._history.add(self._facts, time.monotonic())
        except NotListening:
            self._say("the server is gone; waiting for it   q quit")
        except IpcError as error:
            self._say(str(error))

    def lines(self, width: int, height: int) -> list[Line]:
        """The screen as it is to be drawn now."""
        notice = self._notice if time.monotonic() < self._notice_until else ""
        return screen(self._facts, self._history, notice, width, height, self._ascii_only)

    def act(self, key: str) -> bool:
        """Do what a key asks for; False is the wish to quit. What takes time is done on the side."""
        actions: dict[str, tuple[str, Callable[[], object]]] = {
            "r": ("reloaded", self._reload),
            "+": ("scaled up", lambda: self._scale(1)),
            "-": ("scaled down", lambda: self._scale(-1)),
            "s": ("stacks are in the log", self._stacks),
        }
        if key in actions:
            threading.Thread(target=self._do, args=actions[key], daemon=True).start()
        return key not in ("q", "Q", "\x03")

    def _do(self, done: str, action: Callable[[], object]) -> None:
        try:
            action()
            self._say(done)
        except IpcError as error:
            self._say(str(error))

    def _reload(self) -> None:
        from ..server import server

        self._say("reloading ...")
        server.reload(self._path)

    def _scale(self, step: int) -> None:
        from ..server import server

        server.scale(self._path, max(1, self._facts["workers_wanted"] + step))

    def _stacks(self) -> None:
        from ..client import control

        control.request(self._path, "stacks")

    def _say(self, notice: str) -> None:
        self._notice, self._notice_until = notice, time.monotonic() + _NOTICE_SECONDS


class Canvas(Protocol):
    """Where a screen is drawn, for the time of a `with`; at its end the terminal is as it was."""

    def draw(self, lines: list[Line]) -> None:
        """Show these lines and nothing else."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> bool | None: ...


def _canvas() -> Canvas:
    try:
        return _RichCanvas()
    except ImportError:
        return _PlainCanvas()


class _PlainCanvas:
    """Escape sequences that every terminal of the last thirty years knows (ECMA-48, and xterm's second screen)."""

    def __enter__(self) -> Self:
        self._write("\x1b[?1049h\x1b[?25l")
        return self

    def __exit__(self, *_: object) -> None:
        self._write("\x1b[?25h\x1b[?1049l")

    def draw(self, lines: list[Line]) -> None:
        # Each line is overwritten in place and its rest erased: erasing the screen first would flicker.
        body = "\x1b[K\r\n".join(self._styled(line) for line in lines)
        self._write(f"\x1b[H{body}\x1b[K\x1b[J")

    def _styled(self, line: Line) -> str:
        code = None if os.environ.get("NO_COLOR") and line.style != "heading" else _STYLE_CODES.get(line.style)
        return line.text if code is None else f"\x1b[{code}m{line.text}\x1b[0m"

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


class _RichCanvas:
    """rich knows what this terminal can do, on Windows too."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        self._text = Text
        self._live = Live(console=Console(), screen=True, auto_refresh=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def draw(self, lines: list[Line]) -> None:
        text = self._text(no_wrap=True, overflow="crop")
        for line in lines:
            text.append(line.text + "\n", style=_RICH_STYLES.get(line.style, ""))
        text.rstrip()
        self._live.update(text, refresh=True)
