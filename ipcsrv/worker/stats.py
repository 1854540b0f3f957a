"""What a worker counts, and how it tells: its slot of the scoreboard.  In the worker.

The slot is the only place where it is counted, so that the compiled straight path and everything else that counts
never disagree, and the master reads what is so.
"""

from __future__ import annotations

from time import monotonic_ns

from ..supervision import scoreboard as board
from ..supervision.scoreboard import ENDING, ENDING_OFFSET, HANDLER, QUEUE_WAIT, SINCE_NS, WHOLE, bucket

SLOW_NS = 5_000_000  # a handler of more than 5 ms makes others wait noticeably; 1 ms may be a lost time slice
SLOW_MEMORY = 8  # requests for which a worker remembers that it had a slow one


class Tally:
    """The counters of one worker; words: its slot."""

    __slots__ = ("words",)

    def __init__(self, words: memoryview[int]) -> None:
        self.words = words

    @property
    def slow(self) -> int:
        """Above 0 while one of the last few requests took long."""
        return self.words[board.SLOW]

    @property
    def began(self) -> int:
        """When the last request began, in monotonic nanoseconds."""
        return self.words[board.BEGAN_NS]

    @property
    def requests(self) -> int:
        """How many were served."""
        return self.words[board.REQUESTS]

    def begin(self) -> int:
        """A request begins; returns the time."""
        words = self.words
        words[board.BEGAN_NS] = words[SINCE_NS] = now = monotonic_ns()
        return now

    def answered(self, bytes_in: int, bytes_out: int, waited: int) -> None:
        """The request in hand was answered, with one whole response; `waited` (ns) is for how long before we had it."""
        words = self.words
        words[board.CURRENT] = 0
        self._ended(bytes_in, waited)
        words[board.OK] += 1
        words[board.BYTES_OUT] += bytes_out

    def handled(self, bytes_in: int, *, waited: int = 0) -> None:
        """The handler is done with the request in hand; how the exchange ends is counted when it does."""
        self._ended(bytes_in, waited)

    def ended_well(self) -> None:
        """A response that took longer than one stroke is out."""
        self.words[board.OK] += 1

    def count_out(self, size: int) -> None:
        """Bytes of such a response."""
        self.words[board.BYTES_OUT] += size

    def count(self, counter: int) -> None:
        """Add one to a counter that is not one of every request."""
        self.words[counter] += 1

    def waited(self, nanoseconds: int) -> None:
        """A connection was taken from the master's queue after so long."""
        words = self.words
        words[board.QUEUED] += 1
        words[QUEUE_WAIT + bucket(nanoseconds)] += 1

    def _ended(self, bytes_in: int, waited: int) -> None:
        words, now = self.words, monotonic_ns()
        took = now - words[board.BEGAN_NS]
        ENDING.pack_into(words, ENDING_OFFSET, now, 0, words[board.CURRENT], words[board.REQUESTS] + 1)
        words[board.BYTES_IN] += bytes_in
        words[board.BUSY_NS] += took
        words[HANDLER + bucket(took)] += 1
        words[WHOLE + bucket(took + waited)] += 1
        if took > SLOW_NS:
            words[board.SLOW] = SLOW_MEMORY
        elif words[board.SLOW]:
            words[board.SLOW] -= 1
