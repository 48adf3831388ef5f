"""The comparison of two revisions says how sure it is."""

import random

import pytest

from benchmarks.ratios import ratio_of


def noisy(factor: float, pairs: int) -> tuple[list[float], list[float]]:
    """Measurements whose pairs share the machine's mood, each with some noise and a rare outlier of its own."""
    dice = random.Random(f"{factor} {pairs}")
    before, after = [], []
    for _ in range(pairs):
        mood = dice.uniform(1, 2)
        before.append(mood * dice.gauss(1, 0.03) * dice.choice([1] * 19 + [3]))
        after.append(mood * factor * dice.gauss(1, 0.03) * dice.choice([1] * 19 + [3]))
    return before, after


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "within"), (1.2, "above"), (0.8, "within")])
def test_a_difference_is_found_in_spite_of_noise(factor: float, verdict: str) -> None:
    ratio = ratio_of(*noisy(factor, pairs=30))

    assert ratio.verdict(limit=1.05) == verdict
    assert ratio.low <= factor <= ratio.high


def test_what_is_at_the_limit_is_not_decided() -> None:
    assert ratio_of(*noisy(1.05, pairs=30)).verdict(limit=1.05) == "undecided"


def test_few_pairs_decide_nothing() -> None:
    ratio = ratio_of([1.0] * 5, [2.0] * 5)

    assert (ratio.median, ratio.verdict(limit=1.05)) == (2.0, "undecided")
    assert ratio_of([1.0] * 6, [2.0] * 6).verdict(limit=1.05) == "above"
