"""How many connections the master has descriptors for.  Runs in the master.

Workers give back what is silent, by passing its descriptor; with none left to take it the kernel would close the
connection (unix(7)), and a client be lost.  So the master counts: beyond `room` the workers are asked to accept no
more, with some descriptors to spare for what they hold already; at `limit` what they have sent stays unread.
"""

from __future__ import annotations

from ..platform import server as serving
from .worker_processes import Crew

FIXED = 24  # of the master, whatever it serves: streams, lock, listeners, signals, some of who controls it
OF_A_WORKER = 3  # its channel, its pidfd, an end of its lifebuoy
OF_A_GENERATION = 5  # the ends of its queue, the template's channel and what multiprocessing keeps of it
SPARE, SPARE_OF_A_WORKER = 4, 10  # what may come back though no more is accepted: limbo, and the one in hand


class Headroom:
    """Descriptors of this process, as far as connections are concerned."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._descriptors = serving.descriptor_limit()

    def limit(self) -> int:
        """For how many connections there are descriptors, and not one more."""
        hands = self._crew.hands.values()
        generations = len({hand.generation for hand in hands})
        return self._descriptors - FIXED - OF_A_WORKER * len(hands) - OF_A_GENERATION * generations

    def one_more(self) -> bool:
        """Whether one can be taken beyond that: the count is on the safe side, so the kernel is asked for the truth."""
        return len(serving.open_descriptors()) + SPARE < self._descriptors

    def room(self) -> int:
        """For how many there are some to spare."""
        free = self.limit()
        return free - min(free // 2, SPARE + SPARE_OF_A_WORKER * len(self._crew.hands))

    def entrusted(self) -> int:
        """How many we have copies of, against a worker's death."""
        return sum(len(hand.kept) for hand in self._crew.hands.values())
