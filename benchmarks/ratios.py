"""Estimates the ratio of two costs from paired measurements: the median ratio and its confidence interval."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

DOUBT = 0.05
"""The probability that the interval misses the true median."""

PAIRS_MIN = 6
"""With fewer pairs, even the interval from the smallest to the largest ratio has a lower confidence."""


@dataclass(frozen=True)
class Ratio:
    """The median ratio of the pairs, and its 95 % confidence interval."""

    median: float
    low: float
    high: float
    pairs: int

    def verdict(self, limit: float) -> str:
        """Return whether the ratio is `within` the limit, `above` it, or `undecided`."""
        if self.pairs < PAIRS_MIN:
            return "undecided"
        if self.high <= limit:
            return "within"
        return "above" if self.low > limit else "undecided"


def ratio_of(before: Sequence[float], after: Sequence[float]) -> Ratio:
    """Estimate the ratio of each pair's second value to its first.

    The interval uses order statistics: it is valid for any distribution, and an outlier moves it by only one rank.
    """
    found = sorted(second / first for first, second in zip(before, after, strict=True))
    left_out = _left_out(len(found))
    return Ratio(statistics.median(found), found[left_out], found[-1 - left_out], len(found))


def _left_out(pairs: int) -> int:
    """Return how many ratios at each end, the smallest and the largest ones, are outside the interval."""
    missed, left_out = 0.0, 0
    for count in range(pairs // 2):
        # The probability that at most `count` ratios are below the true median, or at most `count` above it.
        missed += 2 * comb(pairs, count) / 2**pairs
        if missed <= DOUBT:
            left_out = count
    return left_out
