"""The asyncio client: the same promises as the waiting one, kept in a loop, and when a call is cancelled."""

from __future__ import annotations

import asyncio
import functools
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

import pytest
from fake_server import FLUSH, answer, echo, message, packet, read_exactly, read_message, serving, silent
from support import TIMEOUT, nothing_leaked

import ipcsrv
from ipcsrv import State
from ipcsrv.client import aio
from ipcsrv.errors import (
    CallTimeout,
    ConnectionLost,
    Denied,
    HandlerError,
    InvalidPath,
    LocalProtocolError,
    NotListening,
    PathNotFound,
    Progress,
    ProtocolError,
    TooLarge,
    Untrusted,
)
from ipcsrv.platform.unix import client as posix

SIZES = [0, 1, 65516, 65517, 3_000_000]
SHORT = 0.3  # seconds that a test waits for nothing; a busy machine does within them what comes before


def in_a_loop(test: Callable[..., Coroutine[object, object, None]]) -> Callable[..., None]:
    """Run an `async def` test in a loop of its own, in debug mode: it reports what is never awaited."""

    @functools.wraps(test)
    def run(**arguments: object) -> None:
        asyncio.run(test(**arguments), debug=True)

    return run


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("timeout", [None, 20])
@in_a_loop
async def test_a_request_of_any_size_comes_back_identical(sock_path: str, size: int, timeout: float | None) -> None:
    data = os.urandom(size)
    with serving(sock_path, echo):
        assert await ipcsrv.aio.call(sock_path, data, timeout) == data


@in_a_loop
async def test_a_connection_is_kept_for_many_exchanges(sock_path: str) -> None:
    with serving(sock_path, echo) as server:
        async with aio.connect(sock_path) as connection:
            for size in SIZES:
                assert await connection.call(b"x" * size) == b"x" * size
                assert b"".join([piece async for piece in connection.stream(b"y" * size)]) == b"y" * size
        assert connection.closed
        assert server.accepted == 1


@in_a_loop
async def test_a_connection_may_be_awaited_and_closed_by_hand(sock_path: str) -> None:
    with serving(sock_path, echo):
        connection = await aio.connect(sock_path)
        assert connection.peer.pid == os.getpid()
        async with connection:
            assert await connection.call(b"x") == b"x"
        assert connection.closed


@in_a_loop
async def test_many_calls_run_side_by_side(sock_path: str) -> None:
    with serving(sock_path, echo):
        data = [b"%d" % number * 1000 for number in range(50)]
        assert await asyncio.gather(*(aio.call(sock_path, each, 20) for each in data)) == data


@in_a_loop
async def test_a_streamed_response_is_given_out_as_it_comes(sock_path: str) -> None:
    go_on = threading.Event()

    def in_two(connection: socket.socket) -> None:
        read_message(connection)
        connection.sendall(packet(b"first"))
        assert go_on.wait(20)
        connection.sendall(packet(b"second") + FLUSH)

    with serving(sock_path, in_two):
        async with aio.connect(sock_path) as connection:
            response = connection.stream(b"x", timeout=20)
            assert await anext(response) == b"first"
            go_on.set()
            assert [piece async for piece in response] == [b"second"]


async def async_parts() -> AsyncIterator[bytes]:
    for part in (b"one", b"", b"two"):
        await asyncio.sleep(0)
        yield part


@pytest.mark.parametrize("parts", [lambda: [b"one", b"two"], async_parts])
@in_a_loop
async def test_a_request_is_streamed_part_by_part(sock_path: str, parts: Callable[[], object]) -> None:
    received = []

    def script(connection: socket.socket) -> None:
        received.append(read_exactly(connection, 18))
        connection.sendall(message(b"done"))

    with serving(sock_path, script):
        async with aio.connect(sock_path) as connection:
            assert [piece async for piece in connection.stream(parts())] == [b"done"]  # type: ignore[arg-type]
            assert not connection.closed
    assert received == [b"0007one0007two0000"]


@in_a_loop
async def test_parts_that_fail_end_the_call_with_their_error(sock_path: str) -> None:
    def parts() -> Iterator[bytes]:
        yield b"one"
        raise ZeroDivisionError

    with serving(sock_path, silent):
        async with aio.connect(sock_path) as connection:
            with pytest.raises(ZeroDivisionError):
                async for _ in connection.stream(parts()):
                    pass
            assert connection.closed


@in_a_loop
async def test_response_before_the_whole_request_is_read(sock_path: str) -> None:
    def upside_down(connection: socket.socket) -> None:
        connection.sendall(packet(b"x" * 60000) * 70)  # more than any socket buffer, and only then
        assert read_message(connection) == b"y" * (4 << 20)
        connection.sendall(FLUSH)

    with serving(sock_path, upside_down):
        assert await aio.call(sock_path, b"y" * (4 << 20), 20) == b"x" * 60000 * 70


@in_a_loop
async def test_a_socket_with_small_buffers_takes_a_request_bit_by_bit(
    sock_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on macOS, whose Unix sockets take 8 KiB."""
    attempt = posix.attempt

    def attempt_small(path: str) -> posix.Stream:
        stream = attempt(path)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return stream

    monkeypatch.setattr("ipcsrv.platform.client.attempt", attempt_small)
    with serving(sock_path, echo):
        async with aio.connect(sock_path) as connection:
            for size in (60_000, 500_000, 60_000):
                assert await connection.call(b"x" * size, 20) == b"x" * size


@in_a_loop
async def test_connection_with_unread_request_is_not_used_again(sock_path: str) -> None:
    release = threading.Event()

    def deaf(connection: socket.socket) -> None:
        connection.sendall(message(b"no need"))
        assert release.wait(20)

    with serving(sock_path, deaf):
        async with aio.connect(sock_path) as connection:
            assert await connection.call(b"z" * (8 << 20)) == b"no need"
            assert connection.closed
            release.set()


@in_a_loop
async def test_an_answer_too_many_is_not_taken_for_the_next_one(sock_path: str) -> None:
    with serving(sock_path, answer(message(b"one") + message(b"two"))):
        async with aio.connect(sock_path) as connection:
            assert await connection.call(b"x") == b"one"
            assert connection.closed


@in_a_loop
async def test_a_failure_reply_is_raised_and_closes_the_connection(sock_path: str) -> None:
    with serving(sock_path, answer(packet(b"ERR handler KeyError: 1"))):
        async with aio.connect(sock_path) as connection:
            with pytest.raises(HandlerError, match="KeyError: 1"):
                await connection.call(b"x")
            with pytest.raises(LocalProtocolError, match="closed"):
                await connection.call(b"x")


@pytest.mark.parametrize("size", [10, 100_000, 8 << 20])
@in_a_loop
async def test_refusal_of_an_unread_request_is_read(sock_path: str, size: int) -> None:
    closed = threading.Event()

    def refuse(connection: socket.socket) -> None:
        connection.sendall(packet(b"ERR denied not you"))
        connection.close()
        closed.set()

    with serving(sock_path, refuse):
        async with aio.connect(sock_path) as connection:
            assert await asyncio.to_thread(closed.wait, 20)
            with pytest.raises(Denied, match="not you"):
                await connection.call(b"x" * size)


@in_a_loop
async def test_refusal_in_the_middle_of_a_request_is_raised(sock_path: str) -> None:
    def too_large(connection: socket.socket) -> None:
        read_exactly(connection, 100_000)
        connection.sendall(packet(b"ERR too-large enough"))

    with serving(sock_path, too_large), pytest.raises(TooLarge, match="enough"):
        await aio.call(sock_path, b"x" * (8 << 20), timeout=20)


@pytest.mark.parametrize(("response", "progress"), [(b"", Progress.REQUEST_SENT), (b"0008pi", Progress.RESPONSE_BEGUN)])
@in_a_loop
async def test_a_response_cut_short_says_how_far_it_got(sock_path: str, response: bytes, progress: Progress) -> None:
    with serving(sock_path, answer(response)), pytest.raises(ConnectionLost) as caught:
        await aio.call(sock_path, b"x")
    assert caught.value.progress is progress


@in_a_loop
async def test_idle_connection_closed_by_the_server_has_sent_nothing(sock_path: str) -> None:
    closed = threading.Event()

    def once(connection: socket.socket) -> None:
        connection.sendall(message(read_message(connection) or b""))
        connection.close()
        closed.set()

    with serving(sock_path, once):
        async with aio.connect(sock_path) as connection:
            assert await connection.call(b"x") == b"x"
            assert await asyncio.to_thread(closed.wait, 20)
            with pytest.raises(ConnectionLost) as caught:
                await connection.call(b"y")
    assert caught.value.progress is Progress.NOTHING_SENT


@in_a_loop
async def test_a_bad_reply_is_a_protocol_error(sock_path: str) -> None:
    with serving(sock_path, answer(b"zzzz")), pytest.raises(ProtocolError):
        await aio.call(sock_path, b"x")


@in_a_loop
async def test_a_response_over_the_limit_is_refused(sock_path: str) -> None:
    with serving(sock_path, echo), pytest.raises(TooLarge):
        await aio.call(sock_path, b"x" * 10, max_response_size=9)


@pytest.mark.parametrize("size", [1, 8 << 20])
@in_a_loop
async def test_a_silent_server_is_given_up_at_the_deadline(sock_path: str, size: int) -> None:
    release = threading.Event()
    with serving(sock_path, lambda connection: release.wait(20)):
        async with aio.connect(sock_path) as connection:
            with pytest.raises(CallTimeout) as caught:
                await connection.call(b"x" * size, timeout=SHORT)
            assert connection.closed
        release.set()
    assert (caught.value.timeout, caught.value.progress) == (SHORT, Progress.REQUEST_SENT)


@in_a_loop
async def test_endless_request_or_response_ends_at_the_deadline(sock_path: str) -> None:
    def endless(connection: socket.socket) -> None:
        read_exactly(connection, 5)
        while True:
            connection.sendall(packet(b"and so on"))

    def parts() -> Iterator[bytes]:
        while True:
            yield b"and so on"

    with serving(sock_path, endless):
        with pytest.raises(CallTimeout):
            await aio.call(sock_path, b"x", timeout=0.05)
        async with aio.connect(sock_path) as connection:
            with pytest.raises(CallTimeout):
                async for _ in connection.stream(parts(), timeout=0.05):
                    pass


@pytest.mark.parametrize("size", [1, 8 << 20])
@in_a_loop
async def test_cancelled_call_closes_its_connection(sock_path: str, size: int) -> None:
    received = threading.Event()
    release = threading.Event()

    def hold(connection: socket.socket) -> None:
        read_exactly(connection, 5)
        received.set()
        assert release.wait(20)

    with serving(sock_path, hold):
        async with aio.connect(sock_path) as connection:
            asking = asyncio.create_task(connection.call(b"x" * size))
            assert await asyncio.to_thread(received.wait, 20)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            assert connection.closed
        release.set()


@in_a_loop
async def test_stream_left_before_its_end_closes_the_connection(sock_path: str) -> None:
    with serving(sock_path, echo):
        async with aio.connect(sock_path) as connection:
            response = connection.stream(b"a" * 500_000)
            await anext(response)
            with pytest.raises(LocalProtocolError, match="middle"):
                await connection.call(b"x")
            await response.aclose()
            assert connection.closed


@in_a_loop
async def test_paths_are_told_apart(sock_path: str) -> None:
    assert await aio.active_state(sock_path) is State.PATH_NOT_FOUND
    with pytest.raises(PathNotFound):
        await aio.call(sock_path)
    with pytest.raises(InvalidPath):
        await aio.call(os.path.dirname(sock_path))
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(sock_path)
    with pytest.raises(NotListening):
        await aio.call(sock_path, timeout=0.02)
    assert await aio.active_state(sock_path) is State.NOT_LISTENING


@in_a_loop
async def test_a_missing_path_is_waited_for_while_the_loop_runs_on(sock_path: str) -> None:
    asking = asyncio.create_task(aio.call(sock_path, b"x", 20, wait_if_not_found=True))
    await asyncio.sleep(0)  # the first attempt has failed
    with serving(sock_path, echo):
        assert await asking == b"x"


@in_a_loop
async def test_an_untrusted_server_is_sent_nothing(sock_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    received = []
    monkeypatch.setattr("ipcsrv.platform.client.trusted", lambda peer, trust: False)  # who is trusted: test_client
    with serving(sock_path, lambda connection: received.append(connection.recv(100))), pytest.raises(Untrusted):
        await aio.call(sock_path, b"secret")
    assert received == [b""]


@in_a_loop
async def test_nothing_is_left_open(sock_path: str) -> None:
    with serving(sock_path, answer(b""), silent, echo) as server, nothing_leaked():
        with pytest.raises(ConnectionLost):
            await aio.call(sock_path, b"x")
        with pytest.raises(CallTimeout):
            await aio.call(sock_path, b"x", timeout=SHORT)
        assert await aio.call(sock_path, b"x" * 1_000_000) == b"x" * 1_000_000
        server.wait_until_done_with(3)


# -- pools ------------------------------------------------------------------------------------------------------------


@in_a_loop
async def test_pool_shares_few_connections_among_tasks(sock_path: str) -> None:
    with serving(sock_path, echo) as server:
        async with aio.Pool(sock_path, size=3) as pool:
            data = [b"%d" % number for number in range(60)]
            assert await asyncio.gather(*(pool.call(each, timeout=20) for each in data)) == data
            assert 1 <= server.accepted <= 3
            assert "0 in use" in repr(pool)


@in_a_loop
async def test_pool_frees_the_place_of_a_cancelled_call(sock_path: str) -> None:
    with serving(sock_path, silent, echo):
        async with aio.Pool(sock_path, size=1) as pool:
            for timeout in (0.05, 0.0):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(pool.call(b"x"), timeout)
            assert await pool.call(b"y", timeout=20) == b"y"


@in_a_loop
async def test_pool_does_not_keep_connections_that_are_closed(sock_path: str) -> None:
    # The server here is a thread of a busy process, and may close late: look as long as that takes.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aio, "FIRST_LOOK", TIMEOUT)
        await use_a_pool_whose_connections_are_closed(sock_path)


async def use_a_pool_whose_connections_are_closed(sock_path: str) -> None:
    def once(connection: socket.socket) -> None:
        connection.sendall(message(read_message(connection) or b""))

    with serving(sock_path, once) as server:
        async with aio.Pool(sock_path) as pool:
            assert [await pool.call(b"x") for _ in range(20)] == [b"x"] * 20
        assert server.accepted == 20
        with pytest.raises(LocalProtocolError, match="the pool is closed"):
            await pool.call(b"x")


@in_a_loop
async def test_waiting_until_listening_lets_the_loop_run(sock_path: str) -> None:
    waiting = asyncio.create_task(aio.wait_until_listening(sock_path, 20))
    await asyncio.sleep(0)  # let it look at the path
    with serving(sock_path, echo):
        await waiting
