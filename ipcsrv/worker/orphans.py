"""What happens to workers whose master is gone: they finish what they have, within the deadlines. In the template."""

from __future__ import annotations

from time import monotonic_ns

from ..config.settings import Settings
from ..platform import logs
from ..platform import server as serving
from ..supervision import scoreboard as board
from ..supervision.scoreboard import Scoreboard

log = logs.get("ipcsrv.template")

LOOK = 0.1  # seconds between two looks at the workers
IDLE_PATIENCE = 0.5  # seconds for a worker that has no request to end
LAST_PATIENCE = 0.3  # seconds between a request's deadline and the kill


class OrphanWatch:
    """Kills workers that do not end after the master's death; `died` is when that was noticed (monotonic seconds).

    A worker that has no request must be gone within a moment; a request has `request_timeout`, and all of them together
    have `drain_timeout`, as in a stop.
    """

    def __init__(self, scoreboard: Scoreboard, settings: Settings, died: float) -> None:
        self._scoreboard = scoreboard
        self._request_timeout = settings.request_timeout
        self._end = died + settings.drain_timeout
        self._idle_since: dict[int, float] = {}
        self._died = died

    def look(self, now: float, pids: set[int]) -> float | None:
        """Kill the workers among `pids` whose time is over; seconds until the next look, None if none are left."""
        for slot in range(self._scoreboard.slots):
            words = self._scoreboard.words(slot)
            pid = words[board.PID]
            if pid in pids and self._is_over(pid, words, now):
                log.warning("the master is gone: killing worker pid %d, which does not end", pid)
                serving.kill(pid)
        return LOOK if pids else None

    def _is_over(self, pid: int, words: memoryview[int], now: float) -> bool:
        since = words[board.SINCE_NS]
        if now >= self._end:
            return True
        if words[board.SUSPENDED]:
            return False
        if since:
            self._idle_since.pop(pid, None)
            age = (monotonic_ns() - since) / 1e9
            return self._request_timeout is not None and age > self._request_timeout + LAST_PATIENCE
        return now - self._idle_since.setdefault(pid, now) > IDLE_PATIENCE
