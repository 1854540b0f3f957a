"""What a client or a user gets wrong: each gets its error or its end, and the server serves on.

Every test of bad bytes ends with the same question: do the same workers still answer?
"""

from __future__ import annotations

import os
import random
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import support
from git_peer import Client, packets
from shared_server import shared

import ipcsrv
from ipcsrv.errors import HandlerImportError, SettingsError

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="speaks to Unix sockets")

MALFORMED = b"ERR malformed "


@pytest.fixture(scope="module")
def limited() -> Iterator[support.RunningServer]:
    """A server that is quick to lose patience and takes requests of up to 1000 bytes."""
    with shared("handlers_by_name:dispatch", "--workers", "2", "--read-timeout", "0.3", "--max-request-size", "1000",
                "--max-response-size", "2000") as running:
        yield running


@pytest.fixture(autouse=True)
def the_server_serves_on(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever the test did, the workers are the same ones afterwards, and answer."""
    if "limited" not in request.fixturenames:
        yield
        return
    running: support.RunningServer = request.getfixturevalue("limited")
    before = worker_pids(running)
    yield
    assert running.call(b"echo still here") == b"still here"
    assert worker_pids(running) == before


def worker_pids(running: support.RunningServer) -> set[int]:
    """The pids of a server's workers, as it says itself."""
    return {worker["pid"] for worker in running.status()["workers"]}  # type: ignore[attr-defined]


# -- bytes that are no request ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"zzzz",  # no digits
        b"00 8ping",
        b"+008ping",
        b"0x08ping",
        b"GET / HTTP/1.1\r\n\r\n",
        b"0001",  # delim
        b"0002",  # response-end
        b"0003",  # illegal
        b"fff1",  # beyond the largest packet
        b"ffff",
        b"0008ping0001",  # the same in the middle of a message
        b"0008pingzzzz",
        b"\x00\x00\x00\x00",
        b"\xff" * 4,
    ],
)
def test_a_bad_header_is_answered_with_malformed_and_a_close(limited: support.RunningServer, data: bytes) -> None:
    with Client(limited.path) as client:
        client.send(data)
        assert client.failure().startswith(MALFORMED)


def test_a_bad_header_after_good_requests_fails_only_itself(limited: support.RunningServer) -> None:
    with Client(limited.path) as client:
        client.send(packets(b"echo one") + packets(b"echo two") + b"zzzz")
        assert (client.response(), client.response()) == (b"one", b"two")
        assert client.failure().startswith(MALFORMED)


@pytest.mark.parametrize("data", [b"0", b"000", b"0008", b"0008pi", b"0008ping", b"0008ping000", b"0008ping0004"])
def test_an_end_in_the_middle_of_a_request_is_an_end(limited: support.RunningServer, data: bytes) -> None:
    with Client(limited.path) as client:
        client.send(data)
        client.finish_writing()
        assert client.rest()[4:] == b"ERR malformed the request ends in the middle"  # it can still read


@pytest.mark.parametrize("data", [b"0", b"0008pi", b"0008ping", b"0008ping000"])
def test_client_that_leaves_in_a_request_does_not_affect_others(
    limited: support.RunningServer, data: bytes
) -> None:
    for _ in range(20):
        with Client(limited.path) as client:
            client.send(data)


@pytest.mark.parametrize("data", [b"0", b"000", b"0008pi", b"0008ping", packets(b"echo first") + b"00"])
def test_a_request_that_is_not_complete_in_time_is_told_so(limited: support.RunningServer, data: bytes) -> None:
    with Client(limited.path) as client:
        client.send(data)
        if data.startswith(packets(b"echo first")):
            assert client.response() == b"first"
        assert client.failure().startswith(b"ERR timeout ")


def test_a_client_that_sends_nothing_keeps_its_connection(limited: support.RunningServer) -> None:
    with Client(limited.path) as silent:
        with Client(limited.path) as slow:  # read_timeout is over when this one is told so
            slow.send(b"0")
            assert slow.failure().startswith(b"ERR timeout ")
        silent.send(packets(b"echo at last"))
        assert silent.response() == b"at last"


def test_a_probe_is_no_error(limited: support.RunningServer) -> None:
    probes = limited.status()["totals"]["probes"]  # type: ignore[index]
    malformed = limited.status()["totals"]["malformed"]  # type: ignore[index]
    for _ in range(5):
        with Client(limited.path) as client:
            client.finish_writing()
            assert client.rest() == b""
        Client(limited.path).socket.close()
    assert limited.call(b"echo x") == b"x"
    support.wait_until(lambda: limited.status()["totals"]["probes"] > probes, "they are counted")  # type: ignore[index]
    assert limited.status()["totals"]["malformed"] == malformed  # type: ignore[index]


def test_random_bytes_never_end_a_worker(limited: support.RunningServer) -> None:
    rng = random.Random(20)
    for _ in range(200):
        with Client(limited.path) as client:
            try:
                client.send(rng.randbytes(rng.choice([1, 4, 5, 100, 5000])))
                client.finish_writing()
                answer = client.rest()
            except (BrokenPipeError, ConnectionResetError):
                continue  # refused before it had read all
        assert answer == b"" or answer[4:].startswith(b"ERR ")


# -- too much ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1001, 65_516, 65_517, 1_000_000])
def test_a_request_beyond_max_request_size_is_refused(limited: support.RunningServer, size: int) -> None:
    with pytest.raises(ipcsrv.TooLarge, match="1000 bytes"):
        limited.call(b"x" * size)


def test_a_request_of_max_request_size_is_served(limited: support.RunningServer) -> None:
    assert limited.call(b"echo " + b"x" * 995) == b"x" * 995


def test_an_endless_request_is_refused_at_its_limit(limited: support.RunningServer) -> None:
    with Client(limited.path) as client, pytest.raises((BrokenPipeError, ConnectionResetError)):
        while True:
            client.send(b"0008ping" * 1000)


@pytest.mark.parametrize("request_", [b"big 2001", b"big 100000", b"stream 1000", b"stream_for_ever "])
def test_a_response_beyond_max_response_size_is_a_failure(limited: support.RunningServer, request_: bytes) -> None:
    with pytest.raises(ipcsrv.TooLarge, match="2000 bytes"):
        limited.call(request_)


def test_a_response_of_max_response_size_is_sent(limited: support.RunningServer) -> None:
    assert len(limited.call(b"big 2000")) == 2000


# -- responses that are none ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("handler", "told"),
    [
        ("a_str", "not str; encode it"),
        ("an_int", "not int"),
        ("a_stream_of_str", "chunks must be bytes-like, not str"),
    ],
)
def test_response_of_wrong_type_is_a_handler_error(
    limited: support.RunningServer, handler: str, told: str
) -> None:
    with pytest.raises(ipcsrv.HandlerError, match="TypeError") as caught:
        limited.call(handler.encode() + b" ")
    assert told in str(caught.value)


# -- paths where no server can be -------------------------------------------------------------------------------------


def make_folder(path: str) -> None:
    """A folder at the path."""
    os.mkdir(path)


def make_file(path: str) -> None:
    """Somebody's file at the path."""
    Path(path).write_bytes(b"precious")


def make_link_to_file(path: str) -> None:
    """A symbolic link to another file."""
    Path(path + "-target").write_bytes(b"precious")
    os.symlink(path + "-target", path)


def make_dangling_link(path: str) -> None:
    """A symbolic link to nothing."""
    os.symlink(path + "-nothing", path)


def make_link_to_folder(path: str) -> None:
    """A symbolic link to a folder."""
    os.mkdir(path + "-target")
    os.symlink(path + "-target", path)


def make_fifo(path: str) -> None:
    """A named pipe at the path."""
    os.mkfifo(path)


MAKERS = [make_folder, make_file, make_link_to_file, make_dangling_link, make_link_to_folder, make_fifo]


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_what_is_not_a_socket_keeps_its_place(sock_path: str, make) -> None:
    make(sock_path)
    folder = os.path.dirname(sock_path)
    before = {name: os.lstat(os.path.join(folder, name)) for name in os.listdir(folder)}
    with pytest.raises(ipcsrv.InvalidPath, match=re.escape(sock_path)), ipcsrv.Server(sock_path, "zlib:compress"):
        pass
    after = {name: os.lstat(os.path.join(folder, name)) for name in os.listdir(folder)}
    assert [(name, info.st_ino) for name, info in after.items()] == [(n, info.st_ino) for n, info in before.items()]


@pytest.mark.parametrize("command", ["run", "start"])
def test_the_command_says_it_in_one_line_and_exits_7(sock_path: str, command: str) -> None:
    make_file(sock_path)
    done = support.run_command(command, sock_path, "zlib:compress")
    assert (done.returncode, done.stdout) == (7, b"")
    assert one_line(done.stderr) and os.fsencode(sock_path) in done.stderr


def test_a_symlink_to_a_folder_on_the_way_is_followed(sock_dir: str) -> None:
    os.mkdir(f"{sock_dir}/real")
    os.symlink("real", f"{sock_dir}/link")
    with ipcsrv.Server(f"{sock_dir}/link/s", "handlers_for_tests:echo", workers=1):
        assert ipcsrv.call(f"{sock_dir}/link/s", b"x") == b"x" == ipcsrv.call(f"{sock_dir}/real/s", b"x")
    assert os.listdir(f"{sock_dir}/real") == []


def unwritable_folder(sock_dir: str) -> str:
    """A folder in which this user cannot make files; root can everywhere but in what is not on disk."""
    if os.geteuid() == 0:
        return "/proc"
    os.chmod(sock_dir, 0o500)
    return sock_dir


@pytest.mark.skipif(not support.have_proc, reason="root can write everywhere else")
def test_a_folder_that_cannot_be_written_is_refused(sock_dir: str) -> None:
    path = f"{unwritable_folder(sock_dir)}/s"
    with pytest.raises(ipcsrv.InvalidPath, match=path), ipcsrv.Server(path, "zlib:compress"):
        pass


@pytest.mark.parametrize(
    "name", ["missing/s", "x" * 256, "y/" * 3000 + "s", "file/s"], ids=["missing", "name", "path", "file"]
)
def test_a_path_that_cannot_be_is_refused_with_its_reason(sock_dir: str, name: str) -> None:
    make_file(f"{sock_dir}/file")
    with pytest.raises(ipcsrv.InvalidPath) as caught, ipcsrv.Server(f"{sock_dir}/{name}", "zlib:compress"):
        pass
    assert caught.value.reason and caught.value.exit_code == 7
    assert os.listdir(sock_dir) == ["file"]


def test_a_name_that_leaves_no_room_for_its_lock_is_refused(sock_dir: str) -> None:
    with pytest.raises(ipcsrv.InvalidPath), ipcsrv.Server(f"{sock_dir}/{'x' * 250}", "zlib:compress"):
        pass
    assert os.listdir(sock_dir) == []


@pytest.mark.skipif(os.name == "nt", reason="Unix permissions")
def test_folder_that_others_can_write_is_refused_by_name(sock_dir: str) -> None:
    os.mkdir(f"{sock_dir}/open")
    os.chmod(f"{sock_dir}/open", 0o777)
    with (
        pytest.raises(ipcsrv.InvalidPath, match=r"/open .*--insecure-dir"),
        ipcsrv.Server(f"{sock_dir}/open/s", "zlib:adler32"),
    ):
        pass
    with ipcsrv.Server(f"{sock_dir}/open/s", "handlers_for_tests:echo", workers=1, insecure_dir=True):
        assert ipcsrv.call(f"{sock_dir}/open/s", b"x") == b"x"
    os.chmod(f"{sock_dir}/open", 0o1777)  # sticky: others cannot replace what is ours
    with ipcsrv.Server(f"{sock_dir}/open/s", "handlers_for_tests:echo", workers=1):
        assert ipcsrv.call(f"{sock_dir}/open/s", b"x") == b"x"


def test_a_relative_path_is_as_good(sock_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sock_dir)
    with ipcsrv.Server("s", "handlers_for_tests:echo", workers=1):
        monkeypatch.chdir("/")
        assert ipcsrv.call(f"{sock_dir}/s", b"absolute") == b"absolute"
        monkeypatch.chdir(sock_dir)
        assert ipcsrv.call("s", b"relative") == b"relative" == ipcsrv.call("./s", b"relative")
        with pytest.raises(ipcsrv.AddressInUse), ipcsrv.Server("./s", "handlers_for_tests:echo"):
            pass
    assert os.listdir(sock_dir) == []


# -- handlers and settings that are none ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("handlers_for_tests:no_such_name", "no_such_name"),
        ("handlers_for_tests:not_callable", "int"),
        ("exits_at_import:handle", "SystemExit"),
        ("needs_another:handle", "no_such_dependency"),
        ("bad_syntax:handle", "SyntaxError"),
        ("no colon", "MODULE:NAME"),
    ],
)
def test_handler_that_cannot_be_imported_is_refused_with_reason(
    sock_dir: str, monkeypatch: pytest.MonkeyPatch, target: str, reason: str
) -> None:
    for name, text in SOURCES.items():
        Path(sock_dir, f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(sock_dir)
    with pytest.raises(HandlerImportError) as caught, ipcsrv.Server(f"{sock_dir}/s", target):
        pass
    assert reason in str(caught.value) + (caught.value.traceback_text or "")
    assert caught.value.target == target and caught.value.exit_code == 2
    assert not [name for name in os.listdir(sock_dir) if name.startswith("s")]


@pytest.mark.parametrize("settings", [{"start_method": "spawn"}, {"start_method": "forkserver"}, {"preload": False}])
def test_the_same_is_said_at_once_where_each_worker_imports_it(sock_path: str, settings: dict[str, object]) -> None:
    server = ipcsrv.Server(sock_path, "handlers_for_tests:no_such_name", workers=2, **settings)  # type: ignore[arg-type]
    with pytest.raises(HandlerImportError, match="no_such_name") as caught, server:
        pass
    assert caught.value.target == "handlers_for_tests:no_such_name"
    assert not os.path.lexists(sock_path)


SOURCES = {
    "exits_at_import": "raise SystemExit(3)\n",
    "needs_another": "import no_such_dependency\n",
    "bad_syntax": "def handle(:\n",
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("workers", -1), ("workers", "many"), ("backlog", 0), ("start_method", "thread"),
        ("drain_timeout", -1), ("mode", 0o10000), ("log_level", "loud"), ("log_format", "xml"), ("wrokers", 2),
    ],
)  # fmt: skip
def test_setting_out_of_range_is_refused_before_the_start(
    sock_path: str, name: str, value: object
) -> None:
    with pytest.raises(SettingsError) as caught:
        ipcsrv.Server(sock_path, "zlib:compress", **{name: value})  # type: ignore[arg-type]
    assert name in str(caught.value)
    assert caught.value.exit_code == 2 and not os.path.lexists(sock_path)


def test_the_command_refuses_a_setting_out_of_range_in_one_line(sock_path: str) -> None:
    done = support.run_command("run", sock_path, "zlib:compress", "--workers=-1")
    assert done.returncode == 2 and b"workers" in done.stderr and not os.path.lexists(sock_path)


def test_an_unknown_user_in_allow_is_a_usage_error(sock_path: str) -> None:
    done = support.run_command("run", sock_path, "zlib:compress", "--allow", "user:no-such-user")
    assert done.returncode == 2 and b"no-such-user" in done.stderr and one_line(done.stderr)
    assert not os.path.lexists(sock_path)


def one_line(text: bytes) -> bool:
    """Whether this is what the command owes a user for a mistake: one line, and no traceback."""
    return text.startswith(b"ipcsrv: ") and text.count(b"\n") == 1 and b"Traceback" not in text
