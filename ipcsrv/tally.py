"""What a worker counts, and how it tells: its slot of the scoreboard.  In the worker.

On the way of every request, so each step is counted in nanoseconds: the counters that change with each request are
plain attributes here and go to the scoreboard together, by one call; the rare ones are counted in the scoreboard.
"""

from __future__ import annotations

from time import monotonic_ns

from . import scoreboard as board
from .scoreboard import CURRENT, HANDLER, HOT, HOT_OFFSET, QUEUE_WAIT, SINCE_NS, WHOLE, bucket

SLOW_NS = 5_000_000  # a handler of more than 5 ms makes others wait noticeably; 1 ms may be a lost time slice
SLOW_MEMORY = 8  # requests for which a worker remembers that it had a slow one


class Tally:
    """The counters of one worker.

    words: its slot.  `slow` is above 0 while one of the last few requests took long; `began` is when this one began.
    """

    __slots__ = ("_busy", "_bytes_in", "_bytes_out", "_ok", "_pack", "began", "requests", "slow", "words")

    def __init__(self, words: memoryview[int]) -> None:
        self.words = words
        self._pack = HOT.pack_into
        self.requests = self._ok = self._bytes_in = self._bytes_out = self._busy = 0
        self.slow = 0
        self.began = 0

    def begin(self) -> int:
        """A request begins; returns the time."""
        self.words[SINCE_NS] = self.began = now = monotonic_ns()
        return now

    def answered(self, bytes_in: int, bytes_out: int, waited: int) -> None:
        """The request in hand was answered, with one whole response; `waited` (ns) is for how long before we had it."""
        now = monotonic_ns()
        took = now - self.began
        self.requests += 1
        self._ok += 1
        self._bytes_in += bytes_in
        self._bytes_out += bytes_out
        self._busy += took
        words = self.words
        self._pack(words, HOT_OFFSET, now, 0, 0, self.requests, self._ok, self._bytes_in, self._bytes_out, self._busy)
        if took < 1_000_000 and not waited:
            index = 0 if took < 1024 else (octave := took.bit_length()) * 4 + (took >> octave - 3) - 48
            words[HANDLER + index] += 1
            words[WHOLE + index] += 1
            if self.slow:
                self.slow -= 1
        else:
            self._note(took, waited)

    def handled(self, bytes_in: int, *, waited: int = 0) -> None:
        """The handler is done with the request in hand; how the exchange ends is counted when it does."""
        now = monotonic_ns()
        took = now - self.began
        self.requests += 1
        self._bytes_in += bytes_in
        self._busy += took
        self._publish(now)
        self._note(took, waited)

    def ended_well(self) -> None:
        """A response that took longer than one stroke is out."""
        self._ok += 1
        self.words[board.OK] = self._ok

    def count_out(self, size: int) -> None:
        """Bytes of such a response."""
        self._bytes_out += size
        self.words[board.BYTES_OUT] = self._bytes_out

    def count(self, counter: int) -> None:
        """Add one to a counter that is not one of every request."""
        self.words[counter] += 1

    def waited(self, nanoseconds: int) -> None:
        """A connection was taken from the master's queue after so long."""
        words = self.words
        words[board.QUEUED] += 1
        words[QUEUE_WAIT + bucket(nanoseconds)] += 1

    def _publish(self, now: int) -> None:
        current = self.words[CURRENT]
        self._pack(self.words, HOT_OFFSET, now, 0, current, self.requests, self._ok, self._bytes_in, self._bytes_out,
                   self._busy)

    def _note(self, took: int, waited: int) -> None:
        words = self.words
        words[HANDLER + bucket(took)] += 1
        words[WHOLE + bucket(took + waited)] += 1
        if took > SLOW_NS:
            self.slow = SLOW_MEMORY
        elif self.slow:
            self.slow -= 1
