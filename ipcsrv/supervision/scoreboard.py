"""What every worker is doing, in shared memory: written without a system call, read without asking.

A worker that is deep in its handler cannot answer questions, and a health check that needs an answer kills the
busy with the hung. So nobody asks: each worker has a *slot* of 64-bit words in memory that it shares with the
master, and keeps it current by plain item assignment on a ``memoryview`` (``words[REQUESTS] += 1``). The master
reads the slots whenever it needs them: since when a request runs (for ``request_timeout``), for ``status``,
``top`` and the metrics.

There are no locks, because each word has one writer at a time: the worker while it lives, the master once it has
been reaped (but VERDICT, which is always the master's to write). An aligned 64-bit store is not torn on any machine
that Python's shared memory runs on; two words may be a request apart, which nobody sees in figures of this kind.

A slot begins with *gauges* (what is so now, meaningless once the worker is gone), goes on with *counters*, and
ends with three *histograms* of durations. When a worker is gone, its counters and histograms are folded into
``departed``, in the master's own memory, so that no total ever goes down, and its slot serves the next worker.

This module does no I/O and knows no clock: it lays out any writable buffer. It runs in the workers (writing) and in
the master (reading).
"""

from __future__ import annotations

import struct
from collections import deque
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from _typeshed import WriteableBuffer

# -- the layout of one slot, in words of 8 bytes ----------------------------------------------------------------

#: Gauges. PID is 0 in a free slot. VERDICT and WATCHED are the master's: why the worker is told to answer its client
#: with a failure (an index into VERDICTS), and whether the master looks out for overdue requests; so is SHORT:
#: whether it is short of descriptors for what workers give back.
#: BEGAN_NS is when the last request began, LAST_NS when one ended, SINCE_NS when the present one began (0: there is
#: none), in monotonic time. SLOW is above 0 while one of the last few requests took long.
#: CURRENT is the number of the kept connection that is being read or answered, 0 where it is not a kept one.
#: GRACE_NS is for how long beyond request_timeout the handler may take to end a request that it has cancelled;
#: EXECUTOR is the state of the executor as this worker knows it (an index into EXECUTOR_STATES).
PID, STARTED_NS, HELD, VERDICT, WATCHED, SHORT, INSURED_NS, SLOW, GRACE_NS, EXECUTOR = range(10)
BEGAN_NS, LAST_NS, SINCE_NS, CURRENT = range(10, 14)
EXECUTOR_STATES = ("", "connecting", "connected", "unreachable")
VERDICTS = ("", "timeout", "stopping")
STOPPING = VERDICTS.index("stopping")
#: Counters: what was taken, how it ended, how much of it there was. QUEUED counts what came by the master's queue.
REQUESTS, OK, BYTES_IN, BYTES_OUT, BUSY_NS, CONNECTIONS, QUEUED = range(14, 21)
HANDLER_ERRORS, TIMEOUTS, TOO_LARGE, MALFORMED, DENIED, CANCELLED, PROBES, LOST = range(21, 29)

FIRST_COUNTER = REQUESTS
FIRST_HISTOGRAM = LOST + 1

#: What says that a request has ended lies together, from LAST_NS to REQUESTS, and is written by one call, so that a
#: kill does not find it half said: ``ENDING.pack_into(words, ENDING_OFFSET, last, 0, current, requests)``.
ENDING = struct.Struct("=4Q")
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
_END = WHOLE + HISTOGRAM_BUCKETS

#: Slots are whole cache lines, so that two workers never write to the same one.
_CACHE_LINE_BYTES = 64
SLOT_BYTES = -(-_END * 8 // _CACHE_LINE_BYTES) * _CACHE_LINE_BYTES


def size(slots: int) -> int:
    """Bytes that a scoreboard of so many slots needs."""
    return slots * SLOT_BYTES


# -- histograms -------------------------------------------------------------------------------------------------


def bucket(nanoseconds: int) -> int:
    """The bucket of a duration: the octave is its bit length, the quarter within it the two bits after the first."""
    if nanoseconds < 1024:  # _LOWEST_NS and _HIGHEST_NS as literals: this runs three times a request
        return 0
    if nanoseconds >= 4398046511104:
        return 127
    octave = nanoseconds.bit_length()
    return octave * 4 + (nanoseconds >> octave - 3) - 48


def lower_bound(index: int) -> float:
    """The shortest duration of a bucket, in seconds. The bucket ends where the next one begins."""
    octave, quarter = divmod(index, 4)
    return (4 + quarter << octave) * (_LOWEST_NS >> 2) / 1e9


def percentile(counts: Sequence[int], q: float) -> float:
    """The duration in seconds that a share `q` (0 to 1) of the counted ones do not exceed; 0.0 when none is counted.

    Within a bucket they are taken to be spread evenly.
    """
    rank = q * sum(counts)
    for index, count in enumerate(counts):
        if count and rank <= count:
            low, high = lower_bound(index), lower_bound(index + 1)
            return low + (high - low) * rank / count
        rank -= count
    return 0.0


def is_idle(words: memoryview[int]) -> bool:
    """Whether the worker with this slot has nobody, and waits; False for a slot without one."""
    return bool(words[PID]) and not words[SINCE_NS] and not words[HELD]


# -- what is read -----------------------------------------------------------------------------------------------


class Totals(NamedTuple):
    """Counters and histograms, in the order of the layout."""

    requests: int
    ok: int
    bytes_in: int
    bytes_out: int
    busy_ns: int
    connections: int
    queued: int
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
    held: int
    verdict: int
    watched: int
    short: int
    insured_ns: int
    slow: int
    grace_ns: int
    executor: int
    began_ns: int
    last_ns: int
    since_ns: int
    current: int
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
        self.departed = [0] * (_END - FIRST_COUNTER)
        with memoryview(buffer) as raw, raw.cast("B") as octets:
            if len(octets) < size(slots):
                raise ValueError(f"{len(octets)} bytes are too small for {slots} slots of {SLOT_BYTES} bytes")
            self._words = [octets[at : at + _END * 8].cast("Q") for at in range(0, size(slots), SLOT_BYTES)]

    def words(self, slot: int) -> memoryview[int]:
        """The slot's words, for its worker to write."""
        return self._words[slot]

    def clear(self, slot: int) -> None:
        """Zero the slot for its next worker."""
        self._words[slot][:] = _ZEROES

    def facts(self, slot: int) -> SlotFacts:
        """The slot as it is now."""
        words = self._words[slot].tolist()
        values: list[Any] = [*words[:FIRST_COUNTER], _totals(words[FIRST_COUNTER:])]
        return SlotFacts(*values)

    def fold(self, slot: int) -> None:
        """Keep what a worker that is gone has counted, and free its slot."""
        counted = self._words[slot][FIRST_COUNTER:].tolist()
        self.departed = [kept + more for kept, more in zip(self.departed, counted, strict=True)]
        self.clear(slot)

    def totals(self) -> Totals:
        """Sums over the living and the departed. None of them ever goes down."""
        living = [words[FIRST_COUNTER:].tolist() for words in self._words]
        return _totals([sum(column) for column in zip(self.departed, *living, strict=True)])

    def release(self) -> None:
        """Let go of the buffer; the object is of no use afterwards."""
        while self._words:
            self._words.pop().release()


_ZEROES = memoryview(bytes(_END * 8)).cast("Q")


# -- the last minute --------------------------------------------------------------------------------------------


class Window(NamedTuple):
    """What was counted in a stretch of time, in seconds."""

    seconds: float
    totals: Totals

    def rate(self, counter: str) -> float:
        """How many a second, of the counter with this name in `Totals`."""
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
        """What was counted since the beginning of the last `span` seconds."""
        self._forget(now)
        if not self._snapshots:
            return Window(0.0, _minus(totals, totals))
        then, before = self._snapshots[0]
        return Window(now - then, _minus(totals, before))

    def _forget(self, now: float) -> None:
        """Drop snapshots older than the span, but keep the youngest of those: the window begins there."""
        while len(self._snapshots) > 1 and now - self._snapshots[1][0] >= self.span:
            self._snapshots.popleft()
