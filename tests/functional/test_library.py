"""Servers and clients as a program uses them: `serve`, `Server`, `ensure_running`, from any thread; nothing is left."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import support
from conftest import ServerFactory

import ipcsrv
from ipcsrv.errors import HandlerImportError
from ipcsrv.platform import server as serving

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="speaks to Unix sockets")

ECHO = "handlers_for_tests:echo"


# -- Server -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("leaves_nothing")
def test_a_server_lives_as_long_as_its_block(sock_path: str) -> None:
    with ipcsrv.Server(sock_path, ECHO, workers=1) as server:
        assert ipcsrv.active_state(sock_path) is ipcsrv.State.LISTENING
        assert ipcsrv.call(sock_path, b"x") == b"x"
        assert server.pid in support.children()
        assert server.status()["pid"] == server.pid
    assert ipcsrv.active_state(sock_path) is not ipcsrv.State.LISTENING
    assert server.pid is None


def test_a_server_can_be_started_again(sock_path: str) -> None:
    server = ipcsrv.Server(sock_path, ECHO, workers=1)
    for _ in range(2):
        server.start()
        assert ipcsrv.call(sock_path, b"x") == b"x"
        with pytest.raises(ipcsrv.StartError):
            server.start()
        server.stop()
        server.stop()  # twice is once


def test_a_function_of_this_program_is_a_handler(sock_path: str) -> None:
    import handlers_for_tests

    with ipcsrv.Server(sock_path, handlers_for_tests.upper, workers=1):
        assert ipcsrv.call(sock_path, b"x") == b"X"


def test_a_lambda_is_refused_with_the_reason(sock_path: str) -> None:
    with pytest.raises(HandlerImportError, match=r"another process cannot find it by name.*top level of a module"):
        ipcsrv.Server(sock_path, lambda request: request)
    with pytest.raises(HandlerImportError, match="neither callable nor the text MODULE:NAME"):
        ipcsrv.Server(sock_path, 42)  # type: ignore[arg-type]


def test_a_function_of_the_main_module_is_a_handler(sock_path: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import ipcsrv, sys\n"
        "def handle(request):\n    return b'main ' + request\n"
        "if __name__ == '__main__':\n"
        "    with ipcsrv.Server(sys.argv[1], handle, workers=1):\n"
        "        print(ipcsrv.call(sys.argv[1], b'x').decode())\n"
    )
    import subprocess

    done = subprocess.run([sys.executable, program, sock_path], capture_output=True, env=support.environment())
    assert done.stdout.split() == [b"main", b"x"], done.stderr
    assert done.returncode == 0 and b"Warning" not in done.stderr


def test_error_in_the_server_is_raised_with_its_attributes(sock_path: str) -> None:
    with ipcsrv.Server(sock_path, ECHO, workers=1) as first:
        with pytest.raises(ipcsrv.AddressInUse) as caught:
            ipcsrv.Server(sock_path, ECHO).start()
        assert (caught.value.path, caught.value.pid) == (sock_path, first.pid)
        assert caught.value.command and "python" in caught.value.command
        assert ipcsrv.call(sock_path, b"x") == b"x"
    with pytest.raises(HandlerImportError) as refused:
        ipcsrv.Server(sock_path, "handlers_for_tests:no_such_name").start()
    assert refused.value.target == "handlers_for_tests:no_such_name"
    with pytest.raises(ipcsrv.StartError):
        ipcsrv.Server(sock_path, ECHO, log_file=f"{sock_path}/no/log").start()
    assert not os.path.lexists(sock_path)


def test_wait_returns_when_the_server_has_quit(sock_path: str) -> None:
    with ipcsrv.Server(sock_path, "handlers_for_tests:quit_if_asked", workers=1) as server:
        with pytest.raises(ipcsrv.CallTimeout):
            server.wait(0.01)
        assert ipcsrv.call(sock_path, b"quit") == b""
        server.wait(support.TIMEOUT)
    assert not os.path.lexists(sock_path)


def test_a_server_does_not_outlive_a_program_that_was_killed(sock_path: str) -> None:
    import subprocess

    code = ("import ipcsrv, os, sys\n"
            "server = ipcsrv.Server(sys.argv[1], 'handlers_for_tests:echo', workers=1)\n"
            "server.start(); print(server.pid, flush=True); sys.stdin.read()")
    command = [sys.executable, "-c", code, sock_path]
    with subprocess.Popen(command, stdin=-1, stdout=-1, env=support.environment()) as program:
        assert program.stdout is not None
        pid = int(program.stdout.readline())
        program.kill()
    assert not support.wait_gone({pid})
    assert os.listdir(os.path.dirname(sock_path)) == []


def test_stop_now_does_not_wait_for_a_handler_that_hangs(sock_path: str) -> None:
    server = ipcsrv.Server(sock_path, "handlers_for_tests:hang", workers=1)
    server.start()
    with ThreadPoolExecutor() as pool:
        hanging = pool.submit(ipcsrv.call, sock_path, b"", timeout=support.TIMEOUT)
        support.wait_until(lambda: server.status()["workers"][0]["busy_seconds"] > 0)
        server.stop(now=True, timeout=support.TIMEOUT)
        assert isinstance(hanging.exception(), (ipcsrv.ConnectionLost, ipcsrv.ServerStopping))
    assert os.listdir(os.path.dirname(sock_path)) == []


def test_reload_and_scale_serve_on(sock_path: str) -> None:
    with ipcsrv.Server(sock_path, "handlers_for_tests:pid", workers=1) as server:
        before = ipcsrv.call(sock_path, b"")
        server.reload()
        assert ipcsrv.call(sock_path, b"") != before
        server.scale(3)
        support.wait_until(lambda: [w["state"] for w in server.status()["workers"]] == ["idle"] * 3)


TWENTY = """
import os, sys, threading
import ipcsrv
sys.path.insert(0, {tests!r})
import support

path = sys.argv[1]
done = threading.Event()
threads = [threading.Thread(target=done.wait) for _ in range(20)]
for thread in threads:
    thread.start()

def once():
    with ipcsrv.Server(path, "handlers_for_tests:echo", workers=1, log_level="error"):
        assert ipcsrv.call(path, b"x") == b"x"

try:
    once()
    with support.nothing_leaked(os.path.dirname(path)):
        for _ in range(int(sys.argv[2])):
            once()
finally:
    done.set()
"""


def test_program_with_threads_starts_servers_without_leaks(sock_path: str) -> None:
    memory = support.abandoned_memory()
    source = TWENTY.format(tests=str(support.TESTS))
    support.run_python(source, sock_path, str(support.rounds(3)), timeout=50, options=["-W", "error"])
    support.wait_until(lambda: support.abandoned_memory() <= memory, "no shared memory is left")


# -- serve ------------------------------------------------------------------------------------------------------------

SERVE = """
import sys, threading
import ipcsrv

path, where, method = sys.argv[1:]

if where == "closure":
    secret = b"closed over "
    handler = lambda request: secret + request
else:
    handler = "handlers_for_tests:echo"
if where == "threads":
    threading.Thread(target=threading.Event().wait, daemon=True).start()
settings = {} if method == "default" else {"start_method": method}

def run():
    ipcsrv.serve(path, handler, workers=2, log_level="error", **settings)
    print("served", threading.active_count())

if where == "thread":
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
else:
    run()
"""


@pytest.mark.parametrize(
    ("where", "method", "answer"),
    [
        ("main", "default", b"x"),
        ("main", "forkserver", b"x"),
        ("main", "spawn", b"x"),
        ("threads", "default", b"x"),
        ("thread", "default", b"x"),
        ("closure", "fork", b"closed over x"),
    ],
)
@pytest.mark.usefixtures("leaves_nothing")
def test_serve_blocks_until_the_server_is_stopped(sock_path: str, where: str, method: str, answer: bytes) -> None:
    import subprocess

    if method not in ("default", *serving.start_methods()):
        pytest.skip(f"{method} does not exist here")
    command = [sys.executable, "-W", "error", "-c", SERVE, sock_path, where, method]
    with subprocess.Popen(command, stdout=-1, stderr=subprocess.STDOUT, env=support.environment()) as program:
        try:
            with ipcsrv.connect(sock_path, timeout=support.TIMEOUT, wait_if_not_found=True) as connection:
                assert connection.call(b"x") == answer
            if where == "thread" or not support.sigterm_asks:  # signals are the main thread's
                support.run_command("stop", sock_path)
            else:
                program.send_signal(signal.SIGTERM)
            output, _ = program.communicate(timeout=support.TIMEOUT)
        finally:
            program.kill()
    assert output.split() == [b"served", b"2" if where in ("thread", "threads") else b"1"]
    assert program.returncode == 0


@pytest.mark.skipif(not support.have_proc, reason="reads descriptors from /proc")
def test_serve_restores_signal_handlers_and_logging(sock_path: str) -> None:
    code = """
import logging, os, signal, subprocess, sys
import ipcsrv
QUIT = "import ipcsrv, sys; ipcsrv.call(sys.argv[1], b'quit', wait_if_not_found=True, timeout=20)"
before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)]
fds = set(os.listdir("/proc/self/fd"))
for _ in range(2):
    quit = subprocess.Popen([sys.executable, "-c", QUIT, sys.argv[1]])
    ipcsrv.serve(sys.argv[1], "handlers_for_tests:quit_if_asked", workers=1, log_level="error")
    quit.wait()
assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)] == before
assert logging.getLogger("ipcsrv").handlers == []
assert set(os.listdir("/proc/self/fd")) == fds, (set(os.listdir("/proc/self/fd")), fds)
"""
    support.run_python(code, sock_path, options=["-W", "error"])


# -- ensure_running ---------------------------------------------------------------------------------------------------

ENSURE = """
import ipcsrv, os, sys
started = ipcsrv.ensure_running(sys.argv[1], "handlers_for_tests:pid", workers=1, log_file=os.devnull)
print(started, ipcsrv.call(sys.argv[1], b"").decode())
"""


def test_ensure_running_of_many_processes_starts_one_server(sock_path: str) -> None:
    with ThreadPoolExecutor(10) as pool:
        said = [line.split() for line in pool.map(lambda _: support.run_python(ENSURE, sock_path), range(5))]
    try:
        assert sorted(started for started, _ in said) == ["False"] * 4 + ["True"]
        assert len({pid for _, pid in said}) == 1
    finally:
        support.run_command("stop", sock_path)
    assert os.listdir(os.path.dirname(sock_path)) == []


def test_ensure_running_from_many_threads_starts_one(sock_path: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        settings = {"workers": 1, "log_file": os.devnull}
        started = list(pool.map(lambda _: ipcsrv.ensure_running(sock_path, ECHO, **settings), range(8)))
    try:
        assert sorted(started) == [False] * 7 + [True]
        assert ipcsrv.call(sock_path, b"x") == b"x"
    finally:
        support.run_command("stop", sock_path)


def test_ensure_running_raises_the_reason_of_a_failed_start(sock_path: str) -> None:
    with pytest.raises(HandlerImportError):
        ipcsrv.ensure_running(sock_path, "handlers_for_tests:no_such_name", log_file=os.devnull)


# -- long paths -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not support.have_proc, reason="the way around sun_path's limit is Linux's")
def test_path_longer_than_sun_path_works_from_any_thread(sock_dir: str) -> None:
    folder = os.path.join(sock_dir, *["folder-of-a-long-name"] * 30)
    os.makedirs(folder)
    path = os.path.join(folder, "s" * 50)
    server = ipcsrv.Server(path, ECHO, workers=2)
    with ThreadPoolExecutor(8) as pool:
        pool.submit(server.start).result()
        try:
            assert list(pool.map(lambda n: ipcsrv.call(path, b"%d" % n, timeout=support.TIMEOUT), range(200))) == [
                b"%d" % number for number in range(200)
            ]
            assert ipcsrv.active_state(path) is ipcsrv.State.LISTENING
            assert server.status()["path"] == path
        finally:
            pool.submit(server.stop).result()
    assert os.listdir(folder) == []


# -- clients ----------------------------------------------------------------------------------------------------------


def test_the_client_side_imports_nothing_heavy() -> None:
    code = ("import sys, ipcsrv; ipcsrv.call\n"
            "heavy = {'logging', 'multiprocessing', 'asyncio', 'argparse', 'filelock'} & set(sys.modules)\n"
            "assert not heavy, heavy")
    support.run_python(code)


def test_a_stream_is_read_as_it_comes(module_server: support.RunningServer) -> None:
    with ipcsrv.connect(module_server.path, timeout=support.TIMEOUT) as connection:
        came = [(chunk, time.monotonic()) for chunk in connection.stream(b"stream_slowly 50")]
        assert b"".join(chunk for chunk, _ in came) == b"".join(b"chunk %d\n" % number for number in range(5))
        assert came[-1][1] - came[0][1] > 0.1
        assert connection.call(b"echo the connection is whole") == b"the connection is whole"


def test_worker_crash_is_told_with_its_status(server: ServerFactory) -> None:
    dying = server("handlers_for_tests:crash", "--workers", "1")
    with pytest.raises(ipcsrv.HandlerCrashed, match="exited with status 9") as caught:
        dying.call(b"9")
    assert caught.value.code == "crashed" and caught.value.path == dying.path


def test_many_threads_share_a_server(echo_path: str) -> None:
    def ask(number: int) -> bool:
        with ipcsrv.connect(echo_path, timeout=support.TIMEOUT) as connection:
            return all(connection.call(b"%d %d" % (number, turn)) == b"%d %d" % (number, turn) for turn in range(20))

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(48)))
