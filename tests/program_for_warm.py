"""A command-line program that does what it is told, run warm and cold by the tests: `PROGRAM ACTION [ARGUMENTS]`."""

from __future__ import annotations

import atexit
import contextlib
import getpass
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback

START = os.getpid(), list(sys.argv)


def main() -> object:
    """Do the action that the command line names."""
    action = globals().get(f"do_{sys.argv[1]}") if len(sys.argv) > 1 else None
    if action is None:
        print("usage: PROGRAM ACTION", file=sys.stderr)
        return 64
    return action(*sys.argv[2:])


def do_exit(code: str) -> int:
    return int(code)


def do_exit_text() -> str:
    return "a message as exit code"


def do_os_exit(code: str) -> None:
    print("lost, for it is not flushed", end="")
    os._exit(int(code))


def do_raise() -> None:
    raise ValueError("outer") from KeyError("inner")


def do_interrupt(kind: str = "") -> None:
    raise type("Derived", (KeyboardInterrupt,), {}) if kind else KeyboardInterrupt


def do_hook(kind: str) -> None:
    def hook(*_: object) -> None:
        if kind == "exit":
            sys.exit(7)
        raise KeyError("in the hook")

    sys.excepthook = hook if kind in ("exit", "raise") else None  # type: ignore[assignment]
    if kind == "missing":
        del sys.excepthook
    raise ValueError("in the program")


def do_join() -> None:
    """End with a thread to wait for, and be interrupted meanwhile."""
    atexit.register(print, "registered")
    end = threading.Event()

    def interrupt() -> None:
        joining = ("lock.acquire()", "_thread_shutdown()")  # in threading._shutdown
        while traceback.extract_stack(sys._current_frames()[main_id])[-1].line not in joining:
            time.sleep(0.01)  # briefly: there is no event for the end of the main thread
        os.kill(os.getpid(), signal.SIGINT)
        end.wait(0.3)

    main_id = threading.get_ident()
    threading.Thread(target=interrupt).start()


def do_die(number: str) -> None:
    os.kill(os.getpid(), int(number))
    time.sleep(60)  # until a signal comes


def do_deep(levels: int = 970) -> None:
    if levels:
        do_deep(levels - 1)


def do_signals() -> None:
    with contextlib.suppress(OSError), open("/proc/self/status") as file:
        caught = next(int(line.split()[1], 16) for line in file if line.startswith("SigCgt"))
        print([number for number in range(1, 32) if caught >> (number - 1) & 1])  # beyond are glibc's own


def do_surroundings() -> None:
    main_module = sys.modules["__main__"]
    variables = sorted(item for item in os.environ.items() if item[0] != "_")  # in which a shell puts the command
    print(sys.argv, os.getcwd(), oct(os.umask(0o22)), variables, os.getgid(), os.getgroups())
    print(__name__, main_module.__file__, main_module.__spec__, sys.path, sys.flags, sys.executable, sys.orig_argv)
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        original = getattr(sys, f"__{stream.name[1:-1]}__")
        print(stream, stream.isatty(), stream.line_buffering, stream.errors, stream is original)
    print({number: str(signal.getsignal(number)).partition(" at ")[0] for number in range(1, 32)})
    print(threading.enumerate()[0].name, sys.excepthook, tempfile.gettempdir(), type(sys.stdin))
    print(sorted(int(n) for n in os.listdir("/dev/fd"))[:4], sys.gettrace(), [type(finder) for finder in sys.meta_path])


def do_logging() -> None:
    import logging

    logging.getLogger("program").info("not printed")
    logging.getLogger("program").warning("printed to standard error")
    root, ours = logging.getLogger(), logging.getLogger("ipcsrv")
    print(root.level, root.handlers, ours.level, ours.handlers, ours.propagate, logging.lastResort)


def do_echo() -> None:
    sys.stdout.write(sys.stdin.read())


def do_both() -> None:
    print("to output")
    print("to error", file=sys.stderr)


def do_atexit(path: str) -> None:
    atexit.register(print, "registered")
    threading.Timer(0.05, print, ["thread"]).start()
    globals()["file"] = open(path, "w")  # noqa: SIM115  left open on purpose
    globals()["file"].write("written")


def do_child() -> int:
    done = subprocess.run(["/bin/sh", "-c", "read line; echo child $line; exit 7"], check=False)
    return done.returncode


def do_pool() -> None:
    import multiprocessing

    with multiprocessing.get_context("fork").Pool(2) as pool:
        print(pool.map(abs, [-1, -2]), multiprocessing.current_process().name)


def do_flood() -> None:
    while True:
        print("y" * 1000)


def do_random() -> None:
    import random

    print(random.random())


def do_ask() -> None:
    print("hello", input("name? "))


def do_wait() -> None:
    signal.signal(signal.SIGCONT, lambda *_: os.write(1, b"continued\n"))
    try:
        os.write(1, b"waiting\n")
        while True:
            time.sleep(0.05)  # briefly: a sleep that is just being continued does not see a signal
    except KeyboardInterrupt:
        raise KeyboardInterrupt from None  # the same traceback wherever the signal came


def do_catch() -> int:
    def caught(number: int, _: object) -> None:
        os.write(1, f"caught {signal.Signals(number).name}\n".encode())
        if number == signal.SIGTERM:
            sys.exit(9)

    for name in ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGQUIT"):
        signal.signal(getattr(signal, name), caught)
    print("ready", flush=True)
    while True:
        time.sleep(0.05)  # not pause(2), which would miss a signal that comes just before it


def do_password() -> None:
    print(len(getpass.getpass("secret: ")))


def do_pid() -> None:
    print(os.getpid(), flush=True)
    time.sleep(60)  # until a signal comes


def do_exec() -> None:
    os.execv("/bin/sh", ["sh", "-c", "echo replaced; exit 5"])


def do_stopped() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)
    print("continued")


if __name__ == "__main__":
    sys.exit(main())
