"""Looking at a path on Unix (see `inspection`), by the server's own rules: `folder_fault`, `ADDRESS_LIMIT`."""

from __future__ import annotations

import sys

assert sys.platform != "win32"

import os
import pwd
import re
import resource
import stat
import subprocess
from collections.abc import Iterator
from typing import NamedTuple

from ...folders import absolute
from ..findings import Finding, LockHolder, failure, ok, warning
from . import lifecycle, rendezvous
from .client import ADDRESS_LIMIT
from .rendezvous import CONTROL_SUFFIX, GIT_LOCK_SUFFIX, LOCK_SUFFIX, folder_fault, kind_of, read_record

# File systems on which sockets, locks or modes do not work as needed, and why.  Git's simple-ipc and its fsmonitor
# refuse the network ones too.
_NO_SOCKETS = "it does not support sockets"
_ONE_MACHINE = "a socket on it works within one machine only, and its locks may fail or hang"
_NO_OWNERS = "it stores neither owners nor modes, so it does not protect from other users"
_PASSED_THROUGH = "it shares the files of another system; sockets and locks on it may fail"
_NETWORKED = ("nfs", "nfs4", "afs", "ceph", "glusterfs", "lustre", "gpfs", "ocfs2", "gfs2", "afpfs", "webdav",
              "fuse.glusterfs", "fuse.sshfs", "fuse.s3fs", "fuse.rclone")  # fmt: skip
_GUESTS = ("9p", "virtiofs", "vboxsf", "drvfs", "prl_fs", "fakeowner", "fuse.vmhgfs-fuse", "fuse.grpcfuse")
_FOREIGN = ("vfat", "msdos", "exfat", "fat", "ntfs", "ntfs3", "fuseblk")
_DOUBTFUL = {
    **dict.fromkeys(_NETWORKED, (warning, _ONE_MACHINE)),
    **dict.fromkeys(("cifs", "smb3", "smbfs", "ncpfs"), (warning, f"{_ONE_MACHINE}; {_NO_OWNERS}")),
    **dict.fromkeys(_GUESTS, (warning, _PASSED_THROUGH)),
    **dict.fromkeys(_FOREIGN, (failure, f"{_NO_SOCKETS}; {_NO_OWNERS}")),
    **dict.fromkeys(("squashfs", "iso9660", "erofs", "cramfs", "udf"), (failure, "it cannot be written")),
}
_ELSEWHERE = "choose another folder, such as that of ipcsrv.default_path(), which IPCSRV_RUNTIME_DIR sets"


class Mount(NamedTuple):
    """The file system that a folder is on."""

    kind: str
    point: str
    read_only: bool


def place(path: str) -> Iterator[Finding]:
    """What can be said of the path without asking a server."""
    path = absolute(path)
    folder = os.path.dirname(path)
    yield _length(path)
    try:
        info = os.stat(folder)
    except OSError as error:
        yield failure("folder", f"{folder}: {error.strerror}", "make it, or choose another folder")
        return
    if not stat.S_ISDIR(info.st_mode):
        yield failure("folder", f"{folder} is not a folder", "choose another path")
        return
    yield _file_system(folder)
    yield _folder(folder, info)
    yield from _ways_in(folder)
    yield from _files(path)


# -- the path ---------------------------------------------------------------------------------------------------------


def _length(path: str) -> Finding:
    length = len(os.fsencode(path))
    text = f"{length} bytes; the limit of a socket's address is {ADDRESS_LIMIT} here"
    if length <= ADDRESS_LIMIT:
        return ok("path length", text)
    name = len(os.fsencode(os.path.basename(path)))
    if sys.platform != "linux":
        return failure("path length", text, "choose a shorter path, such as ipcsrv.default_path() gives")
    if name > _LONGEST_NAME:
        return failure("path length", f"{text}, and the name alone has {name}", "choose a shorter name")
    return warning("path length", f"{text}; ipcsrv goes through its folder", "others may not: choose a shorter path")


MOUNT = "/sbin/mount"  # macOS and the BSDs
_LONGEST_NAME = ADDRESS_LIMIT - len("/proc/self/fd/1234/") - len(CONTROL_SUFFIX)


def _file_system(folder: str) -> Finding:
    mount = mount_of(folder)
    if mount is None:
        return ok("file system", "unknown: this system does not tell")
    text = f"{mount.kind}, mounted at {mount.point}"
    if mount.kind in _DOUBTFUL:
        found, why = _DOUBTFUL[mount.kind]
        return found("file system", f"{text}: {why}", _ELSEWHERE)
    if mount.read_only:
        return failure("file system", f"{text}, read-only", _ELSEWHERE)
    if mount.kind.startswith("fuse"):
        return warning("file system", f"{text}: whether sockets work depends on the program behind it", _ELSEWHERE)
    return ok("file system", text)


def mount_of(folder: str) -> Mount | None:
    """The mount that the folder is on, or None where that cannot be told."""
    real = os.path.realpath(folder)
    inside = [mount for mount in _mounts() if real == mount.point or real.startswith(mount.point.rstrip("/") + "/")]
    return max(enumerate(inside), key=lambda found: (len(found[1].point), found[0]))[1] if inside else None


def _mounts() -> list[Mount]:
    try:
        with open("/proc/self/mountinfo", encoding=sys.getfilesystemencoding(), errors="surrogateescape") as file:
            return [_mount_of_line(line) for line in file]
    except OSError:
        return _mounts_by_command()


def _mount_of_line(line: str) -> Mount:
    """A line of proc_pid_mountinfo(5): fixed fields, optional ones, " - ", and the kind first after that."""
    fields, _, rest = line.partition(" - ")
    words = fields.split(" ")
    point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), words[4])  # of spaces and line ends
    return Mount(rest.split(" ")[0], point, "ro" in words[5].split(","))


def _mounts_by_command() -> list[Mount]:
    """mount(8) of macOS and the BSDs: `/dev/disk1 on / (apfs, local, read-only)` or `... on / type ffs (local)`."""
    try:
        done = subprocess.run([MOUNT], check=False, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return []
    mounts = []
    for line in done.stdout.splitlines():
        where, _, options = line.partition(" on ")[2].rpartition(" (")
        point, _, kind = where.partition(" type ")
        words = options.rstrip(")").split(", ")
        mounts.append(Mount(kind or words[0], point, "read-only" in words))
    return mounts


# -- folders ----------------------------------------------------------------------------------------------------------


def _folder(folder: str, info: os.stat_result) -> Finding:
    text = f"{folder}, of {user_of(info.st_uid)}, mode {stat.S_IMODE(info.st_mode):04o}"
    fault = folder_fault(info)
    if fault is not None:
        return failure("folder", f"{text}: it {fault}, so others could replace the socket", _FOLDER_ADVICE)
    if not os.access(folder, os.W_OK | os.X_OK):
        return warning("folder", f"{text}: not writable by you", "you cannot start a server there, only call one")
    if info.st_mode & 0o002:
        return warning("folder", f"{text}: other users may use it too", "prefer a private one: ipcsrv.default_path()")
    return ok("folder", text)


_FOLDER_ADVICE = "choose a folder of your own with mode 0755 or less, or use --insecure-dir"


def _ways_in(folder: str) -> Iterator[Finding]:
    """Folders above, in which others could put another folder in the place of this one."""
    above = os.path.realpath(folder)
    while above != "/":
        above = os.path.dirname(above)
        fault = folder_fault(os.stat(above))
        if fault is not None:
            yield warning("folder above", f"{above} {fault}, so others could replace what is in it",
                          "clients still send nothing to another user's server; correct the folder's mode or owner")


# -- files ------------------------------------------------------------------------------------------------------------


def _files(path: str) -> Iterator[Finding]:
    yield _socket(path)
    lock, git_lock = path + LOCK_SUFFIX, path + GIT_LOCK_SUFFIX
    if _status(lock) is not None:
        yield _lock_file(lock)
    control = _status(path + CONTROL_SUFFIX)
    if control is not None and not stat.S_ISSOCK(control.st_mode):
        what = f"{path}{CONTROL_SUFFIX} is {kind_of(control.st_mode)}"
        yield warning("control", f"{what}, so a server here has no control socket", "remove it")
    if _status(git_lock) is not None:
        what = f"{git_lock} exists: a server is starting, or a Git server died while it started"
        yield warning("Git's lock", what, "remove it if no server is starting")


def _socket(path: str) -> Finding:
    info = _status(path)
    if info is None:
        return ok("socket", "does not exist yet")
    text = f"of {user_of(info.st_uid)}, mode {stat.S_IMODE(info.st_mode):04o}"
    if not stat.S_ISSOCK(info.st_mode):
        text = f"{kind_of(info.st_mode)} instead, {text}"
        return failure("socket", text, "remove it, or choose another path")
    if info.st_uid not in (os.geteuid(), 0):
        return failure("socket", f"{text}: another user's", "do not call it; choose a path in a folder of your own")
    if info.st_mode & 0o066:
        return ok("socket", f"{text}; the server checks the user of each client")
    return ok("socket", text)


def _lock_file(lock: str) -> Finding:
    info = os.lstat(lock)
    text = f"{lock} is {kind_of(info.st_mode)} of {user_of(info.st_uid)}"
    if not stat.S_ISREG(info.st_mode) or info.st_uid not in (os.geteuid(), 0) or info.st_nlink > 1:
        return failure("lock file", f"{text}, not a regular file of your own: no server can start", "remove it")
    return ok("lock file", lock)


def _status(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except OSError:
        return None


# -- processes --------------------------------------------------------------------------------------------------------


def lock_holder(path: str) -> LockHolder | None:
    """Return who holds the lock: by /proc/locks, which disturbs no process, and where that is missing, by trying it.

    It knows nothing of a holder in another container, nor, on some file systems (btrfs), of the file by its device.
    """
    path = absolute(path)
    info = _status(path + LOCK_SUFFIX)
    if info is None:
        return None
    pid = next((int(words[4]) for words in _locks() if _is_flock_on(words, info)), None)
    if pid is None and not lifecycle.is_locked(path):
        return None
    return LockHolder(pid, read_record(path + LOCK_SUFFIX))


def _locks() -> list[list[str]]:
    try:
        with open("/proc/locks", encoding="ascii") as file:
            return [line.split() for line in file]
    except OSError:
        return []


def _is_flock_on(words: list[str], info: os.stat_result) -> bool:
    """Whether a line of proc_locks(5) is a held (not an awaited, "->") flock on this file."""
    if len(words) < 6 or words[1] != "FLOCK" or int(words[4]) <= 0:
        return False
    major, minor, inode = words[5].split(":")
    return (os.makedev(int(major, 16), int(minor, 16)), int(inode)) == (info.st_dev, info.st_ino)


def command_of(pid: int) -> str | None:
    """By /proc; elsewhere by ps(1)."""
    if os.path.isdir("/proc/self"):
        return rendezvous.command_of(pid)
    try:
        ask = ["ps", "-o", "command=", "-p", str(pid)]
        done = subprocess.run(ask, check=False, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def user_of(uid: int | str) -> str:
    """The user's name, or the number of one without."""
    try:
        return pwd.getpwuid(int(uid)).pw_name
    except (KeyError, ValueError):
        return f"user {uid}"


def descriptor_limits(pid: int | None = None) -> tuple[int, int] | None:
    """RLIMIT_NOFILE, soft and hard: getrlimit(2), and /proc/PID/limits for another process."""
    if pid is None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        return _finite(soft), _finite(hard)
    try:
        with open(f"/proc/{pid}/limits", encoding="ascii") as file:
            words = next(line for line in file if line.startswith("Max open files")).split()
    except (OSError, StopIteration):
        return None
    return _finite(words[3]), _finite(words[4])


def _finite(limit: int | str) -> int:
    return 1 << 30 if limit in ("unlimited", resource.RLIM_INFINITY) else int(limit)
