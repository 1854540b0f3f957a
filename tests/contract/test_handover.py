"""The server's half of the platform seam: connections from one process to another, and readiness.

One routine for every system.  What needs a second process spawns one, as the server does where it cannot fork.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from ipcsrv.platform import client as platform
from ipcsrv.platform import server as serving
from ipcsrv.platform.server import (
    DONTWAIT,
    END,
    READ,
    RETIRE,
    WRITE,
    Channel,
    QueueReader,
    SharedMemory,
    adopt,
)

PATIENCE = 30.0
Connect = Callable[[], tuple[platform.Stream, int]]


@pytest.fixture
def connect(sock_path: str) -> Iterator[Connect]:
    """Make connections: the client's end, and the server's as a raw one."""
    place = serving.Rendezvous(sock_path)
    place.claim({})
    place.listen()
    streams = []

    def make() -> tuple[platform.Stream, int]:
        stream = platform.attempt(sock_path)
        streams.append(stream)
        assert place.listener is not None
        wait_for(place.listener)
        return stream, place.accept()

    yield make
    for stream in streams:
        stream.close()
    place.close()


def wait_for(thing: Any, mask: int = READ) -> None:
    """Wait until something is ready."""
    waiter = serving.poller()
    waiter.register(thing.fileno(), mask)
    try:
        assert waiter.poll(PATIENCE), "nothing happened"
    finally:
        waiter.close()


def spawn(target: Callable[..., None], *arguments: Any) -> BaseProcess:
    """A fresh interpreter that runs `target`."""
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


def ended(process: BaseProcess) -> int | None:
    """The exit status of a process that is about to end."""
    process.join(PATIENCE)
    assert process.exitcode is not None, "it does not end"
    return process.exitcode


# -- the poller -------------------------------------------------------------------------------------------------------


def test_a_silent_connection_is_reported_when_it_speaks_and_as_long_as_it_is_unread(connect: Connect) -> None:
    stream, raw = connect()
    poller = serving.poller()
    poller.register(raw, READ)
    assert poller.poll(0.02) == []
    stream.send(b"hello")
    for _ in range(3):
        assert [key for key, _ in poller.poll(PATIENCE)] == [raw]
    with closing(adopt(raw)) as connection:
        assert connection.recv(100, DONTWAIT) == b"hello"
        with pytest.raises(BlockingIOError):
            connection.recv(100, DONTWAIT)
        assert poller.poll(0.02) == []
        poller.unregister(raw)
    poller.close()


def test_a_connection_is_reported_when_its_client_goes(connect: Connect) -> None:
    stream, raw = connect()
    poller = serving.poller()
    poller.register(raw, READ)
    assert poller.poll(0.0) == []
    stream.close()
    assert [key for key, _ in poller.poll(PATIENCE)] == [raw]
    poller.unregister(raw)
    connection = adopt(raw)
    assert connection.recv(10, DONTWAIT) == b""
    assert connection.gone()
    connection.close()
    poller.close()


def test_what_was_unregistered_is_not_reported(connect: Connect) -> None:
    stream, raw = connect()
    poller = serving.poller()
    poller.register(raw, READ)
    assert poller.poll(0.0) == []
    poller.unregister(raw)
    stream.send(b"x")
    assert poller.poll(0.02) == []
    poller.register(raw, READ)
    assert poller.poll(PATIENCE)
    poller.close()
    serving.close_raw(raw)


def test_a_connection_is_writable_until_its_client_stops_reading_and_again_when_it_reads(connect: Connect) -> None:
    stream, raw = connect()
    connection, poller = adopt(raw), serving.poller()
    poller.register(raw, WRITE)
    assert poller.poll(PATIENCE)
    data, sent = b"x" * 4_000_000, 0
    with pytest.raises(BlockingIOError):
        while True:
            sent += connection.send(memoryview(data)[sent:], DONTWAIT)
    assert poller.poll(0.02) == []
    parts: list[bytes] = []
    reader = threading.Thread(target=_read_all, args=(stream, parts))
    reader.start()
    while sent < len(data):
        assert poller.poll(PATIENCE)
        try:
            sent += connection.sendmsg([memoryview(data)[sent:]], (), DONTWAIT)
        except BlockingIOError:
            pass
    poller.modify(raw, READ)
    assert poller.poll(0.0) == []
    poller.close()
    connection.close()
    reader.join(PATIENCE)
    assert b"".join(parts) == data


def _read_all(stream: platform.Stream, parts: list[bytes]) -> None:
    while chunk := stream.recv(1 << 20):
        parts.append(chunk)


def test_a_poller_holds_hundreds_of_silent_connections(connect: Connect) -> None:
    poller, pairs = serving.poller(), [connect() for _ in range(200)]
    for _, raw in pairs:
        poller.register(raw, READ)
    assert poller.poll(0.0) == []
    for number in (3, 77, 199):
        pairs[number][0].send(b"x")
    found: set[int] = set()
    while len(found) < 3:
        found |= {key for key, _ in poller.poll(PATIENCE)}
    assert found == {pairs[number][1] for number in (3, 77, 199)}
    poller.close()
    for _, raw in pairs:
        serving.close_raw(raw)


def test_a_process_is_reported_when_it_ends() -> None:
    process = spawn(_sleep)
    poller = serving.poller()
    poller.register(process.sentinel, READ)
    assert poller.poll(0.02) == []
    process.terminate()
    assert [key for key, _ in poller.poll(PATIENCE)] == [process.sentinel]
    poller.close()
    ended(process)


def _sleep() -> None:
    time.sleep(PATIENCE)


# -- the queue --------------------------------------------------------------------------------------------------------


def test_a_connection_goes_through_the_queue_with_its_stamp(connect: Connect) -> None:
    writer, reader = serving.queue()
    stream, raw = connect()
    writer.put(raw, 12345)
    taken, stamp = reader.get()
    assert stamp == 12345
    with closing(adopt(taken)) as connection:
        stream.send(b"hello")
        assert connection.recv(100) == b"hello"
    wait_for_errands()
    assert stream.recv(1) == b""  # no copy is left anywhere that would keep it open
    with pytest.raises(BlockingIOError):
        reader.get(DONTWAIT)
    writer.close()
    reader.close()


def wait_for_errands() -> None:
    """What a poller does on the side, it does while it polls."""
    poller = serving.poller()
    poller.poll(0.05)
    poller.close()


def test_connections_leave_the_queue_in_order_then_comes_its_end(connect: Connect) -> None:
    writer, reader = serving.queue()
    for stamp in (1, 2, 3):
        writer.put(connect()[1], stamp)
    writer.retire()
    writer.close()
    items = [reader.get() for _ in range(5)]
    assert [item[1] for item in items[:3]] == [1, 2, 3]
    assert items[3:] == [RETIRE, END]
    assert reader.get(DONTWAIT) == END
    for raw, _ in items[:3]:
        serving.close_raw(raw)
    reader.close()


def test_a_full_queue_says_so_and_keeps_what_it_refused(connect: Connect) -> None:
    writer, reader = serving.queue()
    held = []
    with pytest.raises(BlockingIOError):
        for _ in range(2000):
            held.append(connect())
            writer.put(held[-1][1], len(held))
    poller = serving.poller()
    poller.register(writer.fileno(), WRITE)
    assert poller.poll(0.0) == []
    taken = [reader.get()[0] for _ in held[:-1]]
    assert poller.poll(PATIENCE), "there is room again"
    poller.unregister(writer.fileno())
    poller.close()
    writer.put(held[-1][1], len(held))
    last, stamp = reader.get()
    assert stamp == len(held)
    for raw in [*taken, last]:
        serving.close_raw(raw)
    writer.close()
    reader.close()


def test_workers_in_other_processes_serve_from_the_queue_and_leave_at_its_end(connect: Connect) -> None:
    writer, reader = serving.queue()
    workers = [spawn(_echo_once_each, reader) for _ in range(2)]
    poller = serving.poller()
    answers = []
    for number in range(20):
        stream, raw = connect()
        stream.send(b"%d" % number)
        writer.put(raw, number)
        poller.poll(0.0)
        answers.append(stream.recv(100))
        poller.poll(0.01)
        assert stream.recv(100) == b""
    assert answers == [b"%d!" % number for number in range(20)]
    writer.close()
    assert [ended(worker) for worker in workers] == [0, 0]
    reader.close()
    poller.close()


def _echo_once_each(reader: QueueReader) -> None:
    while (item := reader.get()) != END:
        with closing(adopt(item[0])) as connection:  # type: ignore[arg-type]
            connection.send(connection.recv(100) + b"!")


def test_what_a_dead_worker_left_in_the_queue_the_next_one_takes(connect: Connect) -> None:
    writer, reader = serving.queue()
    stream, raw = connect()
    doomed = spawn(_sleep_with, reader)
    writer.put(raw, 7)
    doomed.kill()
    ended(doomed)
    taken, stamp = reader.get()
    assert stamp == 7
    with closing(adopt(taken)) as connection:
        connection.send(b"served")
    assert stream.recv(100) == b"served"
    writer.close()
    reader.close()


def _sleep_with(*_: Any) -> None:
    time.sleep(PATIENCE)


def test_a_worker_notices_the_death_of_the_process_that_fed_it() -> None:
    ours, theirs = serving.channel()
    master = spawn(_start_worker_and_sleep, theirs)
    theirs.close()
    assert ours.hear() == ("here", b"", None)
    master.kill()
    ended(master)
    assert ours.hear() in (("end", b"", None), None)  # None where a job object ends it with its master
    ours.close()


def _start_worker_and_sleep(channel: Channel) -> None:
    writer, reader = serving.queue()
    spawn_undaemonic(_tell_of_the_end, reader, channel)
    reader.close()
    time.sleep(PATIENCE)
    writer.close()


def spawn_undaemonic(target: Callable[..., None], *arguments: Any) -> None:
    """A child of a child."""
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    multiprocessing.get_context("spawn").Process(target=target, args=arguments).start()


def _tell_of_the_end(reader: QueueReader, channel: Channel) -> None:
    channel.tell("here")
    assert reader.get() == END
    channel.tell("end")


# -- channels ---------------------------------------------------------------------------------------------------------


def test_messages_go_both_ways_and_the_end_is_noticed() -> None:
    ours, theirs = serving.channel()
    ours.tell("do", b"this")
    theirs.tell("done")
    theirs.tell("big", b"x" * 16384)
    assert theirs.hear() == ("do", b"this", None)
    assert ours.hear() == ("done", b"", None)
    assert ours.hear() == ("big", b"x" * 16384, None)
    with pytest.raises(BlockingIOError):
        ours.hear(wait=False)
    theirs.close()
    assert ours.hear(wait=False) is None
    ours.close()


def test_a_child_gives_a_connection_back_and_may_keep_its_own(connect: Connect) -> None:
    writer, reader = serving.queue()
    ours, theirs = serving.channel()
    worker = spawn(_give_back, reader, theirs)
    theirs.close()
    poller = serving.poller()
    stream, raw = connect()
    writer.put(raw, 1)
    kind, body, copy = heard(poller, ours)
    assert (kind, body) == ("keep", b"1")
    kind, body, back = heard(poller, ours)
    assert (kind, body) == ("kept", b"")
    writer.close()
    assert ended(worker) == 0
    for raw_again, text in ((copy, b"copy"), (back, b"back")):
        assert raw_again is not None
        with closing(adopt(raw_again)) as connection:
            connection.send(text)
            assert stream.recv(100) == text
    assert stream.recv(1) == b""
    assert ours.hear() is None
    for end in (ours, reader, poller):
        end.close()


def heard(poller: Any, channel: Channel) -> tuple[str, bytes, int | None]:
    """The next message, waited for as the master does."""
    poller.register(channel.fileno(), READ)
    assert poller.poll(PATIENCE)
    poller.unregister(channel.fileno())
    message = channel.hear(wait=False)
    assert message is not None
    return message


def _give_back(reader: QueueReader, channel: Channel) -> None:
    item = reader.get()
    connection = adopt(item[0])  # type: ignore[arg-type]
    channel.tell("keep", b"1", connection.fileno(), keep=True)
    channel.tell("kept", b"", connection.detach())
    assert reader.get() == END


def test_what_a_child_said_before_it_was_killed_is_heard() -> None:
    (ours, theirs), (sign, signer) = serving.channel(), serving.channel()
    child = spawn(_speak_and_sleep, theirs, signer)
    theirs.close()
    signer.close()
    assert sign.hear() == ("said", b"", None)
    child.kill()
    ended(child)
    assert ours.hear() == ("one", b"1", None)
    assert ours.hear() == ("two", b"2", None)
    assert ours.hear() is None
    ours.close()
    sign.close()


def _speak_and_sleep(channel: Channel, signer: Channel) -> None:
    channel.tell("one", b"1")
    channel.tell("two", b"2")
    signer.tell("said")
    time.sleep(PATIENCE)


# -- processes --------------------------------------------------------------------------------------------------------


def test_the_next_message_tells_beforehand_whether_it_brings_a_connection(connect: Connect) -> None:
    ours, theirs = serving.channel()
    with closing(ours), closing(theirs):
        assert not ours.brings_connection()
        theirs.tell("bare", b"body")
        _, raw = connect()
        if _holds(raw):  # where descriptors can run out, it matters
            theirs.tell("full", b"", raw)
            assert ours.brings_connection() is False
            assert ours.hear() == ("bare", b"body", None)
            assert ours.brings_connection() is True
            kind, _, again = ours.hear() or ("", b"", None)
            assert kind == "full" and again is not None
            serving.close_raw(again)
            assert ours.brings_connection() is None
        else:
            serving.close_raw(raw)


def _holds(raw: int) -> bool:
    """Whether lifebuoys hold anything on this system."""
    with closing(serving.Lifebuoy()) as buoy:
        return buoy.hold(raw)


def test_a_lifebuoy_gives_back_what_it_was_not_told_to_let_go_and_nobody_else_has(connect: Connect) -> None:
    pairs = [connect() for _ in range(3)]
    buoy = serving.Lifebuoy()
    if not buoy.hold(pairs[0][1]):  # where workers do not accept themselves, nobody is in limbo
        assert serving.rescue(buoy.fileno(), []) == []
        for _, raw in pairs:
            serving.close_raw(raw)
        return
    for _, raw in pairs[1:]:
        assert buoy.hold(raw)
    buoy.let_go()
    masters = os.dup(buoy.fileno())
    buoy.close()
    for stream, raw in pairs[:2]:
        stream.sendall(b"hello")
        adopt(raw).close()
    (found,) = serving.rescue(masters, [pairs[2][1]])
    connection = adopt(found)
    assert connection.recv(5) == b"hello"
    connection.close()
    adopt(pairs[2][1]).close()
    with pytest.raises(OSError):
        os.fstat(masters)


def test_shared_memory_is_seen_by_a_child() -> None:
    memory = SharedMemory(4096)
    words = memoryview(memory.buffer).cast("Q")
    words[5] = 41
    assert ended(spawn(_add_one, memory)) == 0
    assert words[5] == 42
    words.release()
    memory.close()


def _add_one(memory: SharedMemory) -> None:
    memoryview(memory.buffer).cast("Q")[5] += 1


def test_a_process_can_be_killed_through_its_handle() -> None:
    child = spawn(_sleep)
    assert child.pid is not None
    process = serving.Process(child.pid)
    process.kill()
    assert ended(child) != 0
    process.kill()
    process.close()


def test_a_worker_is_asked_for_its_stacks_and_for_its_last_words(tmp_path: Any) -> None:
    log = tmp_path / "log"
    ours, theirs = serving.channel()
    child = spawn(_answer, theirs, str(log))
    theirs.close()
    assert ours.hear() == ("rdy", b"", None)
    assert child.pid is not None
    process = serving.Process(child.pid)
    process.ask_for_stacks()
    until = time.monotonic() + PATIENCE
    while "_answer" not in log.read_text() and time.monotonic() < until:
        time.sleep(0.01)  # a file has no event that would say it has grown
    assert "_answer" in log.read_text()
    process.ask_for_last_words()
    assert ours.hear() == ("last", b"", None)
    assert ended(child) == 3
    process.close()
    ours.close()


def test_a_worker_in_its_handler_gives_relief_when_asked_and_only_while_it_is_there(tmp_path: Path) -> None:
    ours, theirs = serving.channel()
    child = spawn(_give_relief, theirs)
    theirs.close()
    assert child.pid is not None
    process = serving.Process(child.pid)
    for _ in range(3):
        assert ours.hear() == ("in", b"", None)
        process.ask_for_relief()
        assert ours.hear() == ("mid", b"", None)
        ours.tell("end")
        assert ours.hear() == ("out", b"False", None)
    process.close()
    ours.close()
    assert ended(child) == 0


def _give_relief(channel: Channel) -> None:
    """Three times in a handler until we are told to come out of it; then say whether relief is being given still."""
    relieving = False

    def relieve() -> None:
        nonlocal relieving
        relieving = True
        channel.tell("mid")
        time.sleep(0.05)  # for the handler to end meanwhile, where it can
        relieving = False

    with open(os.devnull, "w") as file:
        serving.answer_timeouts_with(relieve, relieve, file.fileno())
        gate = serving.handler_gate()
        for _ in range(3):
            if gate is not None:
                gate.release()
            channel.tell("in")
            channel.hear()
            if gate is not None:
                gate.acquire()
            channel.tell("out", b"%r" % relieving)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="elsewhere nobody can tell")
def test_a_worker_that_has_not_written_its_stacks_is_seen_to_owe_them(tmp_path: Any) -> None:
    log = tmp_path / "log"
    ours, theirs = serving.channel()
    child = spawn(_answer, theirs, str(log))
    theirs.close()
    assert ours.hear() == ("rdy", b"", None)
    assert child.pid is not None
    process = serving.Process(child.pid)
    assert not process.owes_stacks()
    try:
        _owe_and_write(child.pid, process, log)
    finally:
        process.kill()  # also where it is stopped still: at the end of this process it would be waited for, for ever
    assert ended(child) != 0
    process.close()
    assert not process.owes_stacks()
    ours.close()


def _owe_and_write(pid: int, process: serving.Process, log: Path) -> None:
    os.kill(pid, signal.SIGSTOP)
    stat = Path(f"/proc/{pid}/stat")
    while stat.read_text().rpartition(") ")[2][0] != "T":
        time.sleep(0.001)  # there is no event for it; bounded by the time that a test may take
    process.ask_for_stacks()
    assert process.owes_stacks()
    assert log.read_text() == ""
    os.kill(pid, signal.SIGCONT)
    until = time.monotonic() + PATIENCE
    while (process.owes_stacks() or not _is_whole(log)) and time.monotonic() < until:
        time.sleep(0.001)  # there is no event for it; and for an instant the signal neither waits nor is handled
    assert _is_whole(log) and not process.owes_stacks()


def _is_whole(log: Path) -> bool:
    return log.read_text().endswith("in <module>\n")


def _answer(channel: Channel, log: str) -> None:
    def reply() -> None:
        channel.tell("last")
        os._exit(3)

    with open(log, "w") as file:
        serving.answer_timeouts_with(reply, reply, file.fileno())
        channel.tell("rdy")
        while True:
            time.sleep(PATIENCE)


def test_the_resident_memory_of_a_process_is_known() -> None:
    assert serving.resident_bytes() > 1 << 20
    assert serving.default_start_method() in serving.start_methods()
    assert serving.descriptor_limit() > 100
