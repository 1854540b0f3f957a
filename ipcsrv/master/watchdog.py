"""Requests that take long: others do not wait behind them, and beyond `request_timeout` they are given up.

Nobody is asked: since when a request runs stands in the scoreboard.  Nor does anybody look while nothing depends on it:
a worker that begins a request with others in its hands, or under a request_timeout, tells us, unless `WATCHED` says
that we look anyway.  Then a timer looks for as long as there is such a request.

Stacks are asked for one after the other, of who is given up and of all when somebody wants to see what they do: each
writes its own in a hundred small pieces, from a signal handler, and two at once would be read by nobody.  Runs in the
master.
"""

from __future__ import annotations

import math
from collections import deque
from time import monotonic_ns

from ..platform import logs
from ..platform.server import Process
from ..supervision import scoreboard as board
from .worker_processes import Crew, Hand

log = logs.get("ipcsrv.master")

STACKS_LOOK = 0.01  # seconds between two looks whether a worker has written its stacks
STACKS_PATIENCE = 0.5  # seconds for a worker that does not write any, for it is stopped, say
LAST_WORDS = 0.1  # seconds for one that is given up to end, which is told in the log too
RELIEF = 0.02  # seconds of a request after which what else its worker holds is given to others


class Vigil:
    """Looks after the requests in the hands of `crew`; request_timeout: in seconds, None for no limit."""

    def __init__(self, crew: Crew, request_timeout: float | None) -> None:
        self._crew, self._limit = crew, request_timeout
        self._given_up: Hand | None = None  # the last one
        self._given_up_at = 0.0

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
        limit = None if self._limit is None else self._limit + words[board.GRACE_NS] / 1e9
        due = [when for when in (RELIEF, limit) if when is not None and when > age]
        if due or limit is not None:
            words[board.WATCHED] = 1
        if not due and limit is not None:
            if not self._is_done_with_the_last(now):
                return STACKS_LOOK
            self._give_up(hand, age, now)
            return limit
        return min(due) - age if due else math.inf

    def _give_up(self, hand: Hand, age: float, now: float) -> None:
        if decided := self._crew.pool.overdue(hand.number, now):
            log.warning("worker %d has been at one request for %.1f s (request_timeout)", hand.number, age)
            self._crew.obey(decided)
            self._given_up, self._given_up_at = hand, now

    def _is_done_with_the_last(self, now: float) -> bool:
        """Whether the log has, or will never have, what is to be said of whom we have given up last."""
        last, waited = self._given_up, now - self._given_up_at
        if last is None or last.number not in self._crew.hands or last.process is None or waited > STACKS_PATIENCE:
            return True
        return waited > LAST_WORDS and not last.process.owes_stacks()


class StackRound:
    """Has the workers of `crew` write their stacks into the log, one after the other."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._waiting: deque[int] = deque()
        self._asked: Process | None = None
        self._patient_until = 0.0

    def begin(self) -> None:
        """Ask all workers that there are, after those who still wait to be asked."""
        self._waiting.extend(number for number in self._crew.hands if number not in self._waiting)

    def go_on(self, now: float) -> float:
        """Ask the next one if the one before has written its stacks, or never will; when to call again, or never."""
        if self._asked is not None and now < self._patient_until and self._asked.owes_stacks():
            return now + STACKS_LOOK
        self._asked = None
        while self._waiting:
            asked = self._crew.dump_stacks(self._waiting.popleft())
            if asked is not None:
                self._asked, self._patient_until = asked, now + STACKS_PATIENCE
                return now + STACKS_LOOK
        return math.inf
