"""Turn a forked process into the program, as a fresh interpreter would run it.  In a child of a worker.

What an interpreter does at its start and its end is done here in its order: standard streams, signals, `__main__`,
the exit status of `sys.exit`, tracebacks, threads, `atexit`, flushes.
"""

from __future__ import annotations

import sys

assert sys.platform != "win32"

import atexit
import contextlib
import faulthandler
import gc
import io
import itertools
import linecache
import logging
import multiprocessing.process
import os
import signal
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterable
from importlib.machinery import SourceFileLoader
from types import ModuleType, TracebackType
from typing import Any

from ..platform import logs
from ..platform.unix.descriptors import close_all_but
from . import recording, title
from .template import ImportEffects, own_finders, take_out_packages
from .wire import RunRequest

_CATCHABLE = [number for number in range(1, 32) if number not in (signal.SIGKILL, signal.SIGSTOP)]
_FLUSH_FAILED = 120  # exit status of an interpreter that could not flush its standard streams


# -- what a fresh process has -----------------------------------------------------------------------------------------


def forget_server(keep: Iterable[int], packages: dict[str, ModuleType]) -> None:
    """Give up what the worker has and a fresh interpreter has not: its descriptors, signals, log and process group.

    packages: the program's own copies of the packages that the server consists of.
    """
    os.setpgid(0, 0)
    close_all_but({0, 1, 2, *keep})
    signal.set_wakeup_fd(-1)
    faulthandler.disable()  # or a crash would be written to a descriptor that is the program's now
    for number in _CATCHABLE:
        with contextlib.suppress(RuntimeError):  # the signals of faulthandler.enable()
            faulthandler.unregister(number)
        signal.signal(number, signal.SIG_DFL)  # also where it seems so: faulthandler has put an older handler back
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    _become_main_process()
    logs.forget()
    forget_packages(packages)
    gc.enable()


def forget_packages(packages: dict[str, ModuleType]) -> None:
    """Replace the server's packages, and their finder, by what the program has imported by their names."""
    for finder in own_finders():
        sys.meta_path.remove(finder)
    take_out_packages()
    sys.modules.update(packages)


def _become_main_process() -> None:
    """Have multiprocessing see a main process: a worker is a child to it, which may not have children of its own."""
    module: Any = multiprocessing.process
    main: Any = object.__new__(type("_MainProcess", (module.BaseProcess,), {"close": lambda self: None}))
    main.__dict__.update(_identity=(), _name="MainProcess", _parent_pid=None, _popen=None, _closed=False)
    main._config = {"authkey": module.AuthenticationString(os.urandom(32)), "semprefix": "/mp"}
    module._current_process, module._parent_process = main, None
    module._process_counter, module._children = itertools.count(1), set()


def take_surroundings(request: RunRequest, effects: ImportEffects) -> None:
    """Take the client's folder, umask, ignored signals and environment, and what the import has changed in them.

    Raises:
        OSError: the folder cannot be entered.
    """
    os.chdir(request.folder)
    os.umask(request.umask)
    for number in _CATCHABLE:
        if request.ignored >> number & 1:
            signal.signal(number, signal.SIG_IGN)
    zone = os.environb.get(b"TZ")
    for number, handler in effects.signals.items():
        signal.signal(number, handler)
    environment = dict(entry.partition(b"=")[::2] for entry in request.environment)
    for name, value in effects.environment.items():
        environment.pop(name, None)
        if value is not None:
            environment[name] = value
    _set_environment(environment)
    sys.path[:] = effects.path
    recording.set_folders()
    if os.environb.get(b"TZ") != zone:
        time.tzset()
    atexit.register(logging.shutdown)  # the server has imported `logging` before the program
    for function, arguments, options in effects.exit_functions:
        atexit.register(function, *arguments, **options)


def take_streams(descriptors: list[int], encodings: list[list[str]]) -> None:
    """Take the client's standard streams, with the encodings and error handlers that the interpreter began with."""
    for standard, descriptor in enumerate(descriptors):
        os.dup2(descriptor, standard)
        os.close(descriptor)
    sys.stdin = sys.__stdin__  # which multiprocessing replaces in its children
    for standard, stream in enumerate((sys.__stdin__, sys.__stdout__, sys.__stderr__)):
        if isinstance(stream, io.TextIOWrapper):
            _reopen(stream, standard, *encodings[standard])
    if not sys.flags.ignore_environment and os.environ.get("PYTHONFAULTHANDLER") or "faulthandler" in sys._xoptions:
        faulthandler.enable()


def _set_environment(wanted: dict[bytes, bytes]) -> None:
    present = os.environb
    for name in [name for name in present if name not in wanted]:
        del present[name]
    for name, value in wanted.items():
        if present.get(name) != value:
            present[name] = value


def _reopen(stream: io.TextIOWrapper, descriptor: int, encoding: str, errors: str) -> None:
    """Make the stream anew in place, since modules may have kept it, as the interpreter makes it at its start."""
    mode = "w" if descriptor else "r"
    unbuffered = bool(os.environ.get("PYTHONUNBUFFERED")) or "-u" in sys.orig_argv
    direct = unbuffered and mode == "w"
    buffer: Any = open(descriptor, f"{mode}b", buffering=0 if direct else -1, closefd=False)  # noqa: SIM115
    raw = buffer if direct else buffer.raw
    raw.name = ("<stdin>", "<stdout>", "<stderr>")[descriptor]
    line_buffering = not unbuffered and (descriptor == 2 or raw.isatty())
    stream.__init__(  # type: ignore[misc]
        buffer, encoding, errors, newline="\n", line_buffering=line_buffering, write_through=unbuffered
    )
    stream.mode = mode  # type: ignore[misc]


# -- the program ------------------------------------------------------------------------------------------------------


class Run:
    """A program, ready to be run in this process."""

    def __init__(self, spec: dict[str, Any], code: Any = None, output: Iterable[tuple[int, bytes]] = ()) -> None:
        self._spec = spec
        self._code = code
        self._output = output  # of the imports that have been done beforehand

    def execute(self, arguments: list[str]) -> int:
        """Run the program as `__main__`, with `sys.argv`; returns its exit status, or the negative of a signal."""
        try:
            self._execute(arguments)
        except SystemExit as error:
            return _status(error)
        except BaseException as error:
            failure = error
        else:
            return 0
        status = show(failure)  # out of the handler: what the hook raises has no context
        if status is not None:
            return status
        return -signal.SIGINT if type(failure) is KeyboardInterrupt else 1

    def _execute(self, arguments: list[str]) -> None:
        sys.argv[:] = arguments  # the list itself: a module may have kept it
        main = sys.modules["__main__"] = ModuleType("__main__")
        path, source = arguments[0], self._spec["source"]
        if source:
            sys.argv[0] = "-c"
            code = compile(source, "<string>", "exec", dont_inherit=True)
            if sys.version_info >= (3, 13):  # where a traceback shows the line
                linecache.cache["<string>"] = len(source), None, [f"{source}\n"], "<string>"
        else:
            main.__file__ = path
            main.__dict__["__cached__"] = None
            code = self._code
            if code is None or path != self._spec["path"]:
                with open(path, "rb") as file:
                    code = compile(file.read(), path, "exec", dont_inherit=True)
        sys.setrecursionlimit(sys.getrecursionlimit() + _depth())  # the frames below are not the program's
        main.__loader__ = SourceFileLoader("__main__", path)
        main.__dict__["__builtins__"] = sys.modules["builtins"]
        main.__annotations__ = {}
        sys.orig_argv[:] = [self._spec["interpreter"], *self._spec["flags"], *(["-c", source] if source else [path])]
        sys.orig_argv += arguments[1:]
        title.set_command_line(sys.orig_argv, self._spec["comm"])
        _print_again(self._output)
        exec(code, main.__dict__)


def _print_again(output: Iterable[tuple[int, bytes]]) -> None:
    for descriptor, data in output:
        stream = sys.__stdout__ if descriptor == 1 else sys.__stderr__
        if stream is not None:
            stream.write(data.decode(stream.encoding, "surrogateescape"))


def _depth() -> int:
    """Return how many frames this thread has above that of the interpreter's start."""
    frame, depth = sys._getframe(1), 0
    while frame.f_back is not None:
        frame, depth = frame.f_back, depth + 1
    return depth + 1


def _status(error: SystemExit) -> int:
    """Return the exit status that the interpreter makes of `sys.exit(...)`."""
    code = error.code
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF if -(2**63) <= code < 2**63 else 0xFF
    with contextlib.suppress(Exception):
        print(code, file=sys.stderr)
    return 1


def show(error: BaseException) -> int | None:
    """Print an exception that ends the program, from the program's own frames on.

    Returns: the exit status, if the program's `sys.excepthook` has called `sys.exit`.
    """
    tail = _program_frames(error)
    recording.hide_frames(error)
    sys.last_type, sys.last_value, sys.last_traceback = type(error), error, tail
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    if not hasattr(sys, "excepthook"):  # it can be deleted
        print("sys.excepthook is missing", file=sys.stderr)
        sys.excepthook = sys.__excepthook__
    try:
        sys.excepthook(type(error), error, tail)
    except SystemExit as leaving:
        return _status(leaving)
    except BaseException as failure:
        _show_failed_hook(failure, error, tail)
    return None


def _show_failed_hook(failure: BaseException, error: BaseException, tail: TracebackType | None) -> None:
    with contextlib.suppress(Exception):
        print("Error in sys.excepthook:", file=sys.stderr)
        sys.__excepthook__(type(failure), failure, _program_frames(failure))
        print("\nOriginal exception was:", file=sys.stderr)
        sys.__excepthook__(type(error), error, tail)


def _program_frames(error: BaseException) -> TracebackType | None:
    """Take the frames of this module off the beginning of a traceback; returns what is left."""
    tail = error.__traceback__
    while tail is not None and tail.tb_frame.f_code.co_filename == __file__:
        tail = tail.tb_next
    error.__traceback__ = tail
    return tail


# -- the end ----------------------------------------------------------------------------------------------------------


def finish(status: int, note: Callable[[], None], files: Iterable[weakref.ref[Any]]) -> None:
    """End this process as the interpreter does, but for freeing the memory of every module, which the kernel does.

    note: called when the program has ended, before its modules go.
    files: that were opened by an import beforehand.
    """
    try:
        threading._shutdown()  # type: ignore[attr-defined]
    except BaseException as error:  # Ctrl-C
        _say_ignored(_where_joined(), error)
    atexit._run_exitfuncs()
    flushed = _flush_standard_streams()
    if callable(signal.getsignal(signal.SIGINT)):
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # from here on, as in an interpreter that ends
    with contextlib.suppress(OSError):
        note()
    main = sys.modules.pop("__main__", None)
    if main is not None:
        main.__dict__.clear()  # what has a finalizer runs it
    gc.collect()  # of what the run has made: the rest is frozen
    for thing in [*gc.get_objects(), *(file() for file in files)]:
        if isinstance(thing, (io.BufferedWriter, io.BufferedRandom, io.TextIOWrapper)):
            with contextlib.suppress(Exception):
                thing.flush()
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status if flushed else _FLUSH_FAILED)


def _flush_standard_streams() -> bool:
    """Flush standard output and error; False, after the interpreter's message, if the first cannot be flushed."""
    flushed = True
    if sys.stdout is not None and not getattr(sys.stdout, "closed", False):
        try:
            sys.stdout.flush()
        except BaseException as error:
            flushed = False
            _say_ignored(_where_flushed(), error)
    if sys.stderr is not None and not getattr(sys.stderr, "closed", False):
        try:
            sys.stderr.flush()
        except BaseException:
            flushed = False
    return flushed


def _where_flushed() -> str:
    if sys.version_info < (3, 13):
        return f"in: {sys.stdout!r}"
    return "on flushing sys.stdout:" if sys.version_info < (3, 14) else "while flushing sys.stdout:"


def _where_joined() -> str:
    if sys.version_info < (3, 13):
        return f"in: {threading!r}"
    return "" if sys.version_info < (3, 14) else "on threading shutdown:"


def _say_ignored(where: str, error: BaseException) -> None:
    """Print an exception as `sys.unraisablehook` does, which takes only what the interpreter gives it."""
    lines = traceback.format_tb(_program_frames(error))
    module = "" if type(error).__module__ == "builtins" else f"{type(error).__module__}."
    head = "Traceback (most recent call last):\n" if lines else ""
    last = f"{module}{type(error).__qualname__}: {error}\n"
    with contextlib.suppress(Exception):
        sys.stderr.write((f"Exception ignored {where}\n" if where else "") + head + "".join(lines) + last)
