"""Decides whether an item matches its allocations and its movements, and which mismatches have one right answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from inventory_api.domain.model import Item


class MismatchKind(StrEnum):
    """What a mismatch is about. The proto describes each kind, and its repair."""

    RESERVED_QUANTITY = "RESERVED_QUANTITY"
    ALLOCATIONS = "ALLOCATIONS"
    MOVEMENTS = "MOVEMENTS"
    QUANTITY = "QUANTITY"
    WITHHELD_QUANTITY = "WITHHELD_QUANTITY"


@dataclass(frozen=True, slots=True)
class Counters:
    """The counters of an item, and the sums of the rows from which the counters follow.

    `allocated` is the number of units that active reservations take from the item. `movements` is the number of its
    movements, `moved` the sum of their quantities, and `moved_withheld` the sum of their withheld units. `withholdings`
    is the sum of the item's withholdings.
    """

    item_id: int
    quantity: int
    reserved_quantity: int
    booked_quantity: int
    revision: int
    allocated: int
    movements: int
    moved: int
    withheld_quantity: int
    withholdings: int
    moved_withheld: int

    @property
    def expected_quantity(self) -> int:
        """The quantity according to the movements.

        If movements are missing, this is the quantity after the last movement, which the item stores. An item that was
        locked during the upgrade has no movement yet: its quantity is right, and its next change writes the movement.
        """
        if self.revision == self.movements == 0:
            return self.quantity
        return self.moved if self.movements == self.revision else self.booked_quantity

    @property
    def is_sound(self) -> bool:
        """Whether all of them match."""
        return (
            self.reserved_quantity == self.allocated
            and self.revision == self.movements
            and self.quantity == self.expected_quantity
            and self.withheld_quantity == self.withholdings == self.expected_withheld
        )

    @property
    def expected_withheld(self) -> int:
        """The withheld units according to the movements, or to the withholdings if movements are missing."""
        return self.moved_withheld if self.movements == self.revision else self.withholdings


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
        # Allocations are written once and never change. So if a reservation of one item has no allocation, the row was
        # lost. If there is a row with another quantity, either of the two quantities may be the damaged one.
        return self.sole_item_id != 0 and self.allocated == 0


def mismatches(item: Item, counters: Counters, wrong: Sequence[WrongAllocations]) -> list[Mismatch]:
    """Return the mismatches of an item.

    `wrong` has the reservations of its product with wrong allocations that may concern this item.
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
    expected = counters.allocated + sum(each.quantity for each in wrong if each.has_one_answer)
    if expected != item.reserved_quantity:
        has_one_answer = expected + item.withheld_quantity <= item.quantity and all(
            each.has_one_answer for each in wrong
        )
        found.append(
            Mismatch(
                MismatchKind.RESERVED_QUANTITY,
                item,
                expected,
                item.reserved_quantity,
                has_one_answer=has_one_answer,
            )
        )
    # A lost movement cannot be restored: its reason and its actor are gone. If the quantity changed without a movement,
    # either of the two may be right.
    if counters.movements != counters.revision:
        found.append(Mismatch(MismatchKind.MOVEMENTS, item, counters.revision, counters.movements))
    if counters.quantity != counters.expected_quantity:
        found.append(Mismatch(MismatchKind.QUANTITY, item, counters.expected_quantity, counters.quantity))
    if not counters.withheld_quantity == counters.withholdings == counters.expected_withheld:
        found.append(_withheld_mismatch(item, counters))
    return found


def _withheld_mismatch(item: Item, counters: Counters) -> Mismatch:
    if counters.withheld_quantity == counters.withholdings:
        # The movements contradict the counter and the withholdings. If the movements are right, nobody knows the
        # reasons for which the units are withheld.
        expected, has_one_answer = counters.expected_withheld, False
    else:
        expected = counters.withholdings
        has_one_answer = (
            counters.movements == counters.revision
            and counters.moved_withheld == expected
            and expected + item.reserved_quantity <= item.quantity
        )
    return Mismatch(
        MismatchKind.WITHHELD_QUANTITY, item, expected, counters.withheld_quantity, has_one_answer=has_one_answer
    )
