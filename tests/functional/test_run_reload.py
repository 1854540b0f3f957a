"""`ipcsrv run --reload`: a saved file is served by new workers, a broken one breaks nothing."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
from pathlib import Path

import pytest
import support

import ipcsrv
from ipcsrv.cli import reloading


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a handler and a module that it imports."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shop.py").write_text("import prices\n\ndef handle(request):\n    return prices.ANSWER\n")
    (tmp_path / "prices.py").write_text("ANSWER = b'one'\n")
    return tmp_path


@pytest.mark.parametrize("watchfiles", [False, True])
def test_saved_file_is_served_unless_it_is_broken(
    project: Path, sock_path: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch,
    watchfiles: bool
) -> None:
    if watchfiles:
        pytest.importorskip("watchfiles")
    else:
        support.hide("watchfiles", tmp_path_factory.mktemp("hidden"), monkeypatch)
    running = support.RunningServer(sock_path, "shop:handle", "--workers", "1", "--reload")
    try:
        running.wait_until_listening()
        running.output.wait_for("watching ")
        assert running.call() == b"one"
        (project / "prices.py").write_text("ANSWER = b'two'\n")  # of the same size, and within the same second
        running.output.wait_for("prices.py changed: reloading")
        running.output.wait_for("generation 2 serves")
        assert running.call() == b"two"
        (project / "prices.py").write_text("ANSWER = broken\n")
        running.output.wait_for("not reloaded")
        assert running.call() == b"two"
        assert "NameError" in str(running.output)
        (project / "prices.py").write_text("ANSWER = b'three'\n")
        running.output.wait_for("generation 4 serves")
        assert running.call() == b"three"
        assert not list(project.rglob("*.pyc"))
        processes = running.processes()
        assert running.stop() == 0
        assert support.wait_gone(processes) == set()
    finally:
        running.clean_up()


def test_watching_process_ends_with_a_killed_server(project: Path, sock_path: str) -> None:
    running = support.RunningServer(sock_path, "shop:handle", "--workers", "1", "--reload")
    try:
        running.wait_until_listening()
        processes = running.processes()
        running.kill()
        assert support.wait_gone(processes) == set()
    finally:
        running.clean_up()


@pytest.mark.skipif(os.name == "nt", reason="uses a terminal of Unix")
@pytest.mark.parametrize("reloading", [False, True], ids=["while-logging", "while-reloading"])
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_ctrl_c_ends_every_process_without_a_trace(
    project: Path, sock_path: str, method: str, reloading: bool
) -> None:
    """Ctrl-C at the terminal reaches each process at whatever it does: here a log line, or the start of Python."""
    import pty

    (project / "shop.py").write_text("import logging\n\ndef handle(request):\n"
                                     "    for n in range(50):\n        logging.warning('x' * 200)\n    return b''\n")
    pid, terminal = pty.fork()
    if pid == 0:
        command = [sys.executable, "-m", "ipcsrv", "run", sock_path, "shop:handle", "--workers", "2", "--reload"]
        os.execve(sys.executable, [*command, "--start-method", method], support.environment())
    over = threading.Event()

    def ask() -> None:
        with contextlib.suppress(ipcsrv.IpcError):
            while not over.is_set():
                ipcsrv.call(sock_path, b"", timeout=support.TIMEOUT)

    asking = threading.Thread(target=ask)
    output = b""
    with open(terminal, "rb+", buffering=0) as screen, contextlib.suppress(OSError):  # EIO: no process has it any more
        while found := screen.read(65536):
            before, output = output, output + found
            if b"watching " in output and not asking.ident and os.path.exists(sock_path):
                asking.start()
                if reloading:
                    (project / "prices.py").write_text("ANSWER = b'two'\n")
            at = b"changed: reloading" if reloading else b"x" * 200
            if at in output and at not in before:
                screen.write(b"\x03")
    over.set()
    asking.join()
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    lines = [line for line in output.decode().splitlines() if "xxx" not in line]
    assert not [line for line in lines if re.search("Traceback|Fatal|KeyboardInterrupt", line)], "\n".join(lines)
    assert not os.path.lexists(sock_path)


def test_impossible_combination_is_refused(sock_path: str) -> None:
    for option, word in (("--no-control", b"control socket"), ("--workers=0", b"workers")):
        done = support.run_command("run", sock_path, "zlib:compress", "--reload", option)
        assert (done.returncode, done.stdout) == (2, b"")
        assert word in done.stderr
        assert done.stderr.count(b"\n") == 1


def test_folder_or_package_of_the_handler_is_watched(project: Path) -> None:
    assert reloading.places("shop:handle") == [os.getcwd()]
    (package,) = reloading.places("_pytest.config:main")
    assert os.path.samefile(package, os.path.dirname(sys.modules["_pytest"].__file__ or ""))
    (module,) = reloading.places("pytest_timeout:pytest_configure")
    assert os.path.basename(module) == "pytest_timeout.py"
    assert reloading.places("no_such_module:handle") == [os.getcwd()]


def test_changes_are_found_without_watchfiles(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reloading, "INTERVAL", 0.001)
    over = threading.Event()
    (project / "venv" / "site-packages").mkdir(parents=True)
    found = reloading.changes_by_polling([str(project)], over, lambda: None)
    wait = iter(found)
    before = reloading.stamps([str(project)])
    assert sorted(map(os.path.basename, before)) == ["prices.py", "shop.py"]

    def save() -> None:
        (project / "venv" / "site-packages" / "theirs.py").write_text("")
        (project / ".hidden.txt").write_text("")
        (project / "new.py").write_text("")

    timer = threading.Timer(0.05, save)
    timer.start()
    assert [os.path.basename(file) for file in next(wait)] == ["new.py"]
    timer.join()  # Windows removes no file that is open
    (project / "new.py").unlink()
    assert [os.path.basename(file) for file in next(wait)] == ["new.py"]
    over.set()
    assert next(wait, None) is None


