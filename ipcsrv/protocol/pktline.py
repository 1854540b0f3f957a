"""The codec: bytes to messages and back (docs/protocol.md section 1). Pure; both sides use it.

A message is data packets and a flush; a packet is four hexadecimal digits, its length with them, and data. Nothing
else is on the wire, so all there is to this module is speed and suspicion:

- **Small messages take no loop.** Nearly every message is one packet that one read brings whole: `decode_exact`
  recognises it, and `encode` makes it as one object.
- **Large messages are copied once.** A piece of a packet is a view of the bytes that were fed, and goes into place
  while it is in the processor's cache. Sending slices views too.
- **A sender cannot make the receiver hold much more than it sent.** What was fed is freed when its data is in place; a
  message is refused at the header that takes it past the limit, before its data has come.
- **Work is linear in the input** however the input is cut.
"""

from __future__ import annotations

from io import BytesIO

from ..errors import ProtocolError, TooLarge

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Buffer

HEADER_SIZE = 4
#: The largest packet with its header, and the most data in it: Git's LARGE_PACKET_MAX.
MAX_PACKET = 65520
MAX_DATA = MAX_PACKET - HEADER_SIZE
FLUSH = b"0000"
QUOTE = ": "  # before the peer's own bytes at the end of an error's text
_MAX_HEADER = b"%04x" % MAX_PACKET

#: Bytes from which on a piece is a view: below it, the view object weighs as much as the copy that it saves.
_SMALL = 2048

_MEANINGLESS = {1: "a delim packet (0001)", 2: "a response-end packet (0002)", 3: "a packet of the illegal length 3"}


# Encoding


def encode(data: Buffer) -> list[bytes | memoryview]:
    """The whole message that carries `data`, flush included, as buffers to send in order.

    All but the last packet are views of `data`, which must not change until they are sent. A message of one packet
    is one bytes object.
    """
    return _encode(data, FLUSH)


def encode_data(data: Buffer) -> list[bytes | memoryview]:
    """The data packets that carry `data`, without a flush: a part of a streamed message. Empty for no data."""
    return _encode(data, b"")


def _encode(data: Buffer, end: bytes) -> list[bytes | memoryview]:
    flat = data if type(data) is bytes else memoryview(data).cast("B")
    size = len(flat)
    if 0 < size <= MAX_DATA:
        return [b"".join((b"%04x" % (size + HEADER_SIZE), flat, end))]
    if not size:
        return [end] if end else []
    view = memoryview(flat)
    buffers: list[bytes | memoryview] = []
    last = (size - 1) // MAX_DATA * MAX_DATA
    for start in range(0, last, MAX_DATA):
        buffers += _MAX_HEADER, view[start : start + MAX_DATA]
    buffers.append(b"".join((b"%04x" % (size - last + HEADER_SIZE), view[last:], end)))
    return buffers


# Decoding


def decode_exact(data: bytes) -> bytes | None:
    """The payload, if `data` is exactly one message in at most one packet; else None, which says nothing of why.

    The hot path of both sides: an answer of None costs little and means "ask a `Decoder`".
    """
    size = len(data) - HEADER_SIZE
    if data[:4] == b"%04x" % size and data[-4:] == b"0000" and size <= MAX_PACKET:
        return data[4:-4]
    return None


class Assembly:
    """The data of one message, as it comes.

    Each piece is copied at once, while it is in the processor's cache, so that what it was cut from can be freed.
    """

    __slots__ = ("_data", "size")

    def __init__(self) -> None:
        self._data = BytesIO()
        self.size = 0  # bytes

    def append(self, piece: bytes | memoryview) -> None:
        """Add the next piece."""
        self.size += self._data.write(piece)

    def join(self) -> bytes:
        """Return the message, without a copy; the assembly is empty afterwards, ready for the next one."""
        whole = self._data.getvalue()
        self.__init__()  # type: ignore[misc]
        return whole


class Decoder:
    """Bytes in, messages out, cut as they may be.

    `feed` takes what a read brought; then either `next_message` gives whole messages, or `next_piece` their data as
    it comes. Both raise ProtocolError for bytes that are no message, and TooLarge at the header that takes a message
    past `max_size` bytes (None: no limit); a decoder that has raised raises the same again. `what` is what that
    error calls a message.
    """

    __slots__ = (
        "_at",
        "_begun",
        "_chunk",
        "_fed",
        "_header",
        "_left",
        "_queue",
        "_total",
        "_view",
        "_what",
        "assembly",
        "max_size",
    )  # fmt: skip

    def __init__(self, max_size: int | None = None, what: str = "message", assembly: Assembly | None = None) -> None:
        self.max_size = max_size
        self._what = what
        self._fed: list[bytes] = []  # not begun, in order; it becomes the queue when that is empty
        self._queue: list[bytes] = []  # not begun, reversed, so that taking the next is a pop
        self._chunk = b""
        self._view = memoryview(b"")
        self._at = 0
        self._header = b""  # the part of a header that has come
        self._left = 0  # bytes of the present packet still to come
        self._total = 0  # data bytes that the headers of the present message announce
        self._begun = False  # a header of the present message has been read
        self.assembly = Assembly() if assembly is None else assembly

    def snapshot(self) -> tuple[bytes, int, int, bool]:
        """Return what a decoder in another process needs to go on inside a message, once all that was fed is used up.

        It is the part of a header that has come, the bytes that the present packet lacks, the bytes that the headers
        have announced, and whether a header has come. The data so far is in the assembly.
        """
        return self._header, self._left, self._total, self._begun

    def restore(self, header: bytes, left: int, total: int, begun: bool) -> None:
        """Go on from a snapshot."""
        self._header, self._left, self._total, self._begun = header, left, total, begun

    def feed(self, data: Buffer) -> None:
        """Take bytes as they were read. Anything but `bytes` is copied, since its owner may change it."""
        if type(data) is not bytes:
            data = bytes(data)
        self._fed.append(data)

    def next_message(self) -> bytes | None:
        """The payload of the next message; None until more bytes are fed."""
        assembly = self.assembly
        while (piece := self.next_piece()) is not None:
            if not piece:
                self._drop_used_up()
                return assembly.join()
            assembly.append(piece)
        return None

    def _drop_used_up(self) -> None:
        """Let go of a buffer with nothing left in it: the last of a message lies above all others in the heap, which
        could not shrink beneath it while the message is handled."""
        if self._at == len(self._chunk):
            self._chunk, self._view, self._at = b"", memoryview(b""), 0

    def next_piece(self) -> bytes | memoryview | None:
        """The next run of data of the present message; b"" at its flush; None until more bytes are fed.

        Large runs are views of the bytes that were fed.
        """
        while True:
            if self._at == len(self._chunk) and len(self._header) < HEADER_SIZE and not self._next_chunk():
                return None
            if self._left:
                return self._take()
            if self._read_header() == FLUSH:
                return b""

    @property
    def packet_left(self) -> int:
        """Bytes that the present packet still lacks."""
        return self._left

    @property
    def mid_packet(self) -> bool:
        """True when an end of file here would truncate a packet."""
        return self._left > 0 or bool(self._header)

    @property
    def mid_message(self) -> bool:
        """True when an end of file here would truncate a message."""
        return self._begun or bool(self._header)

    @property
    def buffered(self) -> int:
        """Bytes that came and have not been given out: of the message in assembly, and after it."""
        waiting = len(self._chunk) - self._at + sum(map(len, self._queue)) + sum(map(len, self._fed))
        return self.assembly.size + len(self._header) + waiting

    def take_rest(self) -> bytes:
        """What came after the last message, undecoded; the decoder forgets it."""
        rest = b"".join((self._header, self._chunk[self._at :], *reversed(self._queue), *self._fed))
        self._queue, self._fed = [], []
        self._chunk, self._view, self._at, self._header = b"", memoryview(b""), 0, b""
        return rest

    def _next_chunk(self) -> bool:
        """Move on to the next fed bytes that are not empty; False when there are none."""
        self._at = 0
        while self._queue or self._fed:
            if not self._queue:
                self._queue, self._fed = self._fed[::-1], self._queue
            self._chunk = self._queue.pop()
            if self._chunk:
                self._view = memoryview(self._chunk)
                return True
        self._chunk, self._view = b"", memoryview(b"")
        return False

    def _take(self) -> bytes | memoryview:
        start = self._at
        end = self._at = min(start + self._left, len(self._chunk))
        self._left -= end - start
        return self._view[start:end] if end - start >= _SMALL else self._chunk[start:end]

    def _read_header(self) -> bytes | None:
        """Read a header and give it, once all of it has come."""
        start = self._at
        header = self._header + self._chunk[start : start + HEADER_SIZE - len(self._header)]
        self._at = start + len(header) - len(self._header)
        self._header = header  # kept when it is refused, so that it is refused again
        if len(header) < HEADER_SIZE:
            return None
        self._left = self._data_size(header)
        self._header = b""
        self._begun = header != FLUSH
        self._total = self._total + self._left if self._begun else 0
        return header

    def _data_size(self, header: bytes) -> int:
        """How much data follows the header; 0 for a flush too."""
        size = _packet_size(header)
        if size < HEADER_SIZE:
            return 0
        size -= HEADER_SIZE
        if self.max_size is not None and self._total + size > self.max_size:
            raise TooLarge(f"a {self._what} of more than {self.max_size} bytes")
        return size


def _packet_size(header: bytes) -> int:
    # int() also takes signs, spaces, underscores and "0x": none is alphanumeric, and the leading digit denies the "0x".
    try:
        size = int(b"1%b" % header, 16) - 0x10000 if header.isalnum() else -1
    except ValueError:
        size = -1
    if size < 0:
        raise ProtocolError(f"a packet header that is not four hexadecimal digits{QUOTE}{header!r}")
    if size > MAX_PACKET:
        raise ProtocolError(f"a packet of {size} bytes, more than the largest ({MAX_PACKET})")
    if size in _MEANINGLESS:
        raise ProtocolError(f"{_MEANINGLESS[size]}, which means nothing here")
    return size
