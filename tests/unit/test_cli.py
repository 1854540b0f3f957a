"""The command line from inside: `main(argv)` in this process, its parsers, help, tables, messages and exit codes.

Tests that need a server use a stand-in, a thread that speaks as little of the protocol as they need; the real command
and the real server meet in tests/functional.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sample_status import STATUS

from ipcsrv import errors
from ipcsrv.cli import _commands, _light, _metrics, _parser, _style, _text, logs, main, messages, status
from ipcsrv.cli import list as list_command
from ipcsrv.config.settings import TABLE

OPERANDS = {"PATH": "./s", "MODULE:HANDLER": "zlib:compress", "MODULE:MAIN": "app:main", "SHELL": "bash", "N": "2"}
WIDTH = 80


@pytest.fixture(autouse=True)
def _messages_as_text() -> Iterator[None]:
    yield
    messages.use_json(False)


# -- the light parser --------------------------------------------------------------------------------------------------


def parsed_by_argparse(words: list[str]) -> dict[str, Any] | None:
    """What argparse makes of the words, None if it refuses them."""
    try:
        found = vars(_parser.build(_commands.commands()[words[0]]).parse(words[1:]))
    except (messages.UsageError, SystemExit):
        return None
    return {name: found.get(name) or False if name in ("worker", "verbose") else found.get(name)
            for name in _light.Arguments.__slots__}  # fmt: skip


def command_lines() -> Iterator[list[str]]:
    """Command lines of up to four words from a few that are usual, odd or wrong."""
    words = ["./s", "data", "", "-", "-x", "--", "--timeout", "-t", "--autostart", "3", "0", "1.5", ".5", "1.2.3", "5m",
             "-1", "--timeout=2", "a:b", "--time", "-h", "٣", "--worker", "-t2", "@file"]  # fmt: skip
    for command in ("call", "is-active", "ping"):
        for first in ["./s", "--timeout", "--autostart", "-h", "--worker", ""]:
            for second in words:
                yield [command, first, second]
                for third in words:
                    yield [command, first, second, third]
        yield from ([command], [command, "./s"], [command, "./s", "x", "--timeout", "3"])
        yield [command, "--timeout", "3", "./s", "--autostart", "a:b", "x"]
        yield [command, "--timeout", "3", "-t", "4", "./s", "x"]
        yield [command, "./s", "--worker", "-t", "4"]


def test_light_parser_agrees_with_argparse(capfd: pytest.CaptureFixture[str]) -> None:
    understood = 0
    for words in command_lines():
        found = _light.parse(words)
        if found is not None:
            understood += 1
            assert {name: getattr(found, name) for name in found.__slots__} == parsed_by_argparse(words), words
    assert understood > 50


@pytest.mark.parametrize("line", ["", "run ./s a:b", "call", "call -h", "is-active ./s --timeout 3", "call a b c",
                                  "call ./s --worker", "ping ./s x", "ping ./s -v", "call -- -s"])  # fmt: skip
def test_light_parser_leaves_the_rest_to_argparse(line: str) -> None:
    assert _light.parse(shlex.split(line)) is None


def test_light_parser_takes_any_order() -> None:
    found = _light.parse(["call", "-t", "2.5", "./s", "--autostart", "a:b", "x y"])
    assert found is not None
    assert (found.path, found.data, found.timeout, found.autostart) == ("./s", "x y", 2.5, "a:b")


# -- argparse ----------------------------------------------------------------------------------------------------------


def parsed(*words: str) -> dict[str, Any]:
    return vars(_parser.build(_commands.commands()[words[0]]).parse(words[1:]))


def test_short_flags_are_their_long_forms() -> None:
    assert parsed("run", "./s", "a:b", "-w4", "-c", "f.toml", "-v") == parsed(
        "run", "./s", "a:b", "--workers", "4", "--config", "f.toml", "--verbose")
    assert parsed("start", "./s", "a:b", "-q", "-t", "3")["verbosity"] == "warning"
    assert parsed("call", "./s", "-t", "3s")["timeout"] == 3.0


@pytest.mark.parametrize("words", [["./s", "--", "-x"], ["--", "./s", "-x"], ["-t", "3", "--", "./s", "-x"]])
def test_words_after_two_dashes_are_operands(words: list[str]) -> None:
    found = parsed("call", *words)
    assert (found["path"], found["data"]) == ("./s", "-x")


@pytest.mark.parametrize("command", [name for name in _commands.commands() if name != "warm"])
def test_path_may_begin_with_a_dash(command: str) -> None:
    rest = _commands.commands()[command].operands.replace("[", "").replace("]", "").split()
    if rest[:1] == ["PATH"]:
        words = ["-s", *(OPERANDS[word] for word in rest[1:] if word in OPERANDS)]
        assert parsed(command, "--", *words)["path"] == "-s"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "no command given; see `ipcsrv --help`"),
        ("strat ./s a:b", "unknown command strat; did you mean `start`?"),
        ("serve ./s a:b", "unknown command serve; did you mean `run`?"),
        ("ps", "unknown command ps; did you mean `list`?"),
        ("xyzzy", "unknown command xyzzy; see `ipcsrv --help`"),
        ("--workers 3", "unknown option --workers; see `ipcsrv --help`"),
        ("call", "PATH is missing; usage: ipcsrv call PATH [DATA] [OPTIONS]"),
        ("scale", "PATH and N are missing; usage: ipcsrv scale PATH N [OPTIONS]"),
        ("scale ./s 0", "N: '0' is not between 1 and 1024; see `ipcsrv scale --help`"),
        ("scale ./s two", "N: 'two' is not a whole number; see `ipcsrv scale --help`"),
        ("call ./s a b", "unexpected operand b; usage: ipcsrv call PATH [DATA] [OPTIONS]"),
        ("call ./s --timeout soon", "-t/--timeout: 'soon' is not a time such as 30, 30s, 250ms, 5m or 1h; see"),
        ("call ./s --timeout 0", "-t/--timeout: '0' is not above 0; see `ipcsrv call --help`"),
        ("call ./s --timeout", "-t/--timeout: expected one argument; see `ipcsrv call --help`"),
        ("call ./s --timeuot 3", "unknown option --timeuot; did you mean `--timeout`?"),
        ("call ./s @/nowhere", "@/nowhere: No such file or directory; to send text that begins with @, use"),
        ("run ./s a:b --threads 4", "unknown option --threads; ipcsrv uses processes: `--workers N`"),
        ("run ./s a:b --timeout 4", "unknown option --timeout; `--request-timeout` bounds the handler"),
        ("run ./s a:b --daemon", "unknown option --daemon; use `ipcsrv start`"),
        ("run --bind ./s a:b", "unknown option --bind; the first operand, PATH, is the address"),
        ("run", "PATH and MODULE:HANDLER are missing, and there is no ipcsrv.toml here; try `ipcsrv run ./z.sock"),
        ("start ./s", "MODULE:HANDLER is missing; try `ipcsrv start ./s zlib:compress`"),
        ("run app.words:count", "PATH is missing; try `ipcsrv run ./words.sock app.words:count`"),
        ("run zlib:compress ./z.sock", "PATH comes before MODULE:HANDLER; try `ipcsrv run ./z.sock zlib:compress`"),
        ("run ./s a:b --workers many", "--workers: 'many' is not a whole number"),
        ("run ./s a:b --start-method thread", "--start-method: 'thread' is not one of auto, fork, forkserver, spawn"),
        ("run ./s a:b --config /nowhere.toml", "/nowhere.toml: cannot be read: No such file or directory"),
        ("run ./s a:b --chdir /nowhere", "--chdir: the folder /nowhere does not exist"),
        ("status ./s --json --metrics", "--metrics: not allowed with argument --json; see `ipcsrv status --help`"),
        ("completion tcsh", "SHELL: invalid choice: 'tcsh'"),
    ],
)
def test_usage_error_is_one_line(
    line: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(line)) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"ipcsrv: {said}")
    assert shown.err.count("\n") == 1


# -- help --------------------------------------------------------------------------------------------------------------


def test_general_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for command in _commands.commands().values():
        assert f"\n  {command.name} {command.operands}" in shown
    assert max(map(len, shown.splitlines())) <= WIDTH


@pytest.mark.parametrize("word", ["-V", "--version", "version"])
def test_version_is_that_of_the_package(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    import ipcsrv

    assert main([word]) == 0
    assert capsys.readouterr().out == f"ipcsrv {ipcsrv.__version__}\n"


@pytest.mark.parametrize("name", sorted(_commands.commands()))
def test_help_of_each_command_fits_80_columns(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: ipcsrv {name}")
    assert max(map(len, shown.splitlines())) <= WIDTH
    assert main(["help", name]) == 0
    assert capsys.readouterr().out == shown


def test_help_of_run_shows_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    main(["run", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for setting in TABLE:
        assert f" {setting.flag}" in shown
    assert "--drain-timeout TIME" in shown
    assert "(default: 30s)" in shown
    assert "TIME is seconds or has a unit" in shown


def test_every_command_can_be_built_and_run() -> None:
    for command in _commands.commands().values():
        operands = [OPERANDS[word.strip("[]")] for word in command.operands.split() if word.strip("[]") in OPERANDS]
        assert _parser.build(command).parse(operands).command == command.name
        assert callable(command.load().run)


def test_command_without_its_module_is_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = _commands.Command("gone", "More", "", "has no module")
    monkeypatch.setattr(_commands, "_TABLE", (*_commands._TABLE, gone))
    assert "gone" not in _commands.commands()
    assert _commands.find("gone") is None


# -- messages and exit codes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.HandlerError("ValueError: x"), 1),
        (errors.HandlerCrashed("worker 7 was killed by SIGSEGV"), 1),
        (errors.StartError("workers die"), 1),
        (errors.HandlerImportError("a:b"), 2),
        (errors.SettingsError("x"), 2),
        (messages.UsageError("x"), 2),
        (errors.NotListening("./s"), 3),
        (errors.PathNotFound("./s"), 3),
        (errors.ConnectionLost("./s"), 3),
        (errors.CallTimeout("./s", 2.0), 4),
        (errors.Denied("no"), 5),
        (errors.Untrusted("./s"), 5),
        (errors.AddressInUse("./s", 1, "x"), 6),
        (errors.InvalidPath("./s", "it is a folder"), 7),
        (errors.SocketStolen("./s"), 8),
        (OSError(errno.EMFILE, "Too many open files"), 1),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 1),
    ],
)
def test_error_is_one_line_and_its_exit_code(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert messages.report(error) == code
    shown = capsys.readouterr()
    assert (shown.out, shown.err[:8], shown.err.count("\n")) == ("", "ipcsrv: ", 1)


def test_ctrl_c_prints_nothing_and_exits_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert messages.report(KeyboardInterrupt()) == 130
    assert capsys.readouterr() == ("", "")


def test_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        messages.report(ZeroDivisionError())


def test_message_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    messages.complain("a\nb\x1b\udcff")
    assert capsys.readouterr().err == "ipcsrv: a b\\x1b\\udcff\n"


def test_unwritable_standard_error_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    with open(os.devnull) as unwritable:
        monkeypatch.setattr("sys.stderr", unwritable)
        messages.complain("x")


def test_message_is_json_when_the_log_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IPCSRV_LOG_FORMAT", raising=False)
    for line in ("run ./s --log-format json", "run ./s nope:x --log-format=json --bad"):
        assert main(shlex.split(line)) == 2
        record = json.loads(capsys.readouterr().err)
        assert (record["level"], record["logger"], record["pid"]) == ("error", "ipcsrv.cli", os.getpid())
        assert record["message"]
        assert record["time"].endswith("Z")
    monkeypatch.setenv("IPCSRV_LOG_FORMAT", "json")
    assert main(["call"]) == 2  # of `run` alone
    assert capsys.readouterr().err.startswith("ipcsrv: ")


def test_output_is_escaped_in_an_ascii_locale() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-m", "ipcsrv", "doctor", "/tmp/é/x"], capture_output=True, env=environment)
    assert (done.returncode, done.stderr) == (1, b"")
    assert b"\\xe9" in done.stdout


# -- call and is-active, against a stand-in ----------------------------------------------------------------------------


@contextmanager
def stand_in(path: str, reply: bytes) -> Iterator[list[bytes]]:
    """A peer that reads a message to its flush, sends `reply` and closes, as Git's server does; gives what it read."""
    read: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                data = b""
                while not data.endswith(b"0000") and (piece := connection.recv(65536)):
                    data += piece
                if data:
                    read.append(data)
                    connection.sendall(reply)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield read
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_call_sends_data_and_prints_the_response(
    sock_path: str, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    with stand_in(sock_path, b"0008\x00\xffpq0000") as read:
        assert main(["call", sock_path, "grüße"]) == 0
    assert read == [b"000bgr\xc3\xbc\xc3\x9fe0000"]
    assert capfdbinary.readouterr() == (b"\x00\xffpq", b"")


@pytest.mark.parametrize(
    ("reply", "code", "said"),
    [
        (b"0010ERR denied n", 5, "denied"),
        (b"001dERR handler ValueError: x", 1, "handler raised ValueError: x; the traceback is in the server's log"),
        (b"0014ERR crashed died", 1, "the handler's process died: died; the request may have been executed"),
        (b"000cpart", 3, "part of the response was received, so the request was executed"),
        (b"", 3, "connection closed before the response was complete"),
        (b"what is this", 1, "protocol error"),
    ],
)
def test_call_exits_with_the_code_of_the_failure(
    reply: bytes, code: int, said: str, sock_path: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with stand_in(sock_path, reply):
        assert main(["call", sock_path, "x"]) == code
    shown = capfd.readouterr().err
    assert said in shown
    assert shown.count("\n") == 1


def test_is_active_is_silent_when_a_server_listens(sock_path: str, capfd: pytest.CaptureFixture[str]) -> None:
    with stand_in(sock_path, b""):
        assert main(["is-active", sock_path]) == 0
    assert capfd.readouterr() == ("", "")


def test_is_active_says_what_is_at_the_path(sock_dir: str, capfd: pytest.CaptureFixture[str]) -> None:
    stale = os.path.join(sock_dir, "stale")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(stale)
    assert main(["is-active", stale]) == 3
    assert main(["is-active", os.path.join(sock_dir, "nothing")]) == 3
    assert main(["is-active", sock_dir]) == 7
    shown = capfd.readouterr().err.splitlines()
    assert len(shown) == 3
    assert all(line.startswith("ipcsrv: ") for line in shown)


def test_call_sends_a_file(sock_path: str, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    (tmp_path / "request").write_bytes(b"\0@\n")
    with stand_in(sock_path, b"0005x0000") as read:
        assert main(["call", sock_path, f"@{tmp_path}/request"]) == 0
    assert read == [b"0007\0@\n0000"]
    assert main(["call", sock_path, f"@{tmp_path}"]) == 2
    assert b"Is a directory" in capfdbinary.readouterr().err


@pytest.mark.parametrize(("reply", "shown"), [(b"0007abc0000", b"abc\n"), (b"0008abc\n0000", b"abc\n"), (b"0000", b"")])
def test_call_ends_the_line_on_a_terminal(reply: bytes, shown: bytes, sock_path: str) -> None:
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "ipcsrv", "call", sock_path, "x"]
    with stand_in(sock_path, reply):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, env=environment)
    os.write(theirs, b"end")
    assert (done.returncode, done.stderr) == (0, b"")
    seen = b""
    while not seen.endswith(b"end"):
        seen += os.read(ours, 100)
    assert seen.replace(b"\r\n", b"\n") == shown + b"end"
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize(
    ("answer", "words", "said"),
    [
        ({"ok": True}, [], ""),
        ({"ok": True, "worker": True}, ["--worker"], ""),
        ({"ok": True}, ["-v"], "answer from the master in "),
        ({"ok": True, "worker": True}, ["-v", "--worker"], "answer from a worker in "),
        ({"ok": True}, ["--worker"], "only the master answered, the server is older than this command; restart it"),
    ],
)
def test_ping_is_answered(
    answer: dict[str, Any], words: list[str], said: str, sock_path: str, capfd: pytest.CaptureFixture[str]
) -> None:
    data = json.dumps(answer).encode()
    with stand_in(f"{sock_path}.control", b"%04x%b0000" % (len(data) + 4, data)) as read:
        assert main(["ping", sock_path, *words]) == 0
    assert json.loads(read[0][4:-4]) == {"command": "ping", **({"worker": True} if "--worker" in words else {})}
    shown = "".join(capfd.readouterr())
    assert said in shown
    assert bool(shown) == bool(said)


def test_ping_fails_as_the_server_says(sock_path: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["ping", sock_path]) == 3
    data = json.dumps({"ok": False, "error": "no worker answered within 5 s"}).encode()
    with stand_in(f"{sock_path}.control", b"%04x%b0000" % (len(data) + 4, data)):
        assert main(["ping", sock_path, "--worker"]) == 1
    assert "no worker answered" in capfd.readouterr().err


# -- status, list, logs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 200])
def test_status_table_fits_the_width(width: int) -> None:
    lines = status.table(STATUS, width).splitlines()
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for said in ("pid 4242", "up 1d 3h", "512 waiting, the oldest for 3.50 s; not accepting", "busy 12.3 s", "123M",
                 "1.23M", "12,345 timeouts", "1,234/s in the last minute", "1.50 s", "1m 15s", "SIGSEGV",
                 "17 idle", "2 workers, 1 busy, target 2", "12,345 worker restarts"):  # fmt: skip
        assert said in text, said
    assert (text.count("x" * 100) > 0) == (width == 200)


def test_status_table_of_a_new_server_is_empty() -> None:
    nothing = {"p50": None, "p90": None, "p99": None, "p999": None}
    stages = {"queue_wait": nothing, "handler": nothing, "whole": nothing}
    facts = {
        **STATUS,
        "workers": [],
        "queue": {"depth": 0, "oldest_seconds": 0.0, "accepting": True},
        "totals": dict.fromkeys(STATUS["totals"], 0),
        "latency": {"since_start": stages, "last_minute": {**stages, "requests_per_second": 0.0}},
        "last_error": None,
        "log_file": None,
    }
    shown = status.table(facts)
    assert "queue     0 waiting\n" in shown
    assert "results   none yet\n" in shown
    assert "log       standard error\n" in shown
    assert "error  " not in shown


@pytest.mark.parametrize(
    ("states", "state", "missing"),
    [(["idle", "busy"], "running", 0), (["idle"], "running", 1), (["idle", "starting"], "running", 0),
     (["idle", "leaving"], "running", 1), ([], "running", 2), ([], "starting", 0), (["idle"], "stopping", 0)],
)  # fmt: skip
def test_missing_workers_are_counted(states: list[str], state: str, missing: int) -> None:
    workers = [{**STATUS["workers"][0], "state": each} for each in states]
    assert status.missing_workers({**STATUS, "state": state, "workers": workers}) == missing


def test_list_shortens_handlers_then_paths() -> None:
    entry = {"path": "/very/long" * 12, "handler": "package.module:handler" * 3, "name": "n", "pid": 1, "since": 1.0}
    rows = [list_command.Row(entry, STATUS), list_command.Row({**entry, "path": "/s", "pid": 4194304}, None)]
    for width in (80, 120):
        lines = list_command.table(rows, width).splitlines()
        assert max(map(len, lines)) <= width
        assert lines[1].startswith("...")
        assert lines[1].split()[-2:] == ["2", "1"]
        assert lines[2].split()[-2:] == ["?", "?"]
    assert "/very/long" * 12 in list_command.table(rows, None)


@pytest.mark.parametrize("end", [b"", b"\n"])
@pytest.mark.parametrize("count", [0, 1, 3, 5, 9])
def test_logs_begin_at_the_last_lines(count: int, end: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_BLOCK", 7)
    lines = [b"one", b"two and a half blocks", b"", b"four", b"five"]
    file = io.BytesIO(b"\n".join(lines) + end)
    file.seek(logs.start_of_last_lines(file, count))
    assert file.read() == b"\n".join(lines[len(lines) - min(count, 5) :]) + (end if count else b"")


def test_styles_are_for_terminals_with_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert _style.styled("x", "warning") == "x"
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert _style.styled("x", "warning") == "\x1b[33mx\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert _style.styled("x", "warning") == "x"


def test_metrics_are_what_prometheus_reads() -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    facts = {**STATUS, "path": 'a "quoted" \\ path'}
    families = {family.name: family for family in parser.text_string_to_metric_families(_metrics.exposition(facts))}
    samples = {
        (sample.name, *(value for label, value in sorted(sample.labels.items()) if label != "server")): sample.value
        for family in families.values()
        for sample in family.samples
    }
    assert all(s.labels["server"] == facts["path"] for family in families.values() for s in family.samples)
    assert samples["ipcsrv_queue_depth",] == 512
    assert samples["ipcsrv_queue_accepting",] == 0
    assert samples["ipcsrv_answers_total", "ok"] == 123_000_000
    assert samples["ipcsrv_bytes_total", "in"] == 1 << 50
    assert samples["ipcsrv_workers", "busy"] == 1
    assert samples["ipcsrv_worker_busy_seconds", "0"] == 12.34
    assert samples["ipcsrv_latency_seconds", "0.99", "whole", "last_minute"] == 1.5
    assert ("ipcsrv_latency_seconds", "0.99", "handler", "last_minute") not in samples
    assert all(family.documentation and family.type in ("gauge", "counter") for family in families.values())


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "-"), (0.0, "0 s"), (870e-9, "870 ns"), (1.24e-3, "1.24 ms"), (0.9996, "1.00 s"), (12.34, "12.3 s"),
        (59.96, "1m 0s"), (320.4, "5m 20s"), (11520, "3h 12m"), (3553200, "41d 3h"), (90e6, "1041d"),
    ],
)  # fmt: skip
def test_duration_is_short(seconds: float | None, shown: str) -> None:
    assert _text.duration(seconds) == shown
    assert len(shown) <= 7


@pytest.mark.parametrize(
    ("octets", "shown"),
    [(None, "-"), (0, "0 B"), (999, "999 B"), (1000, "0.98 KiB"), (1536, "1.50 KiB"), (1 << 62, "4194304 TiB")],
)
def test_size_is_short(octets: int | None, shown: str) -> None:
    assert _text.size(octets) == shown


def test_counts_and_rates_are_short() -> None:
    assert [_text.count(n) for n in (0, 1234, 999_999, 1_234_567, 45e9)] == ["0", "1,234", "999,999", "1.23M", "45.0G"]
    assert [_text.rate(n) for n in (None, 0.0, 12.34, 1234.5)] == ["-", "0.0", "12.3", "1,234"]


def test_foreign_text_stays_one_printable_line() -> None:
    assert _text.cut("a\x1b[31m\nb", 80) == "a\\x1b[31m b"
    assert _text.cut("x" * 100, 10) == "xxxxxxx..."


# -- completion --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_command_and_flag(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for command in _commands.commands().values():
        assert command.name in script
        for action in _parser.build(command)._actions:
            for option in action.option_strings:
                assert (option.lstrip("-") if shell == "fish" else option) in script
    program = shutil.which(shell)
    if program:
        assert subprocess.run([program, "-n"], input=script.encode(), capture_output=True).stderr == b""


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("ipcsrv relo", {"reload"}),
        ("ipcsrv stop --n", {"--now"}),
        ("ipcsrv run --log-format ", {"text", "json"}),
        ("ipcsrv completion ", {"bash", "zsh", "fish"}),
        ("ipcsrv call --auto", {"--autostart"}),
    ],
)
def test_bash_completes(line: str, offered: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(["completion", "bash"])
    script = capsys.readouterr().out
    words = line.split(" ")
    drive = f'{script}\nCOMP_WORDS=({shlex.join(words)}) COMP_CWORD={len(words) - 1}\n_ipcsrv; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", drive], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == offered

