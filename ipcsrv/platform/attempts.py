"""How long a client that cannot connect goes on trying (docs/protocol.md section 3, "Connecting").

Only the decision, shared by the waiting client and the asyncio one: an attempt failed, so how long to pause before
the next, or what to raise.  Loaded only once a first attempt has failed.
"""

from __future__ import annotations

from ..errors import CallTimeout, NotListening, PathNotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..deadline import Deadline

FIRST_PAUSE = 0.001  # seconds; doubled after each failure
LONGEST_PAUSE = 0.050  # seconds; what Git's client waits each time
REFUSED_PATIENCE = 1.0  # seconds that a refusing socket is tried where the caller set no deadline, as Git's client does


class Attempts:
    """The failed attempts of one connect, and what they mean for the next."""

    def __init__(self, path: str, deadline: Deadline, wait_if_busy: bool, wait_if_not_found: bool) -> None:
        self.path = path
        self._deadline = deadline
        self._wait_if_busy = wait_if_busy
        self._wait_if_not_found = wait_if_not_found
        self._pause = FIRST_PAUSE
        self._refused_for = 0.0

    def pause_after(self, error: Exception) -> float:
        """Seconds to wait before the next attempt; raises what the caller is to see where there is to be none."""
        if not self._worth_waiting(error):
            raise self._final(error) from None
        pause, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE)
        remaining = self._deadline.remaining()
        return pause if remaining is None else min(pause, remaining)

    def _worth_waiting(self, error: Exception) -> bool:
        if self._deadline.expired:
            return False
        if isinstance(error, PathNotFound):
            return self._wait_if_not_found
        if isinstance(error, NotListening):
            return self._wait_if_busy and not self._refused_too_long()
        return isinstance(error, BlockingIOError) and self._wait_if_busy

    def _refused_too_long(self) -> bool:
        if self._deadline.timeout is not None:
            return False
        self._refused_for += self._pause
        return self._refused_for > REFUSED_PATIENCE

    def _final(self, error: Exception) -> Exception:
        if not isinstance(error, BlockingIOError):
            return error
        if self._wait_if_busy:
            return CallTimeout(self.path, self._deadline.timeout)
        return NotListening(self.path)
