"""Handlers that do with their process what they may do by mistake: threads, forks, descriptors, strange objects."""

from __future__ import annotations

import array
import contextlib
import logging
import multiprocessing
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

if os.environ.get("THREAD_AT_IMPORT"):
    threading.Thread(target=time.sleep, args=(600,), name="a-thread-of-the-module", daemon=True).start()
if os.environ.get("DEFAULT_TIMEOUT"):
    socket.setdefaulttimeout(float(os.environ["DEFAULT_TIMEOUT"]))
class LazyModule:
    """A module that imports what it stands for when it is looked at, and cannot."""

    def __getattr__(self, name: str) -> Any:
        raise ImportError(name)


if os.environ.get("SELFISH_IMPORT"):
    sys.modules["a_lazy_module"] = LazyModule()  # type: ignore[assignment]
    signal.pthread_sigmask(signal.SIG_BLOCK, set(range(1, 32)))
    sys.path[:], sys.meta_path = [], list(sys.meta_path[1:])
if os.environ.get("DIES_OF_FORK"):  # at the next fork, if there is that file: before anyone is told of it
    _master, _file, _dies = os.getppid(), os.environ["DIES_OF_FORK"], []

    def _take_file() -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_file)
            _dies.append(True)

    def _die() -> None:
        if _dies:
            os.kill(os.getpid(), signal.SIGKILL)

    def _stop_master_and_end() -> None:
        if _dies:
            os.kill(_master, signal.SIGSTOP)  # so that it learns of both ends at once
            with open(f"{_file}.pid", "w") as file:
                file.write(str(os.getpid()))
            os._exit(0)

    os.register_at_fork(before=_take_file, after_in_parent=_die, after_in_child=_stop_master_and_end)
if os.environ.get("TOLD_LATE"):  # of a fork, while there is that file
    _told_late = os.environ["TOLD_LATE"]

    def _wait() -> None:
        until = time.monotonic() + 20
        while os.path.exists(_told_late) and time.monotonic() < until:
            time.sleep(0.01)

    os.register_at_fork(after_in_parent=_wait)


def leaves_a_thread_if_told_late() -> None:
    """Starts such a thread as a hook."""
    if os.path.exists(os.environ["TOLD_LATE"]):
        leaves_a_thread(b"")


def leaves_a_thread(request: bytes) -> bytes:
    """Starts a thread that is no daemon and does not end."""
    threading.Thread(target=time.sleep, args=(600,)).start()
    return request


def forks_a_sleeper(request: bytes) -> bytes:
    """Leaves a child that sleeps with all its descriptors open; then fails, dies, or answers."""
    if os.fork() == 0:
        time.sleep(6)
        os._exit(0)
    if request == b"raise":
        raise ValueError("after the fork")
    if request == b"die":
        os.kill(os.getpid(), signal.SIGKILL)
    return request


def terminates_a_child(request: bytes) -> bytes:
    """How many seconds a child takes to end after SIGTERM."""
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(15,))
    child.start()
    began = time.monotonic()
    child.terminate()
    child.join()
    return b"%.3f" % (time.monotonic() - began)


def forks_one_that_returns(request: bytes) -> Any:
    """A forked child returns an answer of its own, or yields one; both sides take long for that."""
    kind, _, large = request.partition(b" ")
    name = b"child" if os.fork() == 0 else b"parent"
    if kind == b"stream":
        return _parts(name)
    return name * (100_000 if large else 1)


def _parts(name: bytes) -> Iterator[bytes]:
    yield name + b" "
    if os.fork() == 0:
        name = b"child"
    yield name


def forks_one_that_exits(request: bytes) -> bytes:
    """How a child ends that leaves the handler by an exception: that of its name."""
    if (child := os.fork()) == 0:
        raise {"SystemExit": SystemExit(3), "ValueError": ValueError("in the child")}[request.decode()]
    return b"%d" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def terminates_children_at_once(request: bytes) -> bytes:
    """How some children end that get the signal of this number as soon as they are forked."""
    ends = set()
    for _ in range(20):
        if (child := os.fork()) == 0:
            for _ in range(300):
                time.sleep(0.05)  # briefly: the interpreter sees no signal that comes just before a sleep
            os._exit(0)
        os.kill(child, int(request))
        ends.add(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    return repr(sorted(ends)).encode()


def leaves_a_grandchild(request: bytes) -> bytes:
    """Leaves a process whose parent has ended."""
    if (child := os.fork()) == 0:
        if os.fork() == 0:
            time.sleep(0.05)
        os._exit(0)
    os.waitpid(child, 0)
    return request


def crashes(request: bytes) -> bytes:
    """Dies of a segmentation fault."""
    os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(10)
    return request


def writes_to_descriptors(request: bytes) -> bytes:
    """Writes garbage to every descriptor beyond standard error."""
    for number in range(3, 64):
        with contextlib.suppress(OSError):
            os.write(number, b"\xff" * 100)
    return request


def misuses_sockets(request: bytes) -> bytes:
    """Shuts every socket down, or sends two descriptors over each."""
    if request not in (b"read", b"both", b"descriptors"):
        return request
    for number in range(3, 64):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(number)) as found:
            if request == b"descriptors":
                socket.send_fds(found, [bytes(100)], [0, 1], socket.MSG_DONTWAIT)
            else:
                found.shutdown(socket.SHUT_RD if request == b"read" else socket.SHUT_RDWR)
    return b"done"


def lowers_its_limit(request: bytes) -> bytes:
    """Leaves this process without a descriptor for another connection."""
    if request == b"lower":
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
    return b"%d" % os.getpid()


def interrupted_calls(request: bytes) -> bytes:
    """How many of some waits of 50 ms in C, which a signal would cut short, were cut short."""
    import ctypes

    poll = ctypes.CDLL(None, use_errno=True).poll
    return b"%d" % sum(poll(None, 0, 50) != 0 for _ in range(6))


def subprocess_ignores(request: bytes) -> bytes:
    """The signals that a program started by the handler ignores (proc_pid_status(5))."""
    code = "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('SigIgn')))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.strip()


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class OddTextError(Exception):
    def __str__(self) -> str:
        return 5  # type: ignore[return-value]  # noqa: PLE0307 - that is the fault


class HostileText(str):
    def _fail(self, *arguments: Any) -> Any:
        raise RuntimeError("no text")

    __str__ = __format__ = __getitem__ = _fail


class TextOfItsOwnError(Exception):
    def __str__(self) -> str:
        return HostileText("text")


class NoClassError(Exception):
    @property
    def __class__(self) -> Any:
        raise RuntimeError("no class")

    @__class__.setter
    def __class__(self, value: Any) -> None:
        pass


class NoAttributesError(BaseException):
    def __getattribute__(self, name: str) -> Any:
        raise KeyboardInterrupt


class NoTracebackError(Exception):
    __traceback__ = property(lambda self: 1 / 0)  # type: ignore[assignment]

    def with_traceback(self, trace: Any) -> Any:
        raise SystemExit(3)


NamedByTextError = type(HostileText("NamedByTextError"), (Exception,), {})

HOSTILE: dict[str, Callable[[], BaseException]] = {
    "without text": UnprintableError,
    "with a number as text": OddTextError,
    "with a text of its own": TextOfItsOwnError,
    "without a class": NoClassError,
    "without attributes": NoAttributesError,
    "without a traceback": NoTracebackError,
    "named by a text of its own": NamedByTextError,
}


class BadIterator:
    def __init__(self, next_: Callable[[], bytes], close: Callable[[], None] = lambda: None) -> None:
        self._next, self.close = next_, close

    def __iter__(self) -> BadIterator:
        return self

    def __next__(self) -> bytes:
        return self._next()


class BadIterable:
    def __iter__(self) -> Iterator[bytes]:
        raise RuntimeError("no iterator")


class Liar:
    @property
    def __class__(self) -> Any:
        raise RuntimeError("no class")


def _raise(error: BaseException) -> Any:
    raise error


def _closed_file() -> Any:
    file = open(os.devnull, "rb")  # noqa: SIM115
    file.close()
    return file


def _released() -> memoryview:
    view = memoryview(b"gone")
    view.release()
    return view


def _one_chunk_then(close: Callable[[], None]) -> BadIterator:
    chunks = iter([b"chunk"])
    return BadIterator(lambda: next(chunks), close)


def _from_generator(name: str) -> Iterator[bytes]:
    yield b"chunk"
    raise HOSTILE[name]()


def _from_finally(name: str) -> Iterator[bytes]:
    try:
        yield b"chunk"
    finally:
        raise HOSTILE[name]()


def _logs_them() -> bytes:
    for make in HOSTILE.values():
        try:
            raise make()
        except BaseException:
            logging.getLogger("handler").exception("it failed")
    return b"logged"


def _from_module_without_name() -> None:
    exec("raise ValueError", {"__name__": HostileText("name"), "ValueError": ValueError})


class UnmeasurableBytes(bytes):
    """Bytes of which the handler's class does not tell the length."""

    def __len__(self) -> int:
        raise RuntimeError("no length")


MISTAKES: dict[str, Callable[[], Any]] = {
    **{f"exception {name}": lambda name=name: _raise(HOSTILE[name]()) for name in HOSTILE},
    **{f"exception {name} in a stream": lambda name=name: _from_generator(name) for name in HOSTILE},
    **{f"exception {name} at the end of a stream": lambda name=name: _from_finally(name) for name in HOSTILE},
    "exception of a module without a name": _from_module_without_name,
    "closed file": _closed_file,
    "iterable without iterator": BadIterable,
    "iterator that raises GeneratorExit": lambda: BadIterator(lambda: _raise(GeneratorExit())),
    "iterator that raises SystemExit": lambda: BadIterator(lambda: _raise(SystemExit(3))),
    "iterator that raises KeyboardInterrupt": lambda: BadIterator(lambda: _raise(KeyboardInterrupt())),
    "chunk that is text": lambda: iter(["text"]),
    "chunk that is released": lambda: iter([_released()]),
    "released memory": _released,
    "object whose class raises": Liar,
    "chunk whose class raises": lambda: iter([Liar()]),
    "number": lambda: 5,
    "class": lambda: bytes,
    "SystemExit": lambda: _raise(SystemExit(3)),
    "KeyboardInterrupt": lambda: _raise(KeyboardInterrupt()),
    "RecursionError": lambda: _recurse(),  # noqa: PLW0108 - it is defined below
}
ODDITIES: dict[str, tuple[Callable[[], Any], bytes]] = {
    "bytes without a length": (lambda: UnmeasurableBytes(b"abc"), b"abc"),
    "close that raises": (lambda: _one_chunk_then(lambda: _raise(RuntimeError("no close"))), b"chunk"),
    "close that raises an exception without attributes": (
        lambda: _one_chunk_then(lambda: _raise(NoAttributesError())), b"chunk"),
    "exceptions that are logged": (_logs_them, b"logged"),
    "close that exits": (lambda: _one_chunk_then(lambda: _raise(SystemExit(3))), b"chunk"),
    "two dimensions": (lambda: memoryview(b"abcd").cast("B", (2, 2)), b"abcd"),
    "every second byte": (lambda: memoryview(b"a-b-c-")[::2], b"abc"),
    "array": (lambda: array.array("H", [0x6161, 0x6262]), b"aabb"),
    "bytearray": (lambda: bytearray(b"bytes"), b"bytes"),
}


def _recurse() -> bytes:
    return _recurse()


def mistake(request: bytes) -> Any:
    """Does what the request names."""
    name = request.decode()
    return ODDITIES[name][0]() if name in ODDITIES else MISTAKES[name]() if name in MISTAKES else request


async def mistake_async(request: bytes) -> Any:
    """The same in a coroutine."""
    return mistake(request)


async def mistake_in_async_stream(request: bytes) -> AsyncIterator[Any]:
    """The same between the chunks of an async stream."""
    response = mistake(request)
    if isinstance(response, Iterator):
        for chunk in response:
            yield chunk
    else:
        yield response


def mistake_of_hook(request: bytes, *end: object) -> None:
    """Raises what the request names, before the handler or after it."""
    when, _, name = request.decode().partition(": ")
    if when == ("end" if end else "start"):
        raise HOSTILE[name]()


def endless_empty_chunks(request: bytes) -> Iterator[bytes]:
    """Chunks without data, and a note in the file that the request names when the iterator is closed."""
    try:
        while True:
            yield b""
    finally:
        open(request.decode(), "wb").close()


def hang_or_echo(request: bytes) -> bytes:
    """Hangs if asked to."""
    if request == b"hang":
        time.sleep(600)
    return request


def overwrites_shared_memory(request: bytes) -> bytes:
    """Overwrites all that the server's processes share with zeros or ones, if it is asked to."""
    if request in (b"zeros", b"ones"):
        for entry in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                if "ipcsrv-shared" in os.readlink(f"/proc/self/fd/{entry}"):
                    size = os.fstat(int(entry)).st_size
                    os.pwrite(int(entry), (b"\0" if request == b"zeros" else b"\xff") * size, 0)
    return request
