"""What is mounted below a folder (proc(5), mountinfo): a mount hides files, and inotify has no event for it."""

from __future__ import annotations

import os
import re
import select

#: File systems that other machines or programs change without an inotify event.
REMOTE = ("nfs", "cifs", "smb", "9p", "fuse", "afs", "ceph", "lustre", "ncp", "vboxsf", "virtiofs")


class Mounts:
    """The mounts below a folder, and whether they have changed since the last look."""

    def __init__(self, root: bytes) -> None:
        self._root = root
        self._file = open("/proc/self/mountinfo", "rb", buffering=0)  # noqa: SIM115 - open as long as this object
        self._poll = select.poll()
        self._poll.register(self._file, select.POLLPRI)  # set by the kernel when the table of mounts changes
        self._below = self._look()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def changed(self) -> bool:
        """Return whether something was mounted or unmounted below the folder since the last call."""
        if not self._poll.poll(0):
            return False
        before, self._below = self._below, self._look()
        return self._below != before

    def _look(self) -> list[tuple[bytes, bytes]]:
        self._file.seek(0)
        prefix = self._root.rstrip(b"/") + b"/"
        return [(identity, point) for identity, point, _ in _mounts(self._file.read()) if point.startswith(prefix)]


def file_system(folder: str) -> str:
    """Return the type of the file system that holds `folder`, such as "ext4"."""
    path = os.fsencode(os.path.realpath(folder)) + b"/"
    with open("/proc/self/mountinfo", "rb") as file:
        holding = [(len(point), kind) for _, point, kind in _mounts(file.read())
                   if path.startswith(point.rstrip(b"/") + b"/")]
    longest = max((length for length, _ in holding), default=0)
    kinds = [kind.decode() for length, kind in holding if length == longest]
    return kinds[-1] if kinds else "unknown"  # of two mounts at one place the later one hides the other


def _mounts(table: bytes) -> list[tuple[bytes, bytes, bytes]]:
    """Identity, mount point and type of each line."""
    found = []
    for line in table.splitlines():
        fields, _, rest = line.partition(b" - ")
        identity, _, _, _, point = fields.split(b" ")[:5]
        found.append((identity, _unescaped(point), rest.split(b" ")[0]))
    return found


def _unescaped(point: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), point)
