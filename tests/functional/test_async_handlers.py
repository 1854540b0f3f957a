"""Async handlers: one loop per worker, the deadline, streams, and what they do to the worker's process."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import support
from conftest import ServerFactory
from git_peer import Client, packets
from shared_server import shared

import ipcsrv
from ipcsrv.pytest_plugin import ServerFactory as PluginFactory

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="speaks to Unix sockets")


@pytest.fixture(scope="module")
def async_server() -> Iterator[support.RunningServer]:
    """A server with one worker and no deadline."""
    with shared("handlers_async:dispatch", "--workers", "1") as running:
        yield running


def test_async_handler_has_one_loop_per_worker(async_server: support.RunningServer) -> None:
    first, second = (json.loads(async_server.call(b"count")) for _ in range(2))
    assert first[:2] == second[:2]
    assert second[2] == first[2] + 1


def test_async_handler_error_has_no_frames_of_asyncio(async_server: support.RunningServer) -> None:
    with pytest.raises(ipcsrv.HandlerError, match="LookupError: no such word"):
        async_server.call(b"fail no such word")
    async_server.output.wait_for("LookupError: no such word")
    text = str(async_server.output)
    assert "handlers_async.py" in text and "async_handlers.py" not in text and "base_events" not in text


def test_async_stream_sends_each_chunk_as_it_comes(async_server: support.RunningServer) -> None:
    with ipcsrv.connect(async_server.path) as connection:
        delays = [time.monotonic_ns() - int(chunk) for chunk in connection.stream(b"stream")]
    assert len(delays) == 4
    assert sorted(delays)[1] < 30e6, delays  # the next chunk is made 50 ms later


def test_async_stream_is_closed_when_its_client_leaves(async_server: support.RunningServer, tmp_path: Path) -> None:
    note = tmp_path / "note"
    with Client(async_server.path) as client:
        client.send(packets(b"stream_then_wait " + bytes(note)))
        client.read(5)
    support.wait_until(note.exists)
    assert json.loads(async_server.call(b"count"))


def test_async_handler_sees_its_client_leave(async_server: support.RunningServer, tmp_path: Path) -> None:
    note = tmp_path / "note"
    with Client(async_server.path) as client:
        client.send(packets(b"watch_client " + bytes(note)))
        support.wait_until(note.with_suffix(".begun").exists)
    support.wait_until(note.exists)


def test_async_handler_can_use_signals_in_each_request(async_server: support.RunningServer) -> None:
    assert [async_server.call(b"wakeup") for _ in range(2)] == [b"came", b"came"]


def test_decorated_async_handler_is_awaited(ipcsrv_server: PluginFactory) -> None:
    assert ipcsrv_server("handlers_async:decorated", workers=1).call(b"x") == b"decorated x"


def test_async_handler_is_cancelled_at_its_deadline(server: ServerFactory, tmp_path: Path) -> None:
    running = server("handlers_async:dispatch", "--workers", "1", "--request-timeout", "0.3")
    before = json.loads(running.call(b"count"))
    began = time.monotonic()
    with pytest.raises(ipcsrv.HandlerTimeout):
        running.call(b"sleep " + bytes(tmp_path / "note"))
    assert time.monotonic() - began < 1.2  # the master would wait for 1.3 s
    assert (tmp_path / "note").read_text() == "cancelled"
    assert json.loads(running.call(b"count"))[:2] == before[:2]
    running.output.wait_for("await asyncio.sleep(60)")
    for kind in (b"raises", b"circle"):  # what it waits for is asked where it waits
        with pytest.raises(ipcsrv.HandlerTimeout):
            running.call(b"foreign " + kind)
        running.output.wait_for("await Foreign(rest)")
    assert json.loads(running.call(b"count"))[:2] == before[:2]


def test_log_says_where_a_stream_waited_at_its_deadline(server: ServerFactory) -> None:
    running = server("handlers_async:streams_then_waits", "--workers", "1", "--request-timeout", "0.3")
    with pytest.raises((ipcsrv.HandlerTimeout, ipcsrv.ConnectionLost)):
        running.call()
    running.output.wait_for("await _waits()")
    running.output.wait_for("await asyncio.sleep(60)")


@pytest.mark.parametrize("name", ["json_decorated", "json_partial", "json_object"])
def test_json_handler_awaits_whatever_is_async(ipcsrv_server: PluginFactory, name: str) -> None:
    server = ipcsrv_server(f"handlers_async:{name}", workers=1)
    assert ipcsrv.call_json(server.path, {"a": 1}) == {"a": 1}


@pytest.mark.parametrize("name", [b"stubborn", b"block"])
def test_worker_is_killed_when_cancelling_does_not_help(server: ServerFactory, name: bytes) -> None:
    running = server("handlers_async:dispatch", "--workers", "1", "--request-timeout", "0.3")
    pid = json.loads(running.call(b"count"))[0]
    began = time.monotonic()
    with pytest.raises(ipcsrv.HandlerTimeout):
        running.call(name)
    assert 1.2 < time.monotonic() - began < 5
    assert json.loads(running.call(b"count", timeout=support.TIMEOUT))[0] != pid


# -- factories and signatures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [["fork"], ["spawn"], ["fork", "--no-preload"]], ids=" ".join)
def test_factory_is_called_once_per_worker(server: ServerFactory, options: list[str]) -> None:
    running = server("handlers_async:Counter()", "--workers", "1", "--start-method", *options)
    first, second = (running.call(b"").decode().split() for _ in range(2))
    pid = str(running.status()["workers"][0]["pid"])
    assert (first, second) == ([running.path, "1", pid, "1"], [running.path, "1", pid, "2"])


def test_factory_may_ask_for_nothing(ipcsrv_server: PluginFactory) -> None:
    running = ipcsrv_server("handlers_async:make_closure()", workers=1)
    assert running.call() == b"%d" % running.status()["workers"][0]["pid"]


@pytest.mark.parametrize("target", ["proxy", "make_proxy()"])
def test_handler_may_be_an_object_without_attributes(ipcsrv_server: PluginFactory, target: str) -> None:
    assert ipcsrv_server(f"handlers_async:{target}", workers=1).call(b"x") == b"x"


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("make_number()", "it is of type int, which cannot be called"),
        ("make_with_host()", "asks for more than path and settings"),
        ("two_arguments", "called with one argument, the request"),
        ("no_arguments", "called with one argument, the request"),
        ("hidden_default", "called with one argument, the request"),
    ],
)
def test_target_that_is_no_handler_is_refused(sock_path: str, target: str, reason: str) -> None:
    done = support.run_command("run", sock_path, f"handlers_async:{target}", "--workers", "2")
    assert done.returncode == 2
    last = done.stderr.decode().splitlines()[-1]
    assert last.startswith(f"ipcsrv: cannot load handler handlers_async:{target}: ") and reason in last


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("make_nothing", "LookupError: no model in this folder"),
        ("make_unprintable", "UnprintableError: (its text cannot be made: RuntimeError)"),
        ("make_interrupt", "KeyboardInterrupt"),
    ],
)
def test_what_factory_or_hook_raises_is_a_failed_start(sock_path: str, name: str, told: str) -> None:
    factory, hook = f"handlers_async:{name}()", f"handlers_async:{name}"
    for blamed, handler, hooks in ((f"handler {factory}", factory, {}),
                                   (f"on_worker_start {hook}", "zlib:compress", {"on_worker_start": hook})):
        with pytest.raises(ipcsrv.StartError) as caught:
            ipcsrv.Server(sock_path, handler, workers=1, **hooks).start()
        assert caught.value.reason.partition(";")[0] == f"{blamed}: {told}"
        text = caught.value.traceback_text or ""
        assert name in text and "adapters.py" not in text


RAISES_AT_IMPORT = {
    "cancelled": ("import asyncio\nraise asyncio.CancelledError", "asyncio.exceptions.CancelledError"),
    "interrupted": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "unprintable": ("from handlers_async import UnprintableError\nraise UnprintableError", "UnprintableError: "),
}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("cancelled", ["--start-method=fork"]),
        ("cancelled", ["--start-method=spawn"]),
        ("interrupted", ["--start-method=fork", "--no-preload"]),
        ("interrupted", ["--start-method=forkserver"]),
        ("unprintable", ["--start-method=fork"]),
        ("unprintable", ["--check-config"]),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_handler_that_cannot_be_imported_is_named(sock_path: str, tmp_path: Path, kind: str,
                                                  options: list[str]) -> None:
    code, told = RAISES_AT_IMPORT[kind]
    (tmp_path / "raises_at_import.py").write_text(code)
    done = support.run_command("run", sock_path, "raises_at_import:handle", "--chdir", tmp_path, *options)
    last = done.stderr.decode().splitlines()[-1]
    assert last.startswith(f"ipcsrv: cannot load handler raises_at_import:handle: {told}") and ": ;" not in last
    assert done.returncode == 2


def test_ctrl_c_during_an_import_is_no_fault_of_the_handler(sock_path: str, tmp_path: Path) -> None:
    (tmp_path / "interrupted.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)")
    done = support.run_command("run", sock_path, "interrupted:handle", "--chdir", tmp_path, "--check-config")
    assert done.returncode == 130 and b"cannot load" not in done.stderr


@pytest.mark.parametrize("hook", ["handlers_async:none_such", "handlers_async:two_arguments"])
def test_bad_hook_is_told_once_by_its_own_name(sock_path: str, hook: str) -> None:
    done = support.run_command("run", sock_path, "zlib:compress", "--workers", "3", "--on-worker-start", hook)
    assert done.returncode == 2
    lines = [line for line in done.stderr.decode().splitlines() if hook in line]
    assert len(lines) == 1
    assert lines[-1].startswith(f"ipcsrv: cannot load on_worker_start {hook}: ")


# -- process titles ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not support.have_proc, reason="looks into /proc")
@pytest.mark.parametrize("installed", [True, False])
def test_name_is_the_process_title(server: ServerFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                   installed: bool) -> None:
    if installed:
        pytest.importorskip("setproctitle")
    else:
        support.hide("setproctitle", tmp_path, monkeypatch)
    running = server("handlers_for_tests:echo", "--workers", "1", "--name", "orders")
    worker = running.status()["workers"][0]["pid"]
    file = "cmdline" if installed else "comm"
    for pid, role in ((running.pid, "master"), (worker, "worker")):
        title = Path(f"/proc/{pid}/{file}").read_bytes().rstrip(b"\0\n").decode()
        assert title == (f"ipcsrv: {role}: orders" if installed else f"{role}:orders")
