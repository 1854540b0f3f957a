"""What only Windows has: pipe names, security descriptors, what is lost between two processes, the wire of a pipe.

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
from ipcsrv.platform.windows import handover as windows_handover
from ipcsrv.platform.windows import queue as windows_queue
from ipcsrv.platform.windows import win32
from ipcsrv.platform.windows.client import PIPE_NAME_LIMIT, pipe_name
from ipcsrv.platform.windows.rendezvous import Listener, pipe_sddl
from ipcsrv.state import State

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
def test_a_path_stands_for_the_pipe_that_git_makes_of_it(path: str, name: str) -> None:
    assert pipe_name(path).lower() == name.lower()


def test_a_relative_path_is_taken_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert pipe_name("x.ipc") == pipe_name(str(tmp_path / "x.ipc"))
    assert pipe_name(r"..\x.ipc") == pipe_name(str(tmp_path.parent / "x.ipc"))


def test_a_name_has_at_most_256_characters() -> None:
    room = PIPE_NAME_LIMIT - len(pipe_name("C:\\x")) + 1
    assert len(pipe_name("C:\\" + "x" * room)) == PIPE_NAME_LIMIT
    with pytest.raises(InvalidPath, match="257 characters"):
        pipe_name("C:\\" + "x" * (room + 1))
    assert platform.probe("C:\\" + "x" * 300) is State.INVALID_PATH


def test_case_makes_no_difference_to_a_connect(sock_path: str) -> None:
    listener = Listener(sock_path, pipe_sddl())
    assert platform.probe(sock_path.upper()) is State.LISTENING
    listener.close()


# -- security ---------------------------------------------------------------------------------------------------------


def test_owner_and_system_alone_have_access(sock_path: str) -> None:
    listener = Listener(sock_path, pipe_sddl())
    with platform.attempt(sock_path) as stream:
        sddl = win32.sddl_of_pipe(stream.fileno())
        own = win32.own_sid()
        assert sddl == f"O:{own}D:P(A;;GA;;;{own})(A;;GA;;;SY)" or sddl == f"O:{own}D:P(A;;FA;;;{own})(A;;FA;;;SY)"
        assert stream.peer().uid == win32.owner_of_pipe(stream.fileno()) == own
    listener.close()


def test_allow_lets_others_talk_but_not_add_instances(sock_path: str) -> None:
    other = "S-1-5-21-1-2-3-1001"
    listener = Listener(sock_path, pipe_sddl([other]))
    with platform.attempt(sock_path) as stream:
        sddl = win32.sddl_of_pipe(stream.fileno())
    assert f"(A;;0x12019b;;;{other})" in sddl.lower().replace("s-1-", "S-1-").replace("a;;", "A;;")
    listener.close()


@pytest.mark.parametrize("entry", ["uid:1000", "gid:10", "user:no-such-user-here", "nobody-of-this-name"])
def test_allow_names_windows_users_or_is_refused(entry: str) -> None:
    with pytest.raises(SettingsError):
        pipe_sddl([entry])
    assert "S-1-5-18" in pipe_sddl(["user:SYSTEM"]) or "SY" in pipe_sddl(["user:SYSTEM"])


def test_a_client_is_known_by_its_process_or_by_becoming_it(sock_path: str) -> None:
    listener = Listener(sock_path, pipe_sddl())
    with platform.attempt(sock_path) as stream:
        stream.send(b"x")
        with serving.Connection(listener.accept()) as connection:
            assert connection.recv(1) == b"x"
            assert int.from_bytes(connection.credentials(), "little") == os.getpid()
            assert win32.sid_of_pipe_client(connection.fileno()) == connection.peer().uid
    listener.close()


# -- the place --------------------------------------------------------------------------------------------------------


def test_a_pipe_of_another_program_is_an_address_in_use(sock_path: str) -> None:
    other = Listener(sock_path, pipe_sddl())
    with pytest.raises(AddressInUse):
        serving.Rendezvous(sock_path).claim({})
    with pytest.raises(AddressInUse):
        Listener(sock_path, pipe_sddl())
    other.close()
    assert not os.path.exists(sock_path + ".ipcsrv.lock")


def test_a_client_that_holds_on_to_a_dead_server_does_not_keep_the_next_from_the_path(sock_path: str) -> None:
    first = Listener(sock_path, pipe_sddl())
    stream = platform.attempt(sock_path)
    connection = first.accept()
    first.close()
    second = Listener(sock_path, pipe_sddl())  # beside the remains, which are ours by owner and access list
    with platform.attempt(sock_path):
        assert second.depth() == 1
    second.close()
    stream.close()
    _winapi.CloseHandle(connection)


def test_the_remains_of_another_server_are_left_alone(sock_path: str) -> None:
    first = Listener(sock_path, pipe_sddl(["S-1-1-0"]))
    stream = platform.attempt(sock_path)
    connection = first.accept()
    first.close()
    with pytest.raises(AddressInUse):
        Listener(sock_path, pipe_sddl())
    stream.close()
    _winapi.CloseHandle(connection)


def test_who_came_before_a_withdrawal_can_be_accepted_and_nobody_after(sock_path: str) -> None:
    listener = Listener(sock_path, pipe_sddl())
    streams = [platform.attempt(sock_path) for _ in range(3)]
    listener.refuse()
    assert listener.refuses()
    with pytest.raises(BlockingIOError):
        platform.attempt(sock_path)
    connections = [listener.accept() for _ in streams]
    with pytest.raises(BlockingIOError):
        listener.accept_raw()
    for stream in streams:
        stream.close()
    for raw in connections:
        serving.close_raw(raw)
    listener.close()


def test_who_opens_an_instance_that_nobody_waits_for_any_more_has_come_too(sock_path: str) -> None:
    listener = Listener(sock_path, pipe_sddl(), waiting=1)
    (instance,) = listener._instances
    assert not instance.give_up()
    stream = platform.attempt(sock_path)
    assert instance.give_up()
    stream.close()
    listener.close()


def test_a_client_that_came_and_went_is_accepted_like_any_other(sock_path: str) -> None:
    listener = Listener(sock_path, pipe_sddl())
    for _ in range(20):
        platform.attempt(sock_path).close()
        with serving.Connection(listener.accept()) as connection:
            assert connection.recv(1) == b""
            assert connection.gone()
    listener.close()


def test_a_lock_tells_who_holds_it_and_goes_with_its_server(sock_path: str) -> None:
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


def test_a_path_that_is_a_file_or_in_no_folder_is_invalid(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path, tmp_path / "missing" / "s"):
        with pytest.raises(InvalidPath):
            serving.Rendezvous(str(path)).claim({})
    with pytest.raises(SettingsError):
        serving.Rendezvous(str(tmp_path / "s")).claim({}, adopted=object())


def test_lines_of_several_processes_all_reach_the_log(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    first, second = lifecycle.open_log(log), lifecycle.open_log(log)
    for number in range(10):
        os.write((first, second)[number % 2], b"%d\n" % number)
    os.close(first)
    os.close(second)
    assert (tmp_path / "log").read_bytes().split() == [b"%d" % number for number in range(10)]
    os.close(lifecycle.open_log(None))
    with pytest.raises(StartError):
        lifecycle.open_log(str(tmp_path / "missing" / "log"))


# -- between two processes --------------------------------------------------------------------------------------------


def spawn(target: Callable[..., None], *arguments: Any) -> Any:
    """A fresh interpreter that runs `target`."""
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


def test_what_a_worker_read_and_died_with_the_next_one_gets(sock_path: str) -> None:
    listener, (writer, reader), (ours, theirs) = Listener(sock_path, pipe_sddl()), serving.queue(), serving.channel()
    stream = platform.attempt(sock_path)
    thief = spawn(_read_an_order_and_die, reader, theirs)
    theirs.close()
    writer.put(listener.accept(), 77)
    poller = serving.poller()
    poller.register(ours.fileno(), serving.READ)
    assert poller.poll(PATIENCE)
    assert ours.hear(wait=False) is None
    poller.unregister(ours.fileno())
    ours.close()
    poller.register(reader.fileno(), serving.READ)
    assert [key for key, _ in poller.poll(PATIENCE)] == [reader.fileno()], "it is in the queue again"
    raw, stamp = reader.get(serving.DONTWAIT)
    assert stamp == 77
    with serving.Connection(raw) as connection:
        connection.send(b"served")
    assert stream.recv(100) == b"served"
    poller.poll(0.05)
    assert stream.recv(100) == b""
    thief.join()
    poller.unregister(reader.fileno())
    for thing in (writer, reader, poller, stream, listener):
        thing.close()


def _read_an_order_and_die(reader: Any, channel: Any) -> None:
    assert len(reader.read(24, None)) == 24
    os._exit(0)


def test_what_a_living_worker_is_about_to_take_is_given_to_nobody_else_however_long_that_takes(sock_path: str) -> None:
    listener, (writer, reader), (ours, theirs) = Listener(sock_path, pipe_sddl()), serving.queue(), serving.channel()
    stream, poller = platform.attempt(sock_path), serving.poller()
    slow = spawn(_take_when_told, reader, theirs)
    theirs.close()
    writer.put(listener.accept(), 77)
    assert ours.hear() == ("here", b"", None)
    others, end = serving.channel()
    other = spawn(_die, end)
    end.close()
    assert others.hear() is None
    others.close()
    assert poller.poll(0.5) == []  # a death: the master looks for what was lost by it, and finds nothing yet
    with pytest.raises(BlockingIOError):
        reader.get(serving.DONTWAIT)
    ours.tell("go")
    assert stream.recv(100) == b"served"
    poller.poll(0.05)
    with pytest.raises(BlockingIOError):
        reader.get(serving.DONTWAIT)
    assert stream.recv(100) == b"", "nobody else has it open"
    for process in (slow, other):
        process.join()
    for thing in (writer, reader, poller, stream, listener, ours):
        thing.close()


def _take_when_told(reader: Any, channel: Any) -> None:
    def pull(source: Any, handle: int) -> int:
        channel.tell("here")
        channel.hear()
        return windows_handover.pull(source, handle)

    windows_queue.pull = pull
    raw, stamp = reader.get()
    assert stamp == 77
    with serving.Connection(raw) as connection:
        connection.send(b"served")


def _die(channel: Any) -> None:
    os._exit(0)


def test_a_connection_that_cannot_be_taken_is_closed_and_told(sock_path: str) -> None:
    listener, (writer, reader) = Listener(sock_path, pipe_sddl()), serving.queue()
    stream, poller = platform.attempt(sock_path), serving.poller()
    writer.put(listener.accept(), 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows_queue, "pull", _out_of_memory)
        assert reader.get(serving.DONTWAIT) == serving.LOST
    poller.poll(0.05)
    assert stream.recv(100) == b""
    for thing in (writer, reader, poller, stream, listener):
        thing.close()


def _out_of_memory(source: Any, handle: int) -> int:
    raise OSError(8, "not enough memory")


def test_a_connection_whose_message_was_never_sent_is_not_lost(sock_path: str) -> None:
    listener, (ours, theirs) = Listener(sock_path, pipe_sddl()), serving.channel()
    stream = platform.attempt(sock_path)
    draft = theirs._outgoing
    where = draft.begin(1, b"kept", b"5")
    handle = listener.accept()
    own = _winapi.GetCurrentProcess()
    windows_handover._DuplicateInto(own, handle, own, where, 0, False, 2)
    _winapi.CloseHandle(handle)
    theirs.close()  # the sender dies here
    message = ours.hear()
    assert message is not None
    assert message[:2] == ("kept", b"5")
    assert message[2] is not None
    with serving.Connection(message[2]) as connection:
        connection.send(b"here")
    assert stream.recv(10) == b"here"
    assert ours.hear() is None
    for thing in (ours, stream, listener):
        thing.close()


def test_a_child_that_joined_the_job_ends_with_the_master() -> None:
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
    from ipcsrv.platform.windows.processes import keep_workers_from_outliving_us

    keep_workers_from_outliving_us()
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    worker = multiprocessing.get_context("spawn").Process(target=_be_a_worker, args=(channel,))
    worker.start()
    time.sleep(PATIENCE)


def _be_a_worker(channel: Any) -> None:
    serving.child_hygiene()
    channel.tell("here", b"%d" % os.getpid())
    time.sleep(PATIENCE)


# -- signals ----------------------------------------------------------------------------------------------------------


def test_a_signal_of_the_console_and_a_request_from_outside_are_both_read_from_the_inbox() -> None:
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


def test_the_end_of_a_lifeline_is_noticed() -> None:
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
def test_the_bytes_on_a_pipe_are_those_on_a_socket(echo: str, request_bytes: bytes, response: bytes) -> None:
    assert talk(echo, request_bytes, len(response)) == response


@pytest.mark.parametrize("bad", [b"0001", b"0003", b"zzzz", b"ffff"])
def test_bad_bytes_are_answered_malformed_and_then_the_end(echo: str, bad: bytes) -> None:
    answer = talk(echo, bad, 1 << 20)
    assert answer[4:].startswith(b"ERR malformed")
    assert int(answer[:4], 16) == len(answer)
    assert ipcsrv.call(echo, b"still here", timeout=PATIENCE) == b"still here"


def test_a_large_message_goes_both_ways_and_a_kept_connection_serves_many(echo: str) -> None:
    data = os.urandom(5_000_000)
    with ipcsrv.connect(echo, timeout=PATIENCE) as connection:
        assert connection.call(data, timeout=PATIENCE) == data
        for number in range(50):
            assert connection.call(b"%d" % number, timeout=PATIENCE) == b"%d" % number
        assert b"".join(connection.stream(data)) == data


def test_asyncio_clients_ask_too(echo: str) -> None:
    from ipcsrv.client import aio

    async def ask() -> list[bytes]:
        async with aio.connect(echo) as connection:
            kept = [await connection.call(b"x" * size) for size in (0, 10, 1_000_000)]
        return kept + list(await asyncio.gather(*(aio.call(echo, b"%d" % number) for number in range(8))))

    answers = asyncio.run(ask())
    assert answers == [b"", b"x" * 10, b"x" * 1_000_000, *(b"%d" % number for number in range(8))]


def test_silent_clients_cost_the_others_nothing(echo: str) -> None:
    silent = [ipcsrv.connect(echo, timeout=PATIENCE) for _ in range(100)]
    for number in range(100):
        assert ipcsrv.call(echo, b"%d" % number, timeout=PATIENCE) == b"%d" % number
    assert silent[50].call(b"awake", timeout=PATIENCE) == b"awake"
    for connection in silent:
        connection.close()


def test_the_command_line_steers_a_server_from_start_to_stop(sock_path: str, tmp_path: Path) -> None:
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


def test_a_library_server_stops_with_its_block_and_with_its_starter(sock_path: str) -> None:
    with ipcsrv.Server(sock_path, "handlers_for_tests:upper", workers=1) as server:
        assert ipcsrv.call(sock_path, b"hello", timeout=PATIENCE) == b"HELLO"
        assert server.status()["state"] == "running"
    assert ipcsrv.active_state(sock_path) is State.PATH_NOT_FOUND


def test_a_killed_master_takes_its_workers_along_and_the_next_start_works(server: Any, sock_path: str) -> None:
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


def test_of_many_starts_at_once_one_serves(sock_path: str) -> None:
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


def test_a_crashing_worker_costs_its_own_request_and_is_replaced(server: Any) -> None:
    running = server("handlers_for_tests:crash_if_asked", "--workers", "2")
    with pytest.raises(ipcsrv.ConnectionLost):
        running.call(b"crash")
    for number in range(20):
        assert running.call(b"%d" % number) == b"%d" % number


def test_a_request_that_takes_too_long_is_answered_so(server: Any) -> None:
    running = server("handlers_for_tests:slow", "--workers", "1", "--request-timeout", "0.3")
    with pytest.raises(ipcsrv.HandlerTimeout):
        running.call(b"60000")
    assert running.call(b"10") == b"10"


def test_a_server_that_does_not_react_is_ended_by_force_with_its_workers(server: Any, sock_path: str) -> None:
    running = server("handlers_for_tests:echo", "--workers", "1")
    record = lifecycle.record(sock_path)
    assert record is not None
    assert not lifecycle.wait_gone(sock_path, record, Deadline(0.1), None)
    lifecycle.kill_all(sock_path, record)
    assert lifecycle.wait_gone(sock_path, record, Deadline(PATIENCE), None)
    running.process.wait(PATIENCE)
    lifecycle.kill_all(sock_path, record)  # nobody is there any more
    lifecycle.clean_up(sock_path)
    lifecycle.clean_up(sock_path)
    assert os.listdir(os.path.dirname(sock_path)) == []


def test_a_server_without_a_control_pipe_stops_by_its_event(server: Any, sock_path: str) -> None:
    running = server("handlers_for_tests:echo", "--workers", "1", "--no-control")
    assert support.run_command("stop", sock_path).returncode == 0
    assert running.process.wait(PATIENCE) == 0


def test_a_mode_is_refused_since_a_pipe_has_none(sock_path: str) -> None:
    refused = support.run_command("run", sock_path, "handlers_for_tests:echo", "--mode", "0660")
    assert refused.returncode == 2
    assert b"allow" in refused.stderr
    serving.Rendezvous(sock_path, mode=0o600)


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_a_start_method_that_windows_lacks_is_refused(sock_path: str, method: str) -> None:
    refused = support.run_command("run", sock_path, "handlers_for_tests:echo", "--start-method", method)
    assert refused.returncode == 2
    assert b"spawn" in refused.stderr
