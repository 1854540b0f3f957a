"""What a command costs from nothing: `ipcsrvc call`, `ipcsrv call` and `ipcsrv start` beside `python -c pass`.

    python -m benchmarks.coldstart [ROUNDS [TEST_TOOL]]

Taken in turn, with the environment as it is: what a user's shell would pay.  Beside the time that passes stands the CPU
time of the command and all that it starts, until it returns, where `perf stat` can tell it: it says more on a machine
that has other work too.  The command is the script that pip writes today; those of older versions import `re` first,
which takes a third of a call.  It runs in a folder of its own, without configuration files.

TEST_TOOL is Git's own C client, which distributions do not install: in Git's sources (`apt-get source git`),
`make NO_CURL=1 NO_EXPAT=1 NO_GETTEXT=1 NO_PERL=1 NO_TCLTK=1 t/helper/test-tool`.
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NOTHING = "python -c pass"
CALL = "ipcsrv call"
NATIVE = "ipcsrvc call"
GIT = "test-tool simple-ipc send"
START = "ipcsrv start, 4 workers"
SCRIPT = """#!{python}
import sys
from ipcsrv.cli import main
if __name__ == '__main__':
    sys.exit(main())
"""
COMPILE = Path(__file__).parent.parent / "ipcsrv" / "native" / "compile.py"
Figures = dict[str, list[float]]
HANDLER = """
def pong(request):
    return b"pong"
"""


class Workplace:
    """A folder with a handler and the command in it, where commands are run and timed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.command = folder / "ipcsrv"
        self.command.write_text(SCRIPT.format(python=sys.executable))
        self.command.chmod(0o755)
        (folder / "pong.py").write_text(HANDLER)
        self.native = folder / "ipcsrvc"
        with contextlib.suppress(OSError, subprocess.CalledProcessError):  # no compiler
            subprocess.run([sys.executable, str(COMPILE), str(self.native)], check=True)
        self._count = folder / "cpu"
        self.counts = shutil.which("perf") is not None and self._run("perf", "stat", "-e", "task-clock", "true") == 0

    def _run(self, *command: str) -> int:
        nowhere = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        return subprocess.run(command, check=False, cwd=self.folder, **nowhere).returncode

    def do(self, *command: str) -> None:
        """Run a command, which must succeed."""
        if self._run(*command) != 0:
            raise RuntimeError(f"{' '.join(command)} failed")

    def timed(self, *command: str) -> float:
        """Milliseconds that pass until a command returns."""
        began = time.perf_counter()
        self.do(*command)
        return (time.perf_counter() - began) * 1000

    def counted(self, *command: str) -> float:
        """Milliseconds of CPU time that it and its descendants have used when it returns; where this `counts`."""
        self.do("perf", "stat", "-x,", "-e", "task-clock", "-o", str(self._count), *command)
        return float(self._count.read_text().splitlines()[-1].split(",")[0])


def measure(rounds: int, folder: Path) -> Figures:
    """Milliseconds that pass with each, taken in turn."""
    return take(rounds, folder)[0]


def take(rounds: int, folder: Path, git: str | None = None) -> tuple[Figures, Figures]:
    """Time and CPU time of each, taken in turn; the latter is empty where it cannot be told.

    git: the path of Git's test tool, if it is to be measured too.
    """
    place = Workplace(folder)
    ipcsrv, served, started = str(place.command), str(place.folder / "served"), str(place.folder / "started")
    options = ("pong:pong", "--workers", "4", "--log-file", str(place.folder / "log"))
    commands = {
        NOTHING: (sys.executable, "-c", "pass"),
        CALL: (ipcsrv, "call", served, "ping"),
        START: (ipcsrv, "start", started, *options),
    }
    if place.native.exists():
        commands[NATIVE] = (str(place.native), "call", served, "ping")
    if git is not None:
        commands[GIT] = (git, "simple-ipc", "send", f"--name={served}", "--token=ping")
    passed: Figures = {name: [] for name in commands}
    used: Figures = {name: [] for name in commands}
    place.do(ipcsrv, "start", served, *options)
    try:
        for _ in range(rounds):
            for figures, look in ((passed, place.timed), (used, place.counted)):
                for name, command in commands.items():
                    if look == place.timed or place.counts:
                        figures[name].append(look(*command))
                        if name == START:
                            place.do(ipcsrv, "stop", started)
    finally:
        place.do(ipcsrv, "stop", served)
    return passed, used


def show(title: str, figures: list[float], base: list[float]) -> str:
    """Median, its ratio to nothing at all, and the least."""
    median = statistics.median(figures)
    return f"{title} {median:6.1f} ms, {median / statistics.median(base):5.2f} x (least {min(figures):6.1f})"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir="/tmp" if Path("/tmp").is_dir() else None) as name:
        test_tool = sys.argv[2] if len(sys.argv) > 2 else None
        passed, used = take(int(sys.argv[1]) if len(sys.argv) > 1 else 20, Path(name), test_tool)
    for title in passed:
        cpu = f"   {show('CPU', used[title], used[NOTHING])}" if used[title] else ""
        print(f"{title:26} {show('median', passed[title], passed[NOTHING])}{cpu}")
