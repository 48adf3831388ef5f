"""Splits work that is too large for one transaction into turns. Each turn is one transaction."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

_T = TypeVar("_T")


def slices(
    items: Sequence[_T], weigh: Callable[[_T], int], weight_max: int, *, count_max: int | None = None
) -> Iterator[Sequence[_T]]:
    """Split the items, in order, into slices of at most `weight_max` weight and at most `count_max` items.

    An item that is heavier than `weight_max` is a slice of its own.
    """
    start = weight = 0
    for number, item in enumerate(items):
        weight += weigh(item)
        if number > start and (weight > weight_max or number - start == count_max):
            yield items[start:number]
            start, weight = number, weigh(item)
    if items:
        yield items[start:]


def repeat(act: Callable[[int], int], *, most: int, turn_max: int) -> int:
    """Call `act` with a limit of at most `turn_max` until it has processed `most` rows. Returns the number processed.

    `act` takes a limit and returns the number of rows that it processed. If this number is less than the limit, no
    rows are left and the loop ends.
    """
    done = 0
    while done < most:
        limit = min(turn_max, most - done)
        did = act(limit)
        done += did
        if did < limit:
            break
    return done
