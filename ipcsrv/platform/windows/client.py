"""The client side of the platform on Windows: named pipes.  Runs in the client's process.

A path stands for a pipe name, made from it as Git makes it (docs/protocol.md section 4).
Nothing needs to exist at the path.

The server's user is read from the open pipe itself: the pipe's owner is the user who made its first instance, and only
the owner and SYSTEM may add further ones.  So it does not depend on a process id, which may have been reused.
"""

from __future__ import annotations

import sys

assert sys.platform == "win32"

import _winapi
import os
from errno import EINVAL

from ...buffers import discard
from ...errors import Denied, InvalidPath, NotListening, PathNotFound
from ...peer import Peer
from .pipe import DONTWAIT, PIECE, PIPE_ACCESS, Pipe, give_up, milliseconds, wait_any, wait_readable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from ...deadline import Deadline
    from ...state import State

    Buffers = list[bytes | memoryview]
    Trust = int | str | Iterable[int | str]

__all__ = [
    "DONTWAIT", "Stream", "attempt", "connect", "is_blocking", "pipe_name", "probe", "read_within",
    "runtime_folder", "trusted", "write_all",
]  # fmt: skip

PIPE_PREFIX = "\\\\.\\pipe\\"
PIPE_NAME_LIMIT = 256  # characters, with the prefix (CreateNamedPipe)

_FILE_FLAG_OVERLAPPED = 0x40000000
_IDENTIFICATION_ONLY = 0x00100000 | 0x00010000  # SECURITY_SQOS_PRESENT: a false server cannot act as the client
_OPEN_EXISTING = 3

# winerror.h
_NO_SUCH_PIPE = frozenset({2, 3})  # FILE_NOT_FOUND, PATH_NOT_FOUND
_BAD_NAME = frozenset({123, 161, 206, 230})  # INVALID_NAME, BAD_PATHNAME, FILENAME_EXCED_RANGE, BAD_PIPE
_ACCESS_DENIED = 5
_WAIT_TIMED_OUT = 121
_PIPE_BUSY = 231


# -- names ------------------------------------------------------------------------------------------------------------


def pipe_name(path: str) -> str:
    r"""The name of the pipe that stands for `path`: `C:\repo\x.ipc` is `\\.\pipe\C_\repo\x.ipc`.

    Raises `InvalidPath` where none can be made of it.
    """
    if not path or "\0" in path:
        raise InvalidPath(path, "a path must not be empty or contain NUL")
    try:
        real = _without_device_prefix(os.path.realpath(path)).replace("/", "\\")
    except (OSError, ValueError) as error:
        raise InvalidPath(path, f"it has no real path: {error}") from None
    name = PIPE_PREFIX + (real[0] + "_" + real[2:] if real[1:2] == ":" else real)
    if len(name) > PIPE_NAME_LIMIT:
        reason = f"its pipe's name is {len(name)} characters long; one may have {PIPE_NAME_LIMIT}; choose a shorter one"
        raise InvalidPath(path, reason)
    return name


def _without_device_prefix(path: str) -> str:
    r"""The path without `\\?\`, by which Windows marks one that is taken as it stands."""
    if path.startswith("\\\\?\\UNC\\"):
        return "\\\\" + path[8:]
    return path[4:] if path.startswith("\\\\?\\") else path


# -- connections ------------------------------------------------------------------------------------------------------


class Stream(Pipe):
    """A connection to a server (see the contract in `platform.client`)."""

    __slots__ = ()

    def receive(self, size: int, deadline: Deadline) -> bytes:
        """`recv` within `deadline`; raises TimeoutError past it."""
        data = self.read(size, deadline.remaining())
        if data is None:
            raise TimeoutError
        return data

    def transfer(self, buffers: Buffers, deadline: Deadline) -> bytes | None:
        """Send `buffers`, listening meanwhile; raises TimeoutError past `deadline` (see the contract)."""
        while buffers:
            try:
                sent = self.sendmsg(buffers, (), DONTWAIT)
            except BlockingIOError:
                if self._wait(deadline):
                    return self.recv(PIECE)
            except ConnectionError:
                return None  # it takes no more, but its reason may be there to read
            else:
                discard(buffers, sent)
        return None

    def _wait(self, deadline: Deadline) -> bool:
        """Wait until the write under way ended (False) or one can receive (True); TimeoutError past the deadline."""
        arrival = wait_readable(self._handle)
        if arrival is None:
            return True
        assert self._writing is not None
        try:
            found = wait_any([arrival.event, self._writing.event], deadline.remaining())
        finally:
            give_up(arrival)
        if found is None:
            raise TimeoutError
        return found == 0

    def peer(self) -> Peer:
        """Who listens: the process, and the SID that owns the pipe."""
        from . import win32

        return Peer(win32.server_process(self._handle), win32.owner_of_pipe(self._handle))


# -- connecting -------------------------------------------------------------------------------------------------------


def attempt(path: str) -> Stream:
    """Open an instance of the pipe, if one waits for a client."""
    try:
        flags = _FILE_FLAG_OVERLAPPED | _IDENTIFICATION_ONLY
        return Stream(_winapi.CreateFile(pipe_name(path), PIPE_ACCESS, 0, 0, _OPEN_EXISTING, flags, 0))
    except OSError as error:
        raise _reason(path, error) from None


def _reason(path: str, error: OSError) -> Exception:
    """What a failure of CreateFile or WaitNamedPipe means; the error itself where it is none of the path's doing."""
    number = error.winerror
    if number in _NO_SUCH_PIPE:
        return PathNotFound(path)
    if number == _PIPE_BUSY:
        return BlockingIOError("every instance of the pipe is busy")
    if number == _WAIT_TIMED_OUT:
        return NotListening(path)
    if number == _ACCESS_DENIED:
        return Denied("its pipe does not let this user in", path)
    if number in _BAD_NAME:
        return InvalidPath(path, str(error.strerror))
    return error


def connect(
    path: str, deadline: Deadline, *, wait_if_busy: bool = True, wait_if_not_found: bool = False
) -> Stream:
    """Connect, trying again within `deadline` as docs/protocol.md section 3 says."""
    try:
        return attempt(path)
    except (BlockingIOError, NotListening) as error:
        failed: Exception = error
    from ..attempts import Attempts

    attempts = Attempts(path, deadline, wait_if_busy, wait_if_not_found)
    while True:
        _pause(path, failed, attempts.pause_after(failed))
        try:
            return attempt(path)
        except (BlockingIOError, NotListening) as error:
            failed = error


def _pause(path: str, failed: Exception, seconds: float) -> None:
    """Wait so long, or until an instance is free where all were busy."""
    if isinstance(failed, BlockingIOError):
        try:
            _winapi.WaitNamedPipe(pipe_name(path), max(1, milliseconds(seconds)))
        except OSError:
            pass  # what it means, the next attempt will tell
        return
    from time import sleep

    sleep(seconds)


def probe(path: str, timeout: float = 1.0) -> State:
    """What is at the path, asked by WaitNamedPipe, which takes no instance away and sends nothing."""
    from ...state import State, state_after

    try:
        _winapi.WaitNamedPipe(pipe_name(path), max(1, milliseconds(timeout)))
    except OSError as error:
        return state_after(_reason(path, error))
    except InvalidPath as error:
        return state_after(error)
    return State.LISTENING


# -- trust ------------------------------------------------------------------------------------------------------------


def trusted(peer: Peer, trust: Trust = ()) -> bool:
    """Whether a server of this user may be sent anything: one's own, the system's, one in `trust` (SID or name)."""
    from . import win32

    if peer.uid in (win32.own_sid(), win32.SYSTEM_SID, win32.ADMINISTRATORS_SID):
        return True
    named = (trust,) if isinstance(trust, (int, str)) else tuple(trust)
    return any(peer.uid in (name, win32.sid_of_account(name)) for name in named if isinstance(name, str))


_reads: dict[int, tuple[int, list[bytes | OSError]]] = {}  # under way, by descriptor: their events and results


def read_within(descriptor: int, size: int, deadline: Deadline, stream: Stream | None = None) -> bytes | None:
    """Read what comes within `deadline` (see the contract)."""
    if stream is None and deadline.timeout is None:
        return os.read(descriptor, size)
    come, found = _reads.pop(descriptor) if descriptor in _reads else _begin_read(descriptor, size)
    arrival = None if stream is None else wait_readable(stream.fileno())
    spoken = stream is not None and arrival is None
    try:
        ready = wait_any([come, *([arrival.event] if arrival else [])], 0 if spoken else deadline.remaining())
    finally:
        give_up(arrival)
    if ready == 1 or (ready is None and spoken):
        _reads[descriptor] = come, found
        return None
    if ready is None:
        raise TimeoutError  # and the event stays, for the thread
    _winapi.CloseHandle(come)
    result = found[0]
    if isinstance(result, OSError):
        raise result
    return result


def _begin_read(descriptor: int, size: int) -> tuple[int, list[bytes | OSError]]:
    """Read in a thread; return the event of its end and what it comes to.

    A pipe that another program made, such as a shell's, has no event for new data.  The thread is left behind where
    nothing comes.  It reads a handle of its own: to close a descriptor that is being read would wait for the end of
    that.
    """
    import msvcrt
    from _thread import start_new_thread

    from .poller import new_event, set_event

    come, own = new_event(), _winapi.GetCurrentProcess()
    given = msvcrt.get_osfhandle(descriptor)
    handle = _winapi.DuplicateHandle(own, given, own, 0, False, _winapi.DUPLICATE_SAME_ACCESS)
    found: list[bytes | OSError] = []

    def read() -> None:
        try:
            found.append(_winapi.ReadFile(handle, size)[0])
        except BrokenPipeError:  # the end
            found.append(b"")
        except OSError as error:
            found.append(error)
        _winapi.CloseHandle(handle)
        set_event(come)

    start_new_thread(read, ())
    return come, found


def is_blocking(_: int) -> bool:
    """Whether a write waits (see the contract): always."""
    return True


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write all of it (see the contract)."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except OSError as error:
            if error.errno != EINVAL:
                raise
            raise BrokenPipeError from None  # as the C library reports it


def runtime_folder(override: str | None = None) -> str:
    """A folder of this user's own: `override`, or one in the local application data, which no other user may enter."""
    folder = override or os.path.join(os.environ.get("LOCALAPPDATA") or os.path.expanduser("~"), "ipcsrv")
    if not os.path.isabs(folder):
        raise InvalidPath(folder, "is not an absolute path")
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise InvalidPath(folder, f"the folder cannot be made: {error.strerror}") from None
    return folder
