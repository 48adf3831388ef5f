"""The movements of an item: one for each change of its quantity or of its withheld units. Needs no database.

The revisions of an item's movements are 1, 2, 3 and so on. The quantities add up to the quantity of the item, and the
withheld units to its withheld units.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from inventory_api.domain.model import Item, ProductKey
from shop_common.api.command import UNKNOWN_CAUSE, Cause
from shop_common.events.outbox import ACTOR_CHARACTERS_MAX


class MovementKind(StrEnum):
    """Why the quantity or the withheld units of an item changed. The proto describes each kind."""

    RECEIVED = "RECEIVED"
    ADJUSTED = "ADJUSTED"
    COUNTED = "COUNTED"
    MOVED = "MOVED"
    FULFILLED = "FULFILLED"
    RETURNED = "RETURNED"
    WITHHELD = "WITHHELD"


OPENING = "OPENING"
"""Reason of the first movement of an item that was created before movements were recorded. The migration writes it."""

UPGRADE = "UPGRADE"
"""Reason of a movement for changes that a process without movements made during an upgrade."""

RESERVED_REASONS = (OPENING, UPGRADE)
"""Reasons that only the server uses."""


@dataclass(frozen=True, slots=True)
class QuantityChange:
    """A change of the quantity or of the withheld units of a locked item.

    `item` is the item after the change. `quantity` and `withheld` are the differences.
    """

    item: Item
    kind: MovementKind
    quantity: int
    cause: Cause = UNKNOWN_CAUSE
    order_id: str = ""
    reason: str = ""
    reference: str = ""
    occurred_at: datetime | None = None
    withheld: int = 0


@dataclass(frozen=True, slots=True)
class Movement:
    """One row of the table stock_movements. `quantity` is the difference, `quantity_after` the total after it.

    `withheld` and `withheld_after` are the same numbers for the withheld units.
    `order_id`, `reason`, `reference` and `actor` are empty if there is none. `occurred_at` is the time that the caller
    stated for the change, and `created_at` the time at which the movement was written.
    """

    tenant: str
    item_id: int
    product_id: int
    location: str
    revision: int
    kind: MovementKind
    quantity: int
    quantity_after: int
    order_id: str
    reason: str
    reference: str
    actor: str
    occurred_at: datetime | None
    created_at: datetime
    withheld: int
    withheld_after: int

    @property
    def product(self) -> ProductKey:
        return ProductKey(self.tenant, self.product_id)


@dataclass(frozen=True, slots=True)
class Booked:
    """The number of movements of an item, and its quantity after the last one."""

    revision: int
    quantity: int


def movements_of(
    changes: Iterable[QuantityChange], booked: Mapping[int, Booked], now: datetime
) -> list[tuple[Movement, Cause]]:
    """Return the movements of these changes, in order, each with its cause. `booked` is by item id.

    If a process without movements has changed the quantity of an item, a movement with the reason UPGRADE comes first.
    """
    last = dict(booked)
    movements = []
    for change in changes:
        item = change.item
        missing = item.quantity - change.quantity - last[item.id].quantity
        if missing:
            before = replace(item, withheld_quantity=item.withheld_quantity - change.withheld)
            upgrade = QuantityChange(before, MovementKind.ADJUSTED, missing, reason=UPGRADE)
            movements.append((_movement(upgrade, last, now), UNKNOWN_CAUSE))
        movements.append((_movement(change, last, now), change.cause))  # failpoint: movement
    return movements


def _movement(change: QuantityChange, last: dict[int, Booked], now: datetime) -> Movement:
    item = change.item
    before = last[item.id]
    after = last[item.id] = Booked(before.revision + 1, before.quantity + change.quantity)
    return Movement(
        tenant=item.tenant,
        item_id=item.id,
        product_id=item.product_id,
        location=item.location,
        revision=after.revision,
        kind=change.kind,
        quantity=change.quantity,
        quantity_after=after.quantity,
        order_id=change.order_id,
        reason=change.reason,
        reference=change.reference,
        actor=(change.cause.actor or "")[:ACTOR_CHARACTERS_MAX],
        occurred_at=change.occurred_at,
        created_at=now,
        withheld=change.withheld,
        withheld_after=item.withheld_quantity,
    )
