"""The command line from inside: `main(argv)` in this process, its parsers, its help, its tables and its exit codes.

What needs a server uses a stand-in, a thread that speaks as little of the protocol as the case needs; the real
command and the real server meet in tests/functional.
"""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sample_status import STATUS

from ipcsrv import errors
from ipcsrv.cli import _commands, _metrics, _parser, _simple, _simple_start, _text, main, messages, showing
from ipcsrv.config.settings import TABLE

OPERANDS = {"PATH": "./s", "MODULE:HANDLER": "zlib:compress", "MODULE:MAIN": "app:main", "SHELL": "bash"}


# -- the two parsers of `call` and `is-active` -------------------------------------------------------------------------


def parsed_by_argparse(words: list[str]) -> dict[str, Any] | None:
    """What argparse makes of the words, None if it refuses."""
    try:
        found = vars(_parser.build(_commands.commands()[words[0]]).parse(words[1:]))
    except (messages.UsageError, SystemExit):
        return None
    return {name: found.get(name) for name in _simple.Asked.__slots__}


def vectors() -> Iterator[list[str]]:
    """Every line of up to four words from a few that are usual, odd or wrong."""
    words = ["./s", "data", "", "-", "-x", "--", "--timeout", "--autostart", "3", "0", "1.5", ".5", "1.2.3", "5m", "-1",
             "--timeout=2", "a:b", "--time", "-h", "٣"]  # fmt: skip
    for command in ("call", "is-active"):
        for first in ["./s", "--timeout", "--autostart", "-h", ""]:
            for second in words:
                yield [command, first, second]
                for third in words:
                    yield [command, first, second, third]
        yield from ([command], [command, "./s"], [command, "./s", "x", "--timeout", "3"])
        yield [command, "--timeout", "3", "./s", "--autostart", "a:b", "x"]
        yield [command, "--timeout", "3", "--timeout", "4", "./s", "x"]


def test_the_quick_parser_understands_only_what_argparse_understands_and_the_same_way(
    capfd: pytest.CaptureFixture[str],
) -> None:
    understood = 0
    for words in vectors():
        asked = _simple.parse(words)
        if asked is not None:
            understood += 1
            assert {name: getattr(asked, name) for name in asked.__slots__} == parsed_by_argparse(words), words
    assert understood > 50


@pytest.mark.parametrize("line", ["", "run ./s a:b", "call", "call -h", "is-active ./s --timeout 3", "call a b c"])
def test_the_quick_parser_leaves_the_rest_to_argparse(line: str) -> None:
    assert _simple.parse(shlex.split(line)) is None


def test_the_quick_parser_takes_operands_and_options_in_any_order() -> None:
    asked = _simple.parse(["call", "--timeout", "2.5", "./s", "--autostart", "a:b", "x y"])
    assert asked is not None
    assert (asked.path, asked.data, asked.timeout, asked.autostart) == ("./s", "x y", 2.5, "a:b")


def start_vectors() -> Iterator[list[str]]:
    """Lines for `start`: every option of the table, given in every way, and what is odd or wrong."""
    odd = ["", "x", "-x", "--", "-", "-1", "--workers", "--work", "--workers=3", "--workers=", "--workers=-1", "-h",
           "--no-control", "--control=yes", "--no-workers", "--allow", "--allow=uid:1", "--timeout=2", "--config",
           "--print-settings", "--reload"]  # fmt: skip
    for setting in TABLE:
        yield ["./s", "a:b", setting.flag, "on"]
        yield ["./s", setting.flag, "a:b", setting.flag + "=x"]
        yield ["--no-" + setting.flag.removeprefix("--"), "./s", "a:b"]
    for first in odd:
        for second in odd:
            yield ["./s", "a:b", first, second]
            yield ["./s", first, second, "a:b"]
        yield from (["./s", first], ["./s", "a:b", first, "x", first, "y"])
    for timeout in ("3", "1.5", "0", "5m", "soon"):
        yield ["--timeout", timeout, "./s", "a:b"]


def test_the_quick_parser_of_start_understands_what_argparse_understands_and_the_same_way(
    capfd: pytest.CaptureFixture[str],
) -> None:
    understood = 0
    for words in start_vectors():
        asked = _simple_start.parse(words)
        if asked is not None:
            understood += 1
            assert vars(asked) == vars(_parser.build(_commands.commands()["start"]).parse(words)), words
    assert understood > 100


# -- usage -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "no command given: see `ipcsrv --help`"),
        ("strat ./s a:b", "strat: there is no such command: did you mean `start`?"),
        ("xyzzy", "xyzzy: there is no such command: see `ipcsrv --help`"),
        ("call", "the following arguments are required: PATH: see `ipcsrv call --help`"),
        ("call ./s a b", "unknown b: see `ipcsrv call --help`"),
        ("call ./s --timeout soon", "--timeout: 'soon' is not a time such as 30, 30s, 250ms, 5m or 1h: see"),
        ("call ./s --timeout 0", "--timeout: '0' is not above 0: see `ipcsrv call --help`"),
        ("call ./s --timeuot 3", "unknown --timeuot: did you mean `--timeout`? or see `ipcsrv call --help`"),
        ("is-active", "the following arguments are required: PATH: see `ipcsrv is-active --help`"),
        ("run", "PATH and MODULE:HANDLER are missing: see `ipcsrv run --help`"),
        ("start ./s", "MODULE:HANDLER is missing: see `ipcsrv start --help`"),
        ("run ./s a:b --workers many", "--workers: 'many' is not a whole number"),
        ("run ./s a:b --start-method thread", "--start-method: 'thread' is not one of auto, fork, forkserver, spawn"),
        ("run ./s a:b --config /nowhere.toml", "/nowhere.toml: cannot be read: No such file or directory"),
        ("status ./s --json --metrics", "--metrics: not allowed with argument --json: see `ipcsrv status --help`"),
        ("completion tcsh", "SHELL: invalid choice: 'tcsh'"),
    ],
)
def test_what_cannot_be_understood_exits_2_with_one_line(
    line: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(shlex.split(line)) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"ipcsrv: {said}")
    assert shown.err.count("\n") == 1


def test_the_general_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for command in _commands.commands().values():
        assert f"\n  {command.name} {command.operands}" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    import ipcsrv

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ipcsrv {ipcsrv.__version__}\n"


@pytest.mark.parametrize("name", sorted(_commands.commands()))
def test_every_command_explains_itself_within_80_columns(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: ipcsrv {name}")
    assert max(map(len, shown.splitlines())) <= 80


def test_the_help_of_run_shows_every_setting_with_its_default_and_unit(capsys: pytest.CaptureFixture[str]) -> None:
    from ipcsrv.config.settings import TABLE

    main(["run", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for setting in TABLE:
        assert f" {setting.flag}" in shown
    assert "--drain-timeout TIME" in shown
    assert "(default: 30s)" in shown
    assert "TIME is seconds or has a unit" in shown


def test_every_command_of_the_table_can_be_built_and_run() -> None:
    for command in _commands.commands().values():
        operands = [OPERANDS[word] for word in command.operands.split() if word in OPERANDS]
        assert _parser.build(command).parse(operands).command == command.name
        assert callable(command.runner())


def test_a_command_whose_module_is_missing_is_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = _commands.Command("gone", "More", "", "is not there", "no_such_module")
    monkeypatch.setattr(_commands, "_ALL", (*_commands._ALL, gone))
    assert "gone" not in _commands.commands()


# -- messages and exit codes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.HandlerError("ValueError: x"), 1),
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
def test_every_error_is_one_line_and_the_exit_code_of_its_kind(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert messages.report(error) == code
    shown = capsys.readouterr()
    assert (shown.out, shown.err[:8], shown.err.count("\n")) == ("", "ipcsrv: ", 1)


def test_ctrl_c_says_nothing_and_exits_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert messages.report(KeyboardInterrupt()) == 130
    assert capsys.readouterr() == ("", "")


def test_an_error_that_is_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        messages.report(ZeroDivisionError())


def test_a_message_is_one_line_whatever_it_holds(capsys: pytest.CaptureFixture[str]) -> None:
    messages.complain("a\nb")
    assert capsys.readouterr().err == "ipcsrv: a b\n"


def test_nobody_reading_standard_error_is_no_second_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with open(os.devnull) as unwritable:
        monkeypatch.setattr("sys.stderr", unwritable)
        messages.complain("x")


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


def test_call_sends_its_operand_and_prints_the_response_as_it_is(
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
        (b"001dERR handler ValueError: x", 1, "ValueError: x"),
        (b"000cpart", 3, "connection closed in the middle of the response"),
        (b"", 3, "connection closed before a response"),
        (b"what is this", 1, "protocol error"),
    ],
)
def test_call_exits_by_what_the_server_answered(
    reply: bytes, code: int, said: str, sock_path: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with stand_in(sock_path, reply):
        assert main(["call", sock_path, "x"]) == code
    shown = capfd.readouterr().err
    assert said in shown
    assert shown.count("\n") == 1


def test_is_active_is_silent_success_where_a_server_listens(sock_path: str, capfd: pytest.CaptureFixture[str]) -> None:
    with stand_in(sock_path, b""):
        assert main(["is-active", sock_path]) == 0
    assert capfd.readouterr() == ("", "")


def test_is_active_says_what_is_there_instead(sock_dir: str, capfd: pytest.CaptureFixture[str]) -> None:
    stale = os.path.join(sock_dir, "stale")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(stale)
    assert main(["is-active", stale]) == 3
    assert main(["is-active", os.path.join(sock_dir, "nothing")]) == 3
    assert main(["is-active", sock_dir]) == 7
    shown = capfd.readouterr().err.splitlines()
    assert len(shown) == 3
    assert all(line.startswith("ipcsrv: ") for line in shown)


# -- status ------------------------------------------------------------------------------------------------------------


def test_the_table_of_status_fits_80_columns_whatever_the_figures() -> None:
    lines = showing.table(STATUS).splitlines()
    assert max(map(len, lines)) <= showing.WIDTH
    text = "\n".join(lines)
    for said in ("pid 4242", "up 1d 3h", "512 waiting, the oldest for 3.50 s, full", "busy 12.3 s", "123M", "1.23M",
                 "12,345 timeouts", "1,234/s in the last minute", "1.50 s", "1m 15s", "SIGSEGV",
                 "17 silent"):  # fmt: skip
        assert said in text, said


def test_the_table_of_a_server_that_has_done_nothing_is_empty_not_wrong() -> None:
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
    shown = showing.table(facts)
    assert "queue    0 waiting\n" in shown
    assert "answers  none yet\n" in shown
    assert "log      standard error\n" in shown
    assert "error " not in shown


def test_the_metrics_are_what_prometheus_reads() -> None:
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
        (None, "-"), (0.0, "0 ns"), (870e-9, "870 ns"), (1.24e-3, "1.24 ms"), (0.9996, "1.00 s"), (12.34, "12.3 s"),
        (59.96, "1m 0s"), (320.4, "5m 20s"), (11520, "3h 12m"), (3553200, "41d 3h"), (90e6, "1041d"),
    ],
)  # fmt: skip
def test_a_duration_is_short(seconds: float | None, shown: str) -> None:
    assert _text.duration(seconds) == shown
    assert len(shown) <= 7


@pytest.mark.parametrize(
    ("octets", "shown"),
    [(None, "-"), (0, "0 B"), (999, "999 B"), (1000, "0.98 KiB"), (1536, "1.50 KiB"), (1 << 62, "4194304 TiB")],
)
def test_a_size_is_short(octets: int | None, shown: str) -> None:
    assert _text.size(octets) == shown


def test_counts_and_rates_are_short() -> None:
    assert [_text.count(n) for n in (0, 1234, 999_999, 1_234_567, 45e9)] == ["0", "1,234", "999,999", "1.23M", "45.0G"]
    assert [_text.rate(n) for n in (None, 0.0, 12.34, 1234.5)] == ["-", "0.0", "12.3", "1,234"]


def test_text_from_elsewhere_stays_one_printable_line() -> None:
    assert _text.cut("a\x1b[31m\nb", 80) == "a [31m b"
    assert _text.cut("x" * 100, 10) == "xxxxxxx..."


# -- completion --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_knows_every_command_and_flag(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
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

