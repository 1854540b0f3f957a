"""The server's place at a path, on Windows: lock file, pipe instances, withdraw.  Runs in the master.

The pipe that stands for a path (`windows.pipe_name`) is no file; what stands at the path itself is
`<path>.ipcsrv.lock`, locked for the master's whole life and released by Windows however it dies.  Beside it the
first instance of the pipe is made with the flag that says so, which fails where anybody, a Git server too, has
the name already.  No `<path>.lock` is taken: on Windows Git's server relies on that flag as well.

The first instance sets the security of them all: the owner, SYSTEM and those that `allow` adds; the latter may read and
write, but not add instances of their own.  A pipe's backlog is its instances that wait for a client: several do, and
each that is taken is replaced.
"""

from __future__ import annotations

import sys

assert sys.platform == "win32"

import _winapi
import contextlib
import ctypes
import json
import os
import time
from collections.abc import Iterable
from typing import Any, Final

from filelock import lock_descriptor

from ...errors import AddressInUse, InvalidPath, SettingsError
from ...folders import absolute
from .client import pipe_name
from .job import keep_workers_from_outliving_us
from .poller import Event, announce, forget, new_event, overlapped
from .security import pipe_sddl
from .win32 import SecurityDescriptor, sddl_of_pipe

LOCK_SUFFIX: Final = ".ipcsrv.lock"
CONTROL_SUFFIX: Final = ".control"
WAITING: Final = 16  # instances that wait for a client, so that a burst does not see the pipe busy
PATIENCE: Final = 1.0  # seconds for what a dead server's workers and clients still hold open to go away
LOOK: Final = 0.1  # seconds; a process that only checks whether the lock file is locked is done by then
PIPE_BUFFER: Final = 65536  # bytes in either direction that need no reader yet
_RECORD_OFFSET: Final = 1  # the first byte is the one that is locked, which no other process can read

_PIPE_ACCESS_DUPLEX: Final = 3
_FILE_FLAG_OVERLAPPED: Final = 0x40000000
_FILE_FLAG_FIRST_PIPE_INSTANCE: Final = 0x00080000
_BYTE_MODE_LOCAL_ONLY: Final = 0x00000008  # PIPE_TYPE_BYTE, PIPE_READMODE_BYTE, PIPE_REJECT_REMOTE_CLIENTS
_UNLIMITED: Final = 255
_FILE_NOT_FOUND: Final = 2
_NO_DATA: Final = 232
_OWNER_ALONE: Final = 0o600  # what the access list says too


class _Instance:
    """One instance of the pipe, which waits for a client."""

    __slots__ = ("handle", "waiting")

    def __init__(self, handle: int, event: int) -> None:
        self.handle = handle
        process = _winapi.GetCurrentProcess()
        own = _winapi.DuplicateHandle(process, event, process, 0, False, _winapi.DUPLICATE_SAME_ACCESS)
        self.waiting: Any = overlapped.Overlapped(own)  # which closes its handle of the event in the end
        try:
            self.waiting.ConnectNamedPipe(handle)
        except OSError as error:
            if error.winerror != _NO_DATA:  # a client came and went already: it is served like any other
                raise

    def taken(self) -> bool:
        """Whether a client has come."""
        return not self.waiting.pending

    def give_up(self) -> bool:
        """Wait no longer; True if a client had come by then."""
        self.waiting.cancel()
        try:
            self.waiting.getresult(True)
        except OSError:
            return self._is_connected()
        return True

    def _is_connected(self) -> bool:
        """Whether a client has opened it while the server does not wait for one (possible until it is closed)."""
        try:
            _winapi.PeekNamedPipe(self.handle, 0)
        except OSError:
            return False
        return True


class Listener:
    """The instances of one pipe: what a listening socket is elsewhere.

    sddl: their security. Raises `AddressInUse` where the name is taken.
    """

    def __init__(self, path: str, sddl: str, waiting: int = WAITING) -> None:
        self.path = path
        self.name = pipe_name(path)
        self._security = SecurityDescriptor(sddl)
        self._event = new_event()
        self._want = waiting
        self._instances: list[_Instance] = []
        self._come: list[int] = []  # connected, and not accepted yet
        try:
            self._instances.append(_Instance(self._first(), self._event))
            self._refill()
        except BaseException:
            self.close()
            raise
        announce(self)

    def fileno(self) -> int:
        """The number under which a poller reports that a client has come."""
        return self._event

    def begin_wait(self) -> Event | None:
        """None if a client has come; else the event that says so."""
        return None if self.depth() else Event(self._event)

    def end_wait(self, waiting: Any) -> None:
        """Nothing was begun."""

    def accept_raw(self) -> int:
        """The handle of an instance that a client has taken; BlockingIOError if there is none."""
        if self._come:
            return self._come.pop(0)
        for instance in self._instances:
            if instance.taken():
                self._instances.remove(instance)
                self._refill()
                return instance.handle
        raise BlockingIOError

    def depth(self) -> int:
        """How many have come, and are not accepted yet."""
        return len(self._come) + sum(instance.taken() for instance in self._instances)

    def withdraw(self) -> None:
        """Wait for no more clients; those who have come can be accepted."""
        self._want = 0
        for instance in self._instances:
            if instance.taken() or instance.give_up():
                self._come.append(instance.handle)
            else:
                _winapi.CloseHandle(instance.handle)
        self._instances.clear()

    def close(self) -> None:
        """Withdraw, and close connections that are not accepted; may be called twice."""
        self.withdraw()
        while self._come:
            _winapi.CloseHandle(self._come.pop())
        if self._event:
            forget(self)
            _winapi.CloseHandle(self._event)
            self._event = 0

    def _refill(self) -> None:
        """Keep as many waiting as we want, or as many as the system can spare."""
        while len(self._instances) < self._want:
            try:
                self._instances.append(_Instance(self._create(first=False), self._event))
            except OSError:
                if not self._instances:
                    raise
                return

    def _create(self, *, first: bool) -> int:
        mode = _PIPE_ACCESS_DUPLEX | _FILE_FLAG_OVERLAPPED | (_FILE_FLAG_FIRST_PIPE_INSTANCE if first else 0)
        return _winapi.CreateNamedPipe(
            self.name, mode, _BYTE_MODE_LOCAL_ONLY, _UNLIMITED, PIPE_BUFFER, PIPE_BUFFER, 0,
            ctypes.addressof(self._security.attributes),
        )  # fmt: skip

    def _first(self) -> int:
        """Make the first instance.  Where the name exists without a listener, its holder may be about to end."""
        until = time.monotonic() + PATIENCE
        while True:
            if not exists_unheard(self.name, self.path):
                with contextlib.suppress(OSError):
                    return self._create(first=True)
            if time.monotonic() >= until:
                return self._among_remains()
            time.sleep(0.01)  # a name has no event that would say it is free

    def _among_remains(self) -> int:
        """Make an instance beside those of a dead server of this user that a client still has open.

        The pipe has no listener, and this process holds the lock.  Owner and access list show whose the pipe was.
        """
        try:
            handle = self._create(first=False)
        except OSError as error:
            raise AddressInUse(self.path, reason=f"its pipe is another's: {error.strerror}") from None
        if sddl_of_pipe(handle) == self._security.sddl():
            return handle
        _winapi.CloseHandle(handle)
        raise AddressInUse(self.path, reason="its pipe is another server's")


def exists_unheard(name: str, path: str) -> bool:
    """Whether there is a pipe of this name without a listener; raises `AddressInUse` if it has one."""
    try:
        _winapi.WaitNamedPipe(name, 1)
    except OSError as error:
        return error.winerror != _FILE_NOT_FOUND
    raise AddressInUse(path, reason="a server of another program listens there")


class Rendezvous:
    """A server's pipe, lock and control pipe at `path`.

    path: where clients connect; backlog: how many instances wait at most; allow: who may connect beside the owner and
    SYSTEM; control: make the control pipe too; mode: 0600, since a pipe has none.  `insecure_dir` means nothing here: a
    folder does not decide who can take a pipe's name.
    Raises `SettingsError` for another mode: a user who sets one relies on it.
    """

    def __init__(self, path: str, *, mode: int = 0o600, backlog: int = 1024, insecure_dir: bool = False,
                 control: bool = True, allow: Iterable[str] = ()) -> None:
        if mode != _OWNER_ALONE:
            raise SettingsError("a pipe has no mode: say with `allow` who else may connect", name="mode")
        self.path = absolute(path)
        self.lock_path = self.path + LOCK_SUFFIX
        self.control_path = self.path + CONTROL_SUFFIX
        self._waiting = min(backlog, WAITING)
        self._allow = tuple(allow)
        self._want_control = control
        self._lock = -1
        self.listener: Listener | None = None
        self.control: Listener | None = None
        self.control_error: OSError | None = None
        self.adopted = False

    # -- taking the path ------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise what `claim` and `listen` would, but for a server at the path; nothing is changed."""
        pipe_name(self.path)
        pipe_sddl(self._allow)
        folder = os.path.dirname(self.path)
        if not os.path.isdir(folder):
            raise InvalidPath(self.path, f"the folder {folder} does not exist; make it first")
        if os.path.lexists(self.path):
            what = "a folder; name a file in it" if os.path.isdir(self.path) else "a file; choose another path"
            raise InvalidPath(self.path, f"it is {what}")

    def claim(self, record: dict[str, Any], adopted: Any = None) -> None:
        """Lock the path, and make sure that a server can be there; no client can connect yet.

        record: what the lock file tells others of this server (its pid and command, above all).
        Raises `AddressInUse` where another server lives or holds the lock, `InvalidPath` where the path cannot stand
        for a pipe, and `SettingsError` for an adopted listener, which does not exist on Windows.
        """
        if adopted is not None:
            raise SettingsError("Windows has no socket activation: start the server without it")
        self.check()
        self._lock = self._take_lock()
        keep_workers_from_outliving_us()
        try:
            exists_unheard(pipe_name(self.path), self.path)
            try:
                self.write_record(record)
            except OSError as error:
                reason = f"the lock file {self.lock_path} cannot be written: {error.strerror}"
                raise InvalidPath(self.path, reason) from None
        except BaseException:
            self.close()
            raise

    def listen(self) -> None:
        """Make the first instances of the pipe, and those of the control pipe.  Raises as `claim` does."""
        self.listener = Listener(self.path, pipe_sddl(self._allow), self._waiting)
        if self._want_control:
            self._open_control()

    def write_record(self, record: dict[str, Any]) -> None:
        """Put `record` into the lock file, in place of what it says now."""
        data = b" " + json.dumps(record).encode()
        os.lseek(self._lock, 0, os.SEEK_SET)
        os.ftruncate(self._lock, len(data))
        os.write(self._lock, data)

    def _take_lock(self) -> int:
        try:
            descriptor = os.open(self.lock_path, os.O_RDWR | os.O_CREAT | os.O_BINARY | os.O_NOINHERIT, 0o600)
        except OSError as error:
            raise InvalidPath(self.path, f"the lock file {self.lock_path} cannot be opened: {error.strerror}") from None
        until = time.monotonic() + LOOK
        try:
            while not lock_descriptor(descriptor, blocking=False):
                if time.monotonic() >= until:
                    raise in_use(self.path, read_record(self.lock_path))
                time.sleep(LOOK / 10)
            return descriptor
        except BaseException:
            os.close(descriptor)
            raise

    def _open_control(self) -> None:
        """Make the control pipe, for the owner alone; a server that cannot have one serves without."""
        try:
            self.control = Listener(self.control_path, pipe_sddl(), min(4, self._waiting))
        except (OSError, InvalidPath, AddressInUse) as error:
            self.control_error = error if isinstance(error, OSError) else OSError(str(error))

    # -- while serving ----------------------------------------------------------------------------------------------

    def accept(self) -> int:
        """The next client's connection; BlockingIOError if there is none."""
        if self.listener is None:
            raise BlockingIOError
        return self.listener.accept_raw()

    def still_ours(self) -> bool:
        """Always: a pipe's name cannot be taken away from who holds it."""
        return True

    def restore_lock_file(self) -> bool:
        """Return False: a file that is open here cannot be removed."""
        return False

    # -- giving it back ---------------------------------------------------------------------------------------------

    def withdraw(self) -> None:
        """Admit no further client; those that have connected can still be accepted."""
        if self.listener is not None:
            self.listener.withdraw()

    def close(self) -> None:
        """Close everything and remove the lock file."""
        for listener in (self.listener, self.control):
            if listener is not None:
                listener.close()
        self.listener = self.control = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
            _unlink(self.lock_path)


def _unlink(lock_path: str) -> None:
    """Remove the lock file, unless another server has it open already: then it is that one's."""
    until = time.monotonic() + LOOK
    while time.monotonic() < until:
        try:
            os.unlink(lock_path)
        except PermissionError:  # another process checks whether it is locked, perhaps
            time.sleep(LOOK / 10)
        except OSError:
            return
        else:
            return


def read_record(lock_path: str) -> dict[str, Any]:
    """What the server that holds `lock_path` wrote about itself; empty if it has not yet."""
    try:
        descriptor = os.open(lock_path, os.O_RDONLY | os.O_BINARY | os.O_NOINHERIT)
    except OSError:
        return {}
    try:
        os.lseek(descriptor, _RECORD_OFFSET, os.SEEK_SET)
        record = json.loads(os.read(descriptor, 65536))
    except (OSError, ValueError, RecursionError):
        return {}
    finally:
        os.close(descriptor)
    return record if isinstance(record, dict) else {}


def in_use(path: str, record: dict[str, Any]) -> AddressInUse:
    """The error that names who has the path."""
    return AddressInUse(path, pid=record.get("pid"), command=record.get("command"))
