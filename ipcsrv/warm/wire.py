"""What client and server say to each other about a run; ipcsrv/native/warm.c is the same client in C.

The request of a run comes with one descriptor: an end of a socket pair, the run's *control channel*.  Its bytes are
fields, each ended by NUL: `FORMAT`, the token of the stamps, the working folder, the umask in octal, the ignored
signals as a hexadecimal mask, the number of arguments, the arguments from argv[0] on, and the environment as
NAME=VALUE.

On the control channel the server writes READY when a process is set up, or REFUSED.  The client answers READY with GO,
which brings standard input, output and error, and the run begins.  So a client that waits no longer and runs the
program cold is not run twice, and leaves no copy of its streams in a queue, whose readers would wait for their end.
Then the client writes the numbers of signals, one byte each, and the server STOPPED whenever the run has stopped.  The
end of file from the client ends the run.  The response is `exit STATUS` or `signal NUMBER`.
"""

from __future__ import annotations

import sys

assert sys.platform != "win32"

import os

from .program import FORMAT

READY, GO, REFUSED, STOPPED = b"R", b"G", b"N", b"T"
STREAMS = 3  # descriptors that come with GO


class RunRequest:
    """The fields of a request, by name."""

    __slots__ = ("arguments", "environment", "folder", "ignored", "token", "umask")

    def __init__(
        self, token: str, folder: bytes, umask: int, ignored: int, arguments: list[bytes], environment: list[bytes]
    ) -> None:
        self.token = token
        self.folder = folder
        self.umask = umask
        self.ignored = ignored
        self.arguments = arguments
        self.environment = environment

    def encode(self) -> bytes:
        """Return the bytes of the request."""
        head = [FORMAT.encode(), self.token.encode(), self.folder, b"%o" % self.umask, b"%x" % self.ignored]
        return b"\0".join([*head, b"%d" % len(self.arguments), *self.arguments, *self.environment, b""])


def decode(data: bytes) -> RunRequest:
    """Return the request in `data`.

    Raises:
        ValueError: the bytes are not a request of this version.
    """
    fields = data.split(b"\0")
    if len(fields) < 7 or fields[0] != FORMAT.encode() or fields.pop():
        raise ValueError(f"not a request of the version {FORMAT}")
    count = int(fields[5])
    if not 0 < count <= len(fields) - 6:
        raise ValueError("a request without its arguments")
    arguments, environment = fields[6 : 6 + count], fields[6 + count :]
    return RunRequest(fields[1].decode(), fields[2], int(fields[3], 8), int(fields[4], 16), arguments, environment)


def own_request(token: str, argv0: str, arguments: list[str]) -> RunRequest:
    """Return the request for a run with this process's own surroundings."""
    import signal

    os.umask(umask := os.umask(0))
    ignored = sum(1 << number for number in range(1, 32) if signal.getsignal(number) is signal.SIG_IGN)
    words = [os.fsencode(word) for word in (argv0, *arguments)]
    environment = [name + b"=" + value for name, value in os.environb.items()]
    return RunRequest(token, os.fsencode(os.getcwd()), umask, ignored, words, environment)
