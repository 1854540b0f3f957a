"""The log of a process: lines that nothing in them can forge, limits with a count, and outputs that fail."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipcsrv.config.settings import make
from ipcsrv.errors import StartError
from ipcsrv.platform import log_output, logs

HOSTILE = "a\x1b[31m\r\x00\x7f\x9b\u202e\u2028b\n2026-01-01 00:00:00.000 INFO    [1] stopped\tend"


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[Path]:
    """A file to which this process logs, as text at `info`."""
    file = tmp_path / "log"
    logs.configure(make(log_file=str(file)))
    yield file
    logs.unconfigure()


def messages(file: Path) -> list[str]:
    """The lines of a log without time, level and pid."""
    return [line.partition("] ")[2] for line in file.read_text().splitlines()]


def test_text_line_escapes_control_characters_and_indents() -> None:
    line = logs.text_line(logs.Record("ipcsrv.worker", logs.INFO, HOSTILE), 0.0)
    assert line.isprintable() is False  # its newlines, and the tab that source code has
    first, second, rest = line.split("\n")
    assert first.endswith(r" a\x1b[31m\r\x00\x7f\x9b\u202e\u2028b")
    assert second == "  2026-01-01 00:00:00.000 INFO    [1] stopped\tend"
    assert rest == ""


def test_json_line_escapes_control_characters_and_is_lossless() -> None:
    line = logs.json_line(logs.Record("ipcsrv.worker", logs.ERROR, HOSTILE, 1.5, {"a": 1}), 1.5)
    assert line.rstrip("\n").isprintable()
    found = json.loads(line)
    assert (found["message"], found["level"], found["time"], found["a"]) == (
        HOSTILE, "error", "1970-01-01T00:00:01.500Z", 1)  # fmt: skip


def test_long_record_keeps_its_beginning_and_end() -> None:
    line = logs.text_line(logs.Record("ipcsrv.worker", logs.INFO, "b" + "x" * 1_000_000 + "e"), 0.0)
    assert len(line) < logs.LONGEST + 200
    assert re.search(r"\] bx+ \.\.\. \[934466 characters left out\] \.\.\. x+e\n$", line)


def test_limited_lines_are_counted(log_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(logs, "monotonic", lambda: now[0])
    log = logs.get("ipcsrv.worker")
    for number in range(10):
        log.limited("knocks", logs.WARNING, "knock %d", number, burst=3)
    log.limited("bells", logs.WARNING, "bell")
    assert messages(log_file) == ["knock 0", "knock 1", "knock 2", "bell"]
    now[0] += 1.0
    log.info("another line")
    assert messages(log_file)[4:] == ["7 more not logged: knocks", "another line"]
    for _ in range(5):
        log.limited("knocks", logs.WARNING, "knock again", burst=3)
    now[0] += 1.0
    logs.reopen()  # as the master does every few seconds
    assert messages(log_file)[-1] == "2 more not logged: knocks"
    log.limited("knocks", logs.WARNING, "knock")
    log.limited("knocks", logs.WARNING, "knock")
    now[0] += 1.0
    log.limited("knocks", logs.WARNING, "knock")
    assert messages(log_file)[-2:] == ["1 more not logged: knocks", "knock"]


def test_exception_is_logged_with_its_traceback(log_file: Path) -> None:
    try:
        raise ValueError("oops")
    except ValueError:
        logs.get("ipcsrv.worker").exception("failed at %d", 7)
    text = log_file.read_text()
    assert re.search(r"ERROR   \[\d+\] failed at 7\n  Traceback .*\n(  .*\n)+  ValueError: oops\n$", text)


def test_log_level_holds_for_both_kinds_of_loggers(log_file: Path) -> None:
    assert not logs.get("ipcsrv.x").isEnabledFor(logs.DEBUG)
    logs.get("ipcsrv.x").debug("hidden")
    logging.getLogger("ipcsrv.x").debug("hidden too")
    logging.getLogger("ipcsrv.x").warning("seen %d", 1)
    assert messages(log_file) == ["seen 1"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_records_that_cannot_be_written_are_counted(tmp_path: Path) -> None:
    output = log_output.Output(os.open("/dev/full", os.O_WRONLY))
    target = logs.ToOutput(output, make())
    for _ in range(3):
        target.emit(logs.Record("ipcsrv.x", logs.ERROR, "lost"))
    with open(tmp_path / "log", "wb") as file:
        os.dup2(file.fileno(), output.fileno())
    target.emit(logs.Record("ipcsrv.x", logs.INFO, "written"))
    output.close()
    assert messages(tmp_path / "log") == ["3 log records could not be written", "written"]


def test_reader_that_reads_nothing_does_not_block_the_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_output, "PATIENCE", 0.01)
    read, write = os.pipe()
    os.set_blocking(write, False)
    output = log_output.Output(write)
    while not output.lost:
        output.write("x" * 1000 + "\n")
    output.write("not this one\n")
    assert output.lost == 2
    taken = b""
    while output.lost:
        taken += os.read(read, 4096)
        output.write("resumed\n")
    output.close()
    with open(read, "rb") as rest:
        lines = (taken + rest.read()).splitlines()
    assert lines[-1] == b"resumed"
    assert {line for line in lines[:-1] if line.strip(b"x")} <= {b"", b"resumed"}  # each on a line of its own


def test_log_file_of_a_folder_that_is_gone_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    try:
        (tmp_path / "gone").rmdir()
    except OSError:
        pytest.skip("the current folder cannot be removed here")
    with pytest.raises(StartError, match="the current folder is gone"):
        log_output.open_output("log")
