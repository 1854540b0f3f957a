"""A hung handler is given up with its stack in the log; a stalled client costs a descriptor until its time is over."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import support
from conftest import ServerFactory
from faults import load

import ipcsrv

Background = Callable[[Callable[[], object]], load.Future]
ENDLESS = 10_000_000  # bytes: more than any buffer between the two takes


# -- request_timeout --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "told", "frame"),
    [
        ("handlers_for_tests:hang", ipcsrv.HandlerTimeout, "in hang"),
        ("handlers_for_faults:computes_in_c", ipcsrv.HandlerTimeout, "in computes_in_c"),
    ],
    ids=["where the interpreter runs", "in C code"],
)
def test_a_request_that_takes_too_long_is_given_up(
    server: ServerFactory, target: str, told: type[Exception], frame: str
) -> None:
    running = server(target, "--workers", "1", "--request-timeout", "0.4")
    before = load.worker_pids(running)
    began = time.monotonic()
    with pytest.raises(told):
        running.call()
    assert 0.3 < time.monotonic() - began < 3.0
    if support.stacks_in_c or "in_c" not in frame:
        running.output.wait_for(frame)  # the stack
    load.wait_until(lambda: load.is_whole(running) and not before & load.worker_pids(running), "a new worker serves")


def test_a_stream_that_hangs_is_given_up_too(server: ServerFactory) -> None:
    running = server("handlers_for_faults:streams_then_hangs", "--workers", "1", "--request-timeout", "0.4")
    with ipcsrv.connect(running.path) as connection:
        pieces = connection.stream(timeout=5.0)
        assert next(pieces) == b"begun\n"
        with pytest.raises((ipcsrv.HandlerTimeout, ipcsrv.ConnectionLost)):
            b"".join(pieces)
    running.output.wait_for("in streams_then_hangs")
    load.wait_until(lambda: load.is_whole(running), "a new worker serves")


def test_slow_reader_of_a_stream_does_not_time_the_handler_out(server: ServerFactory) -> None:
    running = server("handlers_for_tests:stream", "--workers", "1", "--request-timeout", "0.4")
    client = load.raw(running.path, load.message(b"100000"))
    time.sleep(1)  # of not reading, which is the client's time and not the handler's
    received = b""
    while not received.endswith(b"0000"):
        received += client.recv(1 << 20)
    assert b"chunk 99999\n" in received
    client.close()


def test_a_hung_request_is_noticed_whenever_it_comes(server: ServerFactory) -> None:
    running = server("handlers_for_tests:hang_if_asked", "--workers", "1", "--request-timeout", "0.3")
    for pause in (0.0, 0.1, 0.299, 0.301):
        running.call(b"quick")
        time.sleep(pause)  # the point: at every phase of a timer that may run
        with pytest.raises(ipcsrv.HandlerTimeout):
            running.call(b"hang", timeout=5.0)
        load.wait_until(lambda: load.is_whole(running), "a new worker serves")


def test_hung_request_does_not_affect_kept_connections(
    server: ServerFactory, in_background: Background
) -> None:
    running = server("handlers_for_tests:hang_if_asked", "--workers", "2", "--request-timeout", "0.7")
    with load.Load(running.path, keeping=4, connecting=2) as clients:
        for _ in range(2):
            hung = in_background(lambda: running.call(b"hang"))
            assert isinstance(hung.error(), ipcsrv.HandlerTimeout)
    assert not clients.failures and not clients.wrong, clients.report()


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="their form is that of a signal handler's")
def test_stacks_of_workers_timed_out_together_are_not_mixed(
    server: ServerFactory, tmp_path: Path, in_background: Background
) -> None:
    log = tmp_path / "log"
    options = "--workers", "6", "--request-timeout", "0.5", "--log-file", str(log)
    running = server("handlers_for_tests:hang", *options)
    calls = [in_background(running.call) for _ in range(6)]
    for call in calls:
        assert isinstance(call.error(), ipcsrv.HandlerTimeout)
    stacks = re.split(r".* stacks of worker [0-9]+ \(pid [0-9]+\) follow\n", log.read_text())[1:]
    assert len(stacks) == 6
    for stack in stacks:
        lines = [line for line in stack.splitlines() if not re.match("[0-9]{4}-", line)]
        heading, *frames = itertools.takewhile(lambda line: "_run_module_as_main" not in line, lines)
        assert heading.endswith(" (most recent call first):")
        assert [line for line in frames if not re.fullmatch('  File "[^"]+", line [0-9?]+ in \\S+', line)] == []


# -- no client waits for the slow request of another ----------------------------------------------------------------


def test_kept_client_does_not_wait_for_a_slow_request(
    server: ServerFactory, in_background: Background
) -> None:
    running = server("handlers_for_faults:long_or_short", "--workers", "2")
    with ipcsrv.connect(running.path) as kept:
        for _ in range(3):
            for _ in range(40):  # until the worker that has it thinks of nothing slow
                kept.call(b"short")
            slow = in_background(lambda: running.call(b"long 500"))
            worst = 0.0
            while not slow.is_over:
                began = time.monotonic()
                kept.call(b"short")
                worst = max(worst, time.monotonic() - began)
            assert worst < 0.4


@pytest.mark.parametrize("request_", [b"long 500", b"stream 500"])
def test_kept_clients_do_not_wait_for_one_that_is_slow(
    server: ServerFactory, in_background: Background, request_: bytes
) -> None:
    running = server("handlers_for_faults:long_or_short", "--workers", "2")
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(ipcsrv.connect(running.path)) for _ in range(4)]
        for slow in clients[:2]:  # of four on two workers at most one has a worker for itself
            others = [client for client in clients if client is not slow]
            for _ in range(40):
                for client in clients:
                    client.call(b"short")
            over = in_background(partial(slow.call, request_))
            worst = 0.0
            while not over.is_over:
                for client in others:
                    began = time.monotonic()
                    client.call(b"short")
                    worst = max(worst, time.monotonic() - began)
            assert worst < 0.4


# -- read_timeout and write_timeout ---------------------------------------------------------------------------------


@pytest.mark.parametrize("beginning", [b"00", b"0010", load.message(b"a") + b"0010", load.packet(b"x" * 1000) * 3],
                         ids=["header", "data", "data after a whole request", "message"])
def test_a_request_that_does_not_get_whole_is_given_up(server: ServerFactory, beginning: bytes) -> None:
    running = server("handlers_for_tests:echo", "--workers", "1", "--read-timeout", "0.4")
    client = load.raw(running.path, beginning)
    began = time.monotonic()
    assert running.call(b"meanwhile") == b"meanwhile"
    assert b"ERR timeout" in load.rest_of(client)
    assert 0.3 < time.monotonic() - began < 2.0
    client.close()


def test_requests_may_be_cut_anywhere(server: ServerFactory) -> None:
    running = server("handlers_for_tests:echo", "--workers", "1")
    whole = load.message(b"first") + b"0004" + load.message(b"second")
    for cut in range(1, len(whole)):
        client = load.raw(running.path, whole[:cut])
        load.wait_until(lambda: load.workers_of(running)[0]["state"] != "busy", "what came is taken")
        client.sendall(whole[cut:])
        received = b""
        while len(received) < 2 * 8 + 11:
            received += client.recv(100)
        assert received == load.message(b"first") + load.message(b"second")
        client.close()


@pytest.mark.parametrize("drop", [load.packet(b"x"), b"0004"], ids=["a byte a packet", "nothing a packet"])
def test_a_request_that_comes_in_drops_is_given_up_all_the_same(server: ServerFactory, drop: bytes) -> None:
    running = server("handlers_for_tests:echo", "--workers", "1", "--read-timeout", "0.4")
    client = load.raw(running.path, drop)
    began = time.monotonic()
    while not load.is_readable(client, 0.02):
        assert time.monotonic() - began < 3.0
        with contextlib.suppress(BrokenPipeError):  # it is given up just now
            client.sendall(drop)
    assert b"ERR timeout" in load.rest_of(client)
    client.close()


@pytest.mark.parametrize("flood", [b"0004" * 20000, load.packet(b"x") * 10000], ids=["empty packets", "small packets"])
def test_endless_flood_does_not_occupy_a_worker(server: ServerFactory, flood: bytes) -> None:
    running = server("handlers_for_tests:echo", "--workers", "1", "--read-timeout", "1")
    client = load.raw(running.path, flood)

    def pour() -> None:
        try:
            while True:
                client.sendall(flood)
        except OSError:
            pass

    pouring = load.Future(pour)
    began = time.monotonic()
    while time.monotonic() - began < 0.7:
        assert running.call(b"meanwhile", timeout=2.0) == b"meanwhile"
    assert isinstance(pouring.result(), type(None))
    assert time.monotonic() - began < 5.0
    client.close()


def test_write_timeout_ends_a_silent_reader_but_not_a_slow_one(server: ServerFactory) -> None:
    running = server("handlers_for_tests:big", "--workers", "1", "--write-timeout", "0.5")
    deaf = load.raw(running.path, load.message(b"%d" % ENDLESS))
    slow = load.raw(running.path, load.message(b"1500000"))
    received = 0
    pause = 0.03  # seconds: in all longer than write_timeout
    while received < 1_500_000:
        received += len(slow.recv(40_000))
        time.sleep(pause)
    running.output.wait_for("did not read its response for 0.5 s")
    assert not load.rest_of(deaf).endswith(b"0000")
    assert running.call(b"5") == b"\x00\x01\x02\x03\x04"
    deaf.close()
    slow.close()


# -- a crowd of stalled clients -------------------------------------------------------------------------------------


def test_many_stalled_clients_time_out_and_do_not_affect_others(server: ServerFactory) -> None:
    running = server("handlers_for_tests:echo", "--workers", "2", "--read-timeout", "1.5", "--write-timeout", "1.5")
    silent = [load.raw(running.path) for _ in range(100)]
    header = [load.raw(running.path, b"00") for _ in range(50)]
    middle = [load.raw(running.path, load.packet(b"x" * 60000) * 2) for _ in range(20)]
    deaf = [load.raw(running.path) for _ in range(20)]
    for client in deaf:
        load.fill(client, load.packet(b"y" * 65000) * 16 + b"0000")
    with load.Load(running.path, keeping=2, connecting=2) as clients:
        for client in header + middle:
            assert b"ERR timeout" in load.rest_of(client)
    assert not clients.failures and not clients.wrong, clients.report()
    load.wait_until(lambda: running.status()["stalled"] == 0, "no exchange is stalled")
    for client in silent:  # who has asked for nothing has stalled nothing
        client.sendall(load.message(b"late"))
        assert client.recv(100) == load.message(b"late")
    for client in silent + header + middle + deaf:
        client.close()


def test_request_sent_ahead_has_a_read_timeout_of_its_own(server: ServerFactory) -> None:
    running = server("handlers_for_faults:long_or_short", "--workers", "1", "--read-timeout", "0.5")
    first, second = load.message(b"stream 900"), load.message(b"second")
    with load.raw(running.path, first + second[:6]) as client:
        response = b""
        while not response.endswith(b"0000"):
            response += client.recv(100)
        client.sendall(second[6:])
        assert (response, client.recv(100)) == (load.message(b"chunk"), second)


# -- cancellation ---------------------------------------------------------------------------------------------------


def test_a_client_that_goes_away_before_its_turn_is_not_served(server: ServerFactory, tmp_path: Path) -> None:
    served = tmp_path / "served"
    environment = {"SERVED_FILE": os.fspath(served)}
    running = server("handlers_for_faults:counts_what_it_serves", "--workers", "1", env=environment)
    stays = load.raw(running.path, load.message(b"stays"))
    load.wait_until(lambda: load.workers_of(running)[0]["state"] == "busy", "the only worker is busy")
    accepted = running.status()["totals"]["connections"]
    goes = [load.raw(running.path, load.message(b"goes")) for _ in range(5)]
    last = load.raw(running.path, load.message(b"last"))
    load.wait_until(lambda: running.status()["totals"]["connections"] == accepted + 6,
                    "all wait in the queue, where a worker looks whether they are still there")
    for client in goes:
        client.close()
    Path(f"{served}.go").touch()
    assert last.recv(100) == load.message(b"last")
    lines = served.read_text().split()
    assert lines.count("stays") == 1 and lines.count("goes") <= 1
    for client in (stays, last):
        client.close()


def test_a_handler_learns_that_its_client_has_gone(server: ServerFactory, tmp_path: Path) -> None:
    running = server("handlers_for_tests:wait_for_cancel", "--workers", "1")
    name = tmp_path / "r"
    client = load.raw(running.path, load.message(os.fspath(name).encode()))
    load.wait_until((tmp_path / "r.begun").exists, "the request begins")
    client.close()
    load.wait_until((tmp_path / "r.cancelled").exists, "it is cancelled")
    load.wait_until(lambda: load.is_whole(running), "the pool is whole")


def test_the_iterator_of_a_stream_is_closed_when_its_client_goes(server: ServerFactory, tmp_path: Path) -> None:
    running = server("handlers_for_tests:stream_for_ever", "--workers", "1")
    name = tmp_path / "closed"
    client = load.raw(running.path, load.message(os.fspath(name).encode()))
    assert client.recv(100)
    client.close()
    load.wait_until(name.exists, "its iterator is closed")
    load.wait_until(lambda: load.is_whole(running), "the pool is whole")
