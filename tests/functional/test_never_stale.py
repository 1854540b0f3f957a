"""`ensure_running` and a server that runs: the code, the handler, the settings and the version are compared."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import support

import ipcsrv
from ipcsrv.config import fingerprint
from ipcsrv.deadline import Deadline
from ipcsrv.platform import lifecycle

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="speaks to Unix sockets")

SETTINGS: Any = {"workers": 1, "log_file": os.devnull}


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sock_path: str) -> Iterator[Path]:
    """A handler's module in a folder of its own, which imports another; what was started is stopped."""
    (tmp_path / "words.py").write_text("import helper\ndef say(request):\n    return helper.WORD\n")
    (tmp_path / "helper.py").write_text("WORD = b'one'\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), support.environment()["PYTHONPATH"]]))
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    if ipcsrv.active_state(sock_path) is ipcsrv.State.LISTENING:
        ipcsrv.stop(sock_path)
    assert os.listdir(os.path.dirname(sock_path)) == []


def ensure(path: str, handler: str = "words:say", **more: Any) -> bool:
    return ipcsrv.ensure_running(path, handler, timeout=20, **{**SETTINGS, **more})


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_changed_code_is_reloaded_before_the_next_call(sock_path: str, words: Path, method: str) -> None:
    assert ensure(sock_path, start_method=method)
    before = ipcsrv.status(sock_path)
    assert (ipcsrv.call(sock_path), before["fingerprint"] != "") == (b"one", True)
    assert not ensure(sock_path)
    assert ipcsrv.status(sock_path)["generation"] == before["generation"]
    (words / "helper.py").write_text("WORD = b'another'\n")
    assert not ensure(sock_path)
    assert ipcsrv.call(sock_path) == b"another"
    after = ipcsrv.status(sock_path)
    assert (after["pid"], after["generation"]) == (before["pid"], before["generation"] + 1)
    assert after["fingerprint"] != before["fingerprint"]


CALLER = """
import ipcsrv, os, sys
ipcsrv.ensure_running(sys.argv[1], "words:say", timeout=30, log_file=os.devnull)
print(ipcsrv.call(sys.argv[1], timeout=30).decode())
"""


def test_of_many_callers_at_once_one_reloads(sock_path: str, words: Path) -> None:
    ensure(sock_path)
    before = ipcsrv.status(sock_path)
    (words / "helper.py").write_text("import time\ntime.sleep(0.3)\nWORD = b'another'\n")
    environment = support.environment(PYTHONPATH=os.environ["PYTHONPATH"])
    import subprocess

    callers = [subprocess.Popen([sys.executable, "-c", CALLER, sock_path], stdout=-1, env=environment)
               for _ in range(20)]
    assert {caller.communicate(timeout=40)[0] for caller in callers} == {b"another\n"}
    with ThreadPoolExecutor(50) as pool:  # and at the very same moment, in one process
        (words / "helper.py").write_text("WORD = b'third'\n")
        assert not any(pool.map(lambda _: ensure(sock_path), range(50)))
    assert ipcsrv.call(sock_path) == b"third"
    after = ipcsrv.status(sock_path)
    assert (after["pid"], after["generation"]) == (before["pid"], before["generation"] + 2)


def test_code_that_does_not_import_is_told_and_the_old_serves(sock_path: str, words: Path) -> None:
    ensure(sock_path)
    (words / "helper.py").write_text("1 / 0\n")
    with pytest.raises(ipcsrv.ServerError, match="ZeroDivisionError"):
        ensure(sock_path)
    assert ipcsrv.call(sock_path) == b"one"


def test_another_handler_or_setting_is_refused(sock_path: str, words: Path) -> None:
    ensure(sock_path)
    with pytest.raises(ipcsrv.AddressInUse, match="its handler is words:say, not zlib:compress") as caught:
        ensure(sock_path, "zlib:compress")
    assert caught.value.pid == ipcsrv.status(sock_path)["pid"]
    with pytest.raises(ipcsrv.AddressInUse, match=r"its request_timeout is None, not 5\.0.*on_mismatch='restart'"):
        ensure(sock_path, request_timeout="5s")
    assert not ensure(sock_path, workers=7)  # `scale` changes that
    assert ipcsrv.call(sock_path) == b"one"


def test_another_folder_or_log_is_another_server(
    sock_path: str, words: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        (words / name).mkdir()
    log = words / "log"
    assert ensure(sock_path, chdir=words / "one", log_file=log)
    monkeypatch.chdir(words)
    assert not ensure(sock_path, chdir="one", log_file="log", on_mismatch="error")
    assert not ensure(sock_path, chdir="one", log_file=None, on_mismatch="error")
    with pytest.raises(ipcsrv.AddressInUse, match=r"its chdir is .*one', not '.*two'"):
        ensure(sock_path, chdir="two", log_file=log, on_mismatch="error")
    with pytest.raises(ipcsrv.AddressInUse, match="its log_file is"):
        ensure(sock_path, chdir="one", log_file="another", on_mismatch="reload")


def test_restart_starts_what_was_described(sock_path: str, words: Path) -> None:
    ensure(sock_path)
    before = ipcsrv.status(sock_path)["pid"]
    assert ensure(sock_path, "zlib:compress", on_mismatch="restart", request_timeout=5)
    after = ipcsrv.status(sock_path)
    assert (after["handler"], after["settings"]["request_timeout"]) == ("zlib:compress", 5)
    assert after["pid"] != before
    assert not ensure(sock_path, "zlib:compress", on_mismatch="restart", request_timeout=5)


def test_of_many_callers_at_once_one_restarts(sock_path: str, words: Path) -> None:
    ensure(sock_path)
    with ThreadPoolExecutor(20) as pool:
        started = list(pool.map(lambda _: ensure(sock_path, "zlib:crc32", on_mismatch="restart"), range(20)))
    assert sorted(started) == [False] * 19 + [True]


def test_warn_and_error_change_nothing(sock_path: str, words: Path) -> None:
    ensure(sock_path)
    (words / "helper.py").write_text("WORD = b'another'\n")
    with pytest.warns(RuntimeWarning, match=r"its code has changed since it was imported: .*helper\.py"):
        assert not ensure(sock_path, on_mismatch="warn")
    with pytest.raises(ipcsrv.AddressInUse, match=r"its code has changed"):
        ensure(sock_path, on_mismatch="error")
    with pytest.raises(ValueError, match="on_mismatch is one of"):
        ensure(sock_path, on_mismatch="never")
    assert ipcsrv.call(sock_path) == b"one"


def test_older_ipcsrv_is_restarted(sock_path: str, words: Path) -> None:
    ensure(sock_path)
    before = ipcsrv.status(sock_path)["pid"]
    from ipcsrv.server import ensure as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "__version__", "99")
        with pytest.warns(RuntimeWarning, match=r"it runs ipcsrv 0\.1\.0, and this is 99"):
            ensure(sock_path, on_mismatch="warn")
        caller = module._Ensurer(sock_path, "words:say", {}, "reload", Deadline(20))
        assert caller._is_current() is False  # it was stopped, to be started anew
    assert ipcsrv.active_state(sock_path) is not ipcsrv.State.LISTENING
    assert ensure(sock_path)
    assert ipcsrv.status(sock_path)["pid"] != before


def test_check_of_a_current_server_takes_microseconds(sock_path: str, words: Path) -> None:
    """Of the lock file and the stamps: both are looked at by each caller."""
    ensure(sock_path)
    record = lifecycle.record(sock_path)
    assert record is not None
    assert {os.path.basename(path) for path in record["files"]} >= {"words.py", "helper.py"}
    assert record["fingerprint"] == ipcsrv.status(sock_path)["fingerprint"]
    taken = []
    for _ in range(200):
        before = time.perf_counter()
        found = lifecycle.record(sock_path) or {}
        assert fingerprint.changed_files(found["files"]) == []
        taken.append(time.perf_counter() - before)
    assert min(taken) < 0.001


# -- stopping what is left, and what cannot be seen -------------------------------------------------------------------


def test_stop_removes_what_a_killed_master_left(sock_path: str, words: Path) -> None:
    ensure(sock_path)
    pid = ipcsrv.status(sock_path)["pid"]
    support.kill(pid)
    support.wait_until(lambda: ipcsrv.active_state(sock_path) is not ipcsrv.State.LISTENING)
    support.wait_until(lambda: not lifecycle.is_locked(sock_path))
    removed = r"it was killed, and its files were removed \(s, s\.control, s\.ipcsrv\.lock\)"
    with pytest.raises(ipcsrv.NotListening, match=removed):
        ipcsrv.stop(sock_path)
    with pytest.raises(ipcsrv.PathNotFound):
        ipcsrv.stop(sock_path)


def test_server_is_found_when_its_lock_file_was_removed(sock_path: str, words: Path) -> None:
    ensure(sock_path)
    before = ipcsrv.status(sock_path)["pid"]
    os.unlink(sock_path + ".ipcsrv.lock")
    assert ipcsrv.restart(sock_path, timeout=20)["pid"] != before
    os.unlink(sock_path + ".ipcsrv.lock")
    ipcsrv.stop(sock_path, timeout=20)


def test_pids_of_another_namespace_are_left_alone(sock_path: str, words: Path) -> None:
    """A hung server in a container: here its pids are those of strangers."""
    import subprocess

    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1) as stranger:
        ours = {"pid": stranger.pid, "own_process": True, "workers": [stranger.pid], **lifecycle.identity()}
        elsewhere = {**ours, "pid_namespace": 1}
        reused = {**ours, "started_ticks": 1}
        for record in (elsewhere, reused):
            lifecycle.ask_to_stop(record, now=True)
            lifecycle.kill_all(sock_path, record)
            before = time.monotonic()
            assert lifecycle.wait_gone(sock_path, record, Deadline(5), None)
            assert time.monotonic() - before < 1
        assert stranger.poll() is None
        stranger.communicate(b"\n")


def test_server_of_another_namespace_is_reported(sock_path: str, tmp_path: Path) -> None:
    import shutil
    import signal
    import subprocess

    if shutil.which("unshare") is None or os.geteuid() != 0:
        pytest.skip("only root can make a pid namespace")
    command = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-m", "ipcsrv", "run", sock_path,
               "zlib:crc32", "--workers", "1"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=support.environment()) as container:
        try:
            ipcsrv.wait_until_listening(sock_path, 20)
            (master,) = support.children(container.pid)
            said = {command: support.run_command(command, sock_path) for command in ("doctor", "status")}
            assert f"held by pid {master}, which is pid 1 of another pid namespace" in " ".join(
                said["doctor"].stdout.decode().split())
            assert b"running, pid 1 of another pid namespace, up" in said["status"].stdout
            done = support.run_command("start", sock_path, "zlib:crc32", "--log-file", tmp_path / "log")
            assert b"address in use by process 1 (" in done.stderr
            assert b"): the pid is of another pid namespace; stop that server" in done.stderr
            os.kill(master, signal.SIGSTOP)
            with pytest.raises(ipcsrv.ServerError, match="in another pid namespace; stop it in its container"):
                ipcsrv.stop(sock_path, now=True)
            assert master in support.children(container.pid)
            os.kill(master, signal.SIGCONT)  # now it may obey that call at once
            with contextlib.suppress(ipcsrv.NotListening):
                ipcsrv.stop(sock_path, timeout=20)
        finally:
            container.kill()
    support.wait_until(lambda: os.listdir(os.path.dirname(sock_path)) == [], "nothing is left")


def test_restart_of_a_foreground_server_is_refused(server: Any, sock_path: str) -> None:
    server("handlers_for_tests:echo", "--workers", "1")
    done = support.run_command("restart", sock_path)
    assert done.returncode == 2
    assert b"the server runs in the foreground" in done.stderr
    with pytest.raises(ipcsrv.SettingsError, match="stop it and run it again, or use `reload`"):
        ipcsrv.restart(sock_path)
    assert ipcsrv.call(sock_path, b"x") == b"x"
    with pytest.raises(ipcsrv.AddressInUse, match="in the foreground"):
        ipcsrv.ensure_running(sock_path, "zlib:compress", on_mismatch="restart")


def test_public_functions_steer_any_server(sock_path: str, words: Path) -> None:
    ensure(sock_path)
    assert callable(ipcsrv.status)
    assert ipcsrv.scale(sock_path, 2)["workers"] == 2
    assert ipcsrv.reload(sock_path)["generation"] == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ipcsrv.restart(sock_path)["pid"] == ipcsrv.status(sock_path)["pid"]
