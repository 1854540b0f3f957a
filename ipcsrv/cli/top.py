"""`top`: live status display of a server, with keys to reload it, scale it and write its stacks to the log.

Runs in the user's terminal: it asks the master for its status once a second and draws the screen of `_dashboard`, with
rich where that is installed (the extra `top`), with plain escape sequences elsewhere. When the server stops, `top`
waits for the next one at the path.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, Self

from ..errors import IpcError, NotListening
from . import _style
from ._dashboard import History, Line, screen
from ._parser import add_path, argument_type, positive_seconds
from ._terminal import Keys
from .messages import OK, UsageError

_RICH_STYLES = {"title": "bold", "heading": "bold underline", "busy": "green", "warning": "yellow", "quiet": "dim"}
_NOTICE_SECONDS = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `top` takes."""
    add_path(parser)
    parser.add_argument(
        "--interval",
        metavar="TIME",
        type=argument_type(positive_seconds),
        default=1.0,
        help="time between two updates (default: 1s)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Show the server until q or Ctrl-C."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("top needs a terminal", f"use `ipcsrv status {arguments.path}`")
    from ..server import server

    facts = server.status(arguments.path)  # without a server this raises, before the terminal is changed
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
    """The state of the display, and what the keys do; a notice replaces the last line for some seconds."""

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
        """Return the seconds to wait for a key before the next update: none before the first."""
        return self._interval if self._looked else 0.0

    def look(self) -> None:
        """Read the server's status; if there is no server, say so and try again next time."""
        from ..server import server

        self._looked = True
        try:
            self._facts = server.status(self._path)
            self._history.add(self._facts, time.monotonic())
        except NotListening:
            self._say("the server has stopped, waiting for the next one at this path   q quit")
        except IpcError as error:
            self._say(str(error))

    def lines(self, width: int, height: int) -> list[Line]:
        """Return the screen to draw now."""
        notice = self._notice if time.monotonic() < self._notice_until else ""
        return screen(self._facts, self._history, notice, width, height, self._ascii_only)

    def act(self, key: str) -> bool:
        """Run the command of a key, in a thread if it takes time; return False to quit."""
        actions: dict[str, tuple[str, Callable[[], object]]] = {
            "r": ("reloaded", self._reload),
            "+": ("scaled up", lambda: self._scale(1)),
            "-": ("scaled down", lambda: self._scale(-1)),
            "s": ("stacks written to the log", self._stacks),
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
    """Where a screen is drawn during a `with` block; at its end the terminal is restored."""

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
    """Escape sequences that all common terminals support (ECMA-48, and xterm's alternate screen)."""

    def __enter__(self) -> Self:
        self._write("\x1b[?1049h\x1b[?25l")
        return self

    def __exit__(self, *_: object) -> None:
        self._write("\x1b[?25h\x1b[?1049l")

    def draw(self, lines: list[Line]) -> None:
        # Each line is overwritten in place and its rest erased: to erase the screen first would flicker.
        body = "\x1b[K\r\n".join(_style.styled(line.text, line.style) for line in lines)
        self._write(f"\x1b[H{body}\x1b[K\x1b[J")

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


class _RichCanvas:
    """Drawn by rich, which knows the abilities of the terminal, on Windows too."""

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
