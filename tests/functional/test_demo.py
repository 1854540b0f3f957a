"""`ipcsrv demo`, as a person runs it: the report, the progress bar, and Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import support

from ipcsrv.cli import main

have_pty = hasattr(os, "openpty")


class Demo:
    """A demo in a process and session of its own, so that a signal to its group is a terminal's Ctrl-C."""

    def __init__(self, folder: str, *options: str, stderr: int = subprocess.STDOUT) -> None:
        self.mark = f"{os.getpid()}-{os.urandom(6).hex()}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ipcsrv", "demo", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=support.environment(TMPDIR=folder, TERM="xterm", **{support.MARK: self.mark}),
            start_new_session=True,
        )
        self.output = support.Output(self.process)

    def ctrl_c(self) -> int:
        """Interrupt the whole group and return the exit status."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(support.TIMEOUT)


@pytest.fixture
def demo(sock_dir: str) -> Iterator[type[Demo]]:
    """Start demos whose temporary folder is `sock_dir`; whatever happens, nothing may be left of any."""
    started: list[Demo] = []

    def start(*options: str, stderr: int = subprocess.STDOUT) -> Demo:
        started.append(Demo(sock_dir, *options, stderr=stderr))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.wait(support.TIMEOUT)
        assert support.wait_gone(support.marked_processes(each.mark), 5) == set()
        each.output.rest()
    assert [name for name in os.listdir(sock_dir) if not name.startswith("ipcsrv-")] == []  # but this user's registry


def test_one_worker_is_compared_with_many(demo) -> None:
    run = demo("--limit", "30", "--workers", "2", "--clients", "3")
    printed = run.output.rest(40)
    assert run.process.wait(support.TIMEOUT) == 0, printed
    assert "\r" not in printed  # nothing is drawn without a terminal
    assert re.match(r"30 Python files \([\d.]+ MB\) of Python 3\.", printed)
    rows = re.findall(r"^ +(\d+) +([\d,.]+) +([\d.]+)x +([\d.]+) ms +([\d.]+) ms +([\d.]+) s$", printed, re.MULTILINE)
    assert [row[0] for row in rows] == ["1", "2"]
    assert rows[0][2] == "1.00"
    found = re.findall(r"^ +(\d+) +(\d+)  \S+  \(\S+\.py:\d+\)$", printed, re.MULTILINE)
    assert len(found) == 5
    assert sorted(found, key=lambda row: -int(row[0])) == found
    assert "public names without a docstring" in printed


def test_one_worker_has_nothing_to_compare_with(demo) -> None:
    run = demo("--limit", "5", "--workers", "1")
    assert "nothing to compare" in run.output.rest(40)


@pytest.mark.skipif(not have_pty, reason="no pseudo-terminals here")
def test_terminal_shows_progress(demo) -> None:
    ours, theirs = os.openpty()
    seen = bytearray()

    def read() -> None:
        try:
            while data := os.read(ours, 4096):
                seen.extend(data)
        except OSError:  # the last process that had the terminal is gone
            pass

    reader = threading.Thread(target=read)
    reader.start()
    run = demo("--limit", "30", "--workers", "2", stderr=theirs)
    os.close(theirs)
    assert "files/s" in run.output.rest(40)
    reader.join(support.TIMEOUT)
    os.close(ours)
    text = seen.decode()
    assert "1 worker  [##" in text
    assert "2 workers  [##" in text
    assert "30/30" in text
    assert text.endswith("\r\x1b[K")


@pytest.mark.skipif(os.name == "nt", reason="a console's Ctrl-C has its own test")
def test_ctrl_c_before_the_first_server_is_clean(demo) -> None:
    run = demo()
    run.output.next_line()  # the introduction: the server is being started
    assert run.ctrl_c() == 130
    assert "Traceback" not in run.output.rest()


@pytest.mark.skipif(not have_pty, reason="no pseudo-terminals here")
@pytest.mark.parametrize("label", ["1 worker  [", "2 workers  ["])
def test_ctrl_c_during_the_job_is_clean(demo, label: str) -> None:
    ours, theirs = os.openpty()
    run = demo("--limit", "200", "--workers", "2", stderr=theirs)
    os.close(theirs)
    seen = ""
    while label not in seen:
        seen += os.read(ours, 4096).decode()
    assert run.ctrl_c() == 130
    assert "Traceback" not in run.output.rest()
    os.close(ours)


@pytest.mark.skipif(os.name == "nt", reason="SIGTERM cannot be caught there")
def test_sigterm_is_clean(demo) -> None:
    run = demo()
    run.output.next_line()
    run.process.terminate()
    assert run.process.wait(support.TIMEOUT) == 128 + signal.SIGTERM
    assert "Traceback" not in run.output.rest()


@pytest.mark.parametrize("option", ["--workers", "--clients", "--limit"])
@pytest.mark.parametrize("value", ["0", "-1", "many"])
def test_numbers_out_of_range_are_usage_errors(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", f"{option}={value}"]) == 2
    assert option in capsys.readouterr().err
