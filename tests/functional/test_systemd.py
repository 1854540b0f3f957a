"""Under systemd, played by the test: a datagram socket that hears our state, and descriptors passed from the start."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import support

import ipcsrv

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="systemd is Linux's")

# What systemd does between fork and exec: the descriptors from 3 on, and whom they are meant for.
LAUNCH = """
import os, sys
passed, command = [int(number) for number in sys.argv[1].split(",") if number], sys.argv[2:]
copies = [os.dup(number) for number in passed]
for place, copy in enumerate(copies, 3):
    os.dup2(copy, place)
    os.set_inheritable(place, True)
for number in set(passed) - set(range(3, 3 + len(passed))):
    os.close(number)
os.environ |= {"LISTEN_PID": str(os.getpid()), "WATCHDOG_PID": str(os.getpid())}
os.execv(sys.executable, [sys.executable, "-m", "ipcsrv", *command])
"""


class Supervisor:
    """systemd's part: `start` a server with `listeners` passed to it, `hear` what it says of itself."""

    def __init__(self, folder: str) -> None:
        self.address = os.path.join(folder, "notify")
        self.inbox = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.inbox.bind(self.address)
        self.inbox.settimeout(support.TIMEOUT)
        self.listeners: list[socket.socket] = []
        self.process: subprocess.Popen[bytes] | None = None

    def listen(self, path: str) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(64)
        self.listeners.append(listener)
        return listener

    def start(self, *arguments: str, names: str = "", **variables: str) -> subprocess.Popen[bytes]:
        passed = [listener.fileno() for listener in self.listeners]
        variables |= {"NOTIFY_SOCKET": self.address}
        if passed:
            variables |= {"LISTEN_FDS": str(len(passed)), "LISTEN_FDNAMES": names}
        command = [sys.executable, "-c", LAUNCH, ",".join(map(str, passed)), *arguments]
        self.process = subprocess.Popen(command, env=support.environment(**variables), pass_fds=passed,
                                        stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        return self.process

    def hear(self, wanted: str = "") -> dict[str, str]:
        """The next message, or the next that has the variable `wanted`."""
        while True:
            lines = self.inbox.recv(4096).decode().splitlines()
            message = dict(line.split("=", 1) for line in lines)
            if not wanted or wanted in message:
                return message

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.end()

    def end(self) -> int:
        assert self.process is not None
        status = self.process.wait(support.TIMEOUT)
        assert self.process.stderr is not None
        self.said = self.process.stderr.read().decode()
        self.process.stderr.close()
        return status

    def close(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            self.end()
        for opened in (self.inbox, *self.listeners):
            opened.close()


@pytest.fixture
def supervisor(sock_dir: str) -> Iterator[Supervisor]:
    playing = Supervisor(sock_dir)
    yield playing
    playing.close()


Starter = Callable[..., subprocess.Popen[bytes]]


# -- notification ------------------------------------------------------------------------------------------------------


def test_it_says_when_it_is_ready_reloads_and_stops(supervisor: Supervisor, sock_path: str) -> None:
    process = supervisor.start("run", sock_path, "handlers_for_tests:echo", "--workers", "1")
    assert supervisor.hear() == {
        "READY": "1", "STATUS": f"serving handlers_for_tests:echo at {sock_path}, generation 1"
    }
    assert ipcsrv.call(sock_path, b"at once", timeout=support.TIMEOUT) == b"at once"

    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    process.send_signal(signal.SIGHUP)
    reloading = supervisor.hear()
    assert reloading["RELOADING"] == "1"
    assert before <= int(reloading["MONOTONIC_USEC"]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    again = supervisor.hear()
    assert (again["READY"], again["STATUS"][-12:]) == ("1", "generation 2")

    assert supervisor.stop() == 0
    assert supervisor.hear() == {"STOPPING": "1", "STATUS": "draining"}


def test_a_reload_that_fails_is_over_too(supervisor: Supervisor, sock_path: str, tmp_path: Path) -> None:
    (tmp_path / "fleeting.py").write_text("def handle(request): return request\n")
    process = supervisor.start("run", sock_path, "fleeting:handle", "--workers", "1", "--chdir", str(tmp_path))
    supervisor.hear("READY")
    (tmp_path / "fleeting.py").write_text("broken, and of another length\n")
    process.send_signal(signal.SIGHUP)
    supervisor.hear("RELOADING")
    assert supervisor.hear()["STATUS"].endswith("generation 1")
    assert ipcsrv.call(sock_path, b"as before", timeout=support.TIMEOUT) == b"as before"
    assert supervisor.stop() == 0


def test_the_watchdog_hears_from_it_twice_an_interval(supervisor: Supervisor, sock_path: str) -> None:
    supervisor.start("run", sock_path, "handlers_for_tests:echo", "--workers", "1", WATCHDOG_USEC="100000")
    supervisor.hear("READY")
    heard = []
    for _ in range(6):
        supervisor.hear("WATCHDOG")
        heard.append(time.monotonic())
    assert 0.2 < heard[-1] - heard[0] < 1.0  # five halves of 100 ms, on a machine with other work
    assert supervisor.stop() == 0


def test_a_master_that_hangs_is_silent(supervisor: Supervisor, sock_path: str) -> None:
    process = supervisor.start("run", sock_path, "handlers_for_tests:echo", "--workers", "1", WATCHDOG_USEC="100000")
    supervisor.hear("WATCHDOG")
    process.send_signal(signal.SIGSTOP)
    supervisor.inbox.settimeout(0.5)
    with pytest.raises(TimeoutError):  # after the one or two that were on their way
        for _ in range(4):
            supervisor.hear()
    process.send_signal(signal.SIGCONT)
    supervisor.inbox.settimeout(support.TIMEOUT)
    supervisor.hear("WATCHDOG")
    assert supervisor.stop() == 0


def test_handlers_do_not_see_what_systemd_told_the_master(supervisor: Supervisor, sock_path: str) -> None:
    supervisor.listen(sock_path)
    supervisor.start("run", sock_path, "handlers_for_tests:environment", "--workers", "1", WATCHDOG_USEC="10000000")
    supervisor.hear("READY")
    seen = ipcsrv.call(sock_path, b"", timeout=support.TIMEOUT)
    assert not [name for name in (b"NOTIFY_SOCKET", b"WATCHDOG_USEC", b"LISTEN_FDS", b"LISTEN_PID") if name in seen]
    assert supervisor.stop() == 0


# -- socket activation ------------------------------------------------------------------------------------------------


def test_a_client_that_came_before_the_server_is_served_by_it(supervisor: Supervisor, sock_path: str) -> None:
    supervisor.listen(sock_path)
    with ipcsrv.connect(sock_path, timeout=support.TIMEOUT) as early:
        supervisor.start("run", sock_path, "handlers_for_tests:echo", "--workers", "2")
        assert early.call(b"early") == b"early"
    assert supervisor.stop() == 0


def test_passed_socket_keeps_clients_between_two_servers(
    supervisor: Supervisor, sock_path: str
) -> None:
    supervisor.listen(sock_path)
    inode = os.stat(sock_path).st_ino
    supervisor.start("run", sock_path, "handlers_for_tests:pid", "--workers", "1")
    first = ipcsrv.call(sock_path, b"", timeout=support.TIMEOUT)
    assert supervisor.stop() == 0
    assert os.stat(sock_path).st_ino == inode
    assert sorted(os.listdir(os.path.dirname(sock_path))) == ["notify", "s"]
    with ipcsrv.connect(sock_path, timeout=support.TIMEOUT) as between:
        supervisor.start("run", sock_path, "handlers_for_tests:pid", "--workers", "1")
        assert between.call(b"") != first
    assert supervisor.stop() == 0


def test_of_several_sockets_the_one_named_ipcsrv_is_taken(
    supervisor: Supervisor, sock_dir: str, sock_path: str
) -> None:
    supervisor.listen(os.path.join(sock_dir, "other"))
    supervisor.listen(sock_path)
    supervisor.start("run", sock_path, "handlers_for_tests:echo", "--workers", "1", names="web:ipcsrv")
    assert ipcsrv.call(sock_path, b"named", timeout=support.TIMEOUT) == b"named"
    assert supervisor.stop() == 0


def test_no_worker_keeps_the_listener_that_systemd_passed(supervisor: Supervisor, sock_path: str) -> None:
    listener = supervisor.listen(sock_path)
    supervisor.start("run", sock_path, "handlers_for_tests:environment", "--workers", "1")
    seen = ipcsrv.call(sock_path, b"", timeout=support.TIMEOUT)
    import json

    facts = json.loads(seen)
    inode = os.fstat(listener.fileno()).st_ino
    assert f"socket:[{inode}]" not in support.descriptors(facts["pid"]).values()
    assert supervisor.stop() == 0


@pytest.mark.parametrize("names", ["", "ipcsrv"])
def test_passed_socket_at_another_path_is_refused(
    supervisor: Supervisor, sock_dir: str, sock_path: str, names: str
) -> None:
    supervisor.listen(os.path.join(sock_dir, "elsewhere"))
    supervisor.start("run", sock_path, "handlers_for_tests:echo", names=names)
    assert supervisor.end() == 7
    assert "elsewhere" in supervisor.said
    assert "ListenStream=" in supervisor.said
    assert supervisor.said.count("\n") == 1


def test_descriptors_meant_for_another_process_are_left_alone(supervisor: Supervisor, sock_dir: str) -> None:
    import ipcsrv.master.systemd as systemd

    environ = {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid() + 1), "LISTEN_FDNAMES": "ipcsrv"}
    assert systemd.take_listener(os.path.join(sock_dir, "s"), environ) is None


def test_a_library_leaves_its_callers_sockets_alone(sock_dir: str) -> None:
    import ipcsrv.master.systemd as systemd

    environ = {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid()), "LISTEN_FDNAMES": "web"}
    assert systemd.take_listener(os.path.join(sock_dir, "s"), environ, strict=False) is None
    assert environ["LISTEN_FDNAMES"] == "web"


def test_an_abstract_address_is_understood_and_none_is_silence() -> None:
    from ipcsrv.master.systemd import Notifier, take_notifier

    name = f"ipcsrv-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as inbox:
        try:
            inbox.bind("\0" + name)
        except OSError:
            pytest.skip("no abstract sockets here")
        environ = {"NOTIFY_SOCKET": "@" + name, "WATCHDOG_USEC": "2000000"}
        notifier = take_notifier(environ)
        assert (environ, notifier.watchdog) == ({}, 1.0)
        notifier.ready("well")
        assert inbox.recv(100) == b"READY=1\nSTATUS=well"
        notifier.close()
    Notifier().ready("unheard")
