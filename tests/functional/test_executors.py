"""Handlers on a Dask cluster: a real scheduler and two worker processes, which are killed and replaced."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import support
from conftest import ServerFactory
from git_peer import Client, packets
from shared_server import shared

import ipcsrv

pytest.importorskip("distributed", reason="needs ipcsrv[dask]")
pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="speaks to Unix sockets")

import distributed  # noqa: E402
from cluster import Cluster, Member  # noqa: E402

HANDLER = "handlers_on_cluster:handle"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of two workers; a test leaves two behind."""
    with Cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture(scope="module")
def cluster_server(cluster: Cluster) -> Iterator[support.RunningServer]:
    """A server with one worker."""
    options = ("--workers", "1", "--executor", f"dask:{cluster.address}", "--request-timeout", "20")
    with shared(HANDLER, *options, "--max-response-size", "3MB") as running:
        yield running


def pids(cluster: Cluster) -> set[int]:
    """Return the processes that handlers may run in."""
    return {worker.pid for worker in cluster.workers}


def runner(cluster: Cluster, note: Path) -> Member:
    """The cluster's worker that has noted its process in a file last."""
    support.wait_until(lambda: note.exists() and note.read_text().endswith("\n"))
    pid = int(note.read_text().split()[-1])
    return next(worker for worker in cluster.workers if worker.pid == pid)


def test_request_runs_on_the_cluster_with_its_context(cluster: Cluster, cluster_server: support.RunningServer) -> None:
    with ipcsrv.connect(cluster_server.path) as connection:
        pid, peer, remaining = json.loads(connection.call(b"context "))
    assert pid in pids(cluster)
    assert peer == os.getpid()
    assert 10 < remaining <= 20
    assert cluster_server.status()["executor"] == {"name": f"dask:{cluster.address}", "state": "connected"}
    table = support.run_command("status", cluster_server.path).stdout.decode().splitlines()
    assert ["executor", f"dask:{cluster.address}:", "connected"] in [line.split() for line in table]


def test_handler_error_comes_from_the_cluster(cluster_server: support.RunningServer) -> None:
    with pytest.raises(ipcsrv.HandlerError, match="LookupError: no such word"):
        cluster_server.call(b"fail no such word")
    cluster_server.output.wait_for("LookupError: no such word")
    assert "handlers_on_cluster.py" in str(cluster_server.output)


def test_results_are_limited_by_max_response_size(cluster_server: support.RunningServer) -> None:
    assert len(cluster_server.call(b"big 2000")) == 2_000_000
    with pytest.raises(ipcsrv.TooLarge):
        cluster_server.call(b"big 4000")


def tell(path: Path, text: str) -> None:
    """Make a file whose text is there from the first moment."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


def test_chunks_arrive_while_the_handler_runs(cluster_server: support.RunningServer, tmp_path: Path) -> None:
    with ipcsrv.connect(cluster_server.path, timeout=support.TIMEOUT) as connection:
        stream = connection.stream(b"steps " + bytes(tmp_path / "s"))
        for number in range(1, 4):
            assert next(stream) == b"%d" % number
            tell(tmp_path / f"s.{number}", "end" if number == 3 else "")
        assert list(stream) == []
        assert connection.call(b"upper next") == b"NEXT"


def test_many_small_chunks_arrive_complete_and_in_order(cluster_server: support.RunningServer) -> None:
    assert cluster_server.call(b"numbers 50000") == b"".join(b"%d\n" % number for number in range(50_000))


def test_handler_that_fails_in_the_middle_of_its_stream(cluster_server: support.RunningServer, tmp_path: Path) -> None:
    with ipcsrv.connect(cluster_server.path, timeout=support.TIMEOUT) as connection:
        stream = connection.stream(b"steps " + bytes(tmp_path / "s"))
        assert next(stream) == b"1"
        tell(tmp_path / "s.1", "fail")
        with pytest.raises(ipcsrv.HandlerError, match="LookupError: no further step"):
            next(stream)


def test_stream_to_a_client_that_stalls_holds_no_one_up(cluster_server: support.RunningServer) -> None:
    with ipcsrv.connect(cluster_server.path, timeout=support.TIMEOUT) as connection:
        stream = connection.stream(b"big 2900")
        begin = next(stream)
        assert cluster_server.call(b"upper another") == b"ANOTHER"  # the server has one worker
        assert begin + b"".join(stream) == b"x" * 2_900_000


def test_stream_is_cancelled_when_its_client_leaves(cluster_server: support.RunningServer, tmp_path: Path) -> None:
    with Client(cluster_server.path) as client:
        client.send(packets(b"steps " + bytes(tmp_path / "s")))
        support.wait_until((tmp_path / "s").exists)
    support.wait_until((tmp_path / "s.cancelled").exists)
    assert cluster_server.call(b"upper next") == b"NEXT"


def test_stream_is_cancelled_at_the_deadline(cluster: Cluster, server: ServerFactory, tmp_path: Path) -> None:
    running = server(HANDLER, "--workers", "1", "--executor", f"dask:{cluster.address}", "--request-timeout", "0.5")
    worker = running.status()["workers"][0]["pid"]
    with ipcsrv.connect(running.path, timeout=support.TIMEOUT) as connection:
        stream = connection.stream(b"steps " + bytes(tmp_path / "s"))
        assert next(stream) == b"1"
        with pytest.raises(ipcsrv.HandlerTimeout):
            next(stream)
    support.wait_until((tmp_path / "s.cancelled").exists)
    assert running.status()["workers"][0]["pid"] == worker


def test_stream_that_has_begun_is_never_repeated(cluster: Cluster, server: ServerFactory, tmp_path: Path) -> None:
    running = server(HANDLER, "--workers", "1", "--executor", f"dask:{cluster.address}", "--executor-retries", "3")
    note = tmp_path / "s"
    with ipcsrv.connect(running.path, timeout=support.TIMEOUT) as connection:
        stream = connection.stream(b"steps " + bytes(note))
        assert next(stream) == b"1"
        lost = runner(cluster, note)
        lost.kill()
        with pytest.raises(ipcsrv.HandlerCrashed):
            next(stream)
    assert len(note.read_text().splitlines()) == 1
    cluster.replace_worker(lost)


def test_large_request_reaches_the_cluster(cluster_server: support.RunningServer) -> None:
    assert cluster_server.call(b"upper " + b"x" * 2_900_000) == b"X" * 2_900_000


def test_one_request_per_worker_is_at_the_cluster(cluster_server: support.RunningServer, tmp_path: Path) -> None:
    answers: list[bytes] = []

    def ask() -> None:
        answers.append(ipcsrv.call(cluster_server.path, b"alone " + bytes(tmp_path / "lock"), timeout=support.TIMEOUT))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [b"alone"] * 6


def test_task_is_cancelled_when_its_client_leaves(cluster_server: support.RunningServer, tmp_path: Path) -> None:
    note = tmp_path / "note"
    with Client(cluster_server.path) as client:
        client.send(packets(b"wait " + bytes(note)))
        support.wait_until(note.exists)
    support.wait_until(note.with_suffix(".cancelled").exists)
    assert cluster_server.call(b"upper next") == b"NEXT"


def test_task_is_cancelled_at_the_deadline(cluster: Cluster, server: ServerFactory, tmp_path: Path) -> None:
    running = server(HANDLER, "--workers", "1", "--executor", f"dask:{cluster.address}", "--request-timeout", "0.5")
    worker = running.status()["workers"][0]["pid"]
    with pytest.raises(ipcsrv.HandlerTimeout):
        running.call(b"wait " + bytes(tmp_path / "note"))
    support.wait_until((tmp_path / "note.cancelled").exists)
    assert running.status()["workers"][0]["pid"] == worker


@pytest.mark.parametrize("leave", ["kill", "terminate"])
def test_lost_request_runs_once_without_retries(cluster: Cluster, cluster_server: support.RunningServer,
                                                tmp_path: Path, leave: str) -> None:
    note = tmp_path / "note"
    with Client(cluster_server.path) as client:
        client.send(packets(b"wait " + bytes(note)))
        lost = runner(cluster, note)
        getattr(lost, leave)()
        assert client.failure().startswith(b"ERR crashed ")
    assert len(note.read_text().splitlines()) == 1
    cluster.replace_worker(lost)


def test_lost_request_is_repeated_with_retries(cluster: Cluster, server: ServerFactory, tmp_path: Path) -> None:
    running = server(HANDLER, "--workers", "1", "--executor", f"dask:{cluster.address}", "--executor-retries", "1")
    note = tmp_path / "note"
    assert running.call(b"die " + bytes(note), timeout=support.TIMEOUT) == b"survived"
    lost = next(worker for worker in cluster.workers if worker.pid == int(note.read_text().split()[0]))
    cluster.replace_worker(lost)


def package(folder: Path, answer: str) -> Path:
    """Write the package `uploaded`, whose handler imports a part of it when it runs."""
    own = folder / "uploaded"
    own.mkdir(parents=True, exist_ok=True)
    (own / "__init__.py").write_text(
        f"def handle(request):\n    from .words import word\n    return word if word == b{answer!r} else b'mixed'\n")
    (own / "words.py").write_text(f"word = b{answer!r}\n")
    return folder


def uploading(cluster: Cluster, folder: Path) -> list[str]:
    """Return the arguments of a server that uploads `package`."""
    return ["uploaded:handle", "--workers", "1", "--executor", f"dask:{cluster.address}", "--upload-module",
            "--chdir", os.fspath(folder)]


def uploads(cluster: Cluster) -> list[str]:
    """Return what the scheduler would give to a Dask worker that comes now."""
    with distributed.Client(cluster.address, set_as_default=False) as client:
        plugins: list[str] = client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.worker_plugins))
    return [name for name in plugins if name.startswith("ipcsrv")]


def test_uploaded_module_is_replaced_by_reload_and_restart(cluster: Cluster, server: ServerFactory,
                                                           tmp_path: Path) -> None:
    running = server(*uploading(cluster, package(tmp_path, "first")))
    assert {running.call(b"") for _ in range(6)} == {b"first"}  # on both Dask workers
    package(tmp_path, "second version")
    assert support.run_command("reload", running.path).returncode == 0
    assert running.call(b"") == b"second version"
    running.stop()
    running = server(*uploading(cluster, package(tmp_path, "third")))  # its generation is the first one again
    assert {running.call(b"") for _ in range(6)} == {b"third"}


def test_two_servers_upload_different_modules_of_one_name(cluster: Cluster, server: ServerFactory, sock_dir: str,
                                                          tmp_path: Path) -> None:
    servers = [server(*uploading(cluster, package(tmp_path / name, name)), path=f"{sock_dir}/{name}") for name in "ab"]
    assert [running.call(b"") for running in servers * 3] == [b"a", b"b"] * 3
    for worker in list(cluster.workers):
        cluster.replace_worker(worker)
    assert [running.call(b"", timeout=support.TIMEOUT) for running in servers * 3] == [b"a", b"b"] * 3


def test_broken_upload_fails_and_is_not_left_behind(cluster: Cluster, server: ServerFactory, tmp_path: Path) -> None:
    own = package(tmp_path, "good") / "uploaded"
    os.symlink("me@host.4711", own / ".#words.py")  # an editor's lock
    os.mkfifo(own / "pipe")
    running = server(*uploading(cluster, tmp_path))
    (own / "__init__.py").write_text("import not_there\n")
    done = support.run_command("reload", running.path)
    assert done.returncode == 1
    assert "ModuleNotFoundError: No module named 'not_there'" in done.stderr.decode()
    support.kill(running.status()["workers"][0]["pid"])
    assert running.call(b"") == b"good", "a new worker has the code of its generation"
    assert running.stop() == 0
    (own / "__init__.py").write_text("handler = 3\n")
    done = support.run_command("start", running.path, *uploading(cluster, tmp_path))
    assert done.returncode == 2
    assert "module uploaded has no 'handle'" in done.stderr.decode()
    support.wait_until(lambda: not uploads(cluster))


def test_scheduler_that_does_not_answer_is_unreachable(cluster: Cluster, server: ServerFactory) -> None:
    with cluster.scheduler.suspended():
        running = server(HANDLER, "--workers", "1", "--executor", f"dask:{cluster.address}")
        running.output.wait_for("cannot be reached: the scheduler does not answer within 3 s")
        assert running.status()["executor"] == {"name": f"dask:{cluster.address}", "state": "unreachable"}
        with pytest.raises(ipcsrv.ServerBusy, match="the scheduler does not answer"):
            running.call(b"upper a")
    running.output.wait_for("is connected")
    assert running.call(b"upper a", timeout=support.TIMEOUT) == b"A"


def test_every_request_is_answered_while_workers_are_replaced(cluster: Cluster, server: ServerFactory,
                                                              tmp_path: Path) -> None:
    running = server(HANDLER, "--workers", "2", "--executor", f"dask:{cluster.address}", "--request-timeout", "20")
    outcomes: dict[str, str] = {}
    stop = threading.Event()

    def ask(name: str) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            word = f"{name}{number}"
            try:
                answer = ipcsrv.call(running.path, f"slow {tmp_path} {word}".encode(), timeout=25)
                outcomes[word] = "right" if answer == word.encode() else f"wrong: {answer!r}"
            except ipcsrv.HandlerCrashed:
                outcomes[word] = "lost"

    threads = [threading.Thread(target=ask, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    support.wait_until(lambda: len(outcomes) > 20)
    cluster.replace_worker(cluster.workers[0])
    answered = len(outcomes)
    support.wait_until(lambda: len(outcomes) > answered + 40)
    stop.set()
    for thread in threads:
        thread.join()
    assert set(outcomes.values()) <= {"right", "lost"}
    assert list(outcomes.values()).count("lost") <= 2, "a death costs what was at the dead worker"
    ran = {word: len((tmp_path / word).read_text().splitlines()) for word in outcomes if (tmp_path / word).exists()}
    assert set(ran.values()) == {1}
    assert all(word in ran for word, outcome in outcomes.items() if outcome == "right")
    assert ipcsrv.call(running.path, b"upper still there", timeout=25) == b"STILL THERE"


@pytest.mark.parametrize(
    ("executor", "told"),
    [
        ("dask", "is not ENGINE:ADDRESS"),
        ("no_such:1", "cannot load executor no_such:1"),
        ("json:1", "has no function connect"),
        ("dask:nonsense", "is not tcp://HOST:PORT"),
        ("dask:ftp://host:1", "is not tcp://HOST:PORT"),
        ("dask:tcp://host:99999", "is not tcp://HOST:PORT"),
        ("odd_engine:nothing", "odd_engine.connect returned NoneType, which has no method submit"),
        ("odd_engine:state", "7 is not a valid State"),
    ],
)
def test_bad_executor_is_one_line(sock_path: str, executor: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "odd_engine.py").write_text(ODD_ENGINE)
    done = support.run_command("run", sock_path, HANDLER, "--workers", "1", "--executor", executor, "--chdir", tmp_path)
    assert done.returncode == (1 if "state" in executor else 2)
    assert told in done.stderr.decode().splitlines()[-1]


#: An engine that runs everything at once, and makes mistakes when the request says so.
ODD_ENGINE = """
from concurrent.futures import Future
from ipcsrv.worker.executors import Result, State
from ipcsrv.worker.executors.remote import run


class Odd:
    def submit(self, call, receive):
        future = Future()
        if call.request == b"pieces":
            receive(b"first ")
            future.set_result(Result(b"rest", sent=6))
        elif call.request == b"no traceback":
            future.set_result(Result(code="handler", text="Odd: told"))
        elif call.request != b"never":
            future.set_result(run(call, lambda: False))
        return future

    def cancel(self, future):
        raise OSError("cannot cancel")

    def close(self):
        pass

    def describe(self):
        return "odd"


def connect(address, work, tell):
    tell(7 if address == "state" else State.CONNECTED, "")
    return None if address == "nothing" else Odd()
"""


def test_mistakes_of_an_engine_are_told(server: ServerFactory, tmp_path: Path) -> None:
    (tmp_path / "odd_engine.py").write_text(ODD_ENGINE)
    running = server(HANDLER, "--workers", "1", "--executor", "odd_engine:1", "--request-timeout", "0.5",
                     "--chdir", os.fspath(tmp_path))
    assert running.call(b"pieces") == b"first rest"
    with pytest.raises(ipcsrv.HandlerTimeout, match="see the server's log"):
        running.call(b"never")
    running.output.wait_for("odd_engine:1 cannot cancel a request")
    running.output.wait_for("cancelled a request on odd_engine:1 after request_timeout")
    with pytest.raises(ipcsrv.HandlerError, match="Odd: told"):
        running.call(b"no traceback")
    running.output.wait_for("the handler failed on odd: Odd: told")
    with pytest.raises(ipcsrv.HandlerError, match=r"Silent: \(its text cannot be made: ValueError\)"):
        running.call(b"fail_silently ")
    running.output.wait_for("in fail_silently")


def test_missing_extra_is_named(sock_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    support.hide("distributed", tmp_path, monkeypatch)
    done = support.run_command("run", sock_path, HANDLER, "--executor", "dask:tcp://127.0.0.1:1")
    assert done.returncode == 2
    assert "pip install 'ipcsrv[dask]'" in done.stderr.decode().splitlines()[-1]


def test_scheduler_that_is_gone_is_found_again(cluster: Cluster, server: ServerFactory) -> None:
    running = server(HANDLER, "--workers", "2", "--executor", f"dask:{cluster.address}", "--request-timeout", "8")
    running.output.wait_for("is connected")
    assert running.call(b"upper a") == b"A"
    cluster.close()  # this test is the last one that uses the cluster
    running.output.wait_for("cannot be reached")
    assert running.status()["executor"]["state"] == "unreachable"
    began = time.monotonic()
    with pytest.raises(ipcsrv.ServerBusy, match="cannot be reached"):
        running.call(b"upper a")
    assert time.monotonic() - began < 2
    cluster.start_scheduler()
    cluster.workers[:] = [cluster.start_worker()]
    support.wait_until(lambda: running.status()["executor"]["state"] == "connected")
    assert running.call(b"upper a", timeout=support.TIMEOUT) == b"A"
    running.output.wait_for("is connected")
    assert str(running.output).count("cannot be reached") == 1
