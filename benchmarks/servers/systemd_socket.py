"""ipcsrv with a listener that was bound before it started, as by systemd (sd_listen_fds(3))."""

from __future__ import annotations

import os
import socket
import sys

FIRST_DESCRIPTOR = 3

if __name__ == "__main__":
    path, *options = sys.argv[1:]
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(1024)
    descriptor = listener.detach()
    if descriptor != FIRST_DESCRIPTOR:
        os.dup2(descriptor, FIRST_DESCRIPTOR)
        os.close(descriptor)
    os.set_inheritable(FIRST_DESCRIPTOR, True)
    os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
    os.execv(sys.executable, [sys.executable, "-m", "ipcsrv", "run", path, *options])
