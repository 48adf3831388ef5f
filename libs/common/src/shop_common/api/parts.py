"""The parts of a batch, each with an outcome of its own: an invalid part is refused, and the others are decided."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from shop_common.errors import ShopError

_Command = TypeVar("_Command")
_Result = TypeVar("_Result")


def valid(parsed: Sequence[_Command | ShopError]) -> list[_Command]:
    """Return the parts that were not refused when they were parsed, in order."""
    return [each for each in parsed if not isinstance(each, ShopError)]


def outcomes(
    parsed: Sequence[_Command | ShopError], decided: Iterable[_Result | ShopError]
) -> list[_Result | ShopError]:
    """Return one outcome per part, in order: its refusal, or the next one of `decided`, which has the valid parts."""
    left = iter(decided)
    return [each if isinstance(each, ShopError) else next(left) for each in parsed]
