"""Writes the movements of changed quantities. Every operation that changes a quantity calls it."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection

from inventory_api.domain import events
from inventory_api.domain.movements import QuantityChange, movements_of
from inventory_api.store import movements
from shop_common.events.outbox import Message


def record_movements(tx: Connection, changes: Sequence[QuantityChange], now: datetime) -> list[Message]:
    """Write one movement per change, in order. Returns the events STOCK_MOVED, which the caller appends to the outbox.

    The caller has locked the items, and writes their quantities in the same transaction. The item of each change is the
    item after that change, so the changes of one item must be in the order in which they were made. A change of 0 units
    is also recorded.
    """
    if not changes:
        return []
    booked = movements.load_booked(tx, {change.item.id for change in changes})
    written = movements_of(changes, booked, now)
    movements.append(tx, [movement for movement, _ in written])
    return [events.stock_moved(movement, now, cause) for movement, cause in written]
