"""A time budget that is carried through the steps of one call.

A call connects, sends and reads: three steps, one `timeout`. Giving each step the whole timeout would let the call
take three times as long; so the call makes one `Deadline` and every step asks it what remains. Used by both sides.
"""

from __future__ import annotations

from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Deadline:
    """The moment `timeout` seconds from now, or never for None.

    `timeout` keeps what was asked for, to be reported; `clock` is for tests.
    """

    __slots__ = ("_clock", "_end", "timeout")

    def __init__(self, timeout: float | None, clock: Callable[[], float] = monotonic) -> None:
        self.timeout = timeout
        self._clock = clock
        self._end = None if timeout is None else clock() + timeout

    def remaining(self) -> float | None:
        """Seconds left, never below 0; None when there is no limit."""
        if self._end is None:
            return None
        return max(0.0, self._end - self._clock())

    @property
    def expired(self) -> bool:
        """True once nothing is left."""
        return self._end is not None and self._clock() >= self._end
