"""What only Windows has: pipe names, security descriptors, handles between two processes, the ends of a pipe.

Run on Windows, or by `.ci/wine-python.sh` under Wine; what Wine cannot show (docs/windows.md) is not asserted here.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import support

if sys.platform != "win32":
    pytest.skip("needs Windows", allow_module_level=True)

import _winapi
import asyncio

import ipcsrv
from ipcsrv.deadline import Deadline
from ipcsrv.errors import AddressInUse, InvalidPath, SettingsError, StartError
from ipcsrv.platform import client as platform
from ipcsrv.platform import lifecycle
from ipcsrv.platform import server as serving
from ipcsrv.platform.log_file import open_log
from ipcsrv.platform.windows import queue as windows_queue
from ipcsrv.platform.windows import win32
from ipcsrv.platform.windows.client import PIPE_NAME_LIMIT, pipe_name
from ipcsrv.platform.windows.descriptors import duplicated
from ipcsrv.platform.windows.rendezvous import Listener
from ipcsrv.platform.windows.security import pipe_sddl
from ipcsrv.state import State
from ipcsrv.supervision.messages import FormatError, Kind

PATIENCE = 30.0


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (r"C:\repo\.git\x.ipc", r"\\.\pipe\C_\repo\.git\x.ipc"),
        ("C:/repo/.git/x.ipc", r"\\.\pipe\C_\repo\.git\x.ipc"),
        (r"C:\repo\..\x.ipc", r"\\.\pipe\C_\x.ipc"),
        (r"C:\repo\.\a\\b", r"\\.\pipe\C_\repo\a\b"),
        (r"\\server\share\x", "\\\\.\\pipe\\\\\\server\\share\\x"),
        (r"\\?\C:\repo\x", r"\\.\pipe\C_\repo\x"),
        ("C:\\nowhere\\caf\u00e9 \u4e2d", "\\\\.\\pipe\\C_\\nowhere\\caf\u00e9 \u4e2d"),
    ],
)
def test_pipe_name_is_the_one_that_git_makes(path: str, name: str) -> None:
    assert pipe_name(path).lower() == name.lower()


def test_pipe_name_of_relative_path_uses_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert pipe_name("x.ipc") == pipe_name(str(tmp_path / "x.ipc"))
    assert pipe_name(r"..\x.ipc") == pipe_name(str(tmp_path.parent / "x.ipc"))


def test_pipe_name_is_refused_beyond_256_characters() -> None:
    room = PIPE_NAME_LIMIT - len(pipe_name("C:\\x")) + 1
    assert len(pipe_name("C:\\" + "x" * room)) == PIPE_NAME_LIMIT
    with pytest.raises(InvalidPath, match="257 characters"):
        pipe_name("C:\\" + "x" * (room + 1))
    assert platform.probe("C:\\" + "x" * 300) is State.INVALID_PATH


def test_connect_ignores_case(sock_path: str) -> None:
    listener = Listener(sock_path, pipe_sddl())
    assert platform.probe(sock_path.upper()) is State.LISTENING
    listener.close()


# -- security ---------------------------------------------------------------------------------------------------------


def test_pipe_admits_owner_and_system_only(sock_path: str) -> None:
    listener = Listener(sock_path, pipe_sddl())
    with platform.attempt(sock_path) as stream:
        sddl = win32.sddl_of_pipe(stream.fileno())
        own = win32.own_sid()
        assert sddl == f"O:{own}D:P(A;;GA;;;{own})(A;;GA;;;SY)" or sddl == f"O:{own}D:P(A;;FA;;;{own})(A;;FA;;;SY)"
        assert stream.peer().uid == win32.owner_of_pipe(stream.fileno()) == own
    listener.close()


def test_allow_grants_no_right_to_add_instances(sock_path: str) -> None:
    other = "S-1-5-21-1-2-3-1001"
    listener = Listener(sock_path, pipe_sddl([other]))
    with platform.attempt(sock_path) as stream:
        sddl = win32.sddl_of_pipe(stream.fileno())
    assert f"(A;;0x12019b;;;{other})" in sddl.lower().replace("s-1-", "S-1-").replace("a;;", "A;;")
    listener.close()


@pytest.mark.parametrize("entry", ["uid:1000", "gid:10", "user:no-such-user-here", "nobody-of-this-name"])
def test_allow_is_refused_for_unknown_users(entry: str) -> None:
    with pytest.raises(SettingsError):
        pipe_sddl([entry])
    assert "S-1-5-18" in pipe_sddl(["user:SYSTEM"]) or "SY" in pipe_sddl(["user:SYSTEM"])


def test_client_is_identified_by_process_and_impersonation(sock_path: str) -> None:
    listener = Listener(sock_path, pipe_sddl())
    with platform.attempt(sock_path) as stream:
        stream.send(b"x")
        with serving.adopt(listener.accept_raw()) as connection:
            assert connection.recv(1) == b"x"
            assert int.from_bytes(connection.credentials(), "little") == os.getpid()
            assert win32.sid_of_pipe_client(connection.fileno()) == connection.peer().uid
    listener.close()


# -- the place --------------------------------------------------------------------------------------------------------


def test_claim_fails_when_another_program_has_the_pipe(sock_path: str) -> None:
    other = Listener(sock_path, pipe_sddl())
    with pytest.raises(AddressInUse):
        serving.Rendezvous(sock_path).claim({})
    with pytest.raises(AddressInUse):
        Listener(sock_path, pipe_sddl())
    other.close()
    assert not os.path.exists(sock_path + ".ipcsrv.lock")


def test_listen_works_when_a_client_holds_a_dead_server(sock_path: str) -> None:
    first = Listener(sock_path, pipe_sddl())
    stream = platform.attempt(sock_path)
    connection = first.accept_raw()
    first.close()
    second = Listener(sock_path, pipe_sddl())  # beside the remains, which are ours by owner and access list
    with platform.attempt(sock_path):
        assert second.depth() == 1
    second.close()
    stream.close()
    _winapi.CloseHandle(connection)


def test_listen_fails_beside_the_pipe_of_another_server(sock_path: str) -> None:
    first = Listener(sock_path, pipe_sddl(["S-1-1-0"]))
    stream = platform.attempt(sock_path)
    connection = first.accept_raw()
    first.close()
    with pytest.raises(AddressInUse):
        Listener(sock_path, pipe_sddl())
    stream.close()
    _winapi.CloseHandle(connection)


def test_withdraw_keeps_clients_that_have_connected(sock_path: str) -> None:
    listener = Listener(sock_path, pipe_sddl())
    streams = [platform.attempt(sock_path) for _ in range(3)]
    listener.withdraw()
    with pytest.raises(BlockingIOError):
        platform.attempt(sock_path)
    connections = [listener.accept_raw() for _ in streams]
    with pytest.raises(BlockingIOError):
        listener.accept_raw()
    for stream in streams:
        stream.close()
    for raw in connections:
        serving.close_raw(raw)
    listener.close()


def test_instance_counts_a_client_that_came_after_the_wait(sock_path: str) -> None:
    listener = Listener(sock_path, pipe_sddl(), waiting=1)
    (instance,) = listener._instances
    assert not instance.give_up()
    stream = platform.attempt(sock_path)
    assert instance.give_up()
    stream.close()
    listener.close()


def test_accept_returns_a_client_that_has_closed(sock_path: str) -> None:
    listener = Listener(sock_path, pipe_sddl())
    for _ in range(20):
        platform.attempt(sock_path).close()
        with serving.adopt(listener.accept_raw()) as connection:
            assert connection.recv(1) == b""
            assert connection.gone()
    listener.close()


def test_lock_names_its_holder_and_is_removed(sock_path: str) -> None:
    place = serving.Rendezvous(sock_path)
    place.claim({"pid": os.getpid(), "command": "this test"})
    place.listen()
    place.write_record({"pid": os.getpid(), "command": "it"})
    assert lifecycle.is_locked(sock_path)
    record = lifecycle.record(sock_path)
    assert record == {"pid": os.getpid(), "command": "it"}
    with pytest.raises(AddressInUse) as caught:
        serving.Rendezvous(sock_path).claim({})
    assert (caught.value.pid, caught.value.command) == (os.getpid(), "it")
    assert place.still_ours()
    place.close()
    assert lifecycle.record(sock_path) is None
    assert lifecycle.wait_gone(sock_path, {"pid": None}, Deadline(1.0), None)
    assert os.listdir(os.path.dirname(sock_path)) == []


def test_claim_refuses_a_file_or_a_missing_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path, tmp_path / "missing" / "s"):
        with pytest.raises(InvalidPath):
            serving.Rendezvous(str(path)).claim({})
    with pytest.raises(SettingsError):
        serving.Rendezvous(str(tmp_path / "s")).claim({}, adopted=object())


def test_log_keeps_lines_of_several_descriptors(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    first, second = open_log(log), open_log(log)
    for number in range(10):
        os.write((first, second)[number % 2], b"%d\n" % number)
    os.close(first)
    os.close(second)
    assert (tmp_path / "log").read_bytes().split() == [b"%d" % number for number in range(10)]
    os.close(open_log(None))
    with pytest.raises(StartError):
        open_log(str(tmp_path / "missing" / "log"))


# -- between two processes --------------------------------------------------------------------------------------------


def spawn(target: Callable[..., None], *arguments: Any) -> Any:
    """A fresh interpreter that runs `target`."""
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


@pytest.fixture
def accepted(sock_path: str) -> Iterator[tuple[platform.Stream, serving.AcceptedConnection]]:
    """A client and the server's end of its connection."""
    listener = Listener(sock_path, pipe_sddl())
    stream = platform.attempt(sock_path)
    connection = serving.adopt(listener.accept_raw())
    yield stream, connection
    for thing in (stream, connection, listener):
        thing.close()


@pytest.fixture
def queue() -> Iterator[tuple[serving.QueueWriter, serving.QueueReader]]:
    """Both ends of a queue."""
    writer, reader = serving.queue()
    yield writer, reader
    writer.close()
    reader.close()


Accepted = tuple[platform.Stream, serving.AcceptedConnection]
Queue = tuple[serving.QueueWriter, serving.QueueReader]


def test_connection_survives_worker_that_dies_having_read_it(accepted: Accepted, queue: Queue) -> None:
    (stream, connection), (writer, reader) = accepted, queue
    ours, theirs = serving.channel()
    process = spawn(_read_a_message_and_die, reader, theirs)
    theirs.close()
    writer.put(connection.fileno(), b"1")
    assert ours.hear() is None
    process.join()
    assert serving.taken_back(reader) == []
    writer.put(connection.fileno(), b"1")
    message, raw, file = reader.get(serving.DONTWAIT)
    assert (message, file) == (b"1", None)
    assert isinstance(raw, int)
    with serving.adopt(raw) as copy:
        copy.send(b"served")
    assert stream.recv(100) == b"served"
    ours.close()


def _read_a_message_and_die(reader: Any, channel: Any) -> None:
    assert reader.take(0)
    os._exit(0)


def test_queue_returns_what_nobody_has_taken(accepted: Accepted, queue: Queue) -> None:
    writer, reader = queue
    for number in range(3):
        writer.put(accepted[1].fileno(), b"%d" % number)
    assert serving.taken_back(reader) == [b"0", b"1", b"2"]
    writer.put(accepted[1].fileno(), b"3")
    writer.close()
    assert reader.get()[0] == b"3"
    assert reader.get() == serving.END


def test_queue_reports_room_once_for_what_was_taken(accepted: Accepted, queue: Queue) -> None:
    (writer, reader), poller = queue, serving.poller()
    handle = accepted[1].fileno()
    with pytest.raises(BlockingIOError):
        while True:
            writer.put(handle, bytes(60_000))
    poller.register(writer.fileno(), serving.WRITE)
    assert poller.poll(0.05) == []
    _, raw, _ = reader.get(serving.DONTWAIT)
    serving.close_raw(raw)
    assert poller.poll(PATIENCE) == [(writer.fileno(), serving.WRITE)]
    assert poller.poll(0.05) == []
    writer.put(handle, bytes(60_000))
    poller.close()


def test_queue_passes_the_file_of_a_stalled_exchange(accepted: Accepted, queue: Queue) -> None:
    writer, reader = queue
    file = serving.anonymous_file("test")
    assert serving.write_at(file, b"half a request", 0) == 14
    writer.put(accepted[1].fileno(), b"1", file)
    _, raw, copy = reader.get(serving.DONTWAIT)
    serving.close_raw(raw)
    os.close(file)
    assert serving.read_at(copy, 100, 5) == b"a request"
    os.close(copy)


def test_queue_reports_a_connection_that_it_cannot_pass(accepted: Accepted, queue: Queue) -> None:
    writer, reader = queue
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows_queue, "pull", _out_of_memory)
        writer.put(accepted[1].fileno(), b"1")
        assert reader.get(serving.DONTWAIT) == (b"1", None, None)


def _out_of_memory(source: Any, handle: int) -> int:
    raise OSError(8, "not enough memory")


def test_channel_passes_a_file_before_its_sender_goes_on() -> None:
    ours, theirs = serving.channel()
    process = spawn(_tell_with_a_file, theirs)
    theirs.close()
    kind, body, file = ours.hear()
    assert (kind, body) == (Kind.RETURNED, b"1")
    assert serving.read_at(file, 100, 0) == b"state"
    os.close(file)
    assert ours.hear()[:2] == (Kind.ENDED, b"2")
    assert ours.hear() is None
    assert ours.has_ended()
    process.join()
    ours.close()


def test_channel_ignores_a_file_whose_sender_was_killed() -> None:
    ours, theirs = serving.channel()
    process = spawn(_tell_with_a_file, theirs)
    theirs.close()
    poller = serving.poller()
    poller.register(ours.fileno(), serving.READ)
    assert poller.poll(PATIENCE)
    process.kill()
    process.join()
    assert ours.hear() is None
    poller.close()
    ours.close()


def _tell_with_a_file(channel: Any) -> None:
    file = serving.anonymous_file("test")
    serving.write_at(file, b"state", 0)
    channel.tell(Kind.RETURNED, b"1", file)
    os.close(file)
    channel.tell(Kind.ENDED, b"2")


def test_channel_does_not_wait_for_its_reader() -> None:
    ours, theirs = serving.channel()
    with pytest.raises(BlockingIOError):
        while True:
            ours.tell(Kind.REOPEN_LOG, bytes(10_000), wait=False)
    sent = 0
    while True:
        try:
            theirs.hear(wait=False)
        except BlockingIOError:
            break
        sent += 1
    assert sent > 5
    ours.close()
    theirs.close()


def test_channel_refuses_bytes_that_are_no_message() -> None:
    ours, theirs = serving.channel()
    for data in (b"x", bytes(16), bytes(40)):
        theirs.send_message(data, wait=True)
        with pytest.raises(FormatError):
            ours.hear()
    ours.close()
    theirs.close()


# -- the end of a connection ------------------------------------------------------------------------------------------


def test_end_leaves_the_client_what_was_sent(accepted: Accepted) -> None:
    stream, connection = accepted
    copy = serving.adopt(duplicated(connection.fileno()))
    connection.send(b"x" * 1000)
    connection.end()
    connection.close()
    assert stream.recv(1000) == b"x" * 1000
    assert stream.recv(1) == b""
    assert copy.recv(1, serving.DONTWAIT) == b""
    copy.close()


def test_linger_ends_once_the_client_has_read_why(accepted: Accepted) -> None:
    (stream, connection), poller = accepted, serving.poller()
    poller.register(connection.fileno(), serving.READ)
    connection.send(b"why")
    connection.linger()
    assert poller.poll(0.05) == []
    stream.send(b"more")
    assert poller.poll(PATIENCE) == [(connection.fileno(), serving.READ)]
    assert connection.recv(100, serving.DONTWAIT) == b"more"
    assert stream.recv(3) == b"why"
    assert poller.poll(PATIENCE) == [(connection.fileno(), serving.READ)]
    assert connection.recv(100, serving.DONTWAIT) == b""
    poller.close()
    connection.close()
    assert stream.recv(1) == b""


def test_end_disconnects_a_client_that_does_not_read(accepted: Accepted) -> None:
    stream, connection = accepted
    copy, poller = serving.adopt(duplicated(connection.fileno())), serving.poller()
    poller.register(copy.fileno(), serving.READ)
    connection.send(b"x" * 1000)
    connection.end()
    assert poller.poll(PATIENCE) == [(copy.fileno(), serving.READ | serving.HANGUP)]
    assert stream.recv(1000) == b""
    poller.close()
    copy.close()


def test_client_that_closed_is_gone_though_it_left_input(accepted: Accepted) -> None:
    stream, connection = accepted
    stream.send(b"request")
    assert not connection.gone()
    stream.close()
    assert connection.gone()
    assert connection.has_input()
    assert connection.recv(100, serving.DONTWAIT) == b"request"
    assert connection.has_input() is False


def test_worker_ends_with_its_master() -> None:
    ours, theirs = serving.channel()
    master = spawn(_be_a_master, theirs)
    theirs.close()
    message = ours.hear()
    assert message is not None
    worker = _winapi.OpenProcess(0x00100000, False, int(message[1]))
    master.kill()
    assert _winapi.WaitForSingleObject(worker, 2000) == _winapi.WAIT_OBJECT_0
    _winapi.CloseHandle(worker)
    ours.close()


def _be_a_master(channel: Any) -> None:
    from ipcsrv.platform.windows.job import keep_workers_from_outliving_us

    keep_workers_from_outliving_us()
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    worker = multiprocessing.get_context("spawn").Process(target=_be_a_worker, args=(channel,))
    worker.start()
    time.sleep(PATIENCE)


def _be_a_worker(channel: Any) -> None:
    serving.child_hygiene()
    channel.tell(Kind.PONG, b"%d" % os.getpid())
    time.sleep(PATIENCE)


# -- signals ----------------------------------------------------------------------------------------------------------


def test_inbox_reports_console_events_and_the_stop_event() -> None:
    inbox, poller = serving.SignalInbox(["SIGINT", "SIGTERM"]), serving.poller()
    poller.register(inbox.fileno(), serving.READ)
    assert poller.poll(0.0) == []
    assert inbox._on_console_event(0)
    assert poller.poll(PATIENCE)
    assert inbox.receive() == ["SIGINT"]
    assert not inbox._on_console_event(99)
    assert poller.poll(0.02) == []
    lifecycle.ask_to_stop({"pid": os.getpid()}, now=False)
    assert poller.poll(PATIENCE)
    assert inbox.receive() == ["SIGTERM"]
    poller.close()
    inbox.restore()


def test_lifeline_reports_its_end() -> None:
    reading, writing = os.pipe()
    poller = serving.poller()
    poller.register(serving.lifeline(reading), serving.READ)
    assert poller.poll(0.02) == []
    os.close(writing)
    assert poller.poll(PATIENCE)
    poller.close()
    os.close(reading)


# -- a whole server ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def echo() -> Iterator[str]:
    """A server that echoes, with two workers."""
    from shared_server import shared

    with shared("handlers_for_tests:echo", "--workers", "2") as running:
        yield running.path


def talk(path: str, request: bytes, size: int) -> bytes:
    """Send raw bytes through a pipe opened by hand, and read so many back."""
    with open(pipe_name(path), "r+b", buffering=0) as pipe:  # a synchronous client, and none of our code
        pipe.write(request)
        answer = b""
        while len(answer) < size and (data := pipe.read(size - len(answer))):
            answer += data
    return answer


@pytest.mark.parametrize(
    ("request_bytes", "response"),
    [
        (b"0008ping0000", b"0008ping0000"),
        (b"0000", b"0000"),
        (b"0006hi0007you0000", b"0009hiyou0000"),
        (b"0005a00000005b0000", b"0005a00000005b0000"),
        (b"0004000AABCDEF0000", b"000aABCDEF0000"),
        (b"fff0" + b"x" * 65516 + b"0005y0000", b"fff0" + b"x" * 65516 + b"0005y0000"),
    ],
)
def test_wire_is_that_of_a_socket(echo: str, request_bytes: bytes, response: bytes) -> None:
    assert talk(echo, request_bytes, len(response)) == response


@pytest.mark.parametrize("bad", [b"0001", b"0003", b"zzzz", b"ffff"])
def test_malformed_request_gets_reason_then_end(echo: str, bad: bytes) -> None:
    answer = talk(echo, bad, 1 << 20)
    assert answer[4:].startswith(b"ERR malformed")
    assert int(answer[:4], 16) == len(answer)
    assert ipcsrv.call(echo, b"still here", timeout=PATIENCE) == b"still here"


def test_kept_connection_carries_large_and_many_messages(echo: str) -> None:
    data = os.urandom(5_000_000)
    with ipcsrv.connect(echo, timeout=PATIENCE) as connection:
        assert connection.call(data, timeout=PATIENCE) == data
        for number in range(50):
            assert connection.call(b"%d" % number, timeout=PATIENCE) == b"%d" % number
        assert b"".join(connection.stream(data)) == data


def test_asyncio_clients_work(echo: str) -> None:
    from ipcsrv.client import aio

    async def ask() -> list[bytes]:
        async with aio.connect(echo) as connection:
            kept = [await connection.call(b"x" * size) for size in (0, 10, 1_000_000)]
        return kept + list(await asyncio.gather(*(aio.call(echo, b"%d" % number) for number in range(8))))

    answers = asyncio.run(ask())
    assert answers == [b"", b"x" * 10, b"x" * 1_000_000, *(b"%d" % number for number in range(8))]


def test_silent_clients_do_not_hinder_others(echo: str) -> None:
    silent = [ipcsrv.connect(echo, timeout=PATIENCE) for _ in range(100)]
    for number in range(100):
        assert ipcsrv.call(echo, b"%d" % number, timeout=PATIENCE) == b"%d" % number
    assert silent[50].call(b"awake", timeout=PATIENCE) == b"awake"
    for connection in silent:
        connection.close()


def test_commands_start_reload_and_stop_a_server(sock_path: str, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    started = support.run_command("start", sock_path, "handlers_for_tests:echo", "--workers", "1", "--log-file", log)
    assert started.returncode == 0, started.stderr
    assert support.run_command("is-active", sock_path).returncode == 0
    assert support.run_command("call", sock_path, "hello").stdout == b"hello"
    assert support.run_command("start", sock_path, "handlers_for_tests:echo").returncode == 6
    assert b'"generation": 1' in support.run_command("status", sock_path, "--json").stdout
    reloaded = support.run_command("reload", sock_path)
    assert (reloaded.returncode, b"generation 2" in reloaded.stdout) == (0, True)
    assert support.run_command("stop", sock_path).returncode == 0
    assert support.run_command("call", sock_path, "hello").returncode == 3
    assert os.listdir(os.path.dirname(sock_path)) == []


def test_library_server_stops_with_its_block(sock_path: str) -> None:
    with ipcsrv.Server(sock_path, "handlers_for_tests:upper", workers=1) as server:
        assert ipcsrv.call(sock_path, b"hello", timeout=PATIENCE) == b"HELLO"
        assert server.status()["state"] == "running"
    assert ipcsrv.active_state(sock_path) is State.PATH_NOT_FOUND


def test_workers_end_when_the_master_is_killed(server: Any, sock_path: str) -> None:
    first = server("handlers_for_tests:echo", "--workers", "2")
    pids = [worker["pid"] for worker in first.status()["workers"]]
    workers = [_winapi.OpenProcess(0x00100000, False, pid) for pid in pids]
    first.process.kill()
    first.process.wait(PATIENCE)
    for worker in workers:
        assert _winapi.WaitForSingleObject(worker, 2000) == _winapi.WAIT_OBJECT_0
        _winapi.CloseHandle(worker)
    second = server("handlers_for_tests:echo", "--workers", "1")
    assert second.call(b"again") == b"again"


def test_one_of_many_starts_serves(sock_path: str) -> None:
    codes: list[int] = []

    def start() -> None:
        codes.append(support.run_command("start", sock_path, "handlers_for_tests:echo", "--workers", "1",
                                         "--log-file", sock_path + ".log", timeout=50.0).returncode)

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == [0, 6, 6, 6, 6, 6]
    assert support.run_command("stop", sock_path).returncode == 0
    os.unlink(sock_path + ".log")


def test_crash_costs_one_request(server: Any) -> None:
    running = server("handlers_for_tests:crash_if_asked", "--workers", "2")
    with pytest.raises(ipcsrv.HandlerCrashed):
        running.call(b"crash")
    for number in range(20):
        assert running.call(b"%d" % number) == b"%d" % number


def test_overdue_request_is_answered_timeout(server: Any) -> None:
    running = server("handlers_for_tests:slow", "--workers", "1", "--request-timeout", "0.3")
    with pytest.raises(ipcsrv.HandlerTimeout):
        running.call(b"60000")
    assert running.call(b"10") == b"10"


def test_kill_all_ends_master_and_workers(server: Any, sock_path: str) -> None:
    running = server("handlers_for_tests:echo", "--workers", "1")
    record = lifecycle.record(sock_path)
    assert record is not None
    assert not lifecycle.wait_gone(sock_path, record, Deadline(0.1), None)
    lifecycle.kill_all(sock_path, record)
    assert lifecycle.wait_gone(sock_path, record, Deadline(PATIENCE), None)
    running.process.wait(PATIENCE)
    lifecycle.kill_all(sock_path, record)  # no process is there any more
    lifecycle.clean_up(sock_path)
    lifecycle.clean_up(sock_path)
    assert os.listdir(os.path.dirname(sock_path)) == []


def test_stop_works_without_a_control_pipe(server: Any, sock_path: str) -> None:
    running = server("handlers_for_tests:echo", "--workers", "1", "--no-control")
    assert support.run_command("stop", sock_path).returncode == 0
    assert running.process.wait(PATIENCE) == 0


def test_mode_is_refused(sock_path: str) -> None:
    refused = support.run_command("run", sock_path, "handlers_for_tests:echo", "--mode", "0660")
    assert refused.returncode == 2
    assert b"allow" in refused.stderr
    serving.Rendezvous(sock_path, mode=0o600)


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_start_method_is_refused_when_windows_lacks_it(sock_path: str, method: str) -> None:
    refused = support.run_command("run", sock_path, "handlers_for_tests:echo", "--start-method", method)
    assert refused.returncode == 2
    assert b"spawn" in refused.stderr
