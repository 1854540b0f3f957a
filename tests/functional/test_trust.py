"""Who may talk to whom: the threats of docs/security.md, each tried by another user, a planted file or a false peer.

Where the tests run as root, clients and false servers are other users for real (`strangers`).
"""

from __future__ import annotations

import array
import ast
import json
import os
import re
import signal
import socket
import stat
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import support
from conftest import ServerFactory
from strangers import NOBODY, OTHER, needs_other_users, run_as, running_as

import ipcsrv
from ipcsrv import errors

if sys.platform == "win32":
    pytest.skip("Unix users, modes and descriptors", allow_module_level=True)

from ipcsrv.platform.unix import connection as unix_connection
from ipcsrv.platform.unix import descriptors
from ipcsrv.platform.unix import rendezvous as posix_rendezvous
from ipcsrv.platform.unix.rendezvous import Rendezvous

needs_proc = pytest.mark.skipif(not support.have_proc, reason="reads /proc")
PACKAGE = Path(ipcsrv.__file__).parent


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """No start in this process waits long for a Git server that is not there."""
    monkeypatch.setattr(posix_rendezvous, "GIT_LOCK_PATIENCE", 0.05)


@pytest.fixture
def open_dir(sock_dir: str) -> str:
    """A folder that others can enter, but not write."""
    os.chmod(sock_dir, 0o755)
    return sock_dir


@pytest.fixture
def shared_dir(sock_dir: str) -> str:
    """A folder like /tmp: every user may make files, none may remove another's."""
    os.chmod(sock_dir, 0o1777)
    return sock_dir


def receive_all(connection: socket.socket) -> bytes:
    connection.settimeout(support.TIMEOUT)
    received = b""
    while True:
        try:
            data = connection.recv(65536)
        except ConnectionResetError:
            return received
        if not data:
            return received
        received += data


# -- may this client ask? ---------------------------------------------------------------------------------------------

CALL = """
try:
    print(ipcsrv.call(arguments[0], b"hello", timeout=10).decode())
except ipcsrv.IpcError as error:
    print(type(error).__name__)
"""


@needs_other_users
@pytest.mark.usefixtures("open_dir")
def test_another_users_client_is_denied_before_a_byte_is_read(server: ServerFactory, sock_path: str) -> None:
    running = server("handlers_for_tests:echo", "--workers", "1", "--mode", "0666")
    say_nothing = """
connection = socket.socket(socket.AF_UNIX)
connection.connect(arguments[0])
print(os.getpid(), connection.recv(1000).decode(), connection.recv(1000))
"""
    pid, _, answer = run_as(say_nothing, sock_path).partition(" ")
    assert re.fullmatch(r"[0-9a-f]{4}ERR denied .* b''\n", answer)
    line = running.output.wait_for("denied a connection")
    assert f"pid {pid}" in line
    assert f"uid {NOBODY}" in line
    assert run_as(CALL, sock_path) == "Denied\n"
    assert running.call(b"and I?") == b"and I?"


@needs_other_users
@pytest.mark.usefixtures("open_dir")
def test_denials_are_logged_once_a_second_at_most(server: ServerFactory, sock_path: str) -> None:
    running = server("handlers_for_tests:echo", "--workers", "1", "--mode", "0666")
    knock = """
begin = time.monotonic()
for _ in range(200):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(arguments[0])
        connection.recv(1000)
print(time.monotonic() - begin)
"""
    seconds = float(run_as(knock, sock_path))
    running.stop()
    assert 1 <= running.output.rest().count("denied a connection") <= 1 + seconds


@needs_other_users
@pytest.mark.usefixtures("open_dir")
def test_allow_admits_by_number_and_name_and_no_other_user(server: ServerFactory, sock_path: str) -> None:
    import grp
    import pwd

    user, group = pwd.getpwuid(NOBODY).pw_name, grp.getgrgid(1).gr_name
    allowed = [f"uid:{OTHER}", "gid:61002", f"user:{user}", f"group:{group}"]
    server("handlers_for_tests:peer", "--workers", "1", "--mode", "0666", "--allow", ",".join(allowed))
    by_group = [(61008, 61002, []), (61008, 61009, [61007, 61002]), (61008, 1, [])]
    for uid, gid, groups in [(OTHER, 61009, []), (NOBODY, 61009, []), *by_group]:
        assert json.loads(run_as(CALL, sock_path, uid=uid, gid=gid, groups=groups))[1:] == [uid, gid]
    assert run_as(CALL, sock_path, uid=61008, gid=61009, groups=[61007]) == "Denied\n"
    assert json.loads(ipcsrv.call(sock_path))[1] == 0  # its own user, here root


SERVE = """
ctypes.CDLL(None).prctl(4, 1)  # PR_SET_DUMPABLE: its /proc/self must be its own, as it is of one that did not drop
if os.fork() == 0:
    server = os.getppid()
    while ipcsrv.active_state(arguments[0]) is not ipcsrv.State.LISTENING and os.getppid() == server:
        time.sleep(0.01)
    print("ready" if os.getppid() == server else "dead", flush=True)
    sys.stdin.read()
    os.kill(server, signal.SIGTERM)
    os._exit(0)
ipcsrv.serve(arguments[0], handlers_for_tests.peer, workers=1, start_method="fork")
"""
SERVE_IMPORTS = (
    "ctypes, handlers_for_tests, filelock, multiprocessing.popen_fork, ipcsrv.server.server, ipcsrv.master.master"
)


@needs_other_users
def test_root_is_served_and_must_name_users_that_it_trusts(sock_dir: str, sock_path: str) -> None:
    os.chown(sock_dir, NOBODY, NOBODY)
    with running_as(SERVE, sock_path, imports=SERVE_IMPORTS):
        with pytest.raises(errors.Untrusted):
            ipcsrv.call(sock_path, timeout=10)
        for trust in (NOBODY, "nobody"):
            assert json.loads(ipcsrv.call(sock_path, timeout=10, trust=trust)) == [os.getpid(), 0, 0]


def test_credentials_of_another_process_change_nothing(server: ServerFactory, sock_path: str) -> None:
    server("handlers_for_tests:peer", "--workers", "1")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(sock_path)
        if not hasattr(socket, "SCM_CREDENTIALS") or os.geteuid() != 0:
            pytest.skip("only root on Linux can claim to be another process")
        claim = struct.pack("3i", 1, NOBODY, NOBODY)
        connection.sendmsg([b"0000"], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, claim)])
        connection.shutdown(socket.SHUT_WR)
        answer = receive_all(connection)
    assert json.loads(answer[4:-4]) == [os.getpid(), os.geteuid(), os.getegid()]


CONNECT_AND_DIE = """
connection = socket.socket(socket.AF_UNIX)
connection.connect(arguments[0])
socket.send_fds(socket.socket(fileno=arguments[1]), [b"c"], [connection.fileno()])
print("ready", flush=True)
"""


@needs_other_users
@needs_proc
@pytest.mark.usefixtures("open_dir")
@pytest.mark.parametrize("uid", [0, NOBODY])
def test_credentials_are_those_of_a_client_that_has_ended(
    uid: int, server: ServerFactory, sock_path: str
) -> None:
    running = server("handlers_for_tests:peer", "--workers", "1", "--mode", "0666")
    workers = running.workers()
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        os.set_inheritable(theirs.fileno(), True)
        passed = theirs.fileno()
        with running_as(CONNECT_AND_DIE, sock_path, passed, uid=uid, gid=uid, pass_fds=[passed]) as dead:
            _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
        assert dead.returncode == 0
    with socket.socket(fileno=descriptors[0]) as connection:
        connection.sendall(b"0000")
        connection.shutdown(socket.SHUT_WR)
        for worker in workers:
            os.kill(worker, signal.SIGCONT)
        answer = receive_all(connection)
    if uid == 0:
        assert json.loads(answer[4:-4]) == [dead.pid, 0, 0]
    else:
        assert answer[4:].startswith(b"ERR denied ")
        assert f"pid {dead.pid}, uid {NOBODY}" in running.output.wait_for("denied a connection")


@needs_other_users
@pytest.mark.usefixtures("open_dir")
def test_control_socket_is_for_the_owner_alone(server: ServerFactory, sock_path: str) -> None:
    server("handlers_for_tests:echo", "--workers", "1", "--mode", "0666", "--allow", f"uid:{NOBODY}")
    assert stat.S_IMODE(os.stat(sock_path + ".control").st_mode) == 0o600
    assert run_as(CALL, sock_path) == "hello\n"
    assert run_as(CALL, sock_path + ".control") == "Denied\n"
    os.chmod(sock_path + ".control", 0o666)  # even so
    assert run_as(CALL, sock_path + ".control") == "Denied\n"


# -- is this the server I meant? --------------------------------------------------------------------------------------

FALSE_SERVER = """
os.umask(0)
listener = socket.socket(socket.AF_UNIX)
listener.bind(arguments[0])
listener.listen(10)
print("ready", flush=True)
for _ in range(arguments[1]):
    connection = listener.accept()[0]
    try:
        print(connection.recv(1000), flush=True)
    except ConnectionError as error:
        print(b"", flush=True)
    connection.close()
"""


@needs_other_users
def test_another_users_false_server_is_not_sent_a_byte(shared_dir: str, sock_path: str) -> None:
    import asyncio

    with running_as(FALSE_SERVER, sock_path, 6) as false:
        with pytest.raises(errors.Untrusted) as caught:
            ipcsrv.call(sock_path, b"secret", timeout=10)
        with pytest.raises(errors.Untrusted):
            ipcsrv.connect(sock_path, timeout=10)
        with pytest.raises(errors.Untrusted):
            ipcsrv.call(sock_path, b"secret", timeout=10, trust=["daemon", 61008])
        with pytest.raises(errors.Untrusted):
            asyncio.run(ipcsrv.aio.call(sock_path, b"secret", timeout=10))
        done = support.run_command("call", sock_path, "secret")
        assert done.returncode == 5
        done = support.run_command("call", sock_path, input=b"secret" * 100_000)
        assert done.returncode == 5
        assert false.stdout is not None
        assert [false.stdout.readline() for _ in range(6)] == ["b''\n"] * 6
    assert caught.value.peer is not None
    assert caught.value.peer.uid == NOBODY
    assert f"runs as user {NOBODY}, not as you or root" in str(caught.value)
    assert "nothing was sent" in done.stderr.decode()


@needs_other_users
def test_another_users_control_socket_is_not_believed(shared_dir: str, sock_path: str) -> None:
    with running_as(FALSE_SERVER, sock_path + ".control", 1) as false:
        done = support.run_command("status", sock_path)
        assert done.returncode == 5
        assert false.stdout is not None
        assert false.stdout.readline() == "b''\n"


PLANTED_LOCK = """
record = {"pid": arguments[1], "workers": [arguments[1]], "handler": "os:abort", "settings": {}, "cwd": "/"}
os.umask(0)
with open(arguments[0] + ".ipcsrv.lock", "w") as file:
    file.write(json.dumps(record))
    file.flush()
    fcntl.flock(file, fcntl.LOCK_EX)
    print("ready", flush=True)
    sys.stdin.read()
"""


@needs_other_users
def test_lock_file_of_another_user_is_not_believed(shared_dir: str, sock_path: str) -> None:
    victim = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with running_as(PLANTED_LOCK, sock_path, victim.pid):
        for command in (["stop", "--now"], ["restart"]):
            assert support.run_command(command[0], sock_path, *command[1:]).returncode == 3
        done = support.run_command("run", sock_path, "handlers_for_tests:echo")
        assert done.returncode == 7
        assert b".ipcsrv.lock is not a regular file of yours" in done.stderr
    assert victim.poll() is None
    victim.communicate(b"\n", timeout=support.TIMEOUT)
    assert victim.returncode == 0


@needs_proc
def test_command_line_of_a_process_is_escaped(sock_path: str) -> None:
    source = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); print(); input()"
    command = [sys.executable, "-c", source, sock_path, "\x1b]0;owned\x07"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        program.stdout.readline()
        done = support.run_command("run", sock_path, "handlers_for_tests:echo")
        looked = support.run_command("doctor", sock_path)
        program.communicate(b"\n", timeout=support.TIMEOUT)
    assert done.returncode == 6
    assert b"owned" in done.stderr
    assert b"owned" in looked.stdout
    assert not set(done.stderr + looked.stdout) & {0x1B, 0x07}


# -- the place --------------------------------------------------------------------------------------------------------


def refusal(path: str, **options: bool) -> str:
    """Why a server would not take this path; "" if it would."""
    place = Rendezvous(path, **options)  # type: ignore[arg-type]
    try:
        place.claim({"pid": os.getpid()})
        place.listen()
    except errors.IpcError as error:
        return str(error)
    finally:
        place.close()
    return ""


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o770, 0o757])
def test_a_folder_that_others_can_write_is_refused(mode: int, sock_dir: str, sock_path: str) -> None:
    os.chmod(sock_dir, mode)
    reason = refusal(sock_path)
    assert sock_dir in reason
    assert f"writable by others (mode {mode:04o}) and not sticky" in reason
    assert os.listdir(sock_dir) == []
    assert refusal(sock_path, insecure_dir=True) == ""


def test_the_command_says_which_folder_and_how_to_allow_it(sock_dir: str, sock_path: str) -> None:
    os.chmod(sock_dir, 0o777)
    done = support.run_command("run", sock_path, "handlers_for_tests:echo")
    assert done.returncode == 7
    assert sock_dir in done.stderr.decode()
    assert "--insecure-dir" in done.stderr.decode()


def test_a_sticky_folder_is_good_enough(shared_dir: str, sock_path: str) -> None:
    assert refusal(sock_path) == ""


@needs_other_users
def test_another_users_folder_is_refused(sock_dir: str, sock_path: str) -> None:
    os.chown(sock_dir, NOBODY, NOBODY)
    assert f"belongs to user {NOBODY}" in refusal(sock_path)


@pytest.mark.parametrize("target", ["a file", "a socket", "nothing"])
@pytest.mark.parametrize("suffix", ["", ".ipcsrv.lock", ".lock"])
def test_symbolic_link_in_a_files_place_is_not_followed(
    target: str, suffix: str, sock_dir: str, sock_path: str
) -> None:
    aim = os.path.join(sock_dir, "aim")
    with socket.socket(socket.AF_UNIX) as listener:
        if target == "a file":
            Path(aim).write_bytes(b"precious")
        elif target == "a socket":
            listener.bind(aim)
        os.symlink(aim, sock_path + suffix)
        assert sock_path + suffix in refusal(sock_path)
    assert os.readlink(sock_path + suffix) == aim
    assert os.path.lexists(aim) == (target != "nothing")
    assert target != "a file" or Path(aim).read_bytes() == b"precious"


def test_a_lock_file_that_is_another_name_of_a_file_is_refused(sock_dir: str, sock_path: str) -> None:
    aim = Path(sock_dir, "aim")
    aim.write_bytes(b"precious")
    os.link(aim, sock_path + ".ipcsrv.lock")
    assert "not a regular file of yours" in refusal(sock_path)
    assert aim.read_bytes() == b"precious"


def test_a_fifo_in_the_locks_place_makes_nobody_wait(sock_path: str) -> None:
    os.mkfifo(sock_path + ".ipcsrv.lock")
    assert "not a regular file of yours" in refusal(sock_path)
    assert support.run_command("stop", sock_path).returncode == 3


def test_link_in_place_of_the_control_socket_is_not_followed(
    server: ServerFactory, sock_dir: str, sock_path: str
) -> None:
    aim = os.path.join(sock_dir, "aim")
    os.symlink(aim, sock_path + ".control")
    running = server("handlers_for_tests:echo", "--workers", "1")
    running.output.wait_for("serving without a control socket")
    assert running.call(b"hello") == b"hello"
    assert running.stop() == 0
    assert sorted(os.listdir(sock_dir)) == ["s.control"]


def test_log_file_that_is_a_symbolic_link_is_refused(sock_dir: str, sock_path: str) -> None:
    aim, log = Path(sock_dir, "aim"), os.path.join(sock_dir, "log")
    aim.write_bytes(b"precious")
    os.symlink(aim, log)
    for command in ("run", "start"):
        done = support.run_command(command, sock_path, "handlers_for_tests:echo", "--log-file", log)
        assert done.returncode == 1
        assert log in done.stderr.decode()
    assert aim.read_bytes() == b"precious"


def test_link_in_place_of_a_running_log_is_not_followed(
    server: ServerFactory, sock_dir: str, sock_path: str
) -> None:
    aim, log, old = Path(sock_dir, "aim"), Path(sock_dir, "log"), Path(sock_dir, "log.1")
    running = server("handlers_for_tests:raise_error", "--workers", "1", "--log-file", str(log))
    log.rename(old)
    log.symlink_to(aim)
    for _ in range(2):
        with pytest.raises(errors.HandlerError):
            running.call(b"a line in the log")
    assert not aim.exists()
    assert old.read_text().count("ValueError: a line in the log") == 2
    log.unlink()
    with pytest.raises(errors.HandlerError):
        running.call(b"into a new file")
    assert running.stop() == 0
    assert "into a new file" in log.read_text()


@needs_other_users
def test_a_dead_socket_of_another_user_is_reported(shared_dir: str, sock_path: str) -> None:
    run_as("socket.socket(socket.AF_UNIX).bind(arguments[0])", sock_path)
    start = """
from ipcsrv.platform.unix.rendezvous import Rendezvous
place = Rendezvous(arguments[0])
try:
    place.claim({})
    place.listen()
except ipcsrv.IpcError as error:
    print(error)
finally:
    place.close()
"""
    said = run_as(start, sock_path, uid=OTHER, gid=OTHER, imports="filelock, ipcsrv.platform.unix.rendezvous")
    assert sock_path in said
    assert os.listdir(shared_dir) == ["s"]


@needs_other_users
def test_git_lock_file_of_another_user_is_reported(shared_dir: str, sock_path: str) -> None:
    run_as("open(arguments[0] + '.lock', 'w').write('ipcsrv\\n')", sock_path)
    assert f"{sock_path}.lock exists" in refusal(sock_path)


@pytest.mark.parametrize("when", ["before it is opened for good", "just before the bind"])
def test_a_folder_swapped_between_check_and_bind_is_noticed(
    when: str, sock_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, aside = os.path.join(sock_dir, "f"), os.path.join(sock_dir, "aside")
    path = os.path.join(folder, "s")
    os.mkdir(folder, 0o1777)
    bind = Rendezvous._bind
    place = Rendezvous(path)

    def swap() -> None:
        os.rename(folder, aside)
        os.mkdir(folder)

    def swapped(*arguments: object) -> None:
        swap()
        bind(*arguments)  # type: ignore[arg-type]

    place.claim({})
    if when == "just before the bind":
        monkeypatch.setattr(Rendezvous, "_bind", swapped)
    else:
        swap()
    with pytest.raises(errors.InvalidPath, match="replaced"):
        place.listen()
    place.close()
    assert os.listdir(aside) == []  # nothing of ours is left in the folder that was checked
    assert ipcsrv.active_state(path) is not ipcsrv.State.LISTENING


@needs_other_users
def test_socket_of_another_user_is_not_taken_for_the_bound_one(
    sock_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, aside = os.path.join(sock_dir, "f"), os.path.join(sock_dir, "aside")
    path = os.path.join(folder, "s")
    os.mkdir(folder)
    os.chmod(folder, 0o1777)
    os.chmod(sock_dir, 0o755)
    bind = Rendezvous._bind

    def swapped(*arguments: object) -> None:
        os.rename(folder, aside)
        os.mkdir(folder)
        run_as("socket.socket(socket.AF_UNIX).bind(arguments[0])", os.path.join(aside, "s"))
        bind(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Rendezvous, "_bind", swapped)
    assert "replaced" in refusal(path)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_mode_is_right_from_bind_on_with_any_umask(
    mode: int, umask: int, sock_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    bind = Rendezvous._bind

    def noticed(*arguments: object) -> None:
        bind(*arguments)  # type: ignore[arg-type]
        seen.append(stat.S_IMODE(os.stat(str(arguments[2])).st_mode))

    monkeypatch.setattr(Rendezvous, "_bind", noticed)
    before = os.umask(umask)
    try:
        place = Rendezvous(sock_path, mode=mode)
        place.claim({})
        place.listen()
        assert seen == [mode, 0o600]  # clients' socket, control socket: before either listens
        assert stat.S_IMODE(os.stat(sock_path + ".ipcsrv.lock").st_mode) & 0o077 == 0
        place.close()
    finally:
        left = os.umask(before)
    assert left == umask


def test_no_mode_is_mended_after_the_fact() -> None:
    for path in PACKAGE.rglob("*.py"):
        if "warm" in path.parts:
            continue  # it makes scripts executable
        names = {node.attr for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, ast.Attribute)}
        assert not names & {"chmod", "fchmod", "lchmod", "chown", "fchown"}, path


# -- default_path -----------------------------------------------------------------------------------------------------


@pytest.fixture
def no_session(monkeypatch: pytest.MonkeyPatch, shared_dir: str) -> str:
    """An environment without folders for this user, and a temporary folder of its own."""
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.delenv("IPCSRV_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("TMPDIR", shared_dir)
    return os.path.join(shared_dir, f"ipcsrv-{os.geteuid()}")


def test_the_default_folder_is_made_private(no_session: str) -> None:
    before = os.umask(0)
    try:
        assert ipcsrv.default_path("app") == os.path.join(no_session, "app.sock")
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(no_session).st_mode) == 0o700


@needs_other_users
def test_default_folder_made_by_another_user_is_refused(no_session: str) -> None:
    run_as("os.mkdir(arguments[0], 0o777)", no_session)
    with pytest.raises(errors.InvalidPath, match=f"belongs to user {NOBODY}"):
        ipcsrv.default_path("app")


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o701])
def test_a_default_folder_that_others_may_enter_is_refused(mode: int, no_session: str) -> None:
    os.mkdir(no_session)
    os.chmod(no_session, mode)
    with pytest.raises(errors.InvalidPath, match="others may enter"):
        ipcsrv.default_path("app")


def test_a_link_in_the_default_folders_place_is_refused(no_session: str, sock_dir: str) -> None:
    os.mkdir(os.path.join(sock_dir, "aim"), 0o700)
    os.symlink("aim", no_session)
    with pytest.raises(errors.InvalidPath):
        ipcsrv.default_path("app")


@needs_other_users
def test_another_users_session_folder_is_passed_over(
    no_session: str, sock_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = os.path.join(sock_dir, "run")
    os.mkdir(session, 0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", session)
    assert ipcsrv.default_path("app") == os.path.join(session, "ipcsrv", "app.sock")
    os.chown(session, NOBODY, NOBODY)
    assert ipcsrv.default_path("app") == os.path.join(no_session, "app.sock")
    monkeypatch.setenv("IPCSRV_RUNTIME_DIR", session)  # who names a folder wants that one or none
    with pytest.raises(errors.InvalidPath, match="belongs to user"):
        ipcsrv.default_path("app")


def test_supplementary_groups_are_read_from_the_credentials() -> None:
    xucred = struct.pack("IIhxx16I", 0, 501, 3, 20, 12, 61, *range(100, 113))  # macOS, FreeBSD: three of sixteen
    assert unix_connection.groups_in(xucred) == {20, 12, 61}


def test_every_process_of_a_user_finds_the_same_default_path(no_session: str) -> None:
    source = "import ipcsrv, sys; sys.stdout.buffer.write(ipcsrv.default_path('app', 'k\\u00e9y' * 100).encode())"
    found = {
        subprocess.run([sys.executable, "-c", source], capture_output=True, check=True, cwd=folder,
                       env=support.environment(PYTHONHASHSEED=seed, LC_ALL=locale)).stdout
        for seed, locale, folder in (("1", "C", "/"), ("2", "C.UTF-8", no_session.rpartition("/")[0]))
    }  # fmt: skip
    assert len(found) == 1
    assert len(found.pop()) < 104


# -- descriptors ------------------------------------------------------------------------------------------------------

PASSED = 10_000
AT_ONCE = 250  # SCM_MAX_FD is 253


def send_with(connection: socket.socket, data: bytes, descriptor: int) -> None:
    """Send `data` and, with it, the same descriptor as often as one message may carry it."""
    rights = array.array("i", [descriptor] * AT_ONCE)
    connection.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])


def one_piece(connection: socket.socket, descriptor: int) -> None:
    send_with(connection, b"0008ping0000", descriptor)
    assert connection.recv(100) == b"0008ping0000"


def in_pieces(connection: socket.socket, descriptor: int) -> None:
    connection.sendall(b"00")
    send_with(connection, b"08pi", descriptor)
    send_with(connection, b"ng0000", connection.fileno())  # itself: a cycle, if the server kept it
    assert connection.recv(100) == b"0008ping0000"


def to_control(connection: socket.socket, descriptor: int) -> None:
    question = b'{"command": "ping"}'
    send_with(connection, b"%04x%b0000" % (len(question) + 4, question), descriptor)
    assert b'"ok": true' in connection.recv(1000)


@needs_proc
@pytest.mark.parametrize(
    ("suffix", "exchange"),
    [
        pytest.param("", one_piece, id="fast path"),
        pytest.param("", in_pieces, id="slow path"),
        pytest.param(".control", to_control, id="control socket"),
    ],
)
def test_descriptors_passed_by_a_client_are_closed(
    suffix: str, exchange: object, server: ServerFactory, sock_path: str
) -> None:
    assert callable(exchange)
    running = server("handlers_for_tests:echo", "--workers", "1")
    assert running.call() == b""
    before = {pid: len(support.descriptors(pid)) for pid in running.processes()}
    reader, writer = os.pipe()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(support.TIMEOUT)
        connection.connect(sock_path + suffix)
        for _ in range(PASSED // AT_ONCE):
            exchange(connection, writer)
        os.close(writer)
        assert os.read(reader, 1) == b""  # no other process has its other end any more
        os.close(reader)
        held = {pid: len(support.descriptors(pid)) - count for pid, count in before.items()}
        assert sum(held.values()) <= 2  # this connection, and the copy of it that is kept in trust
    assert running.call(b"and on it goes") == b"and on it goes"


@needs_proc
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_programs_of_handlers_inherit_no_descriptor(
    method: str, server: ServerFactory, sock_dir: str
) -> None:
    running = server("handlers_for_trust:descriptors_of_a_program", "--workers", "2", "--start-method", method)
    listed = running.call(os.path.join(sock_dir, "listed").encode()).decode()
    opened = dict(re.findall(r" (\d+) -> (\S+)", listed))
    own = [number for number, where in opened.items() if re.fullmatch(r"/proc/\d+/fd", where)]  # ls's
    assert set(opened) - set(own) <= {"0", "1", "2"}, listed
    os.unlink(os.path.join(sock_dir, "listed"))
    workers = {worker["pid"] for worker in running.status()["workers"]}  # type: ignore[attr-defined]
    control = listening_inodes()[running.path + ".control"]
    kept = {pid: set(support.descriptors(pid).values()) for pid in running.processes()}
    for pid in workers:
        assert not any(".ipcsrv.lock" in where for where in kept[pid])
        assert f"socket:[{control}]" not in kept[pid]
    private = [{where for where in kept[pid] if where.startswith("socket:")} for pid in workers]
    shared = set.intersection(*private)
    assert len(shared) <= 2  # the queue's end for workers, and the listener
    assert all(len(sockets - shared) <= 5 for sockets in private)  # channel, Python's own for signals
    assert_it_listens_at_its_two_sockets_and_nowhere_else(running)


def assert_it_listens_at_its_two_sockets_and_nowhere_else(running: support.RunningServer) -> None:
    opened = {where for pid in running.processes() for where in support.descriptors(pid).values()}
    listens = {path for path, inode in listening_inodes().items() if f"socket:[{inode}]" in opened}
    assert listens == {running.path, running.path + ".control"}


def listening_inodes() -> dict[str, str]:
    """Where Unix sockets listen on this machine, and the inodes of these sockets (proc(5))."""
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return {row[7] if len(row) > 7 else f"unnamed {row[6]}": row[6] for row in rows if row[3] == "00010000"}


def test_pickles_are_read_from_private_pipes_alone() -> None:
    unpickling = {"pickle", "marshal", "shelve", "multiprocessing.connection", "multiprocessing.managers"}
    readers = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            names = {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                names = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            if names & unpickling:
                readers.add(str(path.relative_to(PACKAGE)))
    # The starter's order and the server's reports, both through pipes made for them; the handler in that order; and on
    # the engine of a cluster what a worker sends there, by the engine's own connections.
    private = {"server/starting.py", "server/background.py", "config/handlers.py"}
    assert readers <= private | {"worker/executors/__init__.py", "worker/executors/remote.py"}


# -- the log folder ---------------------------------------------------------------------------------------------------

LOG_FOLDER = """
state, home, temporary = arguments
os.environ.pop("XDG_RUNTIME_DIR", None)
os.environ.update({"TMPDIR": temporary, "HOME": home, "XDG_STATE_HOME": state})
os.chdir(temporary)
try:
    print(lifecycle.log_folder())
except ipcsrv.StartError as error:
    print(error)
"""


@needs_other_users
@pytest.mark.parametrize("home", ["own", "missing", "read-only", "another user's", "unset", "relative"])
def test_log_folder_is_the_users_own_or_a_private_one(home: str, shared_dir: str, tmp_path: Path) -> None:
    folder = Path(shared_dir, "home")
    if home in ("own", "read-only", "another user's"):
        folder.mkdir(mode=0o777)
        folder.chmod(0o555 if home == "read-only" else 0o755)
        if home != "another user's":
            os.chown(folder, OTHER, OTHER)
    value = {"unset": "", "relative": "home"}.get(home, str(folder))
    private = f"{shared_dir}/ipcsrv-{OTHER}"
    imports = "ipcsrv.platform.unix.folder, ipcsrv.platform.unix.lifecycle as lifecycle"
    found = run_as(LOG_FOLDER, "relative", value, shared_dir, uid=OTHER, gid=OTHER, imports=imports).rstrip()
    assert found == (f"{folder}/.local/state/ipcsrv" if home == "own" else private)
    info = os.stat(found)
    assert (info.st_uid, stat.S_IMODE(info.st_mode)) == (OTHER, 0o700)
    assert home == "own" or not folder.is_dir() or os.listdir(folder) == []
    assert not Path(shared_dir, "relative").exists()


@needs_other_users
def test_start_without_a_folder_for_its_log_names_the_option(sock_dir: str) -> None:
    imports = "ipcsrv.platform.unix.folder, ipcsrv.platform.unix.lifecycle as lifecycle"
    os.chmod(sock_dir, 0o755)
    found = run_as(LOG_FOLDER, "", "/nonexistent", sock_dir, uid=OTHER, gid=OTHER, imports=imports)
    assert "there is no folder for the log" in found
    assert "--log-file" in found


def test_start_makes_no_home_where_there_is_none(sock_path: str, tmp_path: Path) -> None:
    home = tmp_path / "none"
    done = support.run_command("start", sock_path, "zlib:compress", "--workers", "1", HOME=str(home), XDG_STATE_HOME="")
    assert done.returncode == 0, done.stderr
    log = ipcsrv.status(sock_path)["log_file"]
    ipcsrv.stop(sock_path)
    os.unlink(log)
    assert not home.exists()


def test_restart_leaves_the_server_when_its_log_cannot_be_opened(sock_dir: str, sock_path: str) -> None:
    log = Path(sock_dir, "log")
    done = support.run_command("start", sock_path, "zlib:compress", "--workers", "1", "--log-file", str(log))
    assert done.returncode == 0, done.stderr
    try:
        log.unlink()
        log.mkdir()
        done = support.run_command("restart", sock_path)
        assert done.returncode == 1
        assert f"the log file {log} cannot be opened: it is a folder" in done.stderr.decode()
        assert ipcsrv.active_state(sock_path) is ipcsrv.State.LISTENING
    finally:
        support.run_command("stop", sock_path)


# -- what gets out ----------------------------------------------------------------------------------------------------

SECRET = b"Zk3T-hunter2"


def test_no_request_data_reaches_the_log(server: ServerFactory, sock_path: str) -> None:
    running = server("handlers_for_tests:crash_if_asked", "--workers", "1", "--max-request-size", "100")
    whole = b"%04x%b0000" % (len(SECRET) + 4, SECRET)
    broken = (SECRET, b"0001" + SECRET, whole[:-6], b"fff0" + SECRET, whole[:-4] * 20, b"0008" + SECRET[:4] + SECRET)
    for data in (whole, *broken):
        for path in (sock_path, sock_path + ".control"):
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(path)
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                receive_all(connection)
    running.stop()
    said = running.output.rest().encode()
    assert said.count(b"refused a request") + said.count(b"malformed") >= 4
    assert not any(piece in said for piece in (SECRET, SECRET[:4], SECRET[-7:]))


def test_background_server_has_environment_and_folder_of_starter(
    sock_dir: str, sock_path: str
) -> None:
    started = ["start", sock_path, "handlers_for_trust:surroundings", "--log-file", os.path.join(sock_dir, "log")]
    done = subprocess.run([sys.executable, "-m", "ipcsrv", *started], cwd=sock_dir, capture_output=True,
                          env=support.environment(SURROUNDINGS="seen"), timeout=support.TIMEOUT)  # fmt: skip
    assert done.returncode == 0, done.stderr
    try:
        assert ipcsrv.call(sock_path, b"SURROUNDINGS", timeout=10) == f"seen\n{sock_dir}\n/dev/null".encode()
    finally:
        support.run_command("stop", sock_path)


@pytest.mark.parametrize(("how", "high"), [("start", False), ("start", True), ("ensure_running", False)])
def test_background_server_holds_no_descriptor_of_its_starter(
    how: str, high: bool, sock_dir: str, sock_path: str
) -> None:
    ensure = "import ipcsrv, sys; ipcsrv.ensure_running(sys.argv[1], sys.argv[2], workers=1, log_file=sys.argv[4])"
    program = {"start": ["-m", "ipcsrv", "start"], "ensure_running": ["-c", ensure]}[how]
    log = os.path.join(sock_dir, "log")
    reader, writer = os.pipe()
    with open(reader, "rb") as held:
        command = [sys.executable, *program, sock_path, "handlers_for_tests:echo", "--log-file", log]
        if high:  # above the soft limit, which was lowered after it was opened
            lower = f'exec 200>&{writer} {writer}>&-; ulimit -Sn 100; exec "$@"'
            command = ["bash", "-c", lower, "bash", *command]
        done = subprocess.run(command, pass_fds=[writer], capture_output=True, env=support.environment(),
                              timeout=support.TIMEOUT)  # fmt: skip
        os.close(writer)
        try:
            assert done.returncode == 0, done.stderr
            assert held.read() == b""  # also a daemon's start must end a `$(...)`
            assert ipcsrv.call(sock_path, b"still here", timeout=10) == b"still here"
        finally:
            support.run_command("stop", sock_path)


def test_open_descriptors_are_found_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_mounted(folder: str) -> list[str]:
        raise FileNotFoundError(folder)

    read, write = os.pipe()
    expected = descriptors.open_descriptors()
    monkeypatch.setattr(os, "listdir", not_mounted)
    assert descriptors.open_descriptors() == expected
    assert {read, write} <= expected
    os.close(read)
    os.close(write)


PLANTED = ("signal", "ctypes", "logging", "pickle", "multiprocessing", "filelock", "json", "tempfile", "zlib")
COMMAND = "import sys; sys.path.pop(0); from ipcsrv.cli import main; sys.exit(main())"  # as a console script has it
OWN_MODULE = """
import ctypes, helper, json, os, sys, tempfile

def handle(request):
    found = {"helper": helper.__name__, "path": sys.path[-1], "variable": os.environ.get("PYTHONSAFEPATH")}
    return json.dumps(found).encode()
"""


def plant(folder: str) -> Path:
    """Put modules into a folder that leave a mark where they are imported; returns the mark's path."""
    marker = Path(folder, "executed")
    for planted in PLANTED:
        Path(folder, f"{planted}.py").write_text(f"open({str(marker)!r}, 'w').write({planted!r})\nraise ImportError\n")
    return marker


def run_in(folder: str, *command: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, env=support.environment(),
                          timeout=support.TIMEOUT)  # fmt: skip


def test_module_in_the_current_folder_is_not_part_of_a_server(sock_dir: str, sock_path: str) -> None:
    marker = plant(sock_dir)
    source = """
import sys, ipcsrv
with ipcsrv.Server(sys.argv[1], "zlib:compress", workers=1):
    print(ipcsrv.active_state(sys.argv[1]).name)
"""
    done = run_in(sock_dir, "-P", "-c", source, sock_path)
    assert (done.stdout, done.stderr) == (b"LISTENING\n", b"")
    assert not marker.exists()


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_only_the_handlers_module_is_from_the_current_folder(
    start_method: str, sock_dir: str, sock_path: str
) -> None:
    marker = plant(sock_dir)
    Path(sock_dir, "own.py").write_text(OWN_MODULE)
    Path(sock_dir, "helper.py").write_text("")
    log = os.path.join(sock_dir, "log")
    options = ("--workers", "1", "--start-method", start_method, "--log-file", log)
    done = run_in(sock_dir, "-c", COMMAND, "start", sock_path, "own:handle", *options)
    assert done.returncode == 0, done.stderr
    try:
        answer = ipcsrv.call(sock_path, b"x", timeout=support.TIMEOUT)
    finally:
        assert run_in(sock_dir, "-c", COMMAND, "stop", sock_path).returncode == 0
    assert not marker.exists(), marker.read_text()
    assert json.loads(answer) == {"helper": "helper", "path": sock_dir, "variable": None}


def test_handlers_module_is_found_in_the_current_folder_first(
    server: ServerFactory, sock_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (Path(sock_dir), tmp_path):
        (folder / "twice").mkdir()
        (folder / "twice" / "__init__.py").write_text("")
        (folder / "twice" / "part.py").write_text(f"def handle(request): return {folder.name.encode()!r}\n")
    monkeypatch.chdir(sock_dir)
    path = os.pathsep.join([str(tmp_path), support.environment()["PYTHONPATH"]])
    running = server("twice.part:handle", "--workers", "1", env={"PYTHONPATH": path})
    assert running.call() == os.path.basename(sock_dir).encode()


def test_handlers_module_with_a_standard_name_is_one_clear_error(sock_dir: str, sock_path: str) -> None:
    Path(sock_dir, "queue.py").write_text("def handle(request): return request\n")
    done = run_in(sock_dir, "-c", COMMAND, "start", sock_path, "queue:handle")
    assert done.returncode == 2
    assert b"queue is a module of the standard library; rename queue.py in the current folder" in done.stderr


def test_python_m_puts_the_current_folder_last(
    server: ServerFactory, sock_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(sock_dir, "own.py").write_text(OWN_MODULE)
    Path(sock_dir, "helper.py").write_text("")
    monkeypatch.chdir(sock_dir)
    running = server("own:handle", "--workers", "1", "--start-method", "spawn")
    assert json.loads(running.call())["path"] == sock_dir


# -- configuration files ----------------------------------------------------------------------------------------------

PLANTED_FILE = """
path = "{path}"
handler = "zlib:compress"
allow = "uid:{intruder}"
on_worker_start = "planted_hook:run"
"""


@needs_other_users
@pytest.mark.parametrize("command", ["run", "start"])
def test_configuration_file_of_another_user_is_refused(command: str, shared_dir: str, sock_path: str) -> None:
    file, marker = Path(shared_dir, "ipcsrv.toml"), Path(shared_dir, "executed")
    file.write_text(PLANTED_FILE.format(path=sock_path, intruder=NOBODY))
    Path(shared_dir, "planted_hook.py").write_text(f"def run(): open({str(marker)!r}, 'w').close()\n")
    os.chown(file, NOBODY, NOBODY)
    done = run_in(shared_dir, "-c", COMMAND, command)
    assert done.returncode == 2
    assert f"ipcsrv.toml: is not trusted: it belongs to user {NOBODY}" in done.stderr.decode()
    assert not marker.exists()


@pytest.mark.parametrize("name", ["ipcsrv.toml", "pyproject.toml"])
def test_configuration_file_nobody_asked_for_is_not_read(name: str, sock_dir: str, sock_path: str) -> None:
    head = "[tool.ipcsrv]\n" if name == "pyproject.toml" else ""
    Path(sock_dir, name).write_text(head + "workers = 7\n")
    log = os.path.join(sock_dir, "log")
    done = run_in(sock_dir, "-c", COMMAND, "start", sock_path, "zlib:compress", "--log-file", log)
    assert done.returncode == 0, done.stderr
    try:
        assert len(ipcsrv.status(sock_path)["workers"]) != 7  # that a machine has as many processors is unlikely
    finally:
        support.run_command("stop", sock_path)


# -- a folder that is gone ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_server_reloads_when_its_folder_was_deleted(
    start_method: str, server: ServerFactory, sock_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = os.path.join(sock_dir, "gone")
    os.mkdir(folder)
    monkeypatch.chdir(folder)
    running = server("zlib:compress", "--workers", "1", "--start-method", start_method)
    before = {worker["pid"] for worker in running.status()["workers"]}  # type: ignore[attr-defined]
    os.rmdir(folder)
    assert support.run_command("reload", running.path).returncode == 0
    assert support.wait_gone(before) == set()
    assert zlib.decompress(running.call(b"still here")) == b"still here"


@pytest.fixture
def deleted_folder(sock_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder was deleted."""
    folder = os.path.join(sock_dir, "gone")
    os.mkdir(folder)
    monkeypatch.chdir(folder)
    os.rmdir(folder)


@pytest.mark.usefixtures("deleted_folder")
@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_run_works_in_a_folder_that_was_deleted(start_method: str, server: ServerFactory) -> None:
    running = server("zlib:compress", "--workers", "1", "--start-method", start_method)
    assert zlib.decompress(running.call(b"x")) == b"x"


@pytest.mark.usefixtures("deleted_folder")
def test_start_works_in_a_folder_that_was_deleted(sock_path: str) -> None:
    started = support.run_command("start", sock_path, "zlib:compress", "--workers", "1", "--start-method", "forkserver")
    assert started.returncode == 0, started.stderr
    assert zlib.decompress(ipcsrv.call(sock_path, b"x", timeout=10)) == b"x"
    assert support.run_command("stop", sock_path).returncode == 0


@pytest.mark.usefixtures("deleted_folder")
def test_relative_path_is_refused_in_a_folder_that_was_deleted() -> None:
    relative = support.run_command("run", "./s", "zlib:compress")
    assert relative.returncode == 7
    assert b"the current folder was deleted, so the path must be absolute" in relative.stderr
