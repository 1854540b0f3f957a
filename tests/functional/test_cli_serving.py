"""`ipcsrv run`, `start`, `stop`, `restart`, `reload` and `status` as a user runs them."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import support
from conftest import ServerFactory

from ipcsrv.cli.showing import WIDTH


@pytest.fixture(autouse=True)
def _own_state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where background servers keep their logs: not in the user's own folder."""
    monkeypatch.setenv(support.HOME_OF_LOGS, str(tmp_path))


@pytest.fixture
def daemon_path(sock_path: str) -> Iterator[str]:
    """A path at which a test may leave a background server; it is stopped at the end."""
    yield sock_path
    support.run_command("stop", sock_path, "--now")


def started(path: str, *options: str) -> CompletedProcess[bytes]:
    return support.run_command("start", path, "handlers_for_tests:echo", "--workers", "1", *options)


def status(path: str) -> dict[str, object]:
    done = support.run_command("status", path, "--json")
    assert (done.returncode, done.stderr) == (0, b"")
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


# -- run ---------------------------------------------------------------------------------------------------------------


def test_run_says_where_it_is_who_serves_and_how_to_stop_it(echo_server: support.RunningServer) -> None:
    echo_server.output.wait_for("stop ")
    said = str(echo_server.output)
    for expected in (echo_server.path, f"pid {echo_server.pid}", "workers", ".ipcsrv.lock", "log", "Ctrl-C"):
        assert expected in said
    pids = {int(pid) for pid in re.findall(r"\d+", echo_server.output.wait_for("workers  pids"))}
    assert pids <= echo_server.workers()
    assert len(pids) == 2


@pytest.mark.usefixtures("leaves_nothing")
def test_ctrl_c_stops_a_server_cleanly(server: ServerFactory) -> None:
    running = server("handlers_for_tests:echo", "--workers", "2")
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does: to the workers too
    assert running.wait() == 0
    assert "Traceback" not in running.output.rest()


def test_a_second_server_at_a_path_exits_6_and_names_the_first(echo_server: support.RunningServer) -> None:
    for command in ("run", "start"):
        done = support.run_command(command, echo_server.path, "handlers_for_tests:echo")
        assert done.returncode == 6
        assert str(echo_server.pid) in done.stderr.decode().splitlines()[-1]
    assert echo_server.call(b"still here") == b"still here"


@pytest.mark.parametrize("command", ["run", "start"])
@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("no_such_module:handle", "no_such_module"),
        ("handlers_for_tests:no_such_name", "no_such_name"),
        ("handlers_for_tests:__name__", "__name__"),
        ("handlers_for_tests", "handlers_for_tests"),
        ("raises_at_import:handle", "broken on purpose"),
    ],
)
def test_a_handler_that_cannot_be_imported_exits_2_and_says_why(
    command: str, target: str, said: str, sock_path: str, tmp_path: Path
) -> None:
    (tmp_path / "raises_at_import.py").write_text("raise RuntimeError('broken on purpose')\n")
    where = os.pathsep.join([str(tmp_path), support.environment()["PYTHONPATH"]])
    done = support.run_command(command, sock_path, target, "--workers", "1", PYTHONPATH=where)
    assert done.returncode == 2
    last = done.stderr.decode().splitlines()[-1]
    assert last.startswith("ipcsrv: ")
    assert said in last
    assert os.listdir(os.path.dirname(sock_path)) == []


@pytest.mark.parametrize("command", ["run", "start"])
def test_a_path_where_no_server_can_be_exits_7_and_is_left_alone(command: str, sock_dir: str) -> None:
    plain, folder, link = (os.path.join(sock_dir, name) for name in ("plain", "folder", "link"))
    Path(plain).write_text("mine")
    os.mkdir(folder)
    os.symlink(plain, link)
    for path in (plain, folder, link):
        done = support.run_command(command, path, "handlers_for_tests:echo", "--workers", "1")
        assert (path, done.returncode) == (path, 7)
        assert path in done.stderr.decode().splitlines()[-1]
    assert Path(plain).read_text() == "mine"
    assert os.path.isdir(folder)
    assert os.path.islink(link)


def test_a_module_in_the_current_folder_is_found(
    server: ServerFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here.py").write_text("def handle(request): return b'from here'\n")
    monkeypatch.chdir(tmp_path)
    assert server("here:handle", "--workers", "1").call() == b"from here"


def test_print_settings_reads_flags_variables_and_files_and_serves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ipcsrv.toml").write_text("# ours\nmode = '0660'\n")
    monkeypatch.chdir(tmp_path)
    done = support.run_command("run", "--print-settings", "--workers", "3", IPCSRV_BACKLOG="5")
    assert (done.returncode, done.stderr) == (0, b"")
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.decode().splitlines()}
    assert rows["workers"] == ["3", "--workers"]
    assert rows["backlog"] == ["5", "IPCSRV_BACKLOG"]
    assert rows["mode"] == ["0660", "ipcsrv.toml:2"]
    assert rows["preload"] == ["on", "default"]


# -- start, stop, restart, reload --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("leaves_nothing")
def test_start_returns_once_it_listens_and_stop_once_nothing_is_left(sock_path: str, tmp_path: Path) -> None:
    done = started(sock_path, "--log-file", str(tmp_path / "log"))
    assert (done.returncode, done.stderr) == (0, b"")
    pid = int(re.findall(rb"pid (\d+)", done.stdout)[0])
    assert support.run_command("call", sock_path, "x").stdout == b"x"
    assert support.run_command("stop", sock_path).returncode == 0
    assert support.wait_gone({pid}, timeout=0) == set()
    assert support.run_command("is-active", sock_path).returncode == 3


def test_restart_brings_a_new_server_with_the_same_settings(daemon_path: str, tmp_path: Path) -> None:
    started(daemon_path, "--log-file", str(tmp_path / "log"), "--backlog", "77")
    before = status(daemon_path)
    assert support.run_command("restart", daemon_path).returncode == 0
    after = status(daemon_path)
    assert after["pid"] != before["pid"]
    assert after["settings"] == before["settings"]


def test_restart_from_another_folder_keeps_the_servers_own(
    daemon_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one").mkdir()
    monkeypatch.chdir(tmp_path / "one")
    Path("local_words.py").write_text("import os\ndef folder(request): return os.getcwd().encode()\n")
    done = support.run_command("start", daemon_path, "local_words:folder", "--workers", "1", "--log-file", "log")
    assert (done.returncode, done.stderr) == (0, b"")
    before = status(daemon_path)
    monkeypatch.chdir(tmp_path)
    assert support.run_command("restart", daemon_path).returncode == 0
    after = status(daemon_path)
    assert after["settings"] == before["settings"]
    assert after["log_file"] == before["log_file"] == str(tmp_path / "one" / "log")
    assert support.run_command("call", daemon_path).stdout == os.fsencode(tmp_path / "one")


def test_reload_brings_new_workers_in_the_same_server(echo_server: support.RunningServer) -> None:
    before = echo_server.workers()
    done = support.run_command("reload", echo_server.path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"generation 2" in done.stdout
    facts = status(echo_server.path)
    assert (facts["pid"], facts["generation"]) == (echo_server.pid, 2)
    assert isinstance(facts["workers"], list)
    assert not {worker["pid"] for worker in facts["workers"] if worker["generation"] == 2} & before


@pytest.mark.parametrize("command", ["stop", "restart", "reload", "status"])
def test_where_no_server_is_it_exits_3_in_one_line(command: str, sock_path: str) -> None:
    done = support.run_command(command, sock_path)
    assert (done.returncode, done.stdout) == (3, b"")
    assert done.stderr.startswith(b"ipcsrv: ")
    assert done.stderr.count(b"\n") == 1


def test_stop_gives_up_in_time_and_stop_now_does_not_wait(server: ServerFactory) -> None:
    running = server("handlers_for_tests:slow", "--workers", "1")
    import threading

    import ipcsrv

    def ask() -> None:
        with pytest.raises(ipcsrv.IpcError):
            ipcsrv.call(running.path, b"600000", timeout=support.TIMEOUT)

    asking = threading.Thread(target=ask)
    asking.start()
    while not any(worker["state"] == "busy" for worker in status(running.path)["workers"]):  # type: ignore[attr-defined]
        pass
    done = support.run_command("stop", running.path, "--timeout", "0.3")
    assert done.returncode == 4
    assert running.process.poll() is None
    done = support.run_command("stop", running.path, "--timeout", "0.3", "--now")
    assert done.returncode == 0
    running.wait()
    asking.join(support.TIMEOUT)


# -- status ------------------------------------------------------------------------------------------------------------


def test_status_shows_every_worker_within_80_columns(echo_server: support.RunningServer) -> None:
    echo_server.call(b"x")
    done = support.run_command("status", echo_server.path)
    assert (done.returncode, done.stderr) == (0, b"")
    lines = done.stdout.decode().splitlines()
    assert max(map(len, lines)) <= WIDTH
    text = "\n".join(lines)
    assert f"pid {echo_server.pid}" in text
    assert "1 ok" in text
    for worker in status(echo_server.path)["workers"]:  # type: ignore[attr-defined]
        assert f" {worker['pid']} " in text


def test_status_as_json_has_the_documented_keys(echo_server: support.RunningServer) -> None:
    echo_server.call(b"four")
    facts = status(echo_server.path)
    page = (support.ROOT / "docs" / "control.md").read_text()
    documented = set(re.findall(r"^\| `([a-z_]+)[`.\[]", page, re.MULTILINE))
    assert set(facts) - {"ok"} == documented
    assert set(re.findall(r"`totals\.([a-z_]+)`", page)) == set(facts["totals"])  # type: ignore[call-overload]
    for worker in facts["workers"]:  # type: ignore[attr-defined]
        assert set(re.findall(r"`workers\[\]\.([a-z_]+)`", page)) == set(worker)
    assert facts["totals"]["ok"] == 1  # type: ignore[index]
    assert facts["totals"]["bytes_in"] == 4  # type: ignore[index]


def test_status_as_metrics_is_what_prometheus_reads(echo_server: support.RunningServer) -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    done = support.run_command("status", echo_server.path, "--metrics")
    assert (done.returncode, done.stderr) == (0, b"")
    names = {family.name for family in parser.text_string_to_metric_families(done.stdout.decode())}
    assert {"ipcsrv_info", "ipcsrv_workers", "ipcsrv_queue_depth", "ipcsrv_requests"} <= names
