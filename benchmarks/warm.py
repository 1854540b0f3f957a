"""Command-line programs cold and warm, side by side: `ipcsrvc warm`, and `preloaded` where it runs.

    python -m benchmarks.warm [ROUNDS] [FOLDER...]

FOLDER holds programs (`bin` of an environment with black, Sphinx, awscli ...); default: those of PATH. Medians of what
passes until the command returns, taken in turn at a terminal, because preloaded's server needs one. Each command runs
once before, so that its server is there and has learned what the program imports late.  quicken 0.1.0, the newest on
PyPI, does not start with Python 3.10 or newer: it passes `loop` to asyncio.Condition.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
COMPILE = ROOT / "ipcsrv" / "native" / "compile.py"
COMMAND = f"""#!{sys.executable}
import sys
sys.path.insert(0, {str(ROOT)!r})
from ipcsrv.cli import main
sys.exit(main())
"""
WORK = (
    ("black", ("--version",)),
    ("black", ("--check", "one.py")),
    ("sphinx-build", ("--version",)),
    ("aws", ("--version",)),
)
MODULES = {"black": ["black"], "sphinx-build": ["sphinx.cmd.build"], "aws": ["awscli.clidriver"]}
SETTLE = 3.0  # seconds after a first run, in which servers start and reload


def commands_for(program: str, arguments: tuple[str, ...], folder: Path) -> dict[str, list[str]]:
    """The command lines of one piece of work, by name."""
    found = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "cold": [program, *arguments],
        "warm": [str(folder / "ipcsrvc"), "warm", program, *arguments],
    }
    starter = preloaded_starter(program, folder)
    if starter is not None:
        found["preloaded"] = [str(starter), program, *arguments]
    return found


def preloaded_starter(program: str, folder: Path) -> Path | None:
    """The script that stands for the interpreter with the program's module imported; None without preloaded."""
    interpreter = Path(program).read_text("utf-8", "replace").splitlines()[0].removeprefix("#!")
    bundle = Path(interpreter).with_name("py-preloaded-bundle-fork-server.py")
    if not bundle.exists():
        return None
    name = Path(program).name
    starter = folder / f"python-{name}"
    if not starter.exists():
        subprocess.run([interpreter, str(bundle), *MODULES[name], "-o", str(starter)], check=True, capture_output=True)
        text = starter.read_text()
        starter.write_text(f"#!{interpreter}\n" + text.partition("\n")[2])
    return starter


def take(commands: dict[str, list[str]], rounds: int, folder: Path) -> dict[str, float]:
    """Median milliseconds of each command, taken in turn; a command that fails is left out."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
    figures: dict[str, list[float]] = {}
    expected = subprocess.run(commands["cold"], check=False, **quiet).returncode
    for name, command in commands.items():
        with contextlib.suppress(subprocess.TimeoutExpired):
            for _ in range(3):
                code = subprocess.run(command, check=False, timeout=60, **quiet).returncode
                time.sleep(SETTLE if name == "warm" else 0)  # what its server does then has no event here
            if name == "python -c pass" or code == expected:
                figures[name] = []
    for _ in range(rounds):
        for name, taken in figures.items():
            began = time.perf_counter()
            subprocess.run(commands[name], check=False, **quiet)
            taken.append((time.perf_counter() - began) * 1000)
    return {name: statistics.median(taken) for name, taken in figures.items()}


def at_a_terminal(rounds: int, folder: Path, programs: list[str]) -> int:
    """Run this module again with a controlling terminal; returns its exit status."""
    pid, terminal = pty.fork()
    if pid == 0:
        words = [sys.executable, "-m", "benchmarks.warm", "--inside", str(rounds), str(folder), json.dumps(programs)]
        os.execv(sys.executable, words)
    with contextlib.suppress(OSError):  # the terminal ends with its processes
        while data := os.read(terminal, 4096):
            os.write(1, data.replace(b"\r\n", b"\n"))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def inside(rounds: int, folder: Path, programs: list[str]) -> None:
    """Measure and print, at a terminal."""
    (folder / "one.py").write_text("x = 1\n")
    for program in programs:
        for name, arguments in WORK:
            if Path(program).name != name:
                continue
            figures = take(commands_for(program, arguments, folder), rounds, folder)
            parts = [f"{kind} {median:6.1f} ms ({median / figures['cold']:.3f})" for kind, median in figures.items()]
            print(f"{' '.join((name, *arguments)):24}", "  ".join(parts), flush=True)


def main(words: list[str]) -> int:
    """Compile the client, find the programs, measure, and stop what was started."""
    rounds = int(words[0]) if words else 20
    path = os.pathsep.join(words[1:]) or os.environ["PATH"]
    programs = [found for name in MODULES if (found := shutil.which(name, path=path))]
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        (folder / "ipcsrv").write_text(COMMAND)
        (folder / "ipcsrv").chmod(0o755)
        subprocess.run([sys.executable, str(COMPILE), str(folder / "ipcsrvc")], check=True)
        os.environ["IPCSRV_RUNTIME_DIR"] = str(folder / "run")
        try:
            return at_a_terminal(rounds, folder, programs)
        finally:
            subprocess.run([str(folder / "ipcsrv"), "warm", "--stop"], check=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        inside(int(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4]))
    else:
        sys.exit(main(sys.argv[1:]))
