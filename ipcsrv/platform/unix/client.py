"""The client's half of the seam on Unix, and what both ends share: addresses and credentials.

A connection is the C socket itself (`_socket`, not `socket`, whose import takes longer than a whole call), so that a
kept connection costs a request two system calls: send and recv.  It stays in blocking mode; where nothing may wait,
`DONTWAIT` says so for that one call, and where a deadline must be kept, poll(2) waits before it.
"""

from __future__ import annotations

import sys

assert sys.platform != "win32"

import _socket
import errno
import os

from ... import standard_streams
from ...buffers import discard
from ...errors import Denied, InvalidPath, NotListening, PathNotFound
from ...peer import Peer

TYPE_CHECKING = False
if TYPE_CHECKING:
    import select
    from collections.abc import Iterable

    from ...deadline import Deadline
    from ...state import State

    Buffers = list[bytes | memoryview]
    Trust = int | str | Iterable[int | str]

DONTWAIT = _socket.MSG_DONTWAIT | getattr(_socket, "MSG_NOSIGNAL", 0)  # `ipcsrv call` may have SIGPIPE at its default
ADDRESS_LIMIT = 107 if sys.platform == "linux" else 103  # bytes of sun_path beside its NUL (unix(7), unix(4))
BUFFERS_AT_ONCE = 16  # 8 packets, half a MiB: more than a socket takes in one go
RECEIVE_SIZE = 65536  # bytes; a whole packet
FOLDER_FLAGS = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC


# -- connections ------------------------------------------------------------------------------------------------------


class Stream(_socket.socket):
    """A connection to a server (see the contract in `platform.client`)."""

    __slots__ = ("_readable",)
    _readable: select.poll

    def receive(self, size: int, deadline: Deadline) -> bytes:
        """recv(2), within `deadline`; raises TimeoutError past it."""
        remaining = deadline.remaining()
        if remaining is not None:
            try:
                readable = self._readable
            except AttributeError:
                readable = self._readable = _poller(self, writable=False)
            # Past the deadline not even what is there is read: a response without end would always be there.
            if not remaining or not readable.poll(milliseconds(remaining)):
                raise TimeoutError
        return self.recv(size)

    def transfer(self, buffers: Buffers, deadline: Deadline) -> bytes | None:
        """Send `buffers`, listening meanwhile; raises TimeoutError past `deadline` (see the contract)."""
        ready = None
        while buffers:
            if deadline.expired:
                raise TimeoutError
            try:
                sent = self.sendmsg(buffers[:BUFFERS_AT_ONCE], (), DONTWAIT)
            except BlockingIOError:
                ready = ready or _poller(self, writable=True)
                if _wait(ready, deadline):
                    return self.recv(RECEIVE_SIZE)
            except ConnectionError:
                return None  # it takes no more, but its reason may be there to read
            else:
                discard(buffers, sent)
        return None

    def peer(self) -> Peer:
        """Who listens: the credentials that the kernel kept at listen(2)."""
        return credentials(self)


def milliseconds(seconds: float | None) -> int | None:
    """For poll(2): rounded up, so that a wait is never a little too short; None waits for ever."""
    return None if seconds is None else -int(-seconds * 1000 // 1)


def _poller(*streams: Stream | int, writable: bool) -> select.poll:
    import select  # only here: most calls never wait with a deadline

    poller = select.poll()
    for stream in streams:
        poller.register(stream, select.POLLIN | select.POLLOUT if writable else select.POLLIN)
    return poller


def _wait(ready: select.poll, deadline: Deadline) -> bool:
    """Wait until one can send (False) or receive (True, also the peer's end); TimeoutError past the deadline."""
    import select

    events = ready.poll(milliseconds(deadline.remaining()))
    if not events:
        raise TimeoutError
    return bool(events[0][1] & ~select.POLLOUT)


# -- connecting -------------------------------------------------------------------------------------------------------


def attempt(path: str) -> Stream:
    """Connect without waiting (connect(2) on a Unix socket succeeds or fails at once where it must not wait)."""
    stream = Stream(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        stream.setblocking(False)
        _connect(stream, path)
        stream.setblocking(True)
    except BlockingIOError:
        stream.close()
        raise
    except OSError as error:
        stream.close()
        raise _reason(path, error) from None
    except BaseException:
        stream.close()
        raise
    return stream


def _connect(stream: Stream, path: str) -> None:
    name = os.fsencode(path)
    if not name or b"\0" in name:  # to the kernel, names outside the file system (unix(7), "abstract")
        raise InvalidPath(path, "a path must not be empty or contain NUL")
    if len(name) <= ADDRESS_LIMIT:
        stream.connect(path)
    elif sys.platform == "linux":
        _connect_far(stream, path)
    else:
        raise _too_long(path, len(name))


def _connect_far(stream: Stream, path: str) -> None:
    """Connect to the socket itself, opened without access (O_PATH), so that neither path nor name can be too long."""
    socket_file = os.open(path, FOLDER_FLAGS & ~os.O_DIRECTORY)
    try:
        stream.connect(f"/proc/self/fd/{socket_file}")
    finally:
        os.close(socket_file)


def _reason(path: str, error: OSError) -> Exception:
    """What a failed connect(2) means; the error itself where it is none of the path's doing."""
    number = error.errno
    if number in (errno.ENOENT, errno.ENOTDIR):
        return PathNotFound(path)
    if number in (errno.ECONNREFUSED, errno.EACCES, errno.EPERM, errno.ENOTSOCK, errno.EPROTOTYPE):
        return _what_is_there(path, number)
    if number in (errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL):
        return InvalidPath(path, os.strerror(number))
    return error


def _what_is_there(path: str, number: int) -> Exception:
    import stat

    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return PathNotFound(path)
    except OSError as error:
        return InvalidPath(path, f"it cannot be looked at: {error.strerror}")
    if not stat.S_ISSOCK(mode):
        return InvalidPath(path, "it is a folder, not a socket" if stat.S_ISDIR(mode) else "it is not a socket")
    if number == errno.EPROTOTYPE:
        return InvalidPath(path, "it is a socket of another kind, not a stream")
    if number == errno.ECONNREFUSED:
        return NotListening(path)
    return Denied("its socket's mode does not let this user in", path)


def connect(path: str, deadline: Deadline, *, wait_if_busy: bool = True, wait_if_not_found: bool = False) -> Stream:
    """Connect, trying again within `deadline` as docs/protocol.md section 3 says."""
    try:
        return attempt(path)
    except (BlockingIOError, NotListening) as error:
        failed: Exception = error
    from time import sleep

    from ..attempts import Attempts

    attempts = Attempts(path, deadline, wait_if_busy, wait_if_not_found)
    while True:
        sleep(attempts.pause_after(failed))
        try:
            return attempt(path)
        except (BlockingIOError, NotListening) as error:
            failed = error


def probe(path: str, timeout: float = 1.0) -> State:
    """What is at the path; a server sees a connection that ends before its first byte.  It never has to wait here."""
    from ...state import State, state_after

    try:
        attempt(path).close()
    except Exception as error:
        return state_after(error)
    return State.LISTENING


# -- addresses --------------------------------------------------------------------------------------------------------


def address(name: str, *, folder: int | None = None, path: str | None = None) -> _Address:
    """An address for a file that fits into sun_path, for the length of a `with` block; to bind(2) or to connect(2).

    name: the file's path, of any length; or its name in `folder`, where a descriptor of that is given.
    path: the file's path where `name` is not; used where the system has no way through a descriptor.
    A long one goes through a descriptor of its folder (`/proc/self/fd/N/name`), never through chdir(2), which would
    move every thread.  Raises `InvalidPath` where there is no such way (not Linux, or a name over 80 bytes or so).
    """
    return _Address(name, folder, path)


class _Address:
    # By hand and not by contextlib, whose import would double the client's.
    def __init__(self, name: str, folder: int | None, path: str | None) -> None:
        self._name = name
        self._folder = folder
        self._path = name if path is None else path
        self._opened = -1

    def __enter__(self) -> str:
        if sys.platform != "linux":
            return self._direct()
        if self._folder is None and len(os.fsencode(self._name)) <= ADDRESS_LIMIT:
            return self._name
        try:
            return self._through_folder()
        except BaseException:
            self.__exit__()
            raise

    def _direct(self) -> str:
        length = len(os.fsencode(self._path))
        if length > ADDRESS_LIMIT:
            raise _too_long(self._path, length)
        return self._path

    def _through_folder(self) -> str:
        where, name = os.path.split(self._name)
        folder = self._folder
        if folder is None:
            try:
                folder = self._opened = os.open(where or ".", FOLDER_FLAGS)
            except OSError as error:
                raise InvalidPath(self._path, f"its folder cannot be opened: {error.strerror}") from None
        found = f"/proc/self/fd/{folder}/{name}"
        excess = len(os.fsencode(found)) - ADDRESS_LIMIT
        if excess > 0:
            length = len(os.fsencode(name))
            reason = f"its name is {length} bytes long; a socket's may have {length - excess}; choose a shorter one"
            raise InvalidPath(self._path, reason)
        return found

    def __exit__(self, *_: object) -> None:
        if self._opened >= 0:
            os.close(self._opened)
            self._opened = -1


def _too_long(path: str, length: int) -> InvalidPath:
    reason = f"it is {length} bytes long; a socket's path may have {ADDRESS_LIMIT} here; choose a shorter one"
    return InvalidPath(path, reason)


# -- credentials ------------------------------------------------------------------------------------------------------

# Arguments of getsockopt(2) for the peer's credentials, and which 32-bit words of the answer are pid, uid and gid.
# linux: struct ucred; openbsd: struct sockpeercred; netbsd: struct unpcbid; darwin and freebsd: struct xucred, in
# which the gids follow the version, the uid and their number (and, since FreeBSD 13, the pid comes last).
if sys.platform == "linux":
    CREDENTIALS_SIZE, _PID, _UID, _GID = (_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12), 0, 1, 2
elif sys.platform.startswith("openbsd"):
    CREDENTIALS_SIZE, _PID, _UID, _GID = (_socket.SOL_SOCKET, 0x1022, 12), 2, 0, 1  # SO_PEERCRED
elif sys.platform.startswith("netbsd"):
    CREDENTIALS_SIZE, _PID, _UID, _GID = (0, 3, 12), 0, 1, 2  # LOCAL_PEEREID
elif sys.platform == "darwin":
    CREDENTIALS_SIZE, _PID, _UID, _GID = (0, 1, 76), -1, 1, 3  # SOL_LOCAL, LOCAL_PEERCRED
else:
    CREDENTIALS_SIZE, _PID, _UID, _GID = (0, 1, 88), 20, 1, 3  # LOCAL_PEERCRED
LOCAL_PEERPID = 2  # darwin, where struct xucred has no pid


def credentials_of(answer: bytes) -> Peer:
    """The peer that getsockopt(*CREDENTIALS_SIZE) described; its pid is None where the answer has none."""
    words = memoryview(answer).cast("I")
    pid = words[_PID] if 0 <= _PID < len(words) else 0
    return Peer(pid or None, words[_UID], words[_GID])


def credentials(connection: _socket.socket) -> Peer:
    """Who is at the other end of a connected socket: as of its connect(2), or listen(2) for a server's."""
    peer = credentials_of(connection.getsockopt(*CREDENTIALS_SIZE))
    if sys.platform != "darwin":
        return peer
    return Peer(connection.getsockopt(0, LOCAL_PEERPID) or None, peer.uid, peer.gid)


def trusted(peer: Peer, trust: Trust = ()) -> bool:
    """Whether a server of this user may be sent anything: one's own, root's, or one in `trust` (uids and names)."""
    uid = peer.uid
    if uid in (0, os.geteuid()):
        return True
    named = (trust,) if isinstance(trust, (int, str)) else tuple(trust)
    return uid in named or str(uid) in named or any(_uid_named(name) == uid for name in named if isinstance(name, str))


def _uid_named(name: str) -> int | None:
    import pwd

    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def read_within(descriptor: int, size: int, deadline: Deadline, stream: Stream | None = None) -> bytes | None:
    """Read what comes within `deadline` (see the contract)."""
    while True:
        if stream is not None or deadline.timeout is not None or not is_blocking(descriptor):
            streams = [] if stream is None else [stream]
            found = _poller(descriptor, *streams, writable=False).poll(milliseconds(deadline.remaining()))
            if not found:
                raise TimeoutError
            if descriptor not in dict(found):
                return None
        try:
            return os.read(descriptor, size)
        except BlockingIOError:  # another reader was quicker
            continue
        except OSError as error:
            if descriptor == standard_streams.INPUT:
                error.filename = "standard input"  # or its failure would look like the server's
            raise


def is_blocking(descriptor: int) -> bool:
    """Whether a write waits (see the contract)."""
    return os.get_blocking(descriptor)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write all of it (see the contract)."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:
            import select

            poller = select.poll()
            poller.register(descriptor, select.POLLOUT)
            poller.poll()


def runtime_folder(override: str | None = None) -> str:
    """A folder that belongs to this user alone (see the contract)."""
    from .folder import runtime_folder

    return runtime_folder(override)
