"""The log of a server: rotation, whole lines, JSON, and a program's own logging set-up."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from pathlib import Path

import pytest
import support
from conftest import ServerFactory

import ipcsrv
from ipcsrv.client import control

posix_only = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="an open file cannot be renamed here")


def files_open_in(pid: int) -> set[str]:
    return {os.path.basename(target) for target in support.descriptors(pid).values()}


@posix_only
@pytest.mark.parametrize("told", [False, True])
def test_after_a_rotation_everybody_writes_to_the_new_file_also_who_is_idle_or_stuck(
    server: ServerFactory, tmp_path: Path, told: bool
) -> None:
    log = tmp_path / "log"
    running = server("handlers_for_tests:hold", "--workers", "2", "--log-file", str(log))
    held = tmp_path / "held"
    stuck = threading.Thread(target=lambda: running.call(bytes(held)))
    stuck.start()
    support.wait_until(held.exists, "a worker in its handler")
    log.rename(tmp_path / "log.1")
    # Nobody logs anything: the master finds out by itself, or is told, and tells the others.
    if told:
        running.signal(signal.SIGUSR1)
    processes = running.processes()
    assert len(processes) == 4  # the template too
    for pid in processes:
        support.wait_until(lambda pid=pid: "log.1" not in files_open_in(pid), f"{pid} still writes to the old file")
        assert "log" in files_open_in(pid)
    control.request(running.path, "stacks")
    support.wait_until(lambda: " in hold\n" in log.read_text(), "the stuck worker's stack")
    held.unlink()
    stuck.join(support.TIMEOUT)
    assert running.stop() == 0
    assert log.read_text().rstrip().endswith("stopped")
    assert "stopped" not in (tmp_path / "log.1").read_text()


@posix_only
def test_the_stacks_of_many_workers_come_one_after_the_other(server: ServerFactory, tmp_path: Path) -> None:
    log = tmp_path / "log"
    running = server("handlers_for_tests:echo", "--workers", "8", "--log-file", str(log))
    control.request(running.path, "stacks")
    support.wait_until(lambda: log.read_text().count(" in _run_module_as_main\n") == 8, "each outermost frame")
    stacks = re.split(r".* stacks of worker [0-9]+ \(pid [0-9]+\) follow\n", log.read_text())[1:]
    assert len(stacks) == 8
    for stack in stacks:
        heading, *frames = stack.splitlines()
        assert heading.endswith(" (most recent call first):")
        assert [line for line in frames if not re.fullmatch('  File "[^"]+", line [0-9?]+ in \\S+', line)] == []


@posix_only
def test_a_line_after_the_rotation_goes_to_the_new_file_at_once(server: ServerFactory, tmp_path: Path) -> None:
    log = tmp_path / "log"
    running = server("handlers_for_tests:raise_error", "--workers", "1", "--log-file", str(log))
    with pytest.raises(ipcsrv.HandlerError):
        running.call(b"before")
    log.rename(tmp_path / "log.1")
    with pytest.raises(ipcsrv.HandlerError):
        running.call(b"after")
    assert "ValueError: after" in log.read_text()
    running.signal(signal.SIGHUP)
    support.wait_until(lambda: "received SIGHUP" in log.read_text(), "the master's line")
    assert "ValueError: after" not in (tmp_path / "log.1").read_text()


@pytest.mark.skipif(not support.appends_are_whole, reason="appends of several processes are not kept apart here")
def test_lines_of_many_workers_stay_whole_in_one_file(server: ServerFactory, tmp_path: Path) -> None:
    log = tmp_path / "log"
    running = server("handlers_for_tests:raise_error", "--workers", "4", "--log-file", str(log), "--log-format", "json")

    def provoke(letter: str) -> None:
        for _ in range(10):
            with pytest.raises(ipcsrv.HandlerError):
                running.call(letter.encode() * 30_000)  # more than any buffer of Python's

    threads = [threading.Thread(target=provoke, args=(letter,)) for letter in "abcdefgh"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(support.TIMEOUT)
    assert running.stop() == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    failures = [line["message"] for line in lines if "ValueError" in line["message"]]
    assert len(failures) == 80
    assert all(message.rstrip()[-1] * 30_000 in message for message in failures)


def test_json_lines_say_when_who_and_how_bad(server: ServerFactory, tmp_path: Path) -> None:
    log = tmp_path / "log"
    running = server("handlers_for_tests:echo", "--workers", "1", "--log-file", str(log), "--log-format", "json")
    assert running.stop() == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {"time", "level", "logger", "pid", "message"} <= set(lines[0])
    assert {line["logger"].split(".")[0] for line in lines} == {"ipcsrv"}
    assert {line["level"] for line in lines} == {"info"}
    assert lines[0]["time"].endswith("Z")


OWN_SET_UP = """
import logging, sys, threading
logging.basicConfig(format="MINE %(name)s %(levelname)s %(message)s", stream=sys.stdout, level=logging.INFO)
before = logging.getLogger("ipcsrv").handlers, logging.getLogger("ipcsrv").propagate, logging.getLogger("ipcsrv").level
import ipcsrv, os

path = sys.argv[1]
client = os.fork()
if not client:
    while ipcsrv.active_state(path) is not ipcsrv.State.LISTENING:
        pass
    try:
        ipcsrv.call(path, b"loud", timeout=10)
    except ipcsrv.HandlerError:
        pass
    from ipcsrv.client import control
    control.request(path, "stop")
    os._exit(0)
ipcsrv.serve(path, "handlers_for_tests:raise_error", workers=1)
os.waitpid(client, 0)
after = logging.getLogger("ipcsrv").handlers, logging.getLogger("ipcsrv").propagate, logging.getLogger("ipcsrv").level
assert before == after, (before, after)
logging.getLogger("app").info("as before")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the program of this test forks its client")
def test_a_programs_own_logging_set_up_gets_all_lines_and_is_left_as_it_was(sock_path: str) -> None:
    lines = support.run_python(OWN_SET_UP, sock_path).splitlines()
    assert all(line.startswith("MINE ") for line in lines if "ipcsrv." in line)
    assert any(line.startswith("MINE ipcsrv.master INFO listening on ") for line in lines)
    assert any(line.startswith("MINE ipcsrv.worker ERROR the handler failed") for line in lines)
    assert lines[-1] == "MINE app INFO as before"
