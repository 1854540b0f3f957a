"""Learn what a program imports late, for the template: from a first cold run, and from each warm run after it."""

from __future__ import annotations

import sys

assert sys.platform != "win32"

import atexit
import os
import signal
from collections.abc import Container
from typing import Any

from .program import read_lines
from .recording import Recorder
from .run import Run, forget_packages
from .template import LEARN_NOTHING, note_variables, write_lines

NEVER_LEARNED = {"__main__", "readline", "gnureadline", "rlcompleter"}  # input() is another one with these


def run_and_learn(spec: dict[str, Any], arguments: list[str]) -> int:
    """Run the program in this process; when it ends, write the names of the modules that it has imported."""
    forget_packages({})
    recorder = Recorder()
    recorder.only_imports = True
    present = {*sys.modules}
    atexit.register(_write, spec, recorder, present, list(sys.path), os.getpid())  # the first is called last
    program = Run(spec)
    with recorder.installed(files=False):
        status = program.execute([spec["argv0"], *arguments])
    if status < 0:
        atexit.register(_die, -status)
    return max(status, 0)


def _die(number: int) -> None:
    """End by a signal, as the interpreter does after an interrupt that nothing has caught."""
    atexit.unregister(_die)
    atexit._run_exitfuncs()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _write(spec: dict[str, Any], recorder: Recorder, present: set[str], folders: list[str], pid: int) -> None:
    if os.getpid() != pid:
        return
    note_variables(spec["variables"], read_lines(spec["variables"]), recorder.variables)
    note_modules(spec["learned"], present, folders)


def note_modules(path: str, present: Container[str], folders: list[str]) -> None:
    """Add the modules that are imported, and are not `present`, to the file of learned ones."""
    known = read_lines(path)
    new = [os.fsencode(name) for name in list(sys.modules) if name not in present and _importable(name, folders)]
    wanted = dict.fromkeys([*known, *(name for name in new if LEARN_NOTHING + name not in known)])
    if LEARN_NOTHING not in wanted and (len(wanted) > len(known) or not os.path.exists(path)):
        write_lines(path, wanted)


def _importable(name: str, folders: list[str]) -> bool:
    """Return whether the module would be found again in another folder: what a run added to the path is its own."""
    spec = getattr(sys.modules[name], "__spec__", None)
    if name in NEVER_LEARNED or spec is None or spec.name != name or name.startswith("ipcsrv"):
        return False
    origin = spec.origin or ""
    return origin in ("built-in", "frozen") or any(origin.startswith(os.path.join(f, "")) for f in folders if f)
