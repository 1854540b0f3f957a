"""Single keys from the terminal, without Enter, on Unix and Windows. Runs in `ipcsrv top`."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from importlib import import_module
from typing import Any, Self


class Keys:
    """Reads keys during a `with` block, at whose end the terminal is restored.

    On Unix a change of the terminal's size ends a `read` early, so that the screen can be drawn again at once.
    """

    def __init__(self) -> None:
        self._saved: Any = None
        self._old_handler: Any = None
        self._resized, self._resize = os.pipe()

    def __enter__(self) -> Self:
        try:
            self._termios: Any = import_module("termios")
        except ImportError:
            self._termios = None
            return self
        vars(os)["set_blocking"](self._resize, False)  # a signal handler must not block
        self._saved = self._termios.tcgetattr(sys.stdin.fileno())
        import_module("tty").setcbreak(sys.stdin.fileno())
        self._old_handler = signal.signal(_window_change(), self._note_resize)
        return self

    def __exit__(self, *_: object) -> None:
        if self._termios is not None:
            signal.signal(_window_change(), self._old_handler)
            self._termios.tcsetattr(sys.stdin.fileno(), self._termios.TCSADRAIN, self._saved)
        os.close(self._resized)
        os.close(self._resize)

    def read(self, seconds: float) -> str:
        """Return the next key within `seconds`, or "" after them or when the terminal was resized."""
        return _windows_key(seconds) if self._termios is None else self._unix_key(seconds)

    def _unix_key(self, seconds: float) -> str:
        ready, _, _ = select.select([sys.stdin, self._resized], [], [], seconds)
        if self._resized in ready:
            os.read(self._resized, 4096)
        if sys.stdin not in ready:
            return ""
        return os.read(sys.stdin.fileno(), 1).decode("latin-1") or "q"  # end of input

    def _note_resize(self, *_: object) -> None:
        try:
            os.write(self._resize, b"!")
        except BlockingIOError:
            pass  # one unread byte is enough


def _window_change() -> int:
    return int(getattr(signal, "SIGWINCH", 0))


def _windows_key(seconds: float) -> str:
    # The C library cannot wait for the console with a time limit: poll.
    msvcrt: Any = import_module("msvcrt")
    until = time.monotonic() + seconds
    while not msvcrt.kbhit():
        if time.monotonic() >= until:
            return ""
        time.sleep(0.05)
    return str(msvcrt.getwch())
