"""`ipcsrv top` in a terminal of its own (a pty), at two sizes, while it is resized, and without a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import support

with_each_canvas = pytest.mark.usefixtures("canvas")
_SEQUENCE = re.compile(r"\x1b\[[?0-9;]*[A-Za-z]")


@pytest.fixture(params=["rich", "plain"])
def canvas(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `top` draws with: rich, or escape sequences of its own where that is not installed."""
    if request.param == "rich":
        pytest.importorskip("rich")
    else:
        support.hide("rich", tmp_path, monkeypatch)


class Terminal:
    """`ipcsrv top` on a pty; `wait_for` reads what it draws until a screen has everything that is asked for."""

    def __init__(self, path: str, columns: int, rows: int) -> None:
        self.ours, theirs = pty.openpty()
        self.resize(columns, rows)
        self.before = termios.tcgetattr(theirs)
        self.theirs = theirs
        command = [sys.executable, "-m", "ipcsrv", "top", path, "--interval", "0.1"]
        environment = support.environment(TERM="xterm", PYTHONIOENCODING="utf-8")
        environment.pop("COLUMNS", None)
        environment.pop("LINES", None)
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, env=environment, start_new_session=True
        )
        self.drawn = ""

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def press(self, key: str) -> None:
        os.write(self.ours, key.encode())

    def wait_for(self, *texts: str) -> list[str]:
        """The lines of the first whole screen, from now on, that holds all these texts."""
        until = time.monotonic() + support.TIMEOUT
        self.drawn = ""
        while time.monotonic() < until:
            for screen in self.drawn.split("\x1b[H")[1:-1]:
                lines = [_SEQUENCE.sub("", line).rstrip("\r") for line in screen.split("\n")]
                if all(any(text in line for line in lines) for text in texts):
                    return lines
            if select.select([self.ours], [], [], 1.0)[0]:
                self.drawn += os.read(self.ours, 65536).decode("utf-8", "replace")
        raise AssertionError(f"no screen with {texts}:\n{self.drawn[-4000:]}")

    def end(self) -> int:
        """Read until it has ended; the exit status."""
        while self.process.poll() is None:
            if select.select([self.ours], [], [], 0.1)[0]:
                self.drawn += os.read(self.ours, 65536).decode("utf-8", "replace")
        assert self.process.stderr is not None
        assert self.process.stderr.read() == b""
        self.process.stderr.close()
        assert termios.tcgetattr(self.theirs) == self.before
        os.close(self.ours)
        os.close(self.theirs)
        return self.process.returncode


@with_each_canvas
@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (200, 50)])
def test_top_shows_every_worker_at_any_size(echo_server: support.RunningServer, columns: int, rows: int) -> None:
    terminal = Terminal(echo_server.path, columns, rows)
    echo_server.call(b"x")
    lines = terminal.wait_for(f"pid {echo_server.pid}", "req/s", "p99", "RESTARTS", "idle", "q quit")
    assert len(lines) <= rows
    assert max(map(len, lines)) <= columns
    terminal.press("q")
    assert terminal.end() == 0


@with_each_canvas
def test_top_follows_the_terminal_when_it_is_resized(echo_server: support.RunningServer) -> None:
    terminal = Terminal(echo_server.path, 200, 50)
    terminal.wait_for(f"{echo_server.path}: running")
    terminal.resize(40, 10)
    lines = terminal.wait_for("...")
    assert max(map(len, lines)) <= 40
    assert len(lines) <= 10
    terminal.press("q")
    assert terminal.end() == 0


@with_each_canvas
def test_keys_reload_and_scale_the_server(echo_server: support.RunningServer) -> None:
    terminal = Terminal(echo_server.path, 80, 24)
    terminal.wait_for("generation 1", "target 2")
    terminal.press("r")
    terminal.wait_for("generation 2")
    terminal.press("+")
    terminal.wait_for("3 workers, 0 busy, target 3")
    terminal.press("-")
    terminal.wait_for("2 workers, 0 busy, target 2")
    terminal.press("s")
    echo_server.output.wait_for("most recent call first")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.end() == 0


def test_top_without_a_terminal_names_status(sock_path: str) -> None:
    done = support.run_command("top", sock_path)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"ipcsrv status" in done.stderr
