"""A time budget that is carried through the steps of one call.

A call connects, sends and reads: three steps, one `timeout`. Giving each step the whole timeout would let the call
take three times as long; so the call makes one `Deadline` and every step asks it what remains. Used by both sides.
"""

from __future__ import annotations

from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


LONGEST = 2_000_000.0  # seconds, 23 days: poll(2) takes milliseconds in 31 bits; a longer timeout is no limit


class Deadline:
    """The moment `timeout` seconds from now, or never for None.

    Attributes:
        timeout: The seconds that were asked for, for messages; None for no limit.
    """

    __slots__ = ("_clock", "_end", "timeout")

    def __init__(self, timeout: float | None, clock: Callable[[], float] = monotonic) -> None:
        """Begin now.

        Args:
            timeout: Seconds; None, infinity or more than 23 days for no limit.
            clock: Returns the time in seconds, for tests.

        Raises:
            ValueError: `timeout` is negative or not a number.
        """
        if timeout is not None and not 0 <= timeout <= LONGEST:
            if not timeout > LONGEST:
                raise ValueError(f"a timeout must be a number of seconds from 0, not {timeout}")
            timeout = None
        self.timeout = timeout
        self._clock = clock
        self._end = None if timeout is None else clock() + timeout

    def remaining(self) -> float | None:
        """Return the seconds left, never below 0; None where there is no limit."""
        if self._end is None:
            return None
        return max(0.0, self._end - self._clock())

    @property
    def expired(self) -> bool:
        """Whether nothing is left."""
        return self._end is not None and self._clock() >= self._end
