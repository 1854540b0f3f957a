"""The counters of one worker, in its slot of the scoreboard. In the worker.

The slot is the only place where requests are counted, so the compiled fast path and all other code agree.
"""

from __future__ import annotations

from time import monotonic_ns

from ..supervision import scoreboard as board
from ..supervision.scoreboard import ENDING, ENDING_OFFSET, HANDLER, LENT, QUEUE_WAIT, SINCE_NS, WHOLE, Phase, bucket


class Stats:
    """Counts in `words`, the worker's slot."""

    __slots__ = ("words",)

    def __init__(self, words: memoryview[int]) -> None:
        self.words = words

    @property
    def began(self) -> int:
        """When the last request began, in monotonic nanoseconds."""
        return self.words[board.BEGAN_NS]

    @property
    def requests(self) -> int:
        """How many were served."""
        return self.words[board.REQUESTS]

    def enter(self, number: int, phase: Phase) -> None:
        """Write which connection the worker has, and what it does with it."""
        self.words[LENT] = number << 3 | phase

    def leave(self) -> None:
        """The worker has no connection."""
        self.words[LENT] = 0

    def taken(self, waited: int | None) -> None:
        """A queue message was taken; `waited` is how long (ns) a new client waited for this, None for any other."""
        words = self.words
        words[board.TAKEN] += 1
        if waited is not None:
            words[QUEUE_WAIT + bucket(waited)] += 1

    def begin(self) -> int:
        """A request begins; returns the time."""
        words = self.words
        words[board.BEGAN_NS] = words[SINCE_NS] = now = monotonic_ns()
        return now

    def answered(self, bytes_in: int, bytes_out: int, waited: int) -> None:
        """The request was answered by one whole response, `waited` ns after it could have been taken."""
        words = self.words
        self.handled(bytes_in, waited=waited)
        words[board.OK] += 1
        words[board.BYTES_OUT] += bytes_out

    def handled(self, bytes_in: int, *, waited: int = 0) -> None:
        """The handler is done with the request; how the exchange ends is counted when it does."""
        words, now = self.words, monotonic_ns()
        took = now - words[board.BEGAN_NS]
        ENDING.pack_into(words, ENDING_OFFSET, now, 0, words[board.REQUESTS] + 1)
        words[board.BYTES_IN] += bytes_in
        words[board.BUSY_NS] += took
        words[HANDLER + bucket(took)] += 1
        words[WHOLE + bucket(took + waited)] += 1

    def sent(self, size: int) -> None:
        """Count bytes of a response."""
        self.words[board.BYTES_OUT] += size

    def count(self, counter: int) -> None:
        """Add one to a counter."""
        self.words[counter] += 1
