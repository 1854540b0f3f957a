"""Which tests a system without Unix's ways cannot run: skipped by what they reach for and do not find.

A pytest plugin (`-p wine.capabilities`), for Windows.  What can be had there by other means is given to the tests: a
pipe's client where they ask for a socket at a path (`pipe_sockets`), the system's list of processes where they would
read /proc (`processes`).  Nothing is skipped by name: a test, or a test module, that asks the standard library for
something that is not there (`os.killpg`, `signal.SIGHUP`, the module `fcntl`), or a pipe for what it cannot do, or
imports what is for Unix only, is skipped and says what was missing.  What such tests are about is
asserted for Windows in `tests/contract` and `tests/wine`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import tempfile
from collections.abc import Generator, Iterable
from pathlib import Path
from types import ModuleType

import pytest
import support

from ipcsrv import SettingsError

OTHER_HALF = ("unix", "warm")  # packages whose modules assert that they are imported where they belong


def _can_link() -> bool:
    """Whether symbolic links can be made: not without the right to, nor under Wine, which says it did and does not."""
    with tempfile.TemporaryDirectory() as folder:
        link = os.path.join(folder, "link")
        with contextlib.suppress(OSError):
            os.symlink(folder, link)
        return os.path.lexists(link)


class NoLinksError(OSError):
    """No symbolic link can be made."""


def _make_no_link(*_: object, **__: object) -> None:
    raise NoLinksError("no symbolic link can be made here")


if os.name == "nt":
    from wine import pipe_sockets, processes

    support.children, support.wait_gone = processes.children, processes.wait_gone
    support.family = processes.family
    support.paths_are_sockets = support.sigterm_asks = support.halves = False
    support.workers_end_with_master = True  # they are in its job object
    support.appends_are_whole = not hasattr(ctypes.WinDLL("ntdll"), "wine_get_version")
    support.stacks_in_c = False  # a thread of the worker's writes them, which needs the interpreter
    support.REPLACED = 15.0  # every worker is a fresh interpreter, which under Wine takes seconds
    pipe_sockets.install()
    if not _can_link():
        os.symlink = _make_no_link


def missing(error: BaseException | None) -> str | None:
    """What this system lacks, if that is why `error` was raised."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name in sys.stdlib_module_names:
            return error.name
        if isinstance(error, AttributeError) and _is_standard(error.obj):
            return f"{error.obj.__name__}.{error.name}"
        if isinstance(error, ValueError) and str(error).startswith("Unsupported signal"):
            return "a signal that can be sent"
        if isinstance(error, NoLinksError):
            return "symbolic links"
        if isinstance(error, SettingsError) and error.name == "start_method":
            return "a start method that is not there"
        if isinstance(error, AssertionError) and _is_raised_in(error, OTHER_HALF):
            return "Unix"
        error = error.__cause__ or error.__context__
    return None


def _is_standard(owner: object) -> bool:
    return isinstance(owner, ModuleType) and owner.__name__.lstrip("_") in sys.stdlib_module_names


def _is_raised_in(error: BaseException, packages: tuple[str, ...]) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = "" if trace is None else trace.tb_frame.f_code.co_filename
    return Path(where).parent.name in packages and "ipcsrv" in Path(where).parts


class ProbedModule(pytest.Module):
    """A test module that is skipped where it cannot be imported for want of something."""

    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        """Its tests."""
        try:
            return super().collect()
        except (self.CollectError, AttributeError, AssertionError, ImportError) as error:
            lacking = missing(error)
            if lacking is None:
                raise
            pytest.skip(f"needs {lacking}", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Probe each module of tests."""
    return ProbedModule.from_parent(parent, path=module_path) if os.name == "nt" else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, object, object]:
    """Skip for what a fixture lacks."""
    return (yield from _probed())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """Skip for what a test lacks."""
    return (yield from _probed())


def _probed() -> Generator[None, object, object]:
    try:
        return (yield)
    except (AttributeError, ModuleNotFoundError, NoLinksError, SettingsError, ValueError) as error:
        lacking = missing(error)
        if lacking is None or os.name != "nt":
            raise
        pytest.skip(f"needs {lacking}")
