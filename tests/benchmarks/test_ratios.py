"""The comparison of two revisions states how certain its verdict is."""

import random

import pytest

from benchmarks.ratios import ratio_of


def noisy(factor: float, pairs: int) -> tuple[list[float], list[float]]:
    """Pairs of measurements. The machine's load affects both of a pair alike; each also has its own noise and rare
    outliers.
    """
    chance = random.Random(f"{factor} {pairs}")
    before, after = [], []
    for _ in range(pairs):
        load = chance.uniform(1, 2)
        before.append(load * chance.gauss(1, 0.03) * chance.choice([1] * 19 + [3]))
        after.append(load * factor * chance.gauss(1, 0.03) * chance.choice([1] * 19 + [3]))
    return before, after


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "within"), (1.2, "above"), (0.8, "within")])
def test_a_difference_is_detected_despite_noise(factor: float, verdict: str) -> None:
    ratio = ratio_of(*noisy(factor, pairs=30))

    assert ratio.verdict(limit=1.05) == verdict
    assert ratio.low <= factor <= ratio.high


def test_a_ratio_at_the_limit_is_undecided() -> None:
    assert ratio_of(*noisy(1.05, pairs=30)).verdict(limit=1.05) == "undecided"


def test_too_few_pairs_are_undecided() -> None:
    ratio = ratio_of([1.0] * 5, [2.0] * 5)

    assert (ratio.median, ratio.verdict(limit=1.05)) == (2.0, "undecided")
    assert ratio_of([1.0] * 6, [2.0] * 6).verdict(limit=1.05) == "above"
