"""Turns: how items are split into slices, and when the turns end."""

import pytest

from shop_common.batching.turns import repeat, slices


@pytest.mark.parametrize(
    ("weights", "weight_max", "count_max", "expected"),
    [
        ([], 5, None, []),
        ([1, 2, 2, 1], 5, None, [[1, 2, 2], [1]]),
        ([5, 5], 5, None, [[5], [5]]),
        ([1, 9, 1], 5, None, [[1], [9], [1]]),
        ([9, 9], 5, None, [[9], [9]]),
        ([1, 1, 1, 1, 1], 100, 2, [[1, 1], [1, 1], [1]]),
        ([1, 5, 1, 1, 1], 5, 2, [[1], [5], [1, 1], [1]]),
    ],
)
def test_slices_hold_all_items_in_order_and_end_at_the_first_limit(
    weights: list[int], weight_max: int, count_max: int | None, expected: list[list[int]]
) -> None:
    assert list(slices(weights, lambda weight: weight, weight_max, count_max=count_max)) == expected


@pytest.mark.parametrize(
    ("stock", "most", "turns"), [(0, 9, [4]), (3, 9, [4]), (4, 9, [4, 4]), (100, 9, [4, 4, 1]), (100, 8, [4, 4])]
)
def test_turns_end_when_one_does_less_than_it_may_or_all_is_done(stock: int, most: int, turns: list[int]) -> None:
    asked: list[int] = []
    left = stock

    def act(limit: int) -> int:
        nonlocal left
        asked.append(limit)
        done = min(limit, left)
        left -= done
        return done

    assert repeat(act, most=most, turn_max=4) == min(stock, most)
    assert asked == turns
