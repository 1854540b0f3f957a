"""Run the code blocks of a documentation page in order, as a reader would who copies them into one folder.

What is done with a block depends on its language:

- a block whose first line is a comment with a file name (`# words.py`, `# ipcsrv.toml`) is written to that file;
- `python`: run as a program; a comment behind a `print(...)` is the line it must print;
- `console`: a terminal session; each line that begins with `$ ` is run by the shell, and the lines below it are the
  output that it must give. `...` stands for any text, a line of `...` for any lines, and a number of three or more
  digits (a process id) for any number, which later commands then mean. `ipcsrv run` goes on until `^C` or the end;
- `sh`: not run, since it needs root or a machine of its own: the shell must parse it, and ipcsrv each of its commands;
- `toml`, `json`, `ini`, `xml`: must parse.

`<!-- not run: reason -->` above a block leaves it out.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import select
import shlex
import signal
import subprocess
import sys
import time
import tomllib
import xml.etree.ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import support

TEXT_LANGUAGES = ("", "text", "diff", "bat")  # read by people alone, or by Windows
_FENCE = re.compile(r"^( *)(`{3,}|~{3,}|:{3,})(.*)$")
_FILE_NAME = re.compile(r"^(?:#|//|;) ([\w./-]+\.\w+)$")
_NUMBER = re.compile(r"\b\d{3,}\b")


class Block(NamedTuple):
    """A fenced block of a page; `reason` is why it is not run, or None."""

    line: int
    language: str
    text: str
    reason: str | None

    @property
    def file_name(self) -> str | None:
        """The file that the block is the content of."""
        match = _FILE_NAME.match(self.text.partition("\n")[0])
        return match[1] if match else None


def blocks(page: str) -> Iterator[Block]:
    """Every fenced block of a page but directives (`{toctree}`)."""
    lines = enumerate(page.splitlines(), 1)
    above = ""
    for number, line in lines:
        match = _FENCE.match(line)
        if match is None:
            above = line if line.strip() else above
            continue
        indent, fence, language = match.groups()
        inside = []
        for _, inner in lines:
            if inner.strip() == fence:
                break
            inside.append(inner.removeprefix(indent))
        reason = re.match(r"<!-- not run: (.+) -->$", above.strip())
        if not language.startswith("{"):
            yield Block(number, language.strip(), "\n".join(inside) + "\n", reason[1] if reason else None)
        above = ""


class Reader:
    """A reader in a folder of their own; `close` stops the servers that the page left running."""

    def __init__(self, folder: str, *, installed: bool = False) -> None:
        """`installed`: the page itself installs ipcsrv, so the reader has neither the sources nor a command."""
        self.folder = Path(folder)
        self._servers: list[tuple[subprocess.Popen[bytes], int]] = []
        self._numbers: dict[str, str] = {}
        homes = {"HOME": folder, "XDG_STATE_HOME": folder, "IPCSRV_RUNTIME_DIR": folder + "/run", "NO_COLOR": "1"}
        self._environment = {**support.environment(), **homes}
        names = ("python3",) if installed else ("ipcsrv", "python", "python3")
        self._environment["PATH"] = f"{self._commands(names)}{os.pathsep}{os.environ['PATH']}"
        if installed:  # without compiling, which the wheel's test does; and pip's own warnings are not the page's
            self._environment["IPCSRV_PURE_PYTHON"] = "1"
            for name in ("PYTHONPATH", "PYTHONWARNINGS", "VIRTUAL_ENV"):
                self._environment.pop(name, None)

    def follow(self, block: Block) -> None:
        """Do what the page has the reader do with this block."""
        if block.reason is not None or block.language in TEXT_LANGUAGES:
            return
        if block.file_name is not None:
            file = self.folder / block.file_name
            file.write_text(block.text, "utf-8")
            os.utime(file, (time.time() - 60,) * 2)  # a compiled module is told from a newer one by whole seconds
        if block.language == "python" and block.file_name is not None:
            compile(block.text, block.file_name, "exec")
            return
        actions: dict[str, Callable[[str], None]] = {
            "python": self._program,
            "console": self._session,
            "sh": self._unrun,
            "toml": lambda text: assert_parsed(tomllib.loads(text)),
            "json": lambda text: assert_parsed(json.loads(text)),
            "ini": lambda text: configparser.RawConfigParser(strict=False, allow_no_value=True).read_string(text),
            "xml": lambda text: assert_parsed(xml.etree.ElementTree.fromstring(text.strip())),
        }
        actions[block.language](block.text)

    def close(self) -> None:
        """Stop what still runs in the folder."""
        for server in self._servers:
            self._interrupt(*server)
        for lock in self.folder.rglob("*.ipcsrv.lock"):
            self._run(f"ipcsrv stop --now {shlex.quote(str(lock).removesuffix('.ipcsrv.lock'))}")

    def _commands(self, names: tuple[str, ...]) -> Path:
        """A folder with these commands, which run the Python of the tests."""
        folder = self.folder / ".commands"
        folder.mkdir()
        for name in names:
            rest = "-m ipcsrv " if name == "ipcsrv" else ""
            (folder / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {rest}"$@"\n')
            (folder / name).chmod(0o755)
        return folder

    def _program(self, text: str) -> None:
        (self.folder / "program.py").write_text(text, "utf-8")
        done = self._run("python program.py")
        assert done.returncode == 0, done.stdout
        expected = re.findall(r"print\(.*\)  # (.+)$", text, re.MULTILINE)
        if expected:
            assert_output("\n".join(expected), done.stdout, {})

    def _session(self, text: str) -> None:
        for shown, expected in steps(text):
            command = _NUMBER.sub(lambda match: self._numbers.get(match[0], match[0]), shown)
            if command == "^C":
                self._interrupt(*self._servers.pop())
            elif command.startswith(". "):
                self._environment["PATH"] = self._run(f"{command} && printf %s \"$PATH\"").stdout
            elif command.startswith("ipcsrv run ") and "--print-settings" not in command and "--check" not in command:
                self._serve(command, expected)
            else:
                done = self._run(command)
                failure = any(line.startswith("ipcsrv: ") for line in expected.splitlines())
                assert done.returncode == 0 or failure, f"$ {command}\n{done.stdout}"
                self._compare(expected, done.stdout)

    def _serve(self, command: str, expected: str) -> None:
        """Start a server on a terminal, where it goes on while the page does, and read what it prints."""
        ours, terminal = os.openpty()
        server = subprocess.Popen(["sh", "-c", f"exec {command}"], stdin=terminal, stdout=terminal, stderr=terminal,
                                  start_new_session=True, cwd=self.folder, env=self._environment)
        os.close(terminal)
        self._servers.append((server, ours))
        shown, deadline = "", time.monotonic() + support.TIMEOUT
        while True:
            try:
                self._compare(expected, shown)
                break
            except AssertionError:
                assert time.monotonic() < deadline, shown
                if select.select([ours], [], [], 0.1)[0]:
                    shown += os.read(ours, 65536).decode().replace("\r\n", "\n")
        path = shlex.split(command)[2]
        probe = f"import ipcsrv; ipcsrv.connect({path!r}, 20, wait_if_not_found=True).close()"
        assert self._run(f"python -c {shlex.quote(probe)}").returncode == 0, command

    def _compare(self, expected: str, actual: str) -> None:
        assert_output(expected.replace("/home/me", os.path.realpath(self.folder)), actual, self._numbers)

    def _interrupt(self, server: subprocess.Popen[bytes], terminal: int) -> None:
        if server.poll() is None:
            server.send_signal(signal.SIGINT)
        server.wait(support.TIMEOUT)
        os.close(terminal)

    def _run(self, command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["sh", "-c", command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, timeout=60.0, cwd=self.folder,
                              env=self._environment)

    def _unrun(self, text: str) -> None:
        done = subprocess.run(["sh", "-n"], input=text, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        for command in re.findall(r"(?:^|[;&|] *|/)ipcsrv ([a-z][^;&|#>\n]*)", text.replace("\\\n", " "), re.MULTILINE):
            check_command(shlex.split(command))


def steps(session: str) -> Iterator[tuple[str, str]]:
    """The commands of a session, each with the output that is shown below it; `^C` is a command too."""
    session = session.replace("\\\n", " ")
    parts = re.split(r"^(\$ .*|\^C)$", session, flags=re.MULTILINE)
    assert not parts[0].strip(), f"output before the first command: {parts[0]!r}"
    for command, expected in zip(parts[1::2], parts[2::2], strict=True):
        yield command.removeprefix("$ ").partition("  # ")[0], expected.strip("\n")


def assert_output(expected: str, actual: str, numbers: dict[str, str]) -> None:
    """Compare, with the wildcards of the module's docstring; nothing shown means nothing checked."""
    if not expected:
        return
    shown: list[str] = []
    pattern = ""
    for line in expected.splitlines():
        if line.strip() == "...":
            pattern += r"(?:.*\n)*?"
            continue
        escaped = re.escape(line.rstrip()).replace(r"\.\.\.", ".*?")
        shown += _NUMBER.findall(line)
        pattern += _NUMBER.sub(r"(\\d+)", escaped) + r" *\n"
    match = re.fullmatch(pattern, actual if actual.endswith("\n") else actual + "\n")
    assert match is not None, f"the page shows\n{expected}\nand the reader gets\n{actual}"
    numbers.update(zip(shown, match.groups(), strict=True))


def assert_parsed(value: object) -> None:
    """A file that parses to nothing is an empty example."""
    assert value is not None


def check_command(arguments: list[str]) -> None:
    """Fail unless ipcsrv understands this command line; nothing is run."""
    from ipcsrv.cli._commands import commands
    from ipcsrv.cli._parser import build

    build(commands()[arguments[0]]).parse(arguments[1:])
