"""Requests that take long: others do not wait behind them, and beyond `request_timeout` they are given up.

Nobody is asked: since when a request runs stands in the scoreboard.  Nor does anybody look while nothing depends on it:
a worker that begins a request with others in its hands, or under a request_timeout, tells us, unless `WATCHED` says
that we look anyway.  Then a timer looks for as long as there is such a request.  Runs in the master.
"""

from __future__ import annotations

import logging
import math
from time import monotonic_ns

from . import scoreboard as board
from .crew import Crew, Hand

log = logging.getLogger("ipcsrv.master")

RELIEF = 0.02  # seconds of a request after which what else its worker holds is given to others


class Vigil:
    """Looks after the requests in the hands of `crew`; request_timeout: in seconds, None for no limit."""

    def __init__(self, crew: Crew, request_timeout: float | None) -> None:
        self._crew, self._limit = crew, request_timeout

    def begin(self) -> float:
        """Somebody has begun a request while nobody was looking out; in how many seconds to look."""
        for hand in self._crew.hands.values():
            self._crew.scoreboard.words(hand.slot)[board.WATCHED] = 1
        return RELIEF if self._limit is None else min(RELIEF, self._limit)

    def look(self, now: float) -> float:
        """Have others served whom a request keeps waiting, give up what took too long; when to look again, or never."""
        return now + min((self._look_at(hand, now) for hand in list(self._crew.hands.values())), default=math.inf)

    def _look_at(self, hand: Hand, now: float) -> float:
        words = self._crew.scoreboard.words(hand.slot)
        words[board.WATCHED] = 0  # before we look: whoever begins a request from now on tells us
        since = words[board.SINCE_NS]
        if not since:
            return math.inf
        age = (monotonic_ns() - since) / 1e9
        if age >= RELIEF and hand.relieved != since and hand.process is not None:
            hand.relieved = since
            hand.process.ask_for_relief()
        due = [limit for limit in (RELIEF, self._limit) if limit is not None and limit > age]
        if due or self._limit is not None:
            words[board.WATCHED] = 1
        if not due and self._limit is not None:
            self._give_up(hand, age, now)
            return self._limit
        return min(due) - age if due else math.inf

    def _give_up(self, hand: Hand, age: float, now: float) -> None:
        if decided := self._crew.pool.overdue(hand.number, now):
            log.warning("worker %d has been at one request for %.1f s (request_timeout)", hand.number, age)
            self._crew.obey(decided)
