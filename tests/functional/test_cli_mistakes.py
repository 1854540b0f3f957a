"""The most likely mistakes at the command line: each is one line with the right exit code and the next step."""

from __future__ import annotations

import os
import shlex
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import support
from shared_server import shared

# The command line ({s} is a server's socket), the exit code, and what the line says: the reason and the next step.
MISTAKES = [
    ("run words.py:count", 2, ["PATH is missing; try `ipcsrv run ./words.sock words:count`"]),
    ("run ./a.sock words.py:count", 2, ["no module 'words.py'", "did you mean `words:count`?"]),
    ("run ./a.sock words", 2, ["words: it is not MODULE:NAME, such as zlib:compress"]),
    ("run ./a.sock words:cuont", 2, ["module words has no 'cuont'; did you mean `words:count`?"]),
    ("start ./a.sock word:count", 2, ["there is no module 'word'", "did you mean `words:count`?"]),
    ("start ./a.sock broken:handle", 2, ["NameError: name 'undefined' is not defined; see ", "broken.py:2"]),
    ("run ./a.sock words:LIMIT", 2, ["it is of type int, which cannot be called"]),
    ("run ./a.sock words:two", 2, ["it cannot be called with one argument, the request: missing a required",
                                   "its signature is (one, other)"]),
    ("run words.py", 2, ["MODULE:HANDLER is missing; try `ipcsrv run ./words.sock words:FUNCTION`"]),
    (f"run {'n' * 120} words:count", 7, ["bytes long; a socket's", "choose a shorter"]),
    ("run localhost:8000 words:count", 2, ["localhost:8000 is a network address", "PATH is a socket's path"]),
    ("call http://localhost:8000/ x", 2, ["http://localhost:8000/ is a network address", "this machine only"]),
    ("status unix:/tmp/a.sock", 2, ["PATH is a path without `unix:`; use /tmp/a.sock"]),
    ("run ./a.sock words:count --allow no-such-user", 2, ["--allow: there is no user 'no-such-user' on this system"]),
    ("start ./a.sock words:count --allow no-such-user", 2, ["--allow: there is no user 'no-such-user'"]),
    ("run ./a.sock words:count -- --workers 2", 2, ["operand --workers; only operands follow `--`"]),
    ("run ./a.sock my-words:count", 2, ["a module whose name has a dash cannot be imported; rename it"]),
    ("start ./a.sock 'words:nothing()'", 2, ["the factory returned None; it must return the handler"]),
    ("start ./a.sock 'words:later()'", 2, ["a factory cannot be `async def`; make it `def`"]),
    ("run ./a.sock words:Counter", 2, ["its signature is ()", "did you mean `words:Counter()`?"]),
    ("run ./a.sock words:count -c sections.toml", 2, ["line 1: server: a configuration file has no sections"]),
    ("run words:count a", 2, ["PATH comes before MODULE:HANDLER; try `ipcsrv run a words:count`"]),
    ("run words:count ./a.sock", 2, ["PATH comes before MODULE:HANDLER; try `ipcsrv run ./a.sock words:count`"]),
    ("start ./a.sock", 2, ["MODULE:HANDLER is missing; try `ipcsrv start ./a.sock "]),
    ("start", 2, ["there is no ipcsrv.toml here; try `ipcsrv start "]),
    ("./a.sock words:count", 2, ["unknown command ./a.sock; a command comes first: `ipcsrv run PATH MODULE:HANDLER`"]),
    ("start ./a.sock words:count --reload", 2, ["`ipcsrv run --reload` watches files"]),
    ("serve ./a.sock words:count", 2, ["unknown command serve; did you mean `run`?"]),
    ("run ./a.sock words:count --threads 4", 2, ["ipcsrv uses processes: `--workers N`"]),
    ("run ./a.sock words:count --worker 4", 2, ["unknown option --worker; did you mean `--workers`?"]),
    ("run ./a.sock words:count --workers=-1", 2, ["--workers: '-1' is below 0"]),
    ("run ./a.sock words:count --timeout 5", 2, ["`--request-timeout` bounds the handler"]),
    ("run ./a.sock words:count --port 80", 2, ["this machine only: the first operand, PATH, is the address"]),
    ("run ./a.sock words:count --chdir /nowhere", 2, ["--chdir: the folder /nowhere does not exist"]),
    ("run ./a.sock words:count -c nowhere.toml", 2, ["nowhere.toml: cannot be read: No such file"]),
    ("run ./no/such/folder/a.sock words:count", 7, ["the folder", "does not exist; make it first"]),
    ("run ./words.py words:count", 7, ["words.py: it is a file, not a socket; choose another path"]),
    ("start {s} words:count", 6, ["address in use by process", "stop that server, or choose another path"]),
    ("call ./a.sock x", 3, ["no server at ./a.sock: the socket does not exist; start one with `ipcsrv start`"]),
    ("call ./stale.sock x", 3, ["nothing listens on the socket; start one with `ipcsrv start`"]),
    ("call ./words.py x", 7, ["it is not a socket; choose another path"]),
    ("call", 2, ["PATH is missing; usage: ipcsrv call PATH [DATA]"]),
    ("call {s} one two", 2, ["unexpected operand two; usage: ipcsrv call PATH [DATA]"]),
    ("call {s} @nowhere.txt", 2, ["@nowhere.txt: No such file or directory; to send text that begins with @"]),
    ("call {s} slow --timeout 0.1", 4, ["timed out after 0.1 s; the request may have been executed"]),
    ("call {s} fail", 1, ["handler raised ValueError: as asked; the traceback is in the server's log (`ipcsrv logs`)"]),
    ("stop ./a.sock", 3, ["no server at", "start one with `ipcsrv start`"]),
    ("reload ./a.sock", 3, ["no server at", "start one with `ipcsrv start`"]),
    ("restart {s}", 2, ["runs in the foreground; stop it and run it again, or use `reload`"]),
    ("scale {s} many", 2, ["N: 'many' is not a whole number; see `ipcsrv scale --help`"]),
    ("status ./words.py", 7, ["it is not a socket; choose another path"]),
    ("start ./a.sock words:count --log-file ./no/log", 1, ["cannot be opened: No such file", "with --log-file"]),
    ("run '' words:count", 7, ["it is a folder; name a file in it"]),
    ("top {s}", 2, ["top needs a terminal; use `ipcsrv status"]),
    ("logs {s}", 1, ["logs to standard error, not to a file; see its terminal or journal"]),
    ("status", 2, ["PATH is missing; usage: ipcsrv status PATH [OPTIONS]; `ipcsrv list` shows your servers"]),
]

MODULES = {
    "words.py": "LIMIT = 3\ndef count(request): return b'1'\ndef two(one, other): return one\n"
                "def nothing(): pass\nasync def later(): return count\n"
                "class Counter:\n    def __call__(self, request): return b'1'\n",
    "sections.toml": "[server]\nworkers = 2\n",
    "broken.py": "# a comment\nundefined\n",
}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[support.RunningServer]:
    folder = tmp_path_factory.mktemp("handler")
    (folder / "asked.py").write_text(
        "import time\n"
        "def handle(request):\n"
        "    if request == b'fail': raise ValueError('as asked')\n"
        "    time.sleep(60 if request == b'slow' else 0)\n"
        "    return request\n")  # fmt: skip
    with shared("asked:handle", "--workers", "2", "--chdir", str(folder), "--drain-timeout", "0") as server:
        yield server


@pytest.mark.parametrize(("line", "code", "said"), MISTAKES, ids=[mistake[0] for mistake in MISTAKES])
def test_mistake_is_one_line_with_the_next_step(
    line: str,
    code: int,
    said: list[str],
    running: support.RunningServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, source in MODULES.items():
        (tmp_path / name).write_text(source)
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("stale.sock")
    done = support.run_command(*shlex.split(line.format(s=running.path)))
    shown = done.stderr.decode()
    assert (done.returncode, done.stdout) == (code, b""), shown
    assert shown.startswith("ipcsrv: ")
    assert shown.count("\n") == 1
    assert [text for text in said if text not in shown] == []
    assert "Traceback" not in shown
    assert not os.path.exists("a.sock")
