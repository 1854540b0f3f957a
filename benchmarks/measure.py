"""Interleaved rounds, and the statistics of their ratios. Pure but for `rounds`, which calls what it is given."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Figures = dict[str, list[float]]


@dataclass(frozen=True)
class Ratio:
    """The median over the rounds of one contestant's figure divided by another's in the same round."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}-{self.high:.2f}]"


def rounds(count: int, jobs: Mapping[str, Callable[[], float]]) -> Figures:
    """Run every job once a round, each round in another order, so that none always follows the same neighbour."""
    figures: Figures = {name: [] for name in jobs}
    names = list(jobs)
    for number in range(count):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            figures[name].append(jobs[name]())
    return figures


def ratio(ours: list[float], theirs: list[float]) -> Ratio:
    """Of figures that were taken in the same rounds."""
    each = [mine / other if other else float("inf") for mine, other in zip(ours, theirs)]
    return Ratio(statistics.median(each), min(each), max(each))


def geometric_mean(ratios: list[Ratio]) -> Ratio:
    """Of the medians; the spread is that of the lows and of the highs."""
    return Ratio(*(statistics.geometric_mean([getattr(each, part) or 1e-9 for each in ratios])
                   for part in ("median", "low", "high")))
