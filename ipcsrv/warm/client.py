"""Pass a run to a warm server, relay signals to it, and end as it ends.  In the client."""

from __future__ import annotations

import sys

assert sys.platform != "win32"

import contextlib
import os
import select
import signal
import socket
import time
from typing import NoReturn

from ..buffers import discard
from ..client import sync
from ..deadline import Deadline
from ..errors import IpcError
from ..platform import client as platform
from ..protocol.pktline import encode
from . import stamps, wire
from .program import Place, Program

START_PATIENCE = 0.15  # seconds for a free worker to take the run; then it runs cold
RETRY_PAUSE = 0.02  # seconds
RELAYED = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH,
    signal.SIGCONT, signal.SIGTSTP,
)  # fmt: skip
_RECEIVE_SIZE = 4096


class Cold(Exception):
    """This run is to run cold; the text says why."""


class Busy(Cold):
    """The server is up to date, but did not take the run."""


def check_run(arguments: list[str]) -> None:
    """Raise `Cold` where the run depends on what only this process has."""
    if any(argument.startswith(("/dev/fd/", "/proc/self/fd/")) for argument in arguments):
        raise Cold("an argument names a descriptor")
    for descriptor in (0, 1, 2):
        try:
            terminal = os.isatty(descriptor)
            os.fstat(descriptor)
        except OSError:
            raise Cold("a standard stream is closed") from None
        if terminal and _in_background(descriptor):
            raise Cold("in the background of its terminal")


def _in_background(terminal: int) -> bool:
    try:
        return os.tcgetpgrp(terminal) != os.getpgrp()
    except OSError:  # not our controlling terminal: there is no job control
        return False


class Refused(Busy):
    """A process of another generation has taken the request: the server is reloading."""


def run(program: Program, place: Place, arguments: list[str]) -> NoReturn:
    """Run the program warm and end as it ends.

    Raises:
        Cold: nothing has been run.
    """
    deadline = None
    while True:
        token, reason = stamps.current_token(place.stamps, place.key)
        if token is None:
            raise Cold(reason)
        deadline = deadline or Deadline(START_PATIENCE)
        try:
            _run(program, place, arguments, token, deadline)
        except Refused:
            if deadline.expired:
                raise
            time.sleep(RETRY_PAUSE)


def _run(program: Program, place: Place, arguments: list[str], token: str, deadline: Deadline) -> NoReturn:
    try:
        request = wire.own_request(token, program.argv0, arguments)
        connection = platform.attempt(place.socket)
        sync.check_trust(place.socket, connection.peer(), ())
    except (IpcError, OSError) as error:
        raise Cold(str(error)) from None
    control, theirs = socket.socketpair()
    try:
        with theirs:
            _send(connection, request, theirs.fileno(), deadline)
        _await_ready(control, deadline)
    except Cold:
        control.close()  # and with it the run, if a worker takes it now
        connection.close()
        raise
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)  # or a signal that comes just before poll(2) would wait
    _begin(control)
    _end_as(_await_end(connection, control, woken))


def _send(connection: platform.Stream, request: wire.RunRequest, theirs: int, deadline: Deadline) -> None:
    """Send the request, which is longer than a socket holds where there are many arguments."""
    buffers = encode(request.encode())
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, theirs.to_bytes(4, sys.byteorder))]
    try:
        while buffers:
            try:
                sent = connection.sendmsg(buffers[:16], rights, platform.DONTWAIT)
            except BlockingIOError:
                _wait_for(connection, select.POLLOUT, deadline)
                continue
            rights = []
            discard(buffers, sent)
    except OSError as error:
        raise Cold(f"the server does not take the request: {error.strerror}") from None


def _wait_for(connection: platform.Stream | socket.socket, event: int, deadline: Deadline) -> None:
    """Wait until a socket is ready; raises `Cold` if it is not in time."""
    poller = select.poll()
    poller.register(connection, event)
    while not poller.poll((deadline.remaining() or 0) * 1000):
        if deadline.expired:
            raise Busy("no worker is free")


def _await_ready(control: socket.socket, deadline: Deadline) -> None:
    """Wait until a process is ready to become the program; raises `Cold` if there is none in time."""
    _wait_for(control, select.POLLIN, deadline)
    answer = _receive(control, 1)
    if answer != wire.READY:
        raise Refused("the server refused") if answer else Busy("the server gave the run up")


def _begin(control: socket.socket) -> None:
    """Let the run begin, and pass the signals that this process gets on to it; none is lost in between."""

    def pass_on(number: int, _: object) -> None:
        if number == signal.SIGTSTP:
            number = signal.SIGSTOP  # SIGTSTP would be discarded in a process group that is orphaned
        with contextlib.suppress(OSError):
            control.send(bytes((number,)), platform.DONTWAIT)

    before = signal.pthread_sigmask(signal.SIG_BLOCK, RELAYED)
    socket.send_fds(control, [wire.GO], range(wire.STREAMS))
    for number in RELAYED:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _await_end(connection: platform.Stream, control: socket.socket, woken: int) -> bytes:
    """Wait for the response; returns its text, b"" if the server died. `woken` is readable after a signal."""
    poller = select.poll()
    poller.register(connection, select.POLLIN)
    poller.register(control, select.POLLIN)
    poller.register(woken, select.POLLIN)
    received = b""
    while True:
        for descriptor, _ in poller.poll():
            if descriptor == woken:
                os.read(woken, 64)  # the handler of the signal runs now
                continue
            if descriptor == control.fileno():
                message = _receive(control, 64)
                if not message:
                    poller.unregister(control)
                elif wire.STOPPED in message:
                    os.kill(os.getpid(), signal.SIGSTOP)  # as the run has; SIGCONT, which is relayed, continues both
                continue
            data = _receive(connection, _RECEIVE_SIZE)
            received += data
            if not data or received.endswith(b"0000"):
                return received[4:-4] if received.endswith(b"0000") else b""


def _receive(connection: platform.Stream | socket.socket, size: int) -> bytes:
    """Receive from a socket; b"" at its end, also where the other side has not read all that was sent (ECONNRESET)."""
    try:
        return connection.recv(size)
    except ConnectionError:
        return b""


def _end_as(response: bytes) -> NoReturn:
    """End with the exit status of the run, or by its signal."""
    kind, _, number = response.partition(b" ")
    if kind == b"exit":
        os._exit(int(number))
    if kind == b"signal":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))  # not of the client
        with contextlib.suppress(OSError):  # SIGKILL
            signal.signal(int(number), signal.SIG_DFL)
        os.kill(os.getpid(), int(number))
    sys.stderr.write("ipcsrv: warm: the server died during the run; it may have done a part of its work\n")
    sys.stderr.flush()
    os._exit(1)
