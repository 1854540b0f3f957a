"""The client against independent peers: every way in which an exchange goes well or badly, and nothing left open."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import pickle
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from fake_server import FLUSH, answer, bind, echo, message, packet, read_exactly, read_message, serving, silent
from support import nothing_leaked

import ipcsrv
from ipcsrv import State
from ipcsrv.deadline import Deadline
from ipcsrv.errors import (
    CallTimeout,
    ConnectionLost,
    Denied,
    HandlerError,
    InvalidPath,
    IpcError,
    LocalProtocolError,
    NotListening,
    PathNotFound,
    Progress,
    ProtocolError,
    ServerError,
    ServerStopping,
    TooLarge,
    Untrusted,
)
from ipcsrv.platform.attempts import Attempts
from ipcsrv.platform.unix import client as posix

NOBODY = 65534
SIZES = [0, 1, 4, 65515, 65516, 65517, 131032, 3_000_000]
SHORT = 0.3  # seconds that a test waits for nothing; a busy machine does within them what comes before

linux_only = pytest.mark.skipif(not hasattr(os, "O_PATH"), reason="no way through a descriptor of the folder")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def pattern(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


@pytest.fixture
def stale_path(sock_path: str) -> str:
    """A socket without a listener."""
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(sock_path)
    return sock_path


@pytest.fixture
def full_path(sock_path: str) -> Iterator[str]:
    """A listener that accepts nothing and whose queue is full."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sock_path)
        listener.listen(0)
        waiting = []
        while True:
            connection = socket.socket(socket.AF_UNIX)
            connection.setblocking(False)
            waiting.append(connection)
            try:
                connection.connect(sock_path)
            except BlockingIOError:
                break
        yield sock_path
        for connection in waiting:
            connection.close()


# -- the exchange -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_a_request_of_any_size_comes_back_identical(sock_path: str, size: int) -> None:
    with serving(sock_path, echo):
        assert ipcsrv.call(sock_path, pattern(size)) == pattern(size)
        assert ipcsrv.call(sock_path, pattern(size), timeout=20) == pattern(size)


def test_a_connection_is_kept_for_many_exchanges_of_mixed_sizes(sock_path: str) -> None:
    with serving(sock_path, echo) as server:
        with ipcsrv.connect(sock_path) as connection:
            for size in (*SIZES, *reversed(SIZES)):
                assert connection.call(pattern(size)) == pattern(size)
                assert b"".join(connection.stream(pattern(size))) == pattern(size)
        assert server.accepted == 1


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_a_request_may_be_anything_like_bytes(sock_path: str, kind: type) -> None:
    with serving(sock_path, echo), ipcsrv.connect(sock_path) as connection:
        assert connection.call(kind(b"abc")) == b"abc"
        assert b"".join(connection.stream(kind(b"abc"))) == b"abc"


def test_text_is_refused_before_anything_is_sent(sock_path: str) -> None:
    with serving(sock_path, echo), ipcsrv.connect(sock_path) as connection:
        with pytest.raises(TypeError):
            connection.call("text")  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            connection.stream("text")
        assert connection.call(b"bytes") == b"bytes"


def test_a_path_may_be_an_object_with_fspath(sock_dir: str) -> None:
    from pathlib import Path

    path = Path(sock_dir) / "s"
    with serving(str(path), echo):
        assert ipcsrv.call(path, b"x") == b"x"
        assert ipcsrv.active_state(path) is State.LISTENING


def test_a_response_that_comes_byte_by_byte_is_put_together(sock_path: str) -> None:
    def slowly(connection: socket.socket) -> None:
        read_message(connection)
        for byte in packet(b"hello ") + packet(b"") + packet(b"world") + FLUSH:
            connection.sendall(bytes((byte,)))

    with serving(sock_path, slowly):
        assert ipcsrv.call(sock_path, b"x") == b"hello world"


def test_a_response_that_begins_with_err_and_has_a_flush_is_data(sock_path: str) -> None:
    with serving(sock_path, answer(message(b"ERR handler not really"))):
        assert ipcsrv.call(sock_path) == b"ERR handler not really"


def test_a_streamed_response_is_given_out_as_it_comes(sock_path: str) -> None:
    go_on = threading.Event()

    def in_two(connection: socket.socket) -> None:
        read_message(connection)
        connection.sendall(packet(b"first"))
        assert go_on.wait(20)
        connection.sendall(packet(b"second") + FLUSH)

    with serving(sock_path, in_two), ipcsrv.connect(sock_path) as connection:
        response = connection.stream(b"x", timeout=20)
        assert next(response) == b"first"
        go_on.set()
        assert list(response) == [b"second"]


def test_a_request_is_streamed_part_by_part(sock_path: str) -> None:
    parts_read = threading.Event()
    received = []

    def script(connection: socket.socket) -> None:
        received.append(read_exactly(connection, 7))
        parts_read.set()
        received.append(read_exactly(connection, 11))
        connection.sendall(message(b"done"))

    def parts() -> Iterator[bytes]:
        yield b"one"
        assert parts_read.wait(20)  # the first part was sent before the second was asked for
        yield b""
        yield b"two"

    with serving(sock_path, script), ipcsrv.connect(sock_path) as connection:
        assert list(connection.stream(parts())) == [b"done"]
    assert received == [b"0007one", b"0007two0000"]


def test_parts_that_fail_close_the_connection_and_say_why(sock_path: str) -> None:
    def parts() -> Iterator[bytes]:
        yield b"one"
        raise ZeroDivisionError

    with serving(sock_path, silent), ipcsrv.connect(sock_path) as connection:
        with pytest.raises(ZeroDivisionError):
            list(connection.stream(parts()))
        assert connection.closed


@pytest.mark.parametrize("timeout", [None, 20])
def test_response_before_the_whole_request_is_read(sock_path: str, timeout: float | None) -> None:
    size = 4 << 20

    def upside_down(connection: socket.socket) -> None:
        connection.sendall(packet(b"x" * 60000) * 70)  # more than any socket buffer, and only then
        assert read_message(connection) == b"y" * size
        connection.sendall(FLUSH)

    with serving(sock_path, upside_down):
        assert ipcsrv.call(sock_path, b"y" * size, timeout) == b"x" * 60000 * 70


@pytest.mark.parametrize("size", [60_000, 500_000])
def test_a_socket_with_small_buffers_takes_a_request_bit_by_bit(
    sock_path: str, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """As on macOS, whose Unix sockets take 8 KiB."""
    connect = posix.connect

    def connect_small(*arguments: object, **keywords: object) -> posix.Stream:
        stream = connect(*arguments, **keywords)  # type: ignore[arg-type]
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return stream

    monkeypatch.setattr("ipcsrv.platform.client.connect", connect_small)
    with serving(sock_path, echo), ipcsrv.connect(sock_path) as connection:
        for _ in range(3):
            assert connection.call(pattern(size)) == pattern(size)


def test_connection_with_unread_request_is_not_used_again(sock_path: str) -> None:
    release = threading.Event()

    def deaf(connection: socket.socket) -> None:
        connection.sendall(message(b"no need"))
        assert release.wait(20)

    with serving(sock_path, deaf), ipcsrv.connect(sock_path) as connection:
        assert connection.call(b"z" * (8 << 20)) == b"no need"
        assert connection.closed
        release.set()


# -- failures of the exchange -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "kind"),
    [("handler", HandlerError), ("stopping", ServerStopping), ("denied", Denied), ("new-one", ServerError)],
)
def test_a_failure_reply_is_raised_as_its_error(sock_path: str, code: str, kind: type[ServerError]) -> None:
    with serving(sock_path, answer(packet(f"ERR {code} what was wrong".encode()))):
        with pytest.raises(kind) as caught:
            ipcsrv.call(sock_path)
        assert (caught.value.code, caught.value.message, caught.value.path) == (code, "what was wrong", sock_path)


def test_failure_after_a_part_is_raised_after_that_part(sock_path: str) -> None:
    failing = answer(packet(b"part") + packet(b"ERR handler KeyError: 1"))
    with serving(sock_path, failing), ipcsrv.connect(sock_path) as connection:
        response = connection.stream(b"x")
        assert next(response) == b"part"
        with pytest.raises(HandlerError, match="KeyError: 1"):
            next(response)
        assert connection.closed


@pytest.mark.parametrize("size", [10, 8 << 20])
def test_refusal_of_an_unread_request_is_read(sock_path: str, size: int) -> None:
    """Sending ends in EPIPE; the reply that says why is read all the same."""
    closed = threading.Event()

    def refuse(connection: socket.socket) -> None:
        connection.sendall(packet(b"ERR denied not you"))
        connection.close()
        closed.set()

    with serving(sock_path, refuse), ipcsrv.connect(sock_path) as connection:
        assert closed.wait(20)
        with pytest.raises(Denied, match="not you"):
            connection.call(b"x" * size)


def test_refusal_in_the_middle_of_a_request_is_raised(sock_path: str) -> None:
    def too_large(connection: socket.socket) -> None:
        read_exactly(connection, 100_000)
        connection.sendall(packet(b"ERR too-large more than 100000 bytes"))

    with serving(sock_path, too_large), pytest.raises(TooLarge, match="more than 100000"):
        ipcsrv.call(sock_path, b"x" * (8 << 20), timeout=20)


def test_an_endless_request_ends_when_the_server_takes_no_more(sock_path: str) -> None:
    def too_large(connection: socket.socket) -> None:
        read_exactly(connection, 100_000)
        connection.sendall(packet(b"ERR too-large enough"))

    def endless() -> Iterator[bytes]:
        while True:
            yield b"x" * 65516

    with serving(sock_path, too_large), ipcsrv.connect(sock_path) as connection:
        response = connection.stream(endless())
        with pytest.raises(TooLarge, match="enough"):
            next(response)


@pytest.mark.parametrize(
    ("response", "progress"),
    [
        (b"", Progress.REQUEST_SENT),
        (b"00", Progress.RESPONSE_BEGUN),
        (b"000", Progress.RESPONSE_BEGUN),
        (b"0008pi", Progress.RESPONSE_BEGUN),
        (b"0008ping", Progress.RESPONSE_BEGUN),
        (b"0008ping00", Progress.RESPONSE_BEGUN),
    ],
)
def test_a_response_cut_short_says_how_far_it_got(sock_path: str, response: bytes, progress: Progress) -> None:
    with serving(sock_path, answer(response)), pytest.raises(ConnectionLost) as caught:
        ipcsrv.call(sock_path, b"x")
    assert caught.value.progress is progress
    assert caught.value.path == sock_path
    assert caught.value.exit_code == 3


def test_idle_connection_closed_by_the_server_has_sent_nothing(sock_path: str) -> None:
    closed = threading.Event()

    def once(connection: socket.socket) -> None:
        connection.sendall(message(read_message(connection) or b""))
        connection.close()
        closed.set()

    with serving(sock_path, once), ipcsrv.connect(sock_path) as connection:
        assert connection.call(b"x") == b"x"
        assert closed.wait(20)
        with pytest.raises(ConnectionLost) as caught:
            connection.call(b"y")
    assert caught.value.progress is Progress.NOTHING_SENT


def test_request_unread_by_a_closing_server_counts_as_sent(sock_path: str) -> None:
    """The kernel reports that as a reset connection, not as an end of file."""
    with serving(sock_path, lambda connection: connection.recv(1)), pytest.raises(ConnectionLost) as caught:
        ipcsrv.call(sock_path, b"x")
    assert caught.value.progress is Progress.REQUEST_SENT


@pytest.mark.parametrize("response", [b"zzzzping0000", b"0001", b"0003", b"fff1", b"HTTP/1.1 400 Bad Request", b"-008"])
def test_a_bad_reply_is_a_protocol_error_that_names_the_path(sock_path: str, response: bytes) -> None:
    with serving(sock_path, answer(response)), pytest.raises(ProtocolError) as caught:
        ipcsrv.call(sock_path, b"x")
    assert caught.value.path == sock_path


def test_an_answer_too_many_is_not_taken_for_the_next_one(sock_path: str) -> None:
    with serving(sock_path, answer(message(b"one") + message(b"two"))), ipcsrv.connect(sock_path) as connection:
        assert connection.call(b"x") == b"one"
        assert connection.closed


@pytest.mark.parametrize("limit", [0, 9, 65516])
def test_a_response_over_the_limit_is_refused(sock_path: str, limit: int) -> None:
    with serving(sock_path, echo):
        assert ipcsrv.call(sock_path, b"x" * limit, max_response_size=limit) == b"x" * limit
        with pytest.raises(TooLarge):
            ipcsrv.call(sock_path, b"x" * (limit + 1), max_response_size=limit)


def test_after_any_failure_a_connection_is_closed_and_says_so(sock_path: str) -> None:
    with serving(sock_path, answer(packet(b"ERR handler no"))), ipcsrv.connect(sock_path) as connection:
        with pytest.raises(HandlerError):
            connection.call(b"x")
        assert connection.closed
        with pytest.raises(LocalProtocolError, match="closed"):
            connection.call(b"x")


def test_a_second_exchange_within_a_first_is_refused(sock_path: str) -> None:
    with serving(sock_path, echo), ipcsrv.connect(sock_path) as connection:
        response = connection.stream(b"a" * 200_000)
        first = next(response)
        with pytest.raises(LocalProtocolError, match="middle"):
            connection.call(b"x")
        assert first + b"".join(response) == b"a" * 200_000
        assert connection.call(b"x") == b"x"


def test_stream_left_before_its_end_closes_the_connection(sock_path: str) -> None:
    with serving(sock_path, echo), ipcsrv.connect(sock_path) as connection:
        response = connection.stream(b"a" * 200_000)
        next(response)
        response.close()
        assert connection.closed


def test_a_stream_that_nobody_reads_changes_nothing(sock_path: str) -> None:
    with serving(sock_path, echo), ipcsrv.connect(sock_path) as connection:
        connection.stream(b"never sent")
        assert connection.call(b"x") == b"x"


# -- deadlines --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("begun", "progress"), [(b"", Progress.REQUEST_SENT), (b"0008pi", Progress.RESPONSE_BEGUN)])
def test_a_silent_server_is_given_up_at_the_deadline(sock_path: str, begun: bytes, progress: Progress) -> None:
    def script(connection: socket.socket) -> None:
        read_message(connection)
        connection.sendall(begun)
        silent(connection)

    with serving(sock_path, script), ipcsrv.connect(sock_path) as connection:
        started = time.monotonic()
        with pytest.raises(CallTimeout) as caught:
            connection.call(b"x", timeout=SHORT)
        assert time.monotonic() - started >= SHORT
        assert connection.closed
    assert (caught.value.timeout, caught.value.progress, caught.value.path) == (SHORT, progress, sock_path)
    assert caught.value.exit_code == 4


def test_a_server_that_does_not_read_is_given_up_at_the_deadline(sock_path: str) -> None:
    release = threading.Event()
    with serving(sock_path, lambda connection: release.wait(20)):
        with pytest.raises(CallTimeout) as caught:
            ipcsrv.call(sock_path, b"x" * (8 << 20), timeout=SHORT)
        release.set()
    assert caught.value.progress is Progress.REQUEST_SENT


def test_a_response_without_end_does_not_stretch_the_deadline(sock_path: str) -> None:
    def endless(connection: socket.socket) -> None:
        read_message(connection)
        while True:
            connection.sendall(packet(b"and so on"))

    with serving(sock_path, endless), pytest.raises(CallTimeout) as caught:
        ipcsrv.call(sock_path, b"x", timeout=SHORT)
    assert caught.value.progress is Progress.RESPONSE_BEGUN


def test_a_request_without_end_does_not_stretch_the_deadline(sock_path: str) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b"and so on"

    with serving(sock_path, silent), ipcsrv.connect(sock_path) as connection:
        response = connection.stream(endless(), timeout=SHORT)
        with pytest.raises(CallTimeout) as caught:
            next(response)
    assert caught.value.progress is Progress.REQUEST_SENT


def test_one_deadline_spans_connecting_and_the_exchange(sock_path: str) -> None:
    with serving(sock_path, silent):
        with pytest.raises(CallTimeout):
            ipcsrv.call(sock_path, b"x", timeout=0)
        with ipcsrv.connect(sock_path, Deadline(5)) as connection, pytest.raises(CallTimeout):
            connection.call(b"x", Deadline(0.02))


def test_a_signal_does_not_stretch_the_deadline(sock_path: str) -> None:
    """A system call that a signal interrupts is repeated with the time that is left."""
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    try:
        with serving(sock_path, silent), pytest.raises(CallTimeout):
            ipcsrv.call(sock_path, b"x", timeout=0.1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# -- connecting -------------------------------------------------------------------------------------------------------


def test_a_missing_path_is_not_found_at_once(sock_path: str) -> None:
    with pytest.raises(PathNotFound) as caught:
        ipcsrv.call(sock_path, b"x", timeout=60)
    assert caught.value.path == sock_path
    with pytest.raises(PathNotFound):
        ipcsrv.call(sock_path + "/no/folder", b"x")


def test_a_path_below_a_file_is_not_found(sock_path: str) -> None:
    open(sock_path, "w").close()
    with pytest.raises(PathNotFound):
        ipcsrv.call(sock_path + "/s")
    assert ipcsrv.active_state(sock_path + "/s") is State.PATH_NOT_FOUND


def test_a_missing_path_is_waited_for_where_that_is_asked(sock_path: str) -> None:
    """Whatever comes first, the server or the client: the client is answered."""
    result = []
    asking = threading.Thread(
        target=lambda: result.append(ipcsrv.call(sock_path, b"x", timeout=20, wait_if_not_found=True))
    )
    asking.start()
    with serving(sock_path, echo):
        asking.join(20)
    assert result == [b"x"]


def test_waiting_for_a_path_ends_at_the_deadline(sock_path: str) -> None:
    with pytest.raises(PathNotFound):
        ipcsrv.call(sock_path, b"x", timeout=0.02, wait_if_not_found=True)


def test_a_stale_socket_is_tried_until_the_deadline(stale_path: str) -> None:
    with pytest.raises(NotListening) as caught:
        ipcsrv.call(stale_path, b"x", timeout=0.02)
    assert type(caught.value) is NotListening
    with pytest.raises(NotListening):
        ipcsrv.call(stale_path, b"x", wait_if_busy=False)


def test_a_stale_socket_that_comes_to_life_is_served(stale_path: str) -> None:
    result = []
    asking = threading.Thread(
        target=lambda: result.append(ipcsrv.call(stale_path, b"x", timeout=20, wait_if_not_found=True))
    )
    asking.start()
    os.unlink(stale_path)
    with serving(stale_path, echo):
        asking.join(20)
    assert result == [b"x"]


@linux_only
def test_a_full_queue_is_waited_for_until_the_deadline(full_path: str) -> None:
    with pytest.raises(CallTimeout) as caught:
        ipcsrv.call(full_path, b"x", timeout=0.02)
    assert caught.value.progress is Progress.NOTHING_SENT
    with pytest.raises(NotListening):
        ipcsrv.connect(full_path, wait_if_busy=False)


def test_pauses_double_up_to_50_ms_within_the_deadline() -> None:
    now = [0.0]
    attempts = Attempts("/p", Deadline(1.0, lambda: now[0]), wait_if_busy=True, wait_if_not_found=False)
    pauses = [attempts.pause_after(BlockingIOError()) for _ in range(8)]
    assert pauses == [0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.05, 0.05]
    now[0] = 0.99
    assert attempts.pause_after(BlockingIOError()) == pytest.approx(0.01)


def test_refusing_socket_is_tried_for_a_second() -> None:
    attempts = Attempts("/p", Deadline(None), wait_if_busy=True, wait_if_not_found=False)
    waited = []

    def try_for_ever() -> None:
        while True:
            waited.append(attempts.pause_after(NotListening("/p")))

    with pytest.raises(NotListening):
        try_for_ever()
    assert 0.9 <= sum(waited) <= 1.0


@pytest.mark.parametrize("kind", ["file", "folder", "fifo", "datagram"])
def test_what_is_not_a_stream_socket_is_an_invalid_path(sock_path: str, kind: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram:
        make = {"file": lambda path: open(path, "w").close(), "folder": os.mkdir, "fifo": os.mkfifo}
        make.get(kind, datagram.bind)(sock_path)  # type: ignore[operator]
        with pytest.raises(InvalidPath) as caught:
            ipcsrv.call(sock_path, b"x", timeout=20)
        assert ipcsrv.active_state(sock_path) is State.INVALID_PATH
    assert caught.value.exit_code == 7


@pytest.mark.parametrize("path", ["", "\0abstract", "a\0b"])
def test_names_outside_the_file_system_are_invalid(path: str) -> None:
    with pytest.raises(InvalidPath):
        ipcsrv.call(path)
    assert ipcsrv.active_state(path) is State.INVALID_PATH


def test_link_loop_and_much_too_long_path_are_invalid(sock_path: str) -> None:
    os.symlink(sock_path, sock_path)
    for path in (sock_path, "/" + "x" * 300, "/x" * 5000):
        with pytest.raises(InvalidPath):
            ipcsrv.call(path)
        assert ipcsrv.active_state(path) is State.INVALID_PATH


def test_a_link_to_a_socket_leads_to_its_server(sock_dir: str) -> None:
    os.symlink("real", f"{sock_dir}/link")
    with serving(f"{sock_dir}/real", echo):
        assert ipcsrv.call(f"{sock_dir}/link", b"x") == b"x"


def test_the_state_of_a_path(sock_path: str) -> None:
    assert ipcsrv.active_state(sock_path) is State.PATH_NOT_FOUND
    with serving(sock_path, echo):
        assert ipcsrv.active_state(sock_path) is State.LISTENING


def test_a_stale_socket_is_not_listening(stale_path: str) -> None:
    assert ipcsrv.active_state(stale_path) is State.NOT_LISTENING


@linux_only
def test_a_full_queue_is_not_listening(full_path: str) -> None:
    assert ipcsrv.active_state(full_path) is State.NOT_LISTENING


def test_without_descriptors_the_state_cannot_be_told(sock_path: str) -> None:
    import resource

    with serving(sock_path, echo):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            with pytest.raises(OSError) as caught:
                ipcsrv.connect(sock_path)
            assert ipcsrv.active_state(sock_path) is State.OTHER_ERROR
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert caught.value.errno == errno.EMFILE


# -- long paths -------------------------------------------------------------------------------------------------------


def long_folder(sock_dir: str, length: int) -> str:
    folder = sock_dir
    while len(folder) < length:
        folder += "/" + "d" * 90
        os.mkdir(folder)
    return folder


@linux_only
@pytest.mark.parametrize("name", ["s", "n" * 100])
def test_path_longer_than_an_address_works_in_several_threads(sock_dir: str, name: str) -> None:
    path = f"{long_folder(sock_dir, 300)}/{name}"
    here = os.getcwd()
    answers: list[bytes] = []

    def ask(number: int) -> None:
        for _ in range(20):
            answers.append(ipcsrv.call(path, b"%d" % number, timeout=20))

    with serving(path, echo):
        assert os.getcwd() == here
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert ipcsrv.active_state(path) is State.LISTENING
    assert sorted(answers) == sorted(b"%d" % number for number in range(4) for _ in range(20))
    assert os.getcwd() == here


@linux_only
def test_a_long_path_without_a_server_is_told_like_a_short_one(sock_dir: str) -> None:
    path = long_folder(sock_dir, 300) + "/s"
    assert ipcsrv.active_state(path) is State.PATH_NOT_FOUND
    with socket.socket(socket.AF_UNIX) as left_behind:
        bind(left_behind, path)
    assert ipcsrv.active_state(path) is State.NOT_LISTENING
    os.unlink(path)
    os.mkdir(path)
    assert ipcsrv.active_state(path) is State.INVALID_PATH


@linux_only
def test_an_address_can_be_bound_at_a_path_of_any_length(sock_dir: str) -> None:
    path = long_folder(sock_dir, 300) + "/s"
    with nothing_leaked(), socket.socket(socket.AF_UNIX) as listener, posix.address(path) as address:
        assert len(address) <= posix.ADDRESS_LIMIT
        listener.bind(address)
    assert stat.S_ISSOCK(os.stat(path).st_mode)


@linux_only
def test_address_is_relative_to_a_descriptor_of_its_folder(sock_dir: str) -> None:
    folder = os.open(sock_dir, os.O_RDONLY)
    try:
        with (
            posix.address("s", folder=folder, path=sock_dir + "/s") as address,
            socket.socket(socket.AF_UNIX) as listener,
        ):
            listener.bind(address)
    finally:
        os.close(folder)
    assert os.path.exists(sock_dir + "/s")


@linux_only
def test_an_address_in_a_folder_that_is_not_there_is_refused(sock_dir: str) -> None:
    with pytest.raises(InvalidPath, match="its folder cannot be opened"):
        posix.address(f"{sock_dir}/{'missing' * 20}/s").__enter__()


@linux_only
def test_name_too_long_to_be_bound_is_refused_with_the_limit(sock_dir: str) -> None:
    path = f"{sock_dir}/{'n' * 120}"
    with nothing_leaked(), pytest.raises(InvalidPath, match=r"120 bytes long; a socket's may have \d\d"):
        posix.address(path).__enter__()


def test_long_path_is_refused_without_a_way_by_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(posix, "ADDRESS_LIMIT", 103)
    path = "/tmp/" + "x" * 100
    for refused in (lambda: posix.attempt(path), lambda: posix.address(path).__enter__()):
        with pytest.raises(InvalidPath, match="105 bytes long; a socket's path may have 103 here"):
            refused()
    with posix.address("/tmp/short") as address:
        assert address == "/tmp/short"


# -- trust ------------------------------------------------------------------------------------------------------------


def test_a_connection_knows_who_listens(sock_path: str) -> None:
    with serving(sock_path, echo), ipcsrv.connect(sock_path) as connection:
        assert connection.peer == (os.getpid(), os.geteuid(), os.getegid())


def as_nobody(sock_dir: str, script: object) -> int:
    """A server of user nobody at `sock_dir/s`; returns its pid once it listens. It reports what it was sent."""
    os.chmod(sock_dir, 0o777)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        assert os.read(reader, 1) == b"."
        os.close(reader)
        return pid
    status = 1
    try:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"{sock_dir}/s")
        os.chmod(f"{sock_dir}/s", 0o666)
        listener.listen(8)
        os.write(writer, b".")
        connection, _ = listener.accept()
        status = script(connection)  # type: ignore[operator]
    finally:
        os._exit(status)


@needs_root
def test_not_a_byte_is_sent_to_another_users_server(sock_dir: str) -> None:
    pid = as_nobody(sock_dir, lambda connection: 42 if connection.recv(65536) == b"" else 1)
    with pytest.raises(Untrusted) as caught:
        ipcsrv.call(f"{sock_dir}/s", b"secret", timeout=20)
    assert caught.value.peer == (pid, NOBODY, NOBODY)
    assert (caught.value.path, caught.value.exit_code) == (f"{sock_dir}/s", 5)
    assert str(NOBODY) in str(caught.value) and "root" in str(caught.value)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42


def nobodys_name() -> str:
    import pwd

    return pwd.getpwuid(NOBODY).pw_name


@needs_root
@pytest.mark.parametrize("trust", [NOBODY, str(NOBODY), [1, NOBODY], "name"])
def test_another_users_server_is_asked_where_that_user_is_named(sock_dir: str, trust: object) -> None:
    def reply(connection: socket.socket) -> int:
        echo(connection)
        return 0

    pid = as_nobody(sock_dir, reply)
    named = nobodys_name() if trust == "name" else trust
    assert ipcsrv.call(f"{sock_dir}/s", b"hello", timeout=20, trust=named) == b"hello"  # type: ignore[arg-type]
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_root_and_oneself_are_trusted_and_nobody_else() -> None:
    me, other = os.geteuid(), 12345
    assert posix.trusted(ipcsrv.Peer(1, 0, 0))
    assert posix.trusted(ipcsrv.Peer(1, me, 0))
    assert not posix.trusted(ipcsrv.Peer(1, other, me))
    assert not posix.trusted(ipcsrv.Peer(other, other, 0), trust=("no-such-user", 1))


@needs_root
def test_a_socket_whose_mode_keeps_us_out_is_denied(sock_path: str) -> None:
    with serving(sock_path, echo):
        os.chmod(sock_path, 0o600)
        os.chmod(os.path.dirname(sock_path), 0o755)
        pid = os.fork()
        if not pid:
            status = 1
            try:
                os.setuid(NOBODY)
                try:
                    ipcsrv.connect(sock_path)
                except Denied as error:
                    status = 42 if ipcsrv.active_state(sock_path) is State.OTHER_ERROR and error.exit_code == 5 else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42


@needs_root
def test_a_folder_that_we_may_not_enter_is_an_invalid_path(sock_path: str) -> None:
    with serving(sock_path, echo):
        os.chmod(os.path.dirname(sock_path), 0o700)
        pid = os.fork()
        if not pid:
            status = 1
            try:
                os.setuid(NOBODY)
                status = 42 if ipcsrv.active_state(sock_path) is State.INVALID_PATH else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42


# -- the pool of connections ------------------------------------------------------------------------------------------


def test_threads_share_the_connections_of_a_pool(sock_path: str) -> None:
    with serving(sock_path, echo) as server, ipcsrv.Pool(sock_path, size=3) as pool:
        wrong = []

        def ask(number: int) -> None:
            for turn in range(50):
                data = b"%d/%d" % (number, turn)
                if pool.call(data, timeout=20) != data:
                    wrong.append(data)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert not wrong
        assert 1 <= server.accepted <= 3


def test_pool_keeps_no_more_connections_than_are_needed_at_once(sock_path: str) -> None:
    with serving(sock_path, echo) as server, ipcsrv.Pool(sock_path) as pool:
        assert [pool.call(b"x") for _ in range(10)] == [b"x"] * 10
        assert server.accepted == 1


def test_pool_repeats_a_call_on_a_connection_closed_while_idle(sock_path: str) -> None:
    closed = threading.Event()

    def once(connection: socket.socket) -> None:
        connection.sendall(message(read_message(connection) or b""))
        connection.close()
        closed.set()

    with serving(sock_path, once, echo) as server, ipcsrv.Pool(sock_path) as pool:
        assert pool.call(b"x") == b"x"
        assert closed.wait(20)
        assert pool.call(b"y") == b"y"
        assert server.accepted == 2


def test_a_pool_repeats_nothing_that_was_sent(sock_path: str) -> None:
    asked = []

    def die(connection: socket.socket) -> None:
        asked.append(read_message(connection))

    with serving(sock_path, die) as server, ipcsrv.Pool(sock_path) as pool, pytest.raises(ConnectionLost):
        pool.call(b"x")
    assert (asked, server.accepted) == ([b"x"], 1)


def test_a_pool_goes_on_after_a_failure(sock_path: str) -> None:
    with serving(sock_path, answer(packet(b"ERR handler no")), echo), ipcsrv.Pool(sock_path, size=1) as pool:
        with pytest.raises(HandlerError):
            pool.call(b"x")
        assert pool.call(b"y") == b"y"


def test_wait_for_a_connection_of_the_pool_ends_at_the_deadline(sock_path: str) -> None:
    held, release = threading.Event(), threading.Event()

    def hold(connection: socket.socket) -> None:
        read_message(connection)
        held.set()
        assert release.wait(20)
        connection.sendall(message(b"late"))

    with serving(sock_path, hold), ipcsrv.Pool(sock_path, size=1) as pool:
        answers: list[bytes] = []
        asking = threading.Thread(target=lambda: answers.append(pool.call(b"x")))
        asking.start()
        assert held.wait(20)
        with pytest.raises(CallTimeout):
            pool.call(b"y", timeout=0.02)
        release.set()
        asking.join(20)
        assert answers == [b"late"]


def test_a_pool_that_cannot_connect_frees_the_place_again(sock_path: str) -> None:
    with ipcsrv.Pool(sock_path, size=1) as pool:
        for _ in range(2):
            with pytest.raises(PathNotFound):
                pool.call(b"x", timeout=20)


def test_a_closed_pool_takes_no_calls(sock_path: str) -> None:
    with serving(sock_path, echo):
        pool = ipcsrv.Pool(sock_path)
        pool.call(b"x")
        pool.close()
        with pytest.raises(LocalProtocolError, match="closed"):
            pool.call(b"x")


def test_a_pool_has_room_for_at_least_one() -> None:
    with pytest.raises(ValueError):
        ipcsrv.Pool("/p", size=0)


def test_a_forked_child_uses_none_of_its_parents_connections(sock_path: str) -> None:
    """Both would read the other's answers."""
    with serving(sock_path, echo) as server, ipcsrv.Pool(sock_path) as pool:
        assert pool.call(b"parent") == b"parent"
        pid = os.fork()
        if not pid:
            status = 1
            try:
                status = 42 if pool.call(b"child", timeout=20) == b"child" else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42
        assert pool.call(b"parent") == b"parent"
        assert server.accepted == 2


def test_pool_does_not_keep_connections_that_the_server_closes(sock_path: str) -> None:
    """Git's server closes after each response; a request sent into a closing connection would be lost."""

    def once(connection: socket.socket) -> None:
        connection.sendall(message(read_message(connection) or b""))

    with serving(sock_path, once) as server, ipcsrv.Pool(sock_path) as pool:
        for number in range(50):
            assert pool.call(b"%d" % number) == b"%d" % number
        assert server.accepted == 50


def test_pool_keeps_connections_after_a_restart(sock_path: str) -> None:
    def twice(connection: socket.socket) -> None:
        for _ in range(2):
            connection.sendall(message(read_message(connection) or b""))

    with serving(sock_path, twice, twice, echo) as server, ipcsrv.Pool(sock_path) as pool:
        for number in range(10):
            assert pool.call(b"%d" % number) == b"%d" % number
            if number in (1, 3):
                server.wait_until_done_with(server.accepted)
        assert server.accepted == 3


class Interrupted(Exception):
    """Raised by a signal handler in the middle of a call."""


@pytest.mark.timeout(60, method="thread")  # the other method has the same timer
def test_pool_loses_no_place_to_an_exception_from_a_signal(sock_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # An exception in a destructor; pytest's hook would keep it, and with its frames a connection that is dropped.
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    fired = 0

    def interrupt(*_: object) -> None:
        nonlocal fired
        fired += 1
        raise Interrupted  # of no effect where it comes in a destructor

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with serving(sock_path, echo), ipcsrv.Pool(sock_path, size=2) as pool:
            for number in range(400):
                with contextlib.suppress(Interrupted):
                    signal.setitimer(signal.ITIMER_REAL, 1e-6 + number * 5e-7)
                    pool.call(b"x", timeout=5)
                    while fired <= number:  # the call was quicker than the timer
                        time.sleep(0.001)  # `pause` could miss a signal that comes just before it
            gc.collect()  # a connection that was dropped unclosed, and its exception in a cycle
            assert fired == 400
            assert [pool.call(b"%d" % number, timeout=1) for number in range(3)] == [b"0", b"1", b"2"]
            assert "0 in use" in repr(pool)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_connection_is_refused_to_a_forked_child(sock_path: str) -> None:
    with serving(sock_path, echo), ipcsrv.connect(sock_path) as connection:
        pid = os.fork()
        if not pid:
            status = 1
            try:
                connection.call(b"child")
            except LocalProtocolError as error:
                status = 42 if "after a fork" in str(error) else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42
        assert connection.call(b"parent") == b"parent"


@pytest.mark.parametrize("timeout", [-1.0, float("nan")])
def test_bad_timeout_is_refused_before_anything_is_sent(sock_path: str, timeout: float) -> None:
    with serving(sock_path, silent) as server:
        for attempt in (ipcsrv.call, ipcsrv.connect):
            with pytest.raises(ValueError, match="a timeout must be"):
                attempt(sock_path, timeout=timeout)
        assert server.accepted == 0


def test_infinite_timeout_is_no_limit(sock_path: str) -> None:
    with serving(sock_path, echo):
        assert ipcsrv.call(sock_path, pattern(300_000), timeout=float("inf")) == pattern(300_000)


def test_reprs_name_path_and_state(sock_path: str) -> None:
    with serving(sock_path, echo), ipcsrv.Pool(sock_path, size=3) as pool, ipcsrv.connect(sock_path) as connection:
        pool.call(b"x")
        assert repr(pool) == f"<ipcsrv.Pool to {sock_path!r}, 0 in use, 1 idle of 3>"
        assert repr(connection) == f"<ipcsrv.Connection to {sock_path!r}, server pid {os.getpid()}, open>"
    assert "closed" in repr(pool)
    assert "closed" in repr(connection)


def test_waiting_until_listening_ends_when_a_server_is_there(sock_path: str) -> None:
    with pytest.raises(NotListening):
        ipcsrv.wait_until_listening(sock_path, timeout=0.01)
    waiting = threading.Thread(target=ipcsrv.wait_until_listening, args=(sock_path, 20))
    waiting.start()
    with serving(sock_path, echo):
        waiting.join(20)
        assert not waiting.is_alive()


# -- JSON and text ----------------------------------------------------------------------------------------------------


def handling(handler: object) -> object:
    def script(connection: socket.socket) -> None:
        while (request := read_message(connection)) is not None:
            connection.sendall(message(handler(ipcsrv.Request(request))))  # type: ignore[operator]

    return script


def test_json_goes_in_and_out(sock_path: str) -> None:
    @ipcsrv.json_handler
    def add(request: dict[str, int]) -> dict[str, int]:
        return {"sum": sum(request.values())}

    with serving(sock_path, handling(add)):  # type: ignore[arg-type]
        assert ipcsrv.call_json(sock_path, {"a": 1, "ä": 2}, timeout=20) == {"sum": 3}
    assert add.__name__ == "add"


def test_json_has_no_nan(sock_path: str) -> None:
    same = ipcsrv.json_handler(lambda value: value)
    for constant in (b"NaN", b"[Infinity]"):
        with pytest.raises(ValueError, match="is not JSON"):
            same(constant)
    with pytest.raises(ValueError, match="not JSON compliant"):
        ipcsrv.json_handler(lambda value: float("nan"))(b"1")
    with pytest.raises(ValueError, match="not JSON compliant"):
        ipcsrv.call_json(sock_path, float("inf"))


def test_response_that_is_not_json_is_a_protocol_error(sock_path: str) -> None:
    with serving(sock_path, answer(message(b"no JSON"))), pytest.raises(ProtocolError, match="not JSON"):
        ipcsrv.call_json(sock_path, 1)


def test_text_handler_takes_and_returns_str() -> None:
    shout = ipcsrv.text_handler(lambda text: text.upper() or 1)
    assert shout("grün".encode()) == "GRÜN".encode()
    with pytest.raises(UnicodeDecodeError):
        shout(b"\xff")
    with pytest.raises(TypeError, match="a text handler returns str, not int"):
        shout(b"")


def test_codec_passes_quit_and_coroutines_on() -> None:
    async def last(request: object) -> object:
        return ipcsrv.QUIT if request == "quit" else [request]

    import asyncio

    handler = ipcsrv.json_handler(last)
    assert asyncio.run(handler(b'"quit"')) is ipcsrv.QUIT
    assert asyncio.run(handler(b"1")) == b"[1]"


def test_request_is_copied_as_plain_bytes() -> None:
    import copy

    client, server = socket.socketpair()
    with client, server:
        request = ipcsrv.Request(b"data")
        request._context = (server, 0, None)  # type: ignore[assignment]  # as a worker does it
        for made in (pickle.loads(pickle.dumps(request)), copy.copy(request), copy.deepcopy([request])[0]):
            assert (type(made), made) == (bytes, b"data")


# -- nothing is left --------------------------------------------------------------------------------------------------


def test_no_way_of_failing_leaves_a_descriptor_open(sock_dir: str) -> None:
    path = f"{sock_dir}/s"
    with serving(path, answer(b"zzzz"), answer(b""), silent, echo) as server, nothing_leaked():
        for _ in range(3):
            with pytest.raises(IpcError):
                ipcsrv.call(path, b"x", timeout=SHORT)
        with pytest.raises(PathNotFound):
            ipcsrv.call(path + "x")
        with pytest.raises(InvalidPath):
            ipcsrv.call(sock_dir)
        ipcsrv.call(path, b"x")
        ipcsrv.Pool(path).close()
        ipcsrv.active_state(path)
        server.wait_until_done_with(5)


def test_what_a_call_raises_survives_pickle(sock_path: str) -> None:
    with serving(sock_path, silent), pytest.raises(CallTimeout) as caught:
        ipcsrv.call(sock_path, b"x", timeout=SHORT)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.timeout, copy.progress, str(copy)) == (SHORT, Progress.REQUEST_SENT, str(caught.value))


def test_limit_of_a_step_is_rounded_up_to_milliseconds() -> None:
    assert [posix.milliseconds(seconds) for seconds in (None, 0.0, 0.0001, 0.001, 1.5)] == [None, 0, 1, 1, 1500]


@linux_only
def test_credentials_are_read_from_the_kernels_own_layout() -> None:
    import struct

    assert posix.credentials_of(struct.pack("iII", 7, 8, 9)) == (7, 8, 9)
    assert posix.credentials_of(struct.pack("iII", 0, 8, 9)) == (None, 8, 9)
