"""The log of a server: rotation, whole lines, JSON, and a program's own logging set-up."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
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
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_workers_of_a_reload_without_a_log_file_find_it_later(
    server: ServerFactory, tmp_path: Path, method: str
) -> None:
    """A folder was in its place while they started."""
    log = tmp_path / "log"
    options = ("--workers", "1", "--start-method", method, "--log-file", str(log), "--drain-timeout", "2")
    running = server("handlers_for_tests:raise_error", *options)
    log.unlink()
    log.mkdir()
    control.request(running.path, command="reload", timeout=support.TIMEOUT)
    log.rmdir()
    with pytest.raises(ipcsrv.HandlerError):
        running.call(b"of the new worker")
    support.wait_until(lambda: log.exists() and "of the new worker" in log.read_text(), "the log has the failure")


@posix_only
@pytest.mark.parametrize("told", [False, True])
def test_rotated_log_is_reopened_by_idle_and_stuck_processes(
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
def test_logging_set_up_of_a_program_gets_all_lines_and_is_kept(sock_path: str) -> None:
    lines = support.run_python(OWN_SET_UP, sock_path).splitlines()
    assert all(line.startswith("MINE ") for line in lines if "ipcsrv." in line)
    assert any(line.startswith("MINE ipcsrv.master INFO listening on ") for line in lines)
    assert any(line.startswith("MINE ipcsrv.worker ERROR the handler failed") for line in lines)
    assert lines[-1] == "MINE app INFO as before"


# -- what the application does to logging ------------------------------------------------------------------------------

HANDLER = """
import logging, logging.config, os, sys
{set_up}
log = logging.getLogger("app")

def handle(request):
    log.info("got %s", request.decode())
    if request == b"fail":
        raise ValueError("oops")
    return request
"""
SET_UPS = {
    "keeps loggers": 'logging.config.dictConfig({"version": 1, "disable_existing_loggers": False})',
    "disables loggers": 'logging.config.dictConfig({"version": 1})',
    "disables logging": "logging.disable(logging.CRITICAL)",
    "takes the root logger": "logging.basicConfig(level=logging.INFO, force=True)",
    "takes standard error": "os.dup2(os.open(os.devnull, os.O_WRONLY), 2); sys.stderr = None",
}


@pytest.mark.parametrize(
    ("set_up", "start_method"),
    [*((name, "fork") for name in SET_UPS), ("disables loggers", "spawn"), ("takes standard error", "spawn")],
)
def test_application_logging_cannot_silence_the_servers_log(
    set_up: str, start_method: str, server: ServerFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if start_method == "fork" and not hasattr(os, "fork"):
        pytest.skip("there is no fork here")
    (tmp_path / "quiet.py").write_text(HANDLER.format(set_up=SET_UPS[set_up]))
    monkeypatch.chdir(tmp_path)
    log_file = () if set_up == "takes standard error" else ("--log-file", str(tmp_path / "log"))
    running = server("quiet:handle", "--workers", "1", "--access-log", "--start-method", start_method, *log_file)
    with pytest.raises(ipcsrv.HandlerError):
        running.call(b"fail")
    assert running.call(b"well") == b"well"
    assert running.status()["totals"]["worker_restarts"] == 0  # type: ignore[index]
    assert running.stop() == 0
    text = (tmp_path / "log").read_text() if log_file else running.output.rest()
    assert re.search(r"ERROR   \[\d+\] the handler failed: Traceback", text)
    assert "ValueError: oops" in text
    assert re.findall(r"access (\w+)", text) == ["handler", "ok"]
    assert text.rstrip().endswith("stopped")


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_application_records_are_logged_unless_it_has_a_set_up(
    log_format: str, server: ServerFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plain.py").write_text(HANDLER.format(set_up=""))
    monkeypatch.chdir(tmp_path)
    options = ("--workers", "1", "--log-file", str(tmp_path / "log"), "--log-format", log_format)
    running = server("plain:handle", *options)
    running.call(b"it")
    assert running.stop() == 0
    (line,) = [line for line in (tmp_path / "log").read_text().splitlines() if "got it" in line]
    if log_format == "json":
        found = json.loads(line)
        assert (found["logger"], found["level"], found["message"]) == ("app", "info", "got it")
    else:
        assert re.fullmatch(r"[\d-]+ [\d:.]+ INFO    \[\d+\] app: got it", line)


def test_application_with_its_own_set_up_keeps_its_records(
    server: ServerFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up = 'logging.basicConfig(level=logging.INFO, format="OWN %(message)s")'
    (tmp_path / "owner.py").write_text(HANDLER.format(set_up=set_up))
    monkeypatch.chdir(tmp_path)
    running = server("owner:handle", "--workers", "1", "--log-file", str(tmp_path / "log"))
    running.call(b"it")
    assert running.output.wait_for("got it") == "OWN got it"
    assert running.stop() == 0
    assert "got it" not in (tmp_path / "log").read_text()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the program of this test forks its client")
def test_handler_module_cannot_redirect_a_programs_logging(
    sock_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "quiet.py").write_text(HANDLER.format(set_up=SET_UPS["disables loggers"]))
    monkeypatch.chdir(tmp_path)
    source = OWN_SET_UP.replace("handlers_for_tests:raise_error", "quiet:handle").replace('b"loud"', 'b"fail"')
    lines = support.run_python(source, sock_path).splitlines()
    assert any(line.startswith("MINE ipcsrv.worker ERROR the handler failed") for line in lines)


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_print_in_a_handler_is_written_line_by_line(
    start_method: str, server: ServerFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if start_method == "fork" and not hasattr(os, "fork"):
        pytest.skip("there is no fork here")
    (tmp_path / "prints.py").write_text("""
import os, signal

def handle(request):
    print("printed before the end")
    os.kill(os.getpid(), signal.SIGKILL)
""")
    monkeypatch.chdir(tmp_path)
    options = ("--workers", "1", "--start-method", start_method)
    running = server("prints:handle", *options, env={"PYTHONUNBUFFERED": ""})
    with pytest.raises(ipcsrv.IpcError):
        running.call()
    running.output.wait_for("printed before the end")


# -- what the log takes from others ------------------------------------------------------------------------------------


def test_handler_text_cannot_command_a_terminal_or_forge_a_line(
    server: ServerFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "forger.py").write_text(
        "def handle(request):\n"
        "    raise ValueError('\\x1b]0;owned\\x07\\n2026-01-01 00:00:00.000 INFO    [1] stopped\\n\\u202eforged')\n"
    )
    monkeypatch.chdir(tmp_path)
    running = server("forger:handle", "--workers", "1", "--log-file", str(tmp_path / "log"))
    with pytest.raises(ipcsrv.HandlerError):
        running.call()
    text = (tmp_path / "log").read_text()
    assert r"\x1b]0;owned\x07" in text
    assert not re.search("[\x1b\x07\u202e]", text)
    assert not re.search(r"^2026-01-01", text, re.MULTILINE)


def test_long_text_of_an_exception_is_cut_in_the_log(
    server: ServerFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "talker.py").write_text("def handle(request):\n    raise ValueError('x' * 5_000_000)\n")
    monkeypatch.chdir(tmp_path)
    running = server("talker:handle", "--workers", "1", "--log-file", str(tmp_path / "log"))
    with pytest.raises(ipcsrv.HandlerError):
        running.call()
    assert "characters left out" in (tmp_path / "log").read_text()
    assert (tmp_path / "log").stat().st_size < 100_000


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="speaks to the socket itself")
def test_flood_of_malformed_requests_is_counted_not_logged(
    server: ServerFactory, sock_path: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    server("handlers_for_tests:echo", "--workers", "1", "--log-file", str(log))

    def send_garbage() -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(support.TIMEOUT)
            client.connect(sock_path)
            client.sendall(b"garbage!")
            while client.recv(1000):
                pass

    for _ in range(200):
        send_garbage()
    support.wait_until(lambda: send_garbage() or re.search(r"\d+ more\b", log.read_text()))
    assert 1 <= len(re.findall(r"request from pid \d+", log.read_text())) < 100


# -- what can be a log ------------------------------------------------------------------------------------------------


@posix_only
@pytest.mark.parametrize(
    ("kind", "reason", "command"),
    [
        ("folder", "it is a folder", "start"),
        ("named pipe", "it is a named pipe, a socket or a device", "start"),
        ("read pipe", "it is a named pipe", "run"),  # which opens the file by the same function
        ("/dev/zero", "it is a device", "start"),
        pytest.param("/dev/ptmx", "it is a device", "start",  # isatty(3) calls it a terminal
                     marks=pytest.mark.skipif(not os.path.exists("/dev/ptmx"), reason="there is none")),
        ("symbolic link", "it is a symbolic link", "start"),
        ("missing folder", "No such file or directory", "run"),
    ],
)
def test_log_file_that_is_no_file_is_one_clear_error(
    kind: str, reason: str, command: str, sock_path: str, tmp_path: Path
) -> None:
    log, reader = tmp_path / "log", -1
    if kind == "folder":
        log.mkdir()
    elif kind.endswith("pipe"):
        os.mkfifo(log)
        reader = os.open(log, os.O_RDONLY | os.O_NONBLOCK) if kind == "read pipe" else -1
    elif kind.startswith("/dev/"):
        log = Path(kind)
    elif kind == "symbolic link":
        log.symlink_to("elsewhere")
    else:
        log = tmp_path / "missing" / "log"
    done = support.run_command(command, sock_path, "zlib:compress", "--log-file", str(log))
    if reader >= 0:
        os.close(reader)
    assert done.returncode == 1
    (line,) = done.stderr.decode().splitlines()
    assert f"the log file {log} cannot be" in line
    assert reason in line


@posix_only
@pytest.mark.parametrize("name", ["-", "/dev/stdout", os.devnull])  # other names: tests/unit/test_settings.py
def test_log_can_be_a_standard_stream_or_the_null_device(name: str, server: ServerFactory) -> None:
    running = server("handlers_for_tests:raise_error", "--workers", "1", "--start-method", "spawn", "--log-file", name)
    with pytest.raises(ipcsrv.HandlerError):
        running.call()
    assert running.stop() == 0
    assert ("ValueError" in running.output.rest()) == (name != os.devnull)


def test_background_server_cannot_log_to_a_standard_stream(sock_path: str) -> None:
    done = support.run_command("start", sock_path, "zlib:compress", "--log-file", "-")
    assert done.returncode == 2
    assert b"--log-file: a server in the background has no standard streams" in done.stderr


@posix_only
@pytest.mark.parametrize("replacement", ["named pipe", "symbolic link", "folder"])
def test_log_replaced_by_something_else_never_stops_service(
    replacement: str, server: ServerFactory, tmp_path: Path
) -> None:
    log, old = tmp_path / "log", tmp_path / "log.1"
    running = server("handlers_for_tests:raise_error", "--workers", "1", "--log-file", str(log))
    log.rename(old)
    if replacement == "named pipe":
        os.mkfifo(log)
    elif replacement == "symbolic link":
        log.symlink_to("elsewhere")
    else:
        log.mkdir()
    running.signal(signal.SIGUSR1)
    for _ in range(3):
        with pytest.raises(ipcsrv.HandlerError):
            running.call(b"still here")
    assert running.status()["pid"] == running.pid
    assert running.stop() == 0
    assert old.read_text().count("ValueError: still here") == 3


@posix_only
def test_standard_error_that_nobody_reads_never_stops_service(sock_path: str) -> None:
    read, write = os.pipe()
    command = [sys.executable, "-m", "ipcsrv", "run", sock_path, "handlers_for_tests:raise_error", "--workers", "1"]
    with subprocess.Popen(command, stderr=write, env=support.environment()) as process:
        os.close(write)
        support.wait_until(lambda: ipcsrv.active_state(sock_path) is ipcsrv.State.LISTENING)
        for _ in range(10):  # ten times the 64 KiB that a pipe holds
            with pytest.raises(ipcsrv.HandlerError):
                ipcsrv.call(sock_path, b"z" * 60_000, timeout=support.TIMEOUT)
        with open(read, encoding="utf-8") as lines:
            process.send_signal(signal.SIGTERM)
            text = lines.read()
    assert process.returncode == 0
    assert "listening on" in text
