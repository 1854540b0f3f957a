"""The handler of a warm server: pass a request to a process forked beforehand, relay signals, report how it ended.

In the worker.  Each worker keeps one child, the *spare*, which has everything imported and waits for a run.  The spare
becomes the program, and the worker forks the next one while the program runs, so that no run waits for a fork and none
leaves anything behind for the next.
"""

from __future__ import annotations

import sys

assert sys.platform != "win32"

import contextlib
import errno
import faulthandler
import gc
import json
import os
import select
import signal
import socket
import struct
from typing import Any, NoReturn

from ..client import control as control_socket
from ..errors import HandlerImportError
from ..platform.unix.descriptors import close_all_but
from . import learning, run, stamps, starting, title, wire
from .template import VARIABLE, Template

_SIZE = struct.Struct("=I")
BEGIN_TIMEOUT = 10.0  # seconds for a client to answer READY, before the spare is given up
_RUNNING = b"r"  # from the child: the client has said GO

_template: Template | None = None
_spare: Spare | None = None
_ended: tuple[int, int] | None = None  # a pipe: SIGCHLD wakes the worker out of poll(2)


def _load() -> None:
    """Import the program; when this module is imported, which the template does once."""
    global _template
    text = os.environ.pop(VARIABLE, None)
    if text is not None:
        _template = Template(json.loads(text))
        _template.load()


def prepare() -> None:
    """Fork the first spare: the setting `on_worker_start`.

    Raises:
        HandlerImportError: the server was not started by `ipcsrv warm`, which says what to import.
    """
    global _spare, _ended
    if _template is None:
        raise HandlerImportError("ipcsrv.warm.worker:handle", reason="is started by `ipcsrv warm`, for a program")
    _ended = os.pipe()
    for descriptor in _ended:
        os.set_blocking(descriptor, False)
    signal.signal(signal.SIGCHLD, _on_child)
    # The limit on an import has done its work. Its thread does not survive a fork, where cancelling it never returns.
    faulthandler.cancel_dump_traceback_later()
    gc.collect()
    gc.freeze()
    _spare = Spare()
    _template.publish()


def release() -> None:
    """End the spare: the setting `on_worker_stop`."""
    if _spare is not None:
        _spare.discard()


def handle(request: Any) -> bytes:
    """Run a program for a client: the handler."""
    global _spare
    descriptors = request.descriptors
    if len(descriptors) != 1:
        raise ValueError(f"a run comes with one descriptor, its control channel, not {len(descriptors)}")
    spare, _spare = _spare or Spare(), None
    with socket.socket(fileno=descriptors[0]) as control:
        running = spare.start(request, control)
        _spare = Spare()  # while the program runs
        if not running:
            spare.discard()
            return b"refused"
        status = _wait(spare.pid, control)
    if _template is not None and stamps.stamp_of(_template.spec["learned"]) != _template.learned:
        _reload()
    return b"signal %d" % -status if status < 0 else b"exit %d" % status


class Spare:
    """A child that has everything imported, and waits to become the program."""

    def __init__(self) -> None:
        self._channel, theirs = socket.socketpair()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            _become_program(theirs, parent)
        theirs.close()

    def start(self, request: bytes, control: socket.socket) -> bool:
        """Hand the request over; True if the program runs."""
        try:
            self._channel.settimeout(BEGIN_TIMEOUT)
            socket.send_fds(self._channel, [_SIZE.pack(len(request))], [control.fileno()])
            self._channel.sendall(request)
            return self._channel.recv(1) == _RUNNING
        except OSError:  # it was killed
            return False
        finally:
            self._channel.close()

    def discard(self) -> None:
        """End a child that runs no program."""
        self._channel.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


# -- while the program runs -------------------------------------------------------------------------------------------


def _on_child(*_: object) -> None:
    """Handle SIGCHLD in name: it is the wake-up descriptor that ends a poll(2)."""


def _wait(pid: int, control: socket.socket) -> int:
    """Relay signals until the run has ended; returns its exit status, or the negative of the signal it died of."""
    assert _ended is not None
    # Written by the C handler: one in Python would run too late for a signal that comes just before poll(2) waits.
    before = signal.set_wakeup_fd(_ended[1], warn_on_full_buffer=False)
    try:
        return _wait_for_end(pid, control, _ended[0])
    finally:
        signal.set_wakeup_fd(before)


def _wait_for_end(pid: int, control: socket.socket, woken: int) -> int:
    """As `_wait`; `woken` is readable after a signal."""
    poller = select.poll()
    poller.register(woken, select.POLLIN)
    poller.register(control, select.POLLIN)
    while True:
        done, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
        if done and not os.WIFSTOPPED(status):
            return os.waitstatus_to_exitcode(status)
        if done:
            with contextlib.suppress(OSError):
                control.send(wire.STOPPED, socket.MSG_DONTWAIT)
        for descriptor, _ in poller.poll():
            if descriptor == woken:
                with contextlib.suppress(BlockingIOError):
                    os.read(descriptor, 4096)
            elif not _relay(pid, control):
                poller.unregister(control)


def _relay(pid: int, control: socket.socket) -> bool:
    """Send the run's process group what signals the client got; False once the client is gone: that ends the run."""
    try:
        numbers = control.recv(64, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return True
    except OSError:
        numbers = b""
    if not numbers:
        os.kill(pid, signal.SIGKILL)
        return False
    for number in numbers:
        try:
            os.killpg(pid, number)
        except OSError as error:
            if error.errno not in (errno.ESRCH, errno.EPERM):
                raise
    return True


def _reload() -> None:
    """Have the master make a new template, by a process of its own: the run has shown more modules to import."""
    assert _template is not None
    _template.learned = stamps.stamp_of(_template.spec["learned"])
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return
    try:
        if os.fork() == 0:
            close_all_but({0, 1, 2})
            with starting.lock(_template.spec["lock"]) as locked:
                if locked:
                    control_socket.request(_template.spec["socket"], "reload", timeout=starting.START_TIMEOUT)
    except BaseException as error:  # the server serves as before
        run.show(error)
    finally:
        os._exit(0)


# -- in the child -----------------------------------------------------------------------------------------------------


def _become_program(channel: socket.socket, parent: int) -> NoReturn:
    """The whole life of a child."""
    status = 1
    try:
        assert _template is not None
        title.end_with_parent(signal.SIGKILL)
        run.forget_server({channel.fileno(), *_template.effects.descriptors}, _template.packages)
        if os.getppid() == parent:
            arguments = _receive(channel)
            status = run.Run(_template.spec, _template.code, _template.effects.output).execute(arguments)
            run.finish(status, _note_modules, _template.effects.files)
    except BaseException as error:
        run.show(error)
    finally:
        os._exit(status & 0xFF)


def _note_modules() -> None:
    """Have the next template import what this run has imported late."""
    assert _template is not None
    learning.note_modules(_template.spec["learned"], _template.modules, _template.spec["search_path"])


def _receive(channel: socket.socket) -> list[str]:
    """Wait for a request and take its surroundings; ends this process if there will be no run."""
    head, descriptors, _, _ = socket.recv_fds(channel, _SIZE.size, 1)
    if len(head) < _SIZE.size:
        os._exit(0)  # the worker leaves
    data = bytearray()
    (size,) = _SIZE.unpack(head)
    while len(data) < size:
        more = channel.recv(size - len(data))
        if not more:
            os._exit(0)
        data += more
    with socket.socket(fileno=descriptors.pop()) as control:
        try:
            assert _template is not None
            request = wire.decode(bytes(data))
            if request.token != _template.token:
                raise ValueError("another generation")
            run.take_surroundings(request, _template.effects)
        except (OSError, ValueError):
            control.send(wire.REFUSED)
            os._exit(0)
        control.send(wire.READY)
        answer, streams, _, _ = socket.recv_fds(control, 1, wire.STREAMS)
        if answer != wire.GO or len(streams) != wire.STREAMS:
            os._exit(0)  # the client has run it cold
        run.take_streams(streams, _template.spec["streams"])
    channel.send(_RUNNING)
    channel.close()
    return list(map(os.fsdecode, request.arguments))


_load()
