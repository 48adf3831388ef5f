"""Decides whether the counters and the allocations of an item match, and which mismatches have one right answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from inventory_api.domain.model import Item


class MismatchKind(StrEnum):
    """What a mismatch is about. The proto describes each kind, and its repair."""

    RESERVED_QUANTITY = "RESERVED_QUANTITY"
    ALLOCATIONS = "ALLOCATIONS"


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Two stored values of an item that should be equal. `reservation_id` is set for ALLOCATIONS only."""

    kind: MismatchKind
    item: Item
    expected: int
    actual: int
    reservation_id: str = ""
    has_one_answer: bool = False
    """Whether the stored rows determine the right value, so that a repair is possible."""
    repaired: bool = False


@dataclass(frozen=True, slots=True)
class WrongAllocations:
    """An active reservation whose allocations do not add up to its quantity."""

    reservation_id: str
    quantity: int
    allocated: int
    sole_item_id: int
    """The only item of the reservation. 0 if there are several, or if it is not known."""

    @property
    def has_one_answer(self) -> bool:
        # Allocations are written once and never change. So a reservation of one item without an allocation has lost its
        # row. If there is a row with another quantity, either of the two quantities may be the damaged one.
        return self.sole_item_id != 0 and self.allocated == 0


def mismatches(item: Item, allocated: int, wrong: Sequence[WrongAllocations]) -> list[Mismatch]:
    """Return the mismatches of an item.

    `allocated` is the number of units that active reservations take from the item. `wrong` has the reservations of its
    product with wrong allocations that may concern this item.
    """
    found = [
        Mismatch(
            MismatchKind.ALLOCATIONS,
            item,
            each.quantity,
            each.allocated,
            each.reservation_id,
            has_one_answer=each.has_one_answer,
        )
        for each in wrong
    ]
    # The counter includes the units of lost allocations.
    expected = allocated + sum(each.quantity for each in wrong if each.has_one_answer)
    if expected != item.reserved_quantity:
        has_one_answer = expected <= item.quantity and all(each.has_one_answer for each in wrong)
        found.append(
            Mismatch(
                MismatchKind.RESERVED_QUANTITY,
                item,
                expected,
                item.reserved_quantity,
                has_one_answer=has_one_answer,
            )
        )
    return found
