"""Items as rows: locking, reading, and writing their numbers."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Connection, Row, func, select, update
from sqlalchemy.types import TypeEngine

from inventory_api.domain.model import Item
from inventory_api.store import tables
from shop_common.db.sql import Statement, Timestamp, among, clock, counting, joined

_items = tables.inventory_items
_reservations = tables.stock_reservations
_allocations = tables.reservation_allocations

COLUMNS = tuple(_items.c[name] for name in Item.__slots__ if name != "due")

count_locations = counting(_items.c.product_id)
"""At how many locations each product is."""


def from_row(row: Row[Any], due: int = 0) -> Item:
    """An item out of a row of COLUMNS."""
    item = Item(*row)
    return replace(item, due=due) if due else item


def lock_products(tx: Connection, product_ids: Iterable[int]) -> list[Item]:
    """Lock all items of these products, by id. Products without items are left out."""
    rows = [{"product_id": product_id} for product_id in product_ids]
    return [from_row(row) for row in _lock_products(tx, rows)] if rows else []


def due_of_products(tx: Connection, product_ids: Iterable[int]) -> dict[int, int]:
    """Units held past their time, by item id, of these products' items."""
    rows = [{"product_id": product_id} for product_id in set(product_ids)]
    return {row.item_id: int(row.quantity) for row in _due(tx, rows)} if rows else {}


def save_counters(tx: Connection, changed: Iterable[Item]) -> None:
    """Write the numbers of locked items: they are absolute, since nobody else changes a locked row."""
    _save(tx, [_counters(item, item.reserved_quantity, item.updated_at) for item in changed])


def free(tx: Connection, locked: Mapping[int, Item], units: Mapping[int, int], moment: datetime) -> None:
    """Write that so many units of these locked items, by id, are reserved no more."""
    _save(
        tx,
        [
            _counters(locked[item_id], locked[item_id].reserved_quantity - quantity, moment)
            for item_id, quantity in units.items()
        ],
    )


def _counters(item: Item, reserved_quantity: int, moment: datetime) -> dict[str, object]:
    # Written out: this is done for each of a million expired holds.
    return {
        "id": item.id,
        "quantity": item.quantity,
        "reserved_quantity": reserved_quantity,
        "version": item.version,
        "updated_at": moment,
    }


_COUNTERS: dict[str, TypeEngine[Any]] = {
    "id": BigInteger(),
    "quantity": BigInteger(),
    "reserved_quantity": BigInteger(),
    "version": BigInteger(),
    "updated_at": Timestamp(),
}

_lock_products = Statement(
    lambda given: (
        select(*COLUMNS)
        .where(among(_items.c.product_id, given.c.product_id))
        .order_by(_items.c.id)
        .with_for_update(of=_items)
    ),
    product_id=BigInteger(),
)
_due = Statement(
    lambda given: (
        select(_allocations.c.item_id, func.sum(_allocations.c.quantity).label("quantity"))
        .join_from(_reservations, _allocations, _allocations.c.reservation_id == _reservations.c.id)
        .where(
            tables.HELD,
            _reservations.c.set_aside_at.is_(None),
            among(_reservations.c.product_id, given.c.product_id),
            _reservations.c.expires_at <= clock(),
        )
        .group_by(_allocations.c.item_id)
    ),
    product_id=BigInteger(),
)
_save = Statement(
    lambda given: (
        update(_items)
        .values({name: given.c[name] for name in _COUNTERS if name != "id"})
        .where(*joined(_items.c.id, given.c.id))
    ),
    **_COUNTERS,
)
