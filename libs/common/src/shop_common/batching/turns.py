"""Work that is too much for one transaction, in turns that are not."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

_T = TypeVar("_T")


def slices(
    items: Sequence[_T], weigh: Callable[[_T], int], weight_max: int, *, count_max: int | None = None
) -> Iterator[Sequence[_T]]:
    """The items in order, in slices that weigh at most `weight_max` and have at most `count_max` items.

    An item that weighs more is a slice of its own.
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
    """Let `act`, which does at most so much and returns how much, do `most` in turns of at most `turn_max`.

    Ends when a turn does less than it may: then there is no more. Returns the sum.
    """
    done = 0
    while done < most:
        limit = min(turn_max, most - done)
        did = act(limit)
        done += did
        if did < limit:
            break
    return done
