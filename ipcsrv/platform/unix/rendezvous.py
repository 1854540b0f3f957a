"""The server's place at a path, on Unix: lock, stale socket, bind, withdraw.  Runs in the master.

Three files stand at an agreed path while a server lives: the socket itself, `<path>.ipcsrv.lock` (an flock held for
the master's whole life; the kernel releases it however the master dies) and, where it can be made, the control socket
`<path>.control`.  A fourth, `<path>.lock`, is Git's: a file that is created exclusively while the path is examined and
bound, so that a Git server and this one never bind at the same time (docs/protocol.md section 3).

Everything is done relative to one descriptor of the folder, opened and checked first: if the folder is replaced
afterwards, the server still works in the old one, and notices.
"""

from __future__ import annotations

import sys

assert sys.platform != "win32"

import contextlib
import errno
import functools
import json
import os
import socket
import stat
import time
from collections.abc import Callable, Iterable
from typing import Any

from ...errors import AddressInUse, InvalidPath
from ...folders import absolute
from .client import ADDRESS_LIMIT, address, credentials
from .sockets import Listener

LOCK_SUFFIX = ".ipcsrv.lock"
CONTROL_SUFFIX = ".control"
GIT_LOCK_SUFFIX = ".lock"
GIT_LOCK_TEXT = "ipcsrv"  # what ours links to
LARGEST_RECORD = 16 << 20  # bytes; it names every file of the handler's code
GIT_LOCK_PATIENCE = 1.0  # seconds; a Git server holds its lock file for as long as one probe and one bind take
LOOKER_PATIENCE = 0.05  # seconds; a process that only checks the lock holds it for microseconds
PROBE_TIMEOUT = 1.0  # seconds for a connect to what may listen at the path


class Rendezvous:
    """A server's socket, lock and control socket at `path`.

    path: where clients connect; mode: permission bits of the socket; backlog: length of the listen queue;
    insecure_dir: accept a folder in which others could replace the socket; control: make the control socket too.
    """

    def __init__(self, path: str, *, mode: int = 0o600, backlog: int = 1024, insecure_dir: bool = False,
                 control: bool = True, allow: Iterable[str] = ()) -> None:
        self.path = absolute(path)
        self.lock_path = self.path + LOCK_SUFFIX
        self.control_path = self.path + CONTROL_SUFFIX
        self._name = os.path.basename(self.path)
        self._mode, self._backlog = mode, backlog
        self._insecure_dir, self._want_control = insecure_dir, control
        self._pid = os.getpid()
        self._folder = self._lock = -1
        self._lock_identity = (0, 0)
        self._identity: tuple[int, int] | None = None
        self._control_identity: tuple[int, int] | None = None
        self.adopted = False
        self.listener: Listener | None = None
        self.control: Listener | None = None
        self.control_error: OSError | None = None

    # -- taking the path ------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise what `claim` and `listen` would, but for a server at the path; nothing is changed."""
        self._folder = self._open_folder()
        try:
            folder = os.path.dirname(self.path)
            if not os.access(folder, os.W_OK | os.X_OK):
                raise InvalidPath(self.path, f"the folder {folder} cannot be written")
            with contextlib.suppress(FileNotFoundError):
                os.close(self._open_lock_file(create=False))
            if self._git_lock_of() not in (None, GIT_LOCK_TEXT):
                raise self._git_lock_exists()
        finally:
            self.close()

    def claim(self, record: dict[str, Any], adopted: socket.socket | None = None) -> None:
        """Lock the path, and make sure that a server can be there; no client can connect yet.

        The listener exists from here on, so that children can be given it; only `listen` binds it.

        record: what the lock file tells others of this server (its pid and command, above all).
        adopted: a listening socket that a supervisor made (sd_listen_fds(3)), which also owns the path then.
        Raises `AddressInUse` where another server lives, holds the lock or may be starting, and `InvalidPath`
        where the path cannot be a socket; then no file has been changed.
        """
        self.adopted = adopted is not None
        self.listener = Listener(fileno=adopted.detach()) if adopted is not None else _new_listener()
        self.accept = self.listener.accept_raw
        try:
            self._folder = self._open_folder()
            if adopted is None:
                with address(self._name, folder=self._folder, path=self.path):
                    pass  # a name that no socket can have is refused before anything is started
            self._hold(self._take_lock())
            try:
                self.write_record(record)
            except OSError as error:
                reason = f"the lock file {self.lock_path} cannot be written: {error.strerror}"
                raise InvalidPath(self.path, reason) from None
            if adopted is None:
                self._must_be_free(self._name)
        except BaseException:
            self.close()
            raise

    def listen(self) -> None:
        """Clear what is stale, bind and listen, and open the control socket.  Raises as `claim` does."""
        assert self.listener is not None
        if not self.adopted:
            with self._git_lock():
                self._clear(self._name)
                self._identity = self._listen(self.listener, self.path, self._name, self._mode)
        self.listener.setblocking(False)
        if self._want_control:
            self._open_control()

    def write_record(self, record: dict[str, Any]) -> None:
        """Put `record` into the lock file, in place of what it says now; OSError (a full disk) leaves that as it is."""
        data = json.dumps(record).encode()
        size = os.fstat(self._lock).st_size
        more = len(data) - size
        if more > 0 and os.pwrite(self._lock, b" " * more, size) < more:  # spaces after it change nothing
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.pwrite(self._lock, data.ljust(size), 0)  # one write: no reader gets half of it
        os.ftruncate(self._lock, len(data))

    def _open_folder(self) -> int:
        folder = os.path.dirname(self.path)
        if not self._name or os.path.isdir(self.path):
            raise InvalidPath(self.path, "it is a folder; name a file in it")
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise InvalidPath(self.path, f"the folder {folder} does not exist; make it first") from None
        except OSError as error:
            raise InvalidPath(self.path, f"the folder {folder} cannot be opened: {error.strerror}") from None
        reason = None if self._insecure_dir else folder_fault(os.fstat(descriptor))
        if reason is not None:
            os.close(descriptor)
            raise InvalidPath(self.path, f"the folder {folder} {reason}, so others could replace the socket; "
                                         "choose another folder, or allow it with insecure_dir (--insecure-dir)")
        return descriptor

    def _take_lock(self) -> int:
        from filelock import lock_descriptor  # here: a process that only looks for a server needs no lock

        while True:
            descriptor = self._open_lock_file()
            try:
                if not _locked_soon(functools.partial(lock_descriptor, descriptor, blocking=False)):
                    raise in_use(self.path, read_record(self.lock_path))
                if os.fstat(descriptor).st_nlink:
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # the last server removed the file between our open and our lock: lock the new one

    def _hold(self, lock: int) -> None:
        info = os.fstat(lock)
        self._lock, self._lock_identity = lock, (info.st_dev, info.st_ino)

    def _open_lock_file(self, *, create: bool = True) -> int:
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | (os.O_CREAT if create else 0)
        try:
            descriptor = os.open(self._name + LOCK_SUFFIX, flags, 0o600, dir_fd=self._folder)
        except OSError as error:
            if not create and error.errno == errno.ENOENT:
                raise
            reason = f"the lock file {self.lock_path} cannot be opened: {lock_fault(error)}"
            raise InvalidPath(self.path, reason) from None
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode) or info.st_uid not in (os.geteuid(), 0) or info.st_nlink > 1:
            os.close(descriptor)
            raise InvalidPath(self.path, f"the lock file {self.lock_path} is not a regular file of yours; remove it")
        return descriptor

    @contextlib.contextmanager
    def _git_lock(self) -> Any:
        """Hold `<path>.lock`, as a Git server does while it starts (docs/protocol.md section 3)."""
        name = self._name + GIT_LOCK_SUFFIX
        self._create_git_lock(name)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=self._folder)

    def _create_git_lock(self, name: str) -> None:
        """Make it a symbolic link to nothing: it is never seen without its text, and a full disk cannot prevent that.

        Git's own is an empty file, so one that an ipcsrv left is never mistaken for a Git server's.
        """
        deadline = time.monotonic() + GIT_LOCK_PATIENCE
        while True:
            try:
                os.symlink(GIT_LOCK_TEXT, name, dir_fd=self._folder)
            except FileExistsError:
                if time.monotonic() < deadline and not self._remove_own_git_lock(name):
                    time.sleep(0.01)  # a file has no event that would say it is gone
                elif time.monotonic() >= deadline:
                    raise self._git_lock_exists() from None
            except OSError as error:
                reason = f"its lock file {self.path}{GIT_LOCK_SUFFIX} cannot be made: {error.strerror}"
                raise InvalidPath(self.path, reason) from None
            else:
                return

    def _git_lock_exists(self) -> AddressInUse:
        return AddressInUse(self.path, reason=(
            f"its lock file {self.path}{GIT_LOCK_SUFFIX} exists: another server is starting, or one died while it did; "
            "remove that file if none is"))

    def _remove_own_git_lock(self, name: str) -> bool:
        """Remove `<path>.lock` if an ipcsrv that was killed left it: we hold the lock that it would hold alive."""
        if self._git_lock_of() != GIT_LOCK_TEXT:
            return False
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._folder)
        return True

    def _git_lock_of(self) -> str | None:
        """The text of `<path>.lock` if it is a link of this user's, "" if it is anything else, None if it is not."""
        name = self._name + GIT_LOCK_SUFFIX
        try:
            info = os.stat(name, dir_fd=self._folder, follow_symlinks=False)
            is_link = stat.S_ISLNK(info.st_mode) and info.st_uid == os.geteuid()
            return os.readlink(name, dir_fd=self._folder) if is_link else ""
        except FileNotFoundError:
            return None

    def _clear(self, name: str) -> None:
        """Remove a socket without a listener; raises as `_must_be_free` does, and if it cannot be removed."""
        if not self._must_be_free(name):
            return
        try:
            os.unlink(name, dir_fd=self._folder)
        except FileNotFoundError:
            pass
        except OSError as error:
            path = os.path.join(os.path.dirname(self.path), name)
            reason = f"a dead server's socket is there and cannot be removed: {error.strerror}"
            raise InvalidPath(path, reason) from None

    def _must_be_free(self, name: str) -> bool:
        """True if a socket without a listener is there, False if nothing is; raises for anything else."""
        path = os.path.join(os.path.dirname(self.path), name)
        try:
            info = os.stat(name, dir_fd=self._folder, follow_symlinks=False)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise InvalidPath(path, f"it cannot be looked at: {error.strerror}") from None
        if not stat.S_ISSOCK(info.st_mode):
            reason = f"it is {kind_of(info.st_mode)}, not a socket; choose another path"
            raise InvalidPath(path, reason)
        answer = self._probe(name)
        if answer is not None:
            raise answer
        return True

    def _probe(self, name: str) -> AddressInUse | None:
        """None if a connect to the socket is refused, that is, without a listener; else what to raise."""
        with socket.socket(socket.AF_UNIX) as probe, address(name, folder=self._folder) as target:
            probe.settimeout(PROBE_TIMEOUT)
            try:
                probe.connect(target)
            except ConnectionRefusedError:
                return None
            except OSError as error:
                if error.errno == errno.EAGAIN:
                    return AddressInUse(self.path, reason="a server listens there and its queue is full")
                return AddressInUse(self.path, reason=f"whether a server lives there cannot be told ({error})")
            return in_use(self.path, {"pid": credentials(probe).pid})

    def _listen(self, listener: Listener, path: str, name: str, mode: int) -> tuple[int, int]:
        """Bind at the final name, with the final mode, and listen; returns the socket file's device and inode.

        The real path is bound where it fits, so that /proc/net/unix, and the temp cleaners that read it, see it.
        """
        try:
            self._bind(listener, path, name, mode)
            info = os.stat(name, dir_fd=self._folder, follow_symlinks=False)
        except FileNotFoundError:
            raise InvalidPath(path, "the folder was replaced while we bound the socket") from None
        if not stat.S_ISSOCK(info.st_mode) or info.st_uid != os.geteuid():
            raise InvalidPath(path, "the folder was replaced while we bound the socket")
        listener.setblocking(False)
        listener.listen(self._backlog)
        return info.st_dev, info.st_ino

    def _bind(self, listener: Listener, path: str, name: str, mode: int) -> None:
        umask = os.umask(0o777 & ~mode)
        try:
            if len(os.fsencode(path)) <= ADDRESS_LIMIT:
                listener.bind(path)
            else:
                with address(name, folder=self._folder, path=path) as target:
                    listener.bind(target)
        except OSError as error:
            raise InvalidPath(path, f"the socket cannot be bound: {error.strerror or error}") from None
        finally:
            os.umask(umask)

    def _open_control(self) -> None:
        """Make the control socket; a server that cannot have one (a read-only folder, say) serves without."""
        name = self._name + CONTROL_SUFFIX
        control = _new_listener()
        try:
            self._clear(name)
            self._control_identity = self._listen(control, self.control_path, name, 0o600)
            self.control = control
        except (OSError, InvalidPath, AddressInUse) as error:
            control.close()
            self.control_error = error if isinstance(error, OSError) else OSError(str(error))

    # -- while serving ----------------------------------------------------------------------------------------------

    def still_ours(self) -> bool:
        """Whether the path still leads to the socket that we bound (one system call)."""
        if self._identity is None:
            return True  # a supervisor's socket: the supervisor owns the path
        try:
            info = os.lstat(self.path)
        except OSError:
            return False
        return (info.st_dev, info.st_ino) == self._identity

    def restore_lock_file(self) -> bool:
        """Make the lock file again if a cleaner of temporary files has removed it; True if it was made again.

        The lock itself was never lost: the new file is locked before the old descriptor is closed.
        """
        try:
            info = os.stat(self._name + LOCK_SUFFIX, dir_fd=self._folder, follow_symlinks=False)
            if (info.st_dev, info.st_ino) == self._lock_identity:
                return False
        except FileNotFoundError:
            pass
        except OSError:
            return False
        try:
            renewed = self._take_lock()
        except (OSError, InvalidPath, AddressInUse):
            return False
        os.close(self._lock)
        self._hold(renewed)
        return True

    # -- giving it back ---------------------------------------------------------------------------------------------

    def remove_remains(self) -> None:
        """Remove what a server that was killed left behind; raises as `claim` does if another has the path."""
        self.claim({})
        try:
            for name in (self._name, self._name + CONTROL_SUFFIX):
                self._clear(name)
        finally:
            self.close()

    def withdraw(self) -> None:
        """Remove the path and refuse further connections; those in the backlog can still be accepted.

        A supervisor's listener stays as it is: connections that come now are for the server that it starts next.
        """
        self._unlink(self._name, self._identity)
        if self.listener is not None and not self.adopted:
            self.listener.refuse()
        self._identity = None

    def close(self) -> None:
        """Close everything and remove our files; the lock goes last."""
        if self.listener is not None:
            self.listener.close()
        self._unlink(self._name, self._identity)
        if self.control is not None:
            self._unlink(self._name + CONTROL_SUFFIX, self._control_identity)
            self.control.close()
        self._identity = self._control_identity = self.listener = self.control = None
        self._release_lock()
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1

    def _release_lock(self) -> None:
        if self._lock < 0:
            return
        lock = os.fstat(self._lock)
        self._unlink(self._name + LOCK_SUFFIX, (lock.st_dev, lock.st_ino))  # unless it is another server's by now
        os.close(self._lock)  # the last descriptor of it: this releases the flock
        self._lock = -1

    def _unlink(self, name: str, identity: tuple[int, int] | None) -> None:
        """Remove a file that is still the one we made, in the process that made it, and no other."""
        if identity is None or os.getpid() != self._pid:
            return
        with contextlib.suppress(OSError):
            info = os.stat(name, dir_fd=self._folder, follow_symlinks=False)
            if (info.st_dev, info.st_ino) == identity:
                os.unlink(name, dir_fd=self._folder)


def _locked_soon(lock: Callable[[], bool]) -> bool:
    """Try for a moment: a process that only checks whether a server holds the lock holds it meanwhile."""
    deadline = time.monotonic() + LOOKER_PATIENCE
    while not lock():
        if time.monotonic() >= deadline:
            return False
        time.sleep(LOOKER_PATIENCE / 5)
    return True


def _new_listener() -> Listener:
    return Listener(socket.AF_UNIX, socket.SOCK_STREAM)


def folder_fault(info: os.stat_result) -> str | None:
    """Why others could replace a file in a folder with this status, or None (docs/protocol.md section 5)."""
    if info.st_uid not in (os.geteuid(), 0):
        return f"belongs to user {info.st_uid}"
    if info.st_mode & 0o022 and not info.st_mode & stat.S_ISVTX:
        return f"is writable by others (mode {stat.S_IMODE(info.st_mode):04o}) and not sticky"
    return None


def lock_fault(error: OSError) -> str:
    """What an error at opening the lock file means."""
    if error.errno == errno.ELOOP:
        return "it is a symbolic link, which we do not follow; remove it"
    return str(error.strerror)


def kind_of(mode: int) -> str:
    """What a file mode describes, for a message."""
    kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISLNK, "a symbolic link"), (stat.S_ISREG, "a file"))
    return next((name for test, name in kinds if test(mode)), "something")


def read_record(lock_path: str) -> dict[str, Any]:
    """What the server that holds `lock_path` wrote about itself; empty if it has not yet, or is another user's."""
    try:
        descriptor = os.open(lock_path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return {}
    return record_in(descriptor)


def record_in(descriptor: int) -> dict[str, Any]:
    """Return the record in an open lock file (`read_record`), and close it."""
    with open(descriptor, "rb") as file:
        if os.fstat(descriptor).st_uid not in (os.geteuid(), 0):
            return {}  # what another user claims is no fact
        try:
            file.seek(0)
            record = json.loads(file.read(LARGEST_RECORD))
        except (OSError, ValueError, RecursionError):
            return {}
    return record if isinstance(record, dict) else {}


def in_use(path: str, record: dict[str, Any]) -> AddressInUse:
    """Return the error that names the server at the path."""
    pid, command = record.get("pid"), record.get("command")
    if is_elsewhere(record):
        return AddressInUse(path, pid=pid, command=command, reason="the pid is of another pid namespace")
    return AddressInUse(path, pid=pid, command=command or command_of(pid))


def is_elsewhere(record: dict[str, Any]) -> bool:
    """Whether a server's pids are of another namespace (a container's): here they belong to other processes."""
    theirs, ours = record.get("pid_namespace"), pid_namespace()
    return bool(theirs and ours and theirs != ours)


def pid_namespace() -> int:
    """Return the inode of this process's pid namespace (pid_namespaces(7)); 0 where there is no /proc."""
    with contextlib.suppress(OSError):
        return os.stat("/proc/self/ns/pid").st_ino
    return 0


def command_of(pid: int | None) -> str | None:
    """The command line of process `pid` as /proc tells it, or None."""
    if pid is None:
        return None
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read(4096).replace(b"\0", b" ").decode(errors="replace").strip() or None
    except OSError:
        return None
