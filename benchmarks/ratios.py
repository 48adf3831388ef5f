"""Whether something costs more than before, by measurements taken in pairs: their median ratio, and how sure it is."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

DOUBT = 0.05
"""The interval misses the true median this often."""

PAIRS_MIN = 6
"""With fewer not even the interval from the smallest to the largest ratio is that sure."""


@dataclass(frozen=True)
class Ratio:
    """The median of the pairs' ratios, and the interval that contains the true one with 95 %."""

    median: float
    low: float
    high: float
    pairs: int

    def verdict(self, limit: float) -> str:
        """Whether the ratio is within the limit, above it, or not known yet."""
        if self.pairs < PAIRS_MIN:
            return "undecided"
        if self.high <= limit:
            return "within"
        return "above" if self.low > limit else "undecided"


def ratio_of(before: Sequence[float], after: Sequence[float]) -> Ratio:
    """The ratio of each pair's second to its first.

    The interval is of order statistics: it holds for any distribution, and an outlier moves it by one place.
    """
    found = sorted(second / first for first, second in zip(before, after, strict=True))
    left_out = _left_out(len(found))
    return Ratio(statistics.median(found), found[left_out], found[-1 - left_out], len(found))


def _left_out(pairs: int) -> int:
    """How many of the smallest, and of the largest, are outside the interval."""
    missed, left_out = 0.0, 0
    for count in range(pairs // 2):
        # The true median is beyond the ratio at this place when so few of the pairs, or fewer, are on its other side.
        missed += 2 * comb(pairs, count) / 2**pairs
        if missed <= DOUBT:
            left_out = count
    return left_out
