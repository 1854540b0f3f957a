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

    On Unix a change of the terminal's size ends a `read` early, so that the screen can be drawn again at once. The
    first Ctrl-C is a key like the others and interrupts nothing; the next one raises KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self._saved: Any = None
        self._old_handlers: dict[int, Any] = {}
        self._interrupted = False
        self._noted, self._note = os.pipe()

    def __enter__(self) -> Self:
        try:
            self._termios: Any = import_module("termios")
        except ImportError:
            self._termios = None
            return self
        vars(os)["set_blocking"](self._note, False)  # a signal handler must not block
        self._saved = self._termios.tcgetattr(sys.stdin.fileno())
        import_module("tty").setcbreak(sys.stdin.fileno())
        for number, handler in ((_window_change(), self._wake), (signal.SIGINT, self._interrupt)):
            self._old_handlers[number] = signal.signal(number, handler)
        return self

    def __exit__(self, *_: object) -> None:
        if self._termios is not None:
            for number, handler in self._old_handlers.items():
                signal.signal(number, handler)
            self._termios.tcsetattr(sys.stdin.fileno(), self._termios.TCSADRAIN, self._saved)
        os.close(self._noted)
        os.close(self._note)

    def read(self, seconds: float) -> str:
        """Return the next key within `seconds`, or "" after them or when the terminal was resized.

        Ctrl-C is the character of code 3, ETX.
        """
        return _windows_key(seconds) if self._termios is None else self._unix_key(seconds)

    def _unix_key(self, seconds: float) -> str:
        ready, _, _ = select.select([sys.stdin, self._noted], [], [], seconds)
        if self._noted in ready:
            os.read(self._noted, 4096)
        if self._interrupted:
            return "\x03"
        if sys.stdin not in ready:
            return ""
        return os.read(sys.stdin.fileno(), 1).decode("latin-1") or "q"  # end of input

    def _interrupt(self, *_: object) -> None:
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True
        self._wake()

    def _wake(self, *_: object) -> None:
        try:
            os.write(self._note, b"!")
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
