"""One server a path: starts, stops, stale sockets, other servers, and Git's (docs/protocol.md section 3)."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import sys
from pathlib import Path

import git_peer
import pytest
import support
from conftest import ServerFactory

import ipcsrv

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="speaks to Unix sockets")
at_the_path = pytest.mark.skipif(not support.paths_are_sockets, reason="nothing is at the path itself here")

LOCK = ".ipcsrv.lock"


def make_stale_socket(path: str) -> None:
    """A socket without a listener."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)


# -- starting ---------------------------------------------------------------------------------------------------------

RACE = """
import os, sys
from ipcsrv import IpcError, errors
from ipcsrv.server.server import serve
import ipcsrv.master.master, multiprocessing, filelock

path, count = sys.argv[1], int(sys.argv[2])
gate, open_gate = os.pipe()
pids = []
for _ in range(count):
    pid = os.fork()
    if not pid:
        os.close(open_gate)
        os.read(gate, 1)  # ends for all of them at once
        try:
            serve(path, "handlers_for_tests:pid", workers=1, log_level="error")
        except IpcError as error:
            os._exit(error.exit_code)
        os._exit(0)
    pids.append(pid)
os.close(open_gate)
losers = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(count - 1)]
print(*losers, flush=True)
sys.stdin.read()
import ipcsrv
answer = ipcsrv.call(path, b"", timeout=20, wait_if_not_found=True).decode()
print(answer, ipcsrv.status(path)["pid"] in pids, flush=True)
ipcsrv.stop(path)
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.skipif(not support.have_proc, reason="forks its starters")
def test_exactly_one_of_50_simultaneous_starts_serves(sock_path: str) -> None:
    make_stale_socket(sock_path)
    said = support.run_python(RACE, sock_path, "50", timeout=50).splitlines()  # 20 times in tests/soak/starts.py
    assert said[0].split() == ["6"] * 49
    assert said[1].endswith(" True")
    assert said[2] == "0"
    assert os.listdir(os.path.dirname(sock_path)) == []


def test_starts_of_the_command_race_as_well(sock_path: str) -> None:
    import subprocess

    options = ["--workers=1", "--log-file=/dev/null"]
    command = [sys.executable, "-m", "ipcsrv", "start", sock_path, "zlib:compress", *options]
    starts = [subprocess.Popen(command, stdout=-3, stderr=-3, env=support.environment()) for _ in range(6)]
    try:
        assert sorted(start.wait(support.TIMEOUT) for start in starts) == [0, 6, 6, 6, 6, 6]
        assert ipcsrv.active_state(sock_path) is ipcsrv.State.LISTENING
    finally:
        assert support.run_command("stop", sock_path).returncode == 0
    assert os.listdir(os.path.dirname(sock_path)) == []


def test_a_stale_socket_is_replaced(server: ServerFactory, sock_path: str) -> None:
    make_stale_socket(sock_path)
    make_stale_socket(sock_path + ".control")
    assert server().call(b"x") == b"x"


def test_a_lock_file_that_nobody_holds_hinders_nobody(server: ServerFactory, sock_path: str) -> None:
    Path(sock_path + LOCK).write_text("not even JSON")
    assert server().call(b"x") == b"x"


def test_a_living_server_of_any_kind_keeps_its_socket(sock_path: str) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(sock_path)
        other.listen(1)
        inode = os.stat(sock_path).st_ino
        with pytest.raises(ipcsrv.AddressInUse) as caught, ipcsrv.Server(sock_path, "zlib:compress"):
            pass
        assert caught.value.pid == os.getpid()
        assert os.stat(sock_path).st_ino == inode
        assert os.listdir(os.path.dirname(sock_path)) == ["s"]


def test_a_server_whose_queue_is_full_is_alive(sock_path: str) -> None:
    with socket.socket(socket.AF_UNIX) as other, socket.socket(socket.AF_UNIX) as first, socket.socket(
        socket.AF_UNIX
    ) as second:
        other.bind(sock_path)
        other.listen(0)
        for waiting in (first, second):
            waiting.setblocking(False)
            waiting.connect_ex(sock_path)
        with pytest.raises(ipcsrv.AddressInUse), ipcsrv.Server(sock_path, "zlib:compress"):
            pass
        assert stat.S_ISSOCK(os.stat(sock_path).st_mode)


@at_the_path
def test_socket_has_the_mode_of_the_setting(sock_path: str) -> None:  # other modes: test_trust.py
    with ipcsrv.Server(sock_path, "zlib:compress", workers=1, mode="0660"):
        assert stat.S_IMODE(os.stat(sock_path).st_mode) == 0o660
        assert stat.S_IMODE(os.stat(sock_path + LOCK).st_mode) == 0o600


# -- Git's server at the same path ------------------------------------------------------------------------------------


@at_the_path
def test_start_of_a_git_server_at_the_path_fails(
    echo_server: support.RunningServer,
) -> None:
    inode = os.stat(echo_server.path).st_ino
    for _ in range(3):
        with pytest.raises(git_peer.AddressInUse), git_peer.server(echo_server.path):
            pass
    assert os.stat(echo_server.path).st_ino == inode
    assert echo_server.call(b"x") == b"x"


def test_a_git_server_can_start_where_a_server_has_stopped(server: ServerFactory, sock_path: str) -> None:
    assert server().stop() == 0
    assert os.listdir(os.path.dirname(sock_path)) == []
    with git_peer.server(sock_path):
        assert ipcsrv.active_state(sock_path) is ipcsrv.State.LISTENING


@pytest.mark.skipif(not support.have_pidfd, reason="asks the kernel whether processes have ended")
def test_a_git_server_can_start_where_a_server_was_killed(server: ServerFactory, sock_path: str) -> None:
    killed = server()
    workers = killed.workers()
    killed.kill()
    assert not support.wait_gone(workers)
    with git_peer.server(sock_path):
        pass


def test_a_server_cannot_start_at_a_git_server_s_path(sock_path: str) -> None:
    with git_peer.server(sock_path) as git:
        with pytest.raises(ipcsrv.AddressInUse), ipcsrv.Server(sock_path, "zlib:compress"):
            pass
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(sock_path)
        git.accept()[0].close()  # the probe of the start
    assert os.listdir(os.path.dirname(sock_path)) == []


@at_the_path
def test_lock_file_of_a_dead_git_server_is_reported_by_name(sock_path: str) -> None:
    Path(sock_path + ".lock").write_bytes(b"")
    done = support.run_command("run", sock_path, "zlib:compress", "--workers=1")
    assert done.returncode == 6
    assert f"{sock_path}.lock".encode() in done.stderr
    assert done.stderr.splitlines()[-1].startswith(b"ipcsrv: ")
    assert os.listdir(os.path.dirname(sock_path)) == ["s.lock"]


@at_the_path
def test_folder_in_place_of_gits_lock_is_reported_by_name(sock_path: str) -> None:
    os.mkdir(sock_path + ".lock")
    done = support.run_command("run", sock_path, "zlib:compress", "--workers", "1")
    assert done.returncode == 6
    assert f"its lock file {sock_path}.lock exists".encode() in done.stderr


@at_the_path
def test_a_lock_that_a_killed_ipcsrv_left_is_cleared(server: ServerFactory, sock_path: str) -> None:
    os.symlink("ipcsrv", sock_path + ".lock")
    assert server().call(b"x") == b"x"


def test_a_start_waits_for_a_git_server_that_is_just_looking(server: ServerFactory, sock_path: str) -> None:
    Path(sock_path + ".lock").write_bytes(b"")
    running = server(listening=False)
    support.wait_until(lambda: os.path.exists(sock_path + LOCK))
    os.unlink(sock_path + ".lock")
    assert running.wait_until_listening().call(b"x") == b"x"


# -- the end of a server ----------------------------------------------------------------------------------------------


@pytest.mark.skipif(not support.have_pidfd, reason="asks the kernel whether processes have ended")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_path_of_a_killed_master_refuses_and_can_be_reused(
    server: ServerFactory, method: str, tmp_path: Path
) -> None:
    killed = server("handlers_for_tests:hold", "--workers", "2", "--start-method", method)
    held = tmp_path / "held"
    workers = killed.workers()
    with git_peer.Client(killed.path) as busy:
        busy.send(git_peer.packets(bytes(held)))
        support.wait_until(held.exists, "a worker in its handler")
        killed.kill()
        with socket.socket(socket.AF_UNIX) as client:
            support.wait_until(lambda: client.connect_ex(killed.path) != 0, "the path refuses", timeout=1.0)
        assert server("handlers_for_tests:slow", "--workers", "1").call(b"1") == b"1"  # while the old worker is busy
        held.unlink()
        assert busy.response() == bytes(held)
    assert not support.wait_gone(workers, timeout=5)


@at_the_path
def test_a_server_never_removes_what_took_its_place(server: ServerFactory, sock_path: str) -> None:
    replaced = server()
    os.unlink(sock_path)
    make_stale_socket(sock_path)
    inode = os.stat(sock_path).st_ino
    replaced.signal(signal.SIGTERM)
    assert replaced.wait() in (0, 8)
    assert os.stat(sock_path).st_ino == inode


# -- what is written down ---------------------------------------------------------------------------------------------


def test_the_lock_file_says_who_holds_the_path(echo_server: support.RunningServer) -> None:
    record = json.loads(Path(echo_server.path + LOCK).read_bytes())
    assert record["pid"] == echo_server.pid
    assert record["handler"] == "handlers_for_tests:echo"
    assert record["path"] == echo_server.path
    support.wait_until(lambda: set(json.loads(Path(echo_server.path + LOCK).read_bytes() or b"{}")["workers"])
                       == {worker["pid"] for worker in echo_server.status()["workers"]})  # type: ignore[attr-defined]


def test_lock_file_of_deep_json_hinders_no_command(echo_server: support.RunningServer) -> None:
    with open(echo_server.path + LOCK, "r+b") as file:
        file.write(b"[" * 100_000)
    for command in (["list"], ["doctor", echo_server.path], ["stop", echo_server.path]):
        done = support.run_command(*command)
        assert (command, done.returncode, done.stderr) == (command, 0, b"")
