"""Starting a server from a program: a known state, clear errors, and nothing left of a start that is given up."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import support

import ipcsrv
from ipcsrv.config.settings import Settings
from ipcsrv.server.server import run_foreground

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="speaks to Unix sockets")

ECHO = "handlers_for_tests:echo"
SPIN = "while True:\n    pass\n"
SLEEP = "import time\ntime.sleep(600)\n"


@pytest.fixture
def mark() -> Iterator[str]:
    """An environment variable's value by which every process of a test is found; none may be left at its end."""
    made = f"{os.getpid()}-{os.urandom(6).hex()}"
    yield made
    left = support.wait_gone(support.marked_processes(made), timeout=5)
    for pid in left:
        support.kill(pid)
    assert not left


def environment(mark: str, folder: Path) -> dict[str, str]:
    made = support.environment(**{support.MARK: mark})
    return {**made, "PYTHONPATH": f"{folder}{os.pathsep}{made['PYTHONPATH']}"}


def program(source: str, *arguments: str, mark: str, folder: Path) -> subprocess.Popen[bytes]:
    """Run a program; its standard output and error are pipes."""
    command = [sys.executable, "-c", source, *arguments]
    return subprocess.Popen(command, stdout=-1, stderr=-1, env=environment(mark, folder), start_new_session=True)


def wait_for_import(mark: str, starter: int) -> None:
    """Wait until a process other than the starter and the master is there: the one that imports."""
    support.wait_until(lambda: len(support.marked_processes(mark) - {starter}) >= 2, "an importing process")


# -- given up ---------------------------------------------------------------------------------------------------------

GIVEN_UP = {
    "server": "ipcsrv.Server(sys.argv[1], 'slow:f').start(timeout=1.5)",
    "ensure": "ipcsrv.ensure_running(sys.argv[1], 'slow:f', startup_timeout=1.5, log_file=os.devnull)",
}


@pytest.mark.skipif(not support.have_proc, reason="finds processes in /proc")
@pytest.mark.parametrize(("how", "text"), [("server", SPIN), ("ensure", SLEEP)], ids=["server-spin", "ensure-sleep"])
def test_start_that_is_given_up_leaves_nothing(mark: str, sock_path: str, tmp_path: Path, how: str, text: str) -> None:
    (tmp_path / "slow.py").write_text(text)
    source = f"import ipcsrv, os, sys\ntry:\n    {GIVEN_UP[how]}\nexcept ipcsrv.IpcError as e:\n    print(e)"
    with program(source, sock_path, mark=mark, folder=tmp_path) as running:
        output, errors = running.communicate(timeout=support.TIMEOUT)
    assert output and not errors, errors
    assert not support.wait_gone(support.marked_processes(mark), timeout=2)
    assert os.listdir(os.path.dirname(sock_path)) == []


@pytest.mark.skipif(not support.have_proc, reason="finds processes in /proc")
def test_start_goes_on_when_its_caller_has_no_more_time(mark: str, sock_path: str, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(1.5)\nf = bytes\n")
    source = (
        "import ipcsrv, os, sys, time\n"
        "before = time.monotonic()\n"
        "try:\n    ipcsrv.ensure_running(sys.argv[1], 'slow:f', timeout=0.5, workers=1, log_file=os.devnull)\n"
        "except ipcsrv.StartTimeout as error:\n    assert 'still starting' in str(error), error\n"
        "assert time.monotonic() - before < 1.2\n"
        "assert not ipcsrv.ensure_running(sys.argv[1], 'slow:f', log_file=os.devnull)\n"
        "ipcsrv.stop(sys.argv[1])\n"
    )
    with program(source, sock_path, mark=mark, folder=tmp_path) as running:
        assert running.communicate(timeout=support.TIMEOUT) == (b"", b"")


@pytest.mark.skipif(not support.have_proc, reason="finds processes in /proc")
@pytest.mark.parametrize("how", ["ensure_running", "start"])
def test_interrupted_start_ends_at_once(mark: str, sock_path: str, tmp_path: Path, how: str) -> None:
    (tmp_path / "slow.py").write_text(SLEEP)
    source = (
        "import ipcsrv, os, sys; ipcsrv.ensure_running(sys.argv[1], 'slow:f', log_file=os.devnull)"
        if how == "ensure_running"
        else "import sys; from ipcsrv.cli import main; sys.exit(main(['start', sys.argv[1], 'slow:f']))"
    )
    with program(source, sock_path, mark=mark, folder=tmp_path) as running:
        wait_for_import(mark, running.pid)
        before = time.monotonic()
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=support.TIMEOUT)
        assert time.monotonic() - before < 3
    assert running.returncode in (130, -signal.SIGINT)
    assert not support.wait_gone(support.marked_processes(mark), timeout=2)
    assert os.listdir(os.path.dirname(sock_path)) == []


@pytest.mark.skipif(not support.have_proc, reason="finds processes in /proc")
def test_server_can_be_started_at_exit(mark: str, sock_path: str, tmp_path: Path) -> None:
    source = (
        "import atexit, ipcsrv, os, sys\n"
        f"start = lambda: ipcsrv.ensure_running(sys.argv[1], {ECHO!r}, workers=1, log_file=os.devnull)\n"
        "atexit.register(start)\n"
    )
    with program(source, sock_path, mark=mark, folder=tmp_path) as running:
        assert running.communicate(timeout=support.TIMEOUT) == (b"", b"")
    assert ipcsrv.call(sock_path, b"x") == b"x"
    ipcsrv.stop(sock_path)


# -- a known state ----------------------------------------------------------------------------------------------------

STATE = """
import os, signal
def state(request):
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    ignored = [n.name for n in (signal.SIGALRM, signal.SIGCONT, signal.SIGHUP) if signal.getsignal(n) == signal.SIG_IGN]
    umask = os.umask(0); os.umask(umask)
    return repr((sorted(map(int, masked)), ignored, oct(umask))).encode()
"""
STARTER = """
import ipcsrv, os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2})
signal.signal(signal.SIGALRM, signal.SIG_IGN)
os.umask(0o727)
with ipcsrv.Server(sys.argv[1], "state:state", workers=1) as server:
    print(ipcsrv.call(sys.argv[1]).decode(), flush=True)
    os.kill(server.pid, signal.SIGTERM)
    server.wait(20)
"""


def test_server_starts_in_a_known_state(mark: str, sock_path: str, tmp_path: Path) -> None:
    (tmp_path / "state.py").write_text(STATE)
    with program(STARTER, sock_path, mark=mark, folder=tmp_path) as running:
        output, errors = running.communicate(timeout=support.TIMEOUT)
    assert (output.decode().strip(), errors) == ("([], [], '0o27')", b"")


@pytest.mark.parametrize("entry", ["serve", "Server"])
def test_closed_standard_streams_are_opened(mark: str, sock_path: str, tmp_path: Path, entry: str) -> None:
    (tmp_path / "streams.py").write_text(
        "import os\n"
        "def streams(request):\n"
        "    return ' '.join(os.readlink(f'/proc/self/fd/{n}') for n in range(3)).encode()\n"
    )
    source = {
        "serve": "ipcsrv.serve(sys.argv[1], 'streams:streams', workers=1, log_file=os.devnull)",
        "Server": "ipcsrv.Server(sys.argv[1], 'streams:streams', workers=1).__enter__().wait()",
    }[entry]
    if not support.have_proc:
        pytest.skip("reads /proc")
    code = f"import ipcsrv, os, sys\nfor n in range(3): os.close(n)\n{source}"
    command = [sys.executable, "-c", code, sock_path]
    with subprocess.Popen(command, env=environment(mark, tmp_path)) as running:
        ipcsrv.wait_until_listening(sock_path, 20)
        assert set(ipcsrv.call(sock_path).split()) == {b"/dev/null"}
        running.terminate()
        running.wait(support.TIMEOUT)


def serve_and_report(path: str) -> None:
    ipcsrv.serve(path, ECHO, workers=1, log_level="error")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_serve_works_in_a_daemonic_process(sock_path: str, method: str) -> None:
    process = multiprocessing.get_context(method).Process(target=serve_and_report, args=(sock_path,), daemon=True)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in support.environment().items():
            patch.setenv(name, value)
        process.start()
    ipcsrv.wait_until_listening(sock_path, 20)
    assert ipcsrv.call(sock_path, b"x") == b"x"
    process.terminate()
    process.join(support.TIMEOUT)
    assert process.exitcode == 0


# -- programs that cannot start one -----------------------------------------------------------------------------------

BARE = {
    "Server": "import ipcsrv, sys\ndef f(r):\n    return b'' + r\nipcsrv.Server(sys.argv[1], f).start()\n",
    "ensure_running": "import ipcsrv, sys\ndef f(r):\n    return b'' + r\nipcsrv.ensure_running(sys.argv[1], f)\n",
    "serve": "import ipcsrv, sys\nipcsrv.serve(sys.argv[1], 'zlib:compress', start_method='spawn')\n",
}


@pytest.mark.parametrize("how", BARE)
def test_program_without_main_guard_gets_one_error(mark: str, sock_path: str, tmp_path: Path, how: str) -> None:
    script = tmp_path / "bare.py"
    script.write_text(BARE[how])
    done = subprocess.run([sys.executable, script, sock_path], capture_output=True, text=True, timeout=20,
                          env=environment(mark, tmp_path))
    assert done.stderr.count("bootstrapping phase") == 1
    assert done.stderr.splitlines()[-1].startswith("ipcsrv.errors.StartError: the server did not start: an attempt has")
    assert 'if __name__ == "__main__":' in done.stderr


def test_guard_that_does_not_hold_is_the_same_error(mark: str, sock_path: str, tmp_path: Path) -> None:
    script = tmp_path / "bare.py"
    script.write_text(BARE["Server"].replace("import ipcsrv, sys", "import ipcsrv, sys  # __name__"))
    done = subprocess.run([sys.executable, script, sock_path], capture_output=True, text=True, timeout=20,
                          env=environment(mark, tmp_path))
    assert done.stderr.count("bootstrapping phase") == 1


@pytest.mark.parametrize("way", ["-c", "stdin"])
def test_handler_of_an_interactive_program_is_refused(mark: str, sock_path: str, tmp_path: Path, way: str) -> None:
    command, given = ([sys.executable, "-c", BARE["Server"]], "") if way == "-c" else ([sys.executable, "-"],
                                                                                       BARE["Server"])
    done = subprocess.run([*command, sock_path], input=given, capture_output=True, text=True, timeout=20,
                          env=environment(mark, tmp_path))
    assert "ipcsrv.errors.HandlerImportError: cannot load handler __main__:f" in done.stderr
    assert "put it into a module" in done.stderr


@pytest.mark.parametrize("start", [
    lambda path: ipcsrv.ensure_running(path, ECHO),
    lambda path: ipcsrv.Server(path, ECHO).start(),
    lambda path: ipcsrv.serve(path, ECHO, start_method="spawn"),
    lambda path: run_foreground(path, ECHO, Settings(start_method="forkserver")),
], ids=["ensure_running", "Server", "serve", "run"])  # fmt: skip
def test_frozen_program_is_refused(
    sock_path: str, start: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(ipcsrv.StartError, match=r"this program is frozen.*`ipcsrv start`"):
        start(sock_path)


@pytest.mark.parametrize(("module", "name"), [("gevent.monkey", "is_module_patched"),
                                              ("eventlet.patcher", "is_monkey_patched")])
def test_process_that_is_patched_for_coroutines_does_not_serve(
    sock_path: str, module: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{name: lambda patched: patched == "select"}))
    with pytest.raises(ipcsrv.StartError, match=r"has patched this process; use `ipcsrv\.Server`"):
        ipcsrv.serve(sock_path, ECHO)
    with ipcsrv.Server(sock_path, ECHO, workers=1):
        assert ipcsrv.call(sock_path, b"x") == b"x"


# -- who waits for a start is told why it failed ----------------------------------------------------------------------

WAITER = """
import ipcsrv, os, sys
try:
    ipcsrv.ensure_running(sys.argv[1], "broken:f", log_file=os.devnull)
except ipcsrv.HandlerImportError as error:
    print("broken.py" in str(error.traceback_text), error)
"""


def test_every_caller_of_a_failing_start_gets_the_reason(mark: str, sock_path: str, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(
        f"import os, time\nopen({str(tmp_path / 'imports')!r}, 'a').write('x')\ntime.sleep(1.5)\n1 / 0\n"
    )
    callers = [program(WAITER, sock_path, mark=mark, folder=tmp_path) for _ in range(5)]
    said = [caller.communicate(timeout=support.TIMEOUT) for caller in callers]
    assert all(line.startswith(b"True cannot load handler broken:f: ZeroDivisionError") for line, _ in said), said
    assert (tmp_path / "imports").read_text() == "x"  # it was tried once


def test_start_that_fails_at_once_is_no_address_in_use(mark: str, sock_path: str, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("1 / 0\n")
    callers = [program(WAITER, sock_path, mark=mark, folder=tmp_path) for _ in range(6)]
    said = [caller.communicate(timeout=support.TIMEOUT) for caller in callers]
    assert all(line.startswith(b"True cannot load handler broken:f: ZeroDivisionError") for line, _ in said), said
    assert os.listdir(os.path.dirname(sock_path)) == []


STARTERS = {
    "start": ["-m", "ipcsrv", "start"], "given up": ["-m", "ipcsrv", "start", "--timeout", "0.7"],
    "Server": ["-c", "import ipcsrv, sys; ipcsrv.Server(*sys.argv[1:3]).start(timeout=0.7)"],
}  # fmt: skip


@pytest.mark.parametrize(("starter", "then", "method"), [
    ("start", "raise OSError", "fork"), ("Server", "raise OSError", "spawn"), ("start", "time.sleep(600)", "spawn"),
    ("start", "time.sleep(600)", "forkserver"), ("given up", "time.sleep(600)", "fork"),
    ("Server", "time.sleep(600)", "fork"),
])  # fmt: skip
def test_failed_start_leaves_nothing_of_what_was_imported(
    sock_path: str, tmp_path: Path, mark: str, starter: str, then: str, method: str
) -> None:
    source = "import multiprocessing, subprocess, sys, time\n"
    source += "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    (tmp_path / "starts.py").write_text(source + then + "\n")
    env = {**environment(mark, tmp_path), "IPCSRV_START_METHOD": method, "IPCSRV_STARTUP_TIMEOUT": "1"}
    done = subprocess.run([sys.executable, *STARTERS[starter], sock_path, "starts:f"], env=env, capture_output=True,
                          timeout=support.TIMEOUT, check=False)  # fmt: skip
    assert done.returncode != 0
    if then != "raise OSError" and starter == "start" and method != "spawn":
        assert f"{tmp_path / 'starts.py'}:3".encode() in done.stderr
    assert support.wait_gone(support.marked_processes(mark), timeout=1.0) == set()


def test_library_names_a_missing_folder(sock_path: str) -> None:
    said = "cannot change to the folder /nowhere: No such file"
    with pytest.raises(ipcsrv.IpcError, match=said):
        ipcsrv.ensure_running(sock_path, "zlib:compress", chdir="/nowhere", log_file=os.devnull)
    with pytest.raises(ipcsrv.IpcError, match=said):
        ipcsrv.Server(sock_path, "zlib:compress", chdir="/nowhere").start()


# -- hooks that are callables -----------------------------------------------------------------------------------------

HOOKS = """
import functools, os

def note(text, *_):
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(text + "\\n")

class Noting:
    def __init__(self):
        note("made")
    def __call__(self, *arguments):
        note("instance")
    def method(self, *arguments):
        note("method")

def handle(request):
    return b"ok"
"""

PROGRAM_WITH_HOOKS = """
import functools, sys
import ipcsrv, hooked

def in_main(*_):
    hooked.note("main")

if __name__ == "__main__":
    path, way, method, hook = sys.argv[1:]
    settings = {"workers": 1, "start_method": method, "log_level": "critical", hook: {
        "instance": hooked.Noting(), "partial": functools.partial(hooked.note, "partial"),
        "method": hooked.Noting().method, "main": in_main, "lambda": lambda *_: None}[way]}
    try:
        with ipcsrv.Server(path, "hooked:handle", **settings):
            ipcsrv.call(path)
    except ipcsrv.IpcError as error:
        print(type(error).__name__, error)
"""


@pytest.mark.parametrize(("way", "method"), [
    ("instance", "fork"), ("partial", "spawn"), ("method", "forkserver"), ("main", "fork"), ("main", "spawn")
])  # fmt: skip
def test_hook_that_is_any_callable_is_the_one_that_runs(sock_path: str, tmp_path: Path, way: str, method: str) -> None:
    done, notes = run_with_hooks(tmp_path, sock_path, way, method, "on_request_start")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert notes == [*["made"] * 2, way]  # made by the program, and by no process of the server


def test_hook_that_no_process_can_find_is_refused(sock_path: str, tmp_path: Path) -> None:
    done, _ = run_with_hooks(tmp_path, sock_path, "lambda", "fork", "on_worker_start")
    assert done.stdout.startswith("HandlerImportError cannot load on_worker_start __main__:<lambda>: another process")


def run_with_hooks(
    folder: Path, path: str, way: str, method: str, hook: str
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run a program whose server has this hook; also returns what hooks have noted."""
    (folder / "hooked.py").write_text(HOOKS)
    (folder / "program.py").write_text(PROGRAM_WITH_HOOKS)
    notes = folder / "notes"
    env = {**environment("", folder), "NOTES": os.fspath(notes)}
    done = subprocess.run([sys.executable, folder / "program.py", path, way, method, hook], env=env, text=True,
                          capture_output=True, timeout=support.TIMEOUT, check=False)  # fmt: skip
    return done, notes.read_text().split()
