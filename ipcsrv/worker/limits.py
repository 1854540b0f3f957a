"""When a worker has served enough: `max_requests` (with its jitter) and `max_rss`. In the worker, between requests.

A process grows by what its handler leaks. Its replacement costs no request, and the jitter keeps workers that began
together from leaving together.
"""

from __future__ import annotations

import random

from ..config.settings import Settings
from ..platform.server import resident_bytes

RSS_INTERVAL = 64  # requests between two looks at the memory, each of which reads a file
_NEVER = 1 << 62  # requests


class Limits:
    """The limits of one worker. `next_check` is the number of requests after which to ask again."""

    def __init__(self, settings: Settings, rng: random.Random) -> None:
        jitter = rng.randint(0, settings.max_requests_jitter)
        self._last_request = settings.max_requests + jitter if settings.max_requests is not None else _NEVER
        self._max_rss = settings.max_rss
        self.next_check = min(self._last_request, RSS_INTERVAL if settings.max_rss is not None else _NEVER)

    def reached(self, served: int) -> str | None:
        """After so many requests: how it has served enough, in words, or None if it has not."""
        if served >= self._last_request:
            return f"after {served} requests"
        self.next_check = min(self._last_request, served + RSS_INTERVAL)
        resident = resident_bytes()
        if self._max_rss is not None and resident > self._max_rss:
            return f"with {resident >> 20} MiB resident (max_rss)"
        return None
