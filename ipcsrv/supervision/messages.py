"""The messages between master, template and workers: kinds, typed fields, one version.

Pure: objects in, bytes out, and back. A message is one frame: version, kind and a body. Descriptors travel beside a
frame, as the platform passes them. A frame that cannot be decoded raises `FormatError`; the master kills the process
that sent it.

The queue carries `Passed`: one connection, its number and, where an exchange has stalled, the state of that exchange.
"""

from __future__ import annotations

import json
import struct
from enum import IntEnum
from typing import Any, NamedTuple

#: Raised with every change of a message or of the scoreboard: processes of different versions refuse each other.
VERSION = 2

#: Exit status of a worker that could not start; the master has been told why.
START_FAILED = 76

#: Bytes of an exchange's state that travel inside a message; more goes into an anonymous file.
INLINE_STATE = 64 * 1024
#: Bytes of a body at most: the state and the fields around it.
MAX_BODY = INLINE_STATE + 1024

_FRAME = struct.Struct("<BBxxI")  # version, kind, size of the body
FRAME_SIZE = _FRAME.size


class FormatError(Exception):
    """A frame that no process of this version sends."""


class Kind(IntEnum):
    """The kind of a message; the comment names the sender, the receiver and the body."""

    # worker -> master
    READY = 1  # none
    START_FAILED = 2  # Text fields: reason, traceback, importing
    LEAVING = 3  # none
    QUIT = 4  # none
    BUSY = 5  # none: a request has begun while the watchdog slept
    HANDLER_ERROR = 6  # UTF-8 text
    EXHAUSTED = 7  # UTF-8 text: the worker had no descriptor for a connection
    RETURNED = 8  # Returned
    ENDED = 9  # number
    HELD = 10  # number: its stream is suspended and stays in the worker
    PONG = 11  # number: of the ping that was taken from the queue
    # template -> master, and worker -> master where there is no template
    CODE = 19  # fields: a part of the imported files, each with its stamp (config.fingerprint)
    # template -> master
    LOADED = 20  # fields: none
    LOAD_FAILED = 21  # fields: reason, traceback
    BORN = 22  # worker, pid
    DIED = 23  # worker, status
    FORK_FAILED = 24  # fields: worker, reason
    # master -> template
    FORK = 40  # worker, slot; beside it the worker's end of its channel
    END = 41  # none
    # master -> template and worker
    REOPEN_LOG = 42  # none
    # master -> worker
    LEAVE = 43  # none
    # guard and inline worker -> master
    EXIT = 60  # worker, status


def frame(kind: Kind, body: bytes = b"") -> bytes:
    """Return the frame of a message."""
    return _FRAME.pack(VERSION, kind, len(body)) + body


def parse_header(data: bytes) -> tuple[Kind, int]:
    """Return kind and size of the body from a frame's first `FRAME_SIZE` bytes; raises `FormatError`."""
    version, kind, size = _FRAME.unpack_from(data)
    if version != VERSION or size > MAX_BODY:
        raise FormatError(f"version {version}, size {size}")
    try:
        return Kind(kind), size
    except ValueError:
        raise FormatError(f"kind {kind}") from None


def parse_frame(data: bytes) -> tuple[Kind, bytes]:
    """Return kind and body of one whole frame; raises `FormatError`."""
    if len(data) < FRAME_SIZE:
        raise FormatError(f"{len(data)} bytes")
    kind, size = parse_header(data)
    if len(data) != FRAME_SIZE + size:
        raise FormatError(f"{len(data) - FRAME_SIZE} bytes where {size} were announced")
    return kind, data[FRAME_SIZE:]


#: What the client of a request that was ended by the server is told, by code.
VERDICTS = {
    "timeout": "the handler did not answer within request_timeout",
    "stopping": "the server stopped before the handler had answered",
}

# -- bodies ------------------------------------------------------------------------------------------------------------

_NUMBER = struct.Struct("<Q")
_PAIR = struct.Struct("<Qq")


def pack_number(number: int) -> bytes:
    """Return the body of ENDED and HELD."""
    return _NUMBER.pack(number)


def parse_number(body: bytes) -> int:
    """Return the number of a connection; raises `FormatError`."""
    return int(_unpack(_NUMBER, body)[0])


def pack_pair(worker: int, value: int) -> bytes:
    """Return the body of FORK (worker, slot), BORN (worker, pid), DIED and EXIT (worker, status)."""
    return _PAIR.pack(worker, value)


def parse_pair(body: bytes) -> tuple[int, int]:
    """Return the two numbers of such a body; raises `FormatError`."""
    worker, value = _unpack(_PAIR, body)
    return int(worker), int(value)


def pack_fields(**fields: Any) -> bytes:
    """Return named fields as a body; of a long text its end is kept, since the end of a traceback says most."""
    for name, value in fields.items():
        if isinstance(value, str) and len(value) > 8000:
            fields[name] = "...\n" + value[-8000:]
    return json.dumps(fields).encode("utf-8", "backslashreplace")[:MAX_BODY]


def parse_fields(body: bytes) -> dict[str, Any]:
    """Return the named fields of a body; raises `FormatError`."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise FormatError("the body is not JSON") from None
    if not isinstance(fields, dict):
        raise FormatError("the body is not an object")
    return fields


def parse_text(body: bytes) -> str:
    """Return a body as text, whatever its bytes are."""
    return body.decode("utf-8", "replace")


def _unpack(layout: struct.Struct, body: bytes) -> tuple[Any, ...]:
    if len(body) != layout.size:
        raise FormatError(f"a body of {len(body)} bytes where {layout.size} are due")
    return layout.unpack(body)


# -- the state of an exchange between two workers ----------------------------------------------------------------------


class Stage(IntEnum):
    """What a returned connection is in the middle of."""

    BETWEEN = 0  # nothing: the last response was sent whole
    READING = 1  # a request has come in part
    AHEAD = 2  # whole requests have been read and wait for their turn (pipelining)
    WRITING = 3  # a response has been sent in part
    LINGERING = 4  # a failure reply was sent: what the client still sends is read and discarded
    UNTOUCHED = 5  # what it was before: the worker had no descriptor for it (of `Returned` alone)


class ExchangeState(NamedTuple):
    """What another worker, or the master, needs to go on with an exchange.

    header, left, total, begun: the decoder's state inside a request (`pktline.Decoder`).
    body: READING: the request's data so far; AHEAD: bytes as they were read; WRITING: bytes to send.
    in_file: bytes of the body that are in the file beside the message, at its beginning, instead of in `body`.
    ahead: the last so many bytes of the body are input that was read ahead (WRITING).
    """

    header: bytes = b""
    left: int = 0
    total: int = 0
    begun: bool = False
    body: bytes = b""
    in_file: int = 0
    ahead: int = 0

    @property
    def size(self) -> int:
        """Bytes held, in memory or in the file."""
        return len(self.header) + len(self.body) + self.in_file


_STATE = struct.Struct("<4sBBIQQQ")
STATE_SIZE = _STATE.size


def pack_state(state: ExchangeState) -> bytes:
    """Return the state as bytes."""
    fixed = _STATE.pack(state.header, len(state.header), state.begun, state.left, state.total, state.in_file,
                        state.ahead)
    return fixed + state.body


def parse_state(data: bytes) -> ExchangeState:
    """Return what `pack_state` made; raises `FormatError`."""
    if len(data) < _STATE.size:
        raise FormatError("a state that is too short")
    header, length, begun, left, total, in_file, ahead = _STATE.unpack_from(data)
    body = data[_STATE.size :]
    if length > 3 or begun > 1 or left > 65536 or ahead > max(len(body), in_file) or (in_file and body):
        raise FormatError("a state that cannot be")
    return ExchangeState(header[:length], left, total, bool(begun), body, in_file, ahead)


class Returned(NamedTuple):
    """A worker returns a connection.

    number: which; stage: what it is in the middle of; began_ns: when its request began to arrive (READING, monotonic);
    state: None where there is none.
    """

    number: int
    stage: Stage
    began_ns: int = 0
    state: ExchangeState | None = None


_RETURNED = struct.Struct("<QBQ")


def pack_returned(returned: Returned) -> bytes:
    """Return the body of RETURNED."""
    state = b"" if returned.state is None else pack_state(returned.state)
    return _RETURNED.pack(returned.number, returned.stage, returned.began_ns) + state


def parse_returned(body: bytes) -> Returned:
    """Return what `pack_returned` made; raises `FormatError`."""
    if len(body) < _RETURNED.size:
        raise FormatError("a return that is too short")
    number, stage, began_ns = _RETURNED.unpack_from(body)
    if stage > Stage.UNTOUCHED:
        raise FormatError(f"stage {stage}")
    rest = body[_RETURNED.size :]
    return Returned(number, Stage(stage), began_ns, parse_state(rest) if rest else None)


class Passed(NamedTuple):
    """A connection in the queue.

    number: under which the master keeps it; queued_ns: since when it waits for a worker (monotonic);
    accepted: whether it comes for the first time; began_ns, state: as in `Returned`, of a stalled exchange.
    """

    number: int
    queued_ns: int
    accepted: bool = False
    stage: Stage = Stage.BETWEEN
    began_ns: int = 0
    state: ExchangeState | None = None


_PASSED = struct.Struct("<QQBBxxxxxxQ")
PASSED_SIZE = _PASSED.size
#: A message without a connection, which a worker answers with PONG (`ipcsrv ping --worker`).
PING_NUMBER = 0


def pack_passed(passed: Passed) -> bytes:
    """Return a queue message."""
    state = b"" if passed.state is None else pack_state(passed.state)
    return _PASSED.pack(passed.number, passed.queued_ns, passed.accepted, passed.stage, passed.began_ns) + state


def parse_passed(data: bytes) -> Passed:
    """Return what `pack_passed` made; raises `FormatError`."""
    if len(data) < PASSED_SIZE:
        raise FormatError("a queue message that is too short")
    number, queued_ns, accepted, stage, began_ns = _PASSED.unpack_from(data)
    if stage > Stage.LINGERING:
        raise FormatError(f"stage {stage}")
    rest = b"" if stage == Stage.BETWEEN else data[PASSED_SIZE:]  # messages of one size are padded
    return Passed(number, queued_ns, bool(accepted), Stage(stage), began_ns, parse_state(rest) if rest else None)
