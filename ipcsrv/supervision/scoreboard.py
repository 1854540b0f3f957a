"""The layout of the scoreboard: shared memory in which every worker says what it is doing. In master and workers.

A worker that runs its handler cannot answer questions. So each worker has a *slot* of 64-bit words in memory that it
shares with the master, and writes them without a system call (``words[REQUESTS] += 1`` on a ``memoryview``). The
master reads the slots for `request_timeout`, `status`, `top` and the metrics.

There are no locks: each word has one writer, the worker while it lives and the master once it has been reaped (WATCHED
and RING_TAIL are always the master's). An aligned 64-bit store is never torn; two words may be from different requests.

A slot has *gauges* (the present state, meaningless once the worker is gone), *counters*, and three *histograms* of
durations. When a worker is gone, its counters and histograms are added to ``departed`` in the master's own memory, so
that no total ever goes down, and the next worker gets the slot. This module does no I/O and reads no clock.
"""

from __future__ import annotations

import struct
from collections import deque
from enum import IntEnum
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from _typeshed import WriteableBuffer

# -- the layout: a header, and one slot for each worker, in words of 8 bytes ------------------------------------

#: The header is the master's to write: whether the server drains, and how many bytes it holds for stalled exchanges.
DRAINING, STALLED_BYTES = range(2)
_HEADER_WORDS = 8


class Phase(IntEnum):
    """What a worker is doing with the connection that it has; part of the word LENT."""

    NONE = 0
    TAKEN = 1  # nothing of a request was read
    READING = 2
    HANDLING = 3
    STREAMING = 4  # the handler makes a streamed response, of which whole packets were sent
    WRITING = 5  # a packet may have been sent in part
    BETWEEN = 6  # the response was sent whole, and nothing of the next request was read


#: Gauges. PID is 0 in a free slot; START_TICKS is the start time of that process as the kernel counts it, which tells
#: it from a later one with the same pid. LENT is the number of the worker's connection, shifted left by 3 bits, and its
#: phase: one store, so that a kill never finds one without the other. WATCHED is the master's: it looks out for
#: requests that take long. SUSPENDED counts streams whose generators wait for their clients, BUFFERED the bytes of the
#: request that is being received. BEGAN_NS is when the last request began, LAST_NS when one ended, SINCE_NS when the
#: present one began (0: there is none), in monotonic time. GRACE_NS is for how long beyond request_timeout the handler
#: may take to end a request that it has cancelled; EXECUTOR is the state of the executor as this worker knows it (an
#: index into EXECUTOR_STATES).
PID, STARTED_NS, START_TICKS, LENT, WATCHED, SUSPENDED, BUFFERED, GRACE_NS, EXECUTOR = range(9)
BEGAN_NS, LAST_NS, SINCE_NS = range(9, 12)
EXECUTOR_STATES = ("", "connecting", "connected", "unreachable")
#: Counters: what was taken, how it ended, how much of it there was. TAKEN counts messages of the queue.
REQUESTS, OK, BYTES_IN, BYTES_OUT, BUSY_NS, CONNECTIONS, TAKEN = range(12, 19)
HANDLER_ERRORS, TIMEOUTS, TOO_LARGE, MALFORMED, DENIED, CANCELLED, PROBES, LOST = range(19, 27)

FIRST_COUNTER = REQUESTS
FIRST_HISTOGRAM = LOST + 1

#: What says that a request has ended lies together, from LAST_NS to REQUESTS, and is written by one call:
#: ``ENDING.pack_into(words, ENDING_OFFSET, last, 0, requests)``.
ENDING = struct.Struct("=3Q")
ENDING_OFFSET = LAST_NS * 8

#: Four buckets an octave, so that a percentile is off by an eighth at most, from 2**10 ns (1 us) ...
_LOWEST_NS = 1 << 10
#: ... to 2**42 ns (73 minutes), which covers an hour: 32 octaves.
_HIGHEST_NS = 1 << 42
HISTOGRAM_BUCKETS = 4 * 32

#: Where the histograms begin: ``words[HANDLER + bucket(nanoseconds)] += 1``.
QUEUE_WAIT = FIRST_HISTOGRAM
HANDLER = QUEUE_WAIT + HISTOGRAM_BUCKETS
WHOLE = HANDLER + HISTOGRAM_BUCKETS
#: The ring of numbers of connections that have ended: the worker writes at RING_HEAD, the master reads up to it and
#: says so in RING_TAIL; both count up and never wrap.
RING_HEAD = WHOLE + HISTOGRAM_BUCKETS
RING_TAIL = RING_HEAD + 1
RING = RING_TAIL + 1
RING_SIZE = 64
_END = RING + RING_SIZE
_END_OF_COUNTED = RING_HEAD

#: Slots are whole cache lines, so that two workers never write to the same one.
_CACHE_LINE_BYTES = 64
SLOT_BYTES = -(-_END * 8 // _CACHE_LINE_BYTES) * _CACHE_LINE_BYTES
_HEADER_BYTES = _HEADER_WORDS * 8


def size(slots: int) -> int:
    """Return the bytes that a scoreboard of so many slots needs."""
    return _HEADER_BYTES + slots * SLOT_BYTES


def lent(number: int, phase: Phase) -> int:
    """Return the word LENT."""
    return number << 3 | phase


#: What LENT holds while a worker takes a message, and does not know which.
TAKING = int(Phase.TAKEN)


def parse_lent(word: int) -> tuple[int, Phase]:
    """Return number and phase of the word LENT."""
    return word >> 3, Phase(min(word & 7, Phase.BETWEEN))


def push_ended(words: memoryview[int], number: int) -> bool:
    """Put the number of an ended connection into the worker's ring; False if the ring is full."""
    head = words[RING_HEAD]
    if head - words[RING_TAIL] >= RING_SIZE:
        return False
    words[RING + head % RING_SIZE] = number
    words[RING_HEAD] = head + 1
    return True


def take_ended(words: memoryview[int]) -> list[int]:
    """Return the numbers that the worker has put into its ring since the last time."""
    head, tail = words[RING_HEAD], words[RING_TAIL]
    if head == tail or head - tail > RING_SIZE:  # more than fit: the worker has written nonsense
        return []
    numbers = [words[RING + at % RING_SIZE] for at in range(tail, head)]
    words[RING_TAIL] = head
    return numbers


# -- histograms -------------------------------------------------------------------------------------------------


def bucket(nanoseconds: int) -> int:
    """Return the bucket of a duration: its octave is the bit length, the quarter the two bits after the first."""
    if nanoseconds < 1024:  # _LOWEST_NS and _HIGHEST_NS as literals: this runs three times a request
        return 0
    if nanoseconds >= 4398046511104:
        return 127
    octave = nanoseconds.bit_length()
    return octave * 4 + (nanoseconds >> octave - 3) - 48


def lower_bound(index: int) -> float:
    """Return the shortest duration of a bucket, in seconds. The bucket ends where the next one begins."""
    octave, quarter = divmod(index, 4)
    return (4 + quarter << octave) * (_LOWEST_NS >> 2) / 1e9


def percentile(counts: Sequence[int], q: float) -> float:
    """Return the seconds that a share `q` (0 to 1) of the counted durations do not exceed; 0.0 if there are none.

    Within a bucket they are taken to be spread evenly.
    """
    rank = q * sum(counts)
    for index, count in enumerate(counts):
        if count and rank <= count:
            low, high = lower_bound(index), lower_bound(index + 1)
            return low + (high - low) * rank / count
        rank -= count
    return 0.0


# -- what is read -----------------------------------------------------------------------------------------------


class Totals(NamedTuple):
    """Counters and histograms, in the order of the layout."""

    requests: int
    ok: int
    bytes_in: int
    bytes_out: int
    busy_ns: int
    connections: int
    taken: int
    handler_errors: int
    timeouts: int
    too_large: int
    malformed: int
    denied: int
    cancelled: int
    probes: int
    lost: int
    queue_wait: tuple[int, ...]
    handler: tuple[int, ...]
    whole: tuple[int, ...]


class SlotFacts(NamedTuple):
    """One worker's slot at one moment: the gauges, and the totals of this worker alone."""

    pid: int
    started_ns: int
    start_ticks: int
    lent: int
    watched: int
    suspended: int
    buffered: int
    grace_ns: int
    executor: int
    began_ns: int
    last_ns: int
    since_ns: int
    totals: Totals


def _totals(sums: Sequence[int]) -> Totals:
    """Totals of the words from FIRST_COUNTER on."""
    start = FIRST_HISTOGRAM - FIRST_COUNTER
    ends = [start + HISTOGRAM_BUCKETS * number for number in range(4)]
    histograms = [tuple(sums[begin:end]) for begin, end in pairwise(ends)]
    values: list[Any] = [*sums[:start], *histograms]
    return Totals(*values)


class Scoreboard:
    """The slots in a buffer, which must be zeroed, at least `size(slots)` bytes long, and outlive this object.

    The buffer stays the caller's: `release()` lets go of it, so that a mapping can be closed.
    """

    def __init__(self, buffer: WriteableBuffer, slots: int) -> None:
        self.slots = slots
        self.departed = [0] * (_END_OF_COUNTED - FIRST_COUNTER)
        with memoryview(buffer) as raw, raw.cast("B") as octets:
            if len(octets) < size(slots):
                raise ValueError(f"{len(octets)} bytes are too small for {slots} slots of {SLOT_BYTES} bytes")
            self.header = octets[:_HEADER_BYTES].cast("Q")
            starts = range(_HEADER_BYTES, size(slots), SLOT_BYTES)
            self._words = [octets[at : at + _END * 8].cast("Q") for at in starts]

    def words(self, slot: int) -> memoryview[int]:
        """Return the slot's words, for its worker to write."""
        return self._words[slot]

    def clear(self, slot: int) -> None:
        """Zero the slot for its next worker."""
        self._words[slot][:] = _ZEROES

    def facts(self, slot: int) -> SlotFacts:
        """Return the slot as it is now."""
        words = self._words[slot].tolist()
        values: list[Any] = [*words[:FIRST_COUNTER], _totals(words[FIRST_COUNTER:_END_OF_COUNTED])]
        return SlotFacts(*values)

    def fold(self, slot: int) -> None:
        """Keep what a worker that is gone has counted, and free its slot."""
        counted = self._words[slot][FIRST_COUNTER:_END_OF_COUNTED].tolist()
        if max(counted) > _IMPOSSIBLE:  # its handler has written to memory or descriptors that are not its own
            counted = [0] * len(counted)
        self.departed = [kept + more for kept, more in zip(self.departed, counted, strict=True)]
        self.clear(slot)

    def count(self, counter: int, number: int = 1) -> None:
        """Count something that the master itself has done."""
        self.departed[counter - FIRST_COUNTER] += number

    def totals(self) -> Totals:
        """Return sums over all workers, exited ones too. None of them ever goes down."""
        living = [words[FIRST_COUNTER:_END_OF_COUNTED].tolist() for words in self._words if words[PID]]
        return _totals([sum(column) for column in zip(self.departed, *living, strict=True)])

    def release(self) -> None:
        """Let go of the buffer; the object is of no use afterwards."""
        while self._words:
            self._words.pop().release()
        self.header.release()


_IMPOSSIBLE = 1 << 60
_ZEROES = memoryview(bytes(_END * 8)).cast("Q")


# -- the last minute --------------------------------------------------------------------------------------------


class Window(NamedTuple):
    """What was counted in a stretch of time, in seconds."""

    seconds: float
    totals: Totals

    def rate(self, counter: str) -> float:
        """Return how many a second, of the counter with this name in `Totals`."""
        counted: int = getattr(self.totals, counter)
        return counted / self.seconds if self.seconds else 0.0


def _minus(after: Totals, before: Totals) -> Totals:
    def difference(late: Any, early: Any) -> Any:
        if isinstance(late, tuple):
            return tuple(a - b for a, b in zip(late, early, strict=True))
        return late - early

    return Totals(*map(difference, after, before))


class Recent:
    """Percentiles and rates of the last minute, from snapshots of the totals that the caller takes when it wakes.

    An idle server takes none, and need not: the window then reaches back to the last snapshot before the minute
    began, and says how long it is. Snapshots that come in quick succession are thinned out.
    """

    def __init__(self, span: float = 60.0, *, spacing: float = 1.0) -> None:
        self.span = span
        self.spacing = spacing
        self._snapshots: deque[tuple[float, Totals]] = deque()

    def push(self, now: float, totals: Totals) -> None:
        """Remember the totals as they are `now` (seconds), unless that was done just before."""
        if self._snapshots and now - self._snapshots[-1][0] < self.spacing:
            return
        self._snapshots.append((now, totals))
        self._forget(now)

    def window(self, now: float, totals: Totals) -> Window:
        """Return what was counted since the beginning of the last `span` seconds."""
        self._forget(now)
        if not self._snapshots:
            return Window(0.0, _minus(totals, totals))
        then, before = self._snapshots[0]
        return Window(now - then, _minus(totals, before))

    def _forget(self, now: float) -> None:
        """Drop snapshots older than the span, but keep the youngest of those: the window begins there."""
        while len(self._snapshots) > 1 and now - self._snapshots[1][0] >= self.span:
            self._snapshots.popleft()
