"""`ipcsrv run`, `start`, `stop`, `restart`, `reload` and `status` as a user runs them."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import support
from conftest import ServerFactory

WIDTH = 80


@pytest.fixture(autouse=True)
def _own_state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs of background servers go to the test's folder, not to the user's."""
    monkeypatch.setenv(support.HOME_OF_LOGS, str(tmp_path))


@pytest.fixture
def daemon_path(sock_path: str) -> Iterator[str]:
    """A path at which a background server of a test is stopped at the end."""
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


@contextmanager
def in_a_terminal(*arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[str], str]]]:
    """Run a command with a terminal as standard error; gives it and a function that reads until a text came."""
    ours, theirs = os.openpty()
    process = subprocess.Popen([sys.executable, "-m", "ipcsrv", *arguments], stdin=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL, stderr=theirs, env=support.environment())  # fmt: skip
    seen = ""

    def read_until(text: str) -> str:
        nonlocal seen
        while text not in seen:
            assert select.select([ours], [], [], support.TIMEOUT)[0], f"no {text!r} in {seen!r}"
            seen += os.read(ours, 65536).decode()
        return seen

    try:
        yield process, read_until
    finally:
        process.terminate()
        process.wait(support.TIMEOUT)
        os.close(ours)
        os.close(theirs)


def test_banner_says_who_serves_where(sock_path: str) -> None:
    with in_a_terminal("run", sock_path, "handlers_for_tests:echo", "-w2") as (process, read_until):
        said = read_until("ipcsrv stop ")
        for expected in (sock_path, f"pid {process.pid}", "workers", ".ipcsrv.lock", "log", "Ctrl-C"):
            assert expected in said
        workers = {worker["pid"] for worker in status(sock_path)["workers"]}  # type: ignore[attr-defined]
        assert set(map(int, re.findall(r"workers  pids (\d+) (\d+)", said)[0])) == workers


def test_banner_is_for_terminals_and_text_logs(sock_path: str, server: ServerFactory) -> None:
    with in_a_terminal("run", sock_path, "handlers_for_tests:echo", "--log-format", "json") as (_, read_until):
        said = read_until("listening on ")
        assert [json.loads(line)["level"] for line in said.splitlines() if "listening" in line] == ["info"]
        assert "Ctrl-C" not in said
    running = server("handlers_for_tests:echo")
    running.stop()
    assert "Ctrl-C" not in running.output.rest()


def test_standard_error_is_json_to_the_end(sock_path: str, server: ServerFactory) -> None:
    running = server("handlers_for_tests:echo", "-w1", "--log-format", "json")
    second = support.run_command("run", sock_path, "handlers_for_tests:echo", IPCSRV_LOG_FORMAT="json")
    running.stop()
    for line in (*running.output.rest().splitlines(), *second.stderr.decode().splitlines()):
        assert {"time", "level", "logger", "pid", "message"} <= json.loads(line).keys()
    assert second.returncode == 6
    assert "address in use" in json.loads(second.stderr.splitlines()[-1])["message"]


@pytest.mark.usefixtures("leaves_nothing")
def test_ctrl_c_stops_a_server_cleanly(server: ServerFactory) -> None:
    running = server("handlers_for_tests:echo", "--workers", "2")
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does: to the workers too
    assert running.wait() == 0
    assert "Traceback" not in running.output.rest()


def test_second_server_exits_6_and_names_the_first(echo_server: support.RunningServer) -> None:
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
        ("raises_at_import:handle", "broken on purpose"),
    ],
)
def test_bad_handler_exits_2_and_says_why(
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
def test_impossible_path_exits_7_and_is_unchanged(command: str, sock_dir: str) -> None:
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


def test_module_in_the_current_folder_is_found(
    server: ServerFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here.py").write_text("def handle(request): return b'from here'\n")
    monkeypatch.chdir(tmp_path)
    assert server("here:handle", "--workers", "1").call() == b"from here"


def test_print_settings_shows_values_and_sources(
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


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sock_path: str) -> Path:
    """A folder with a handler and an ipcsrv.toml, which is the current folder."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "words.py").write_text("def count(request): return b'%d' % len(request.split())\n")
    (folder / "ipcsrv.toml").write_text(f"path = '{sock_path}'\nhandler = 'words:count'\nworkers = 1\n")
    monkeypatch.chdir(folder)
    return folder


def test_start_without_operands_serves_the_project(project: Path, daemon_path: str) -> None:
    done = support.run_command("start")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.rstrip().endswith(b", settings of ipcsrv.toml")
    assert support.run_command("call", daemon_path, "a b c").stdout == b"3"
    assert len(status(daemon_path)["workers"]) == 1  # type: ignore[arg-type]


def test_project_file_is_named_in_the_banner(project: Path) -> None:
    with in_a_terminal("run") as (_, read_until):
        assert f"config   {project}/ipcsrv.toml" in read_until("ipcsrv stop ")


def test_project_file_is_not_read_with_operands(project: Path, sock_path: str) -> None:
    (project / "ipcsrv.toml").write_text("on_worker_start = 'words:no_such_hook'\n")
    done = support.run_command("run", sock_path, "words:count", "--check-config")
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("", "ipcsrv.toml is valid: "),
        ("wrokers = 2", "ipcsrv.toml, line 4: wrokers: there is no such setting; did you mean `workers`?"),
        ("workers = 'many'", "ipcsrv.toml"),
        ("handler = 'words:cuont'", "module words has no 'cuont'; did you mean `words:count`?"),
        ("on_worker_start = 'words:begin'", "cannot load on_worker_start words:begin"),
        ("chdir = '/nowhere'", "ipcsrv.toml, line 4: the folder /nowhere does not exist"),
        ("path = 3", "path: 3 is not text"),
        ("path = 'unix:/tmp/x'", "use /tmp/x"),
        ("allow = 'no-such-user'", "no-such-user' on this system"),
        ("allow = [['root']]", "is not a list of users or groups"),
        ("log_file = '/nowhere/log'", "ipcsrv.toml, line 4: log_file: there is no folder "),
    ],
)
def test_check_config_imports_but_does_not_serve(change: str, said: str, project: Path, sock_path: str) -> None:
    file = project / "ipcsrv.toml"
    lines = [line for line in file.read_text().splitlines() if line.split()[0] != change.partition(" ")[0]]
    file.write_text("\n".join([*lines, *["# "] * (3 - len(lines)), change]))
    for command in ("run", "start"):
        done = support.run_command(command, "--check-config")
        assert done.returncode == (2 if change else 0), done.stderr
        assert said in (done.stderr if change else done.stdout).decode()
        assert (done.stdout + done.stderr).count(b"\n") == 1
    assert not os.path.exists(sock_path)


# -- start, stop, restart, reload --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("leaves_nothing")
def test_start_and_stop_return_when_done(sock_path: str, tmp_path: Path) -> None:
    done = started(sock_path, "--log-file", str(tmp_path / "log"))
    assert (done.returncode, done.stderr) == (0, b"")
    pid = int(re.findall(rb"pid (\d+)", done.stdout)[0])
    assert support.run_command("call", sock_path, "x").stdout == b"x"
    assert support.run_command("stop", sock_path).returncode == 0
    assert support.wait_gone({pid}, timeout=0) == set()
    assert support.run_command("is-active", sock_path).returncode == 3


def test_restart_keeps_the_settings(daemon_path: str, tmp_path: Path) -> None:
    started(daemon_path, "--log-file", str(tmp_path / "log"), "--backlog", "77")
    before = status(daemon_path)
    assert support.run_command("scale", daemon_path, "3").returncode == 0
    assert support.run_command("restart", daemon_path).returncode == 0
    after = status(daemon_path)
    assert after["pid"] != before["pid"]
    assert (after["settings"], after["workers_wanted"]) == (before["settings"], before["workers_wanted"])


def test_restart_of_a_foreground_server_is_refused(echo_server: support.RunningServer) -> None:
    done = support.run_command("restart", echo_server.path)
    assert done.returncode == 2
    assert b"runs in the foreground" in done.stderr
    assert b"or use `reload`" in done.stderr
    assert echo_server.call(b"still here") == b"still here"


@pytest.mark.skipif(os.name == "nt", reason="a folder that a process is in cannot go here")
def test_folder_that_has_gone_is_named_before_anything_is_stopped(daemon_path: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    assert started(daemon_path, "--log-file", str(tmp_path / "log"), "--chdir", str(folder)).returncode == 0
    folder.rmdir()
    for command in ("reload", "restart"):
        done = support.run_command(command, daemon_path)
        assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
        assert os.fsencode(folder) in done.stderr and b"folder" in done.stderr
    assert support.run_command("call", daemon_path, "x").stdout == b"x"


@pytest.mark.skipif(not support.paths_are_sockets, reason="modes and lock files are those of Unix")
def test_server_that_could_not_start_again_is_not_stopped(daemon_path: str, tmp_path: Path) -> None:
    module = tmp_path / "local_words.py"
    module.write_text("def handle(request): return request\n")
    done = support.run_command("start", daemon_path, "local_words:handle", "--workers", "1", "--log-file",
                               str(tmp_path / "log"), PYTHONPATH=str(tmp_path))  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    pid, folder, lock = status(daemon_path)["pid"], Path(daemon_path).parent, Path(daemon_path + ".ipcsrv.lock")

    def refused(code: int, reason: str) -> None:
        done = support.run_command("restart", daemon_path, PYTHONPATH=str(tmp_path))
        assert (done.returncode, done.stderr.count(b"\n")) == (code, 1), done.stderr
        assert reason.encode() in done.stderr
        assert status(daemon_path)["pid"] == pid

    module.write_text("def handle(request: return request\n")
    refused(2, "SyntaxError")
    module.write_text("def handle(request): return request\n")
    folder.chmod(0o777)
    refused(7, "not sticky")
    folder.chmod(0o700)
    Path(daemon_path + ".lock").touch()
    refused(6, f"{daemon_path}.lock exists")
    os.unlink(daemon_path + ".lock")
    os.link(lock, folder / "other")
    refused(7, f"{lock} is not a regular file of yours")
    os.unlink(folder / "other")
    assert support.run_command("restart", daemon_path, PYTHONPATH=str(tmp_path)).returncode == 0
    assert status(daemon_path)["pid"] != pid


def test_restart_keeps_the_folder_of_the_server(
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


def test_reload_replaces_the_workers(echo_server: support.RunningServer) -> None:
    before = echo_server.workers()
    done = support.run_command("reload", echo_server.path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"generation 2" in done.stdout
    facts = status(echo_server.path)
    assert (facts["pid"], facts["generation"]) == (echo_server.pid, 2)
    assert isinstance(facts["workers"], list)
    assert not {worker["pid"] for worker in facts["workers"] if worker["generation"] == 2} & before


@pytest.mark.parametrize("command", ["stop", "restart", "reload", "status", "ping", "scale", "logs"])
def test_without_a_server_it_exits_3_in_one_line(command: str, sock_path: str) -> None:
    done = support.run_command(command, sock_path, *(["2"] if command == "scale" else []))
    assert (done.returncode, done.stdout) == (3, b"")
    assert done.stderr.startswith(b"ipcsrv: ")
    assert done.stderr.count(b"\n") == 1


def test_stop_gives_up_in_time_unless_now(server: ServerFactory) -> None:
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


def call_and_wait_until_it_is_counted(server: support.RunningServer, request: bytes) -> None:
    server.call(request)  # which returns before the worker has counted it
    support.wait_until(lambda: server.status()["totals"]["ok"] == 1, "the request is counted")


def test_status_shows_every_worker(echo_server: support.RunningServer) -> None:
    call_and_wait_until_it_is_counted(echo_server, b"x")
    done = support.run_command("status", echo_server.path)
    assert (done.returncode, done.stderr) == (0, b"")
    lines = done.stdout.decode().splitlines()
    assert max(map(len, lines)) <= WIDTH
    text = "\n".join(lines)
    assert f"pid {echo_server.pid}" in text
    assert "1 ok" in text
    for worker in status(echo_server.path)["workers"]:  # type: ignore[attr-defined]
        assert f" {worker['pid']} " in text


def test_status_json_has_the_documented_keys(echo_server: support.RunningServer) -> None:
    call_and_wait_until_it_is_counted(echo_server, b"four")
    facts = status(echo_server.path)
    page = (support.ROOT / "docs" / "control.md").read_text()
    documented = set(re.findall(r"^\| `([a-z_]+)[`.\[]", page, re.MULTILINE))
    of_proc = set() if support.have_proc else {"pid_namespace", "started_ticks"}
    assert set(facts) - {"ok"} == documented - of_proc
    assert set(re.findall(r"`totals\.([a-z_]+)`", page)) == set(facts["totals"])  # type: ignore[call-overload]
    for worker in facts["workers"]:  # type: ignore[attr-defined]
        assert set(re.findall(r"`workers\[\]\.([a-z_]+)`", page)) == set(worker)
    assert facts["totals"]["ok"] == 1  # type: ignore[index]
    assert facts["totals"]["bytes_in"] == 4  # type: ignore[index]


def test_status_metrics_are_what_prometheus_reads(echo_server: support.RunningServer) -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    done = support.run_command("status", echo_server.path, "--metrics")
    assert (done.returncode, done.stderr) == (0, b"")
    names = {family.name for family in parser.text_string_to_metric_families(done.stdout.decode())}
    assert {"ipcsrv_info", "ipcsrv_workers", "ipcsrv_queue_depth", "ipcsrv_requests"} <= names
