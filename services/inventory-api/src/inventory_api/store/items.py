"""All SQL on the table inventory_items."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Connection, Row, Text, select, tuple_, update
from sqlalchemy.types import TypeEngine

from inventory_api.domain.model import Item
from inventory_api.store import tables
from shop_common.db.sql import Id, Statement, Timestamp, count_by, in_rows, insert_into, join_rows

_items = tables.inventory_items
_allocations = tables.reservation_allocations

COLUMNS = tuple(_items.c[name] for name in Item.__slots__ if name != "due")

count_locations = count_by(_items.c.product_id)
"""Returns the number of locations of each product, by product id."""


def load(tx: Connection, ids: Iterable[int]) -> dict[int, Item]:
    """Return the items with these ids, by id, without a lock. Unknown ids are left out."""
    rows = [{"id": each} for each in set(ids)]
    return {row.id: _item(row) for row in _load(tx, rows)} if rows else {}


def load_products(tx: Connection, product_ids: Iterable[int]) -> list[Item]:
    """Return all items of these products, without a lock, in no particular order."""
    rows = [{"product_id": product_id} for product_id in product_ids]
    return [_item(row) for row in _load_products(tx, rows)] if rows else []


def load_page(
    tx: Connection, *, product_id: int | None, location: str | None, after_id: int | None, limit: int
) -> list[Item]:
    """Return at most `limit` items with an id above `after_id`, sorted by id. A value of None matches all items."""
    query = select(*COLUMNS).order_by(_items.c.id).limit(limit)
    if product_id is not None:
        query = query.where(_items.c.product_id == product_id)
    if location is not None:
        query = query.where(_items.c.location == location)
    if after_id is not None:
        query = query.where(_items.c.id > after_id)
    return [_item(row) for row in tx.execute(query)]


def lock_products(tx: Connection, product_ids: Iterable[int]) -> list[Item]:
    """Lock and return all items of these products, sorted by id. Products without items are left out."""
    rows = [{"product_id": product_id} for product_id in product_ids]
    return [_item(row) for row in _lock_products(tx, rows)] if rows else []


def lock_at(tx: Connection, places: Sequence[tuple[int, str]]) -> list[Item]:
    """Lock and return the items at these product ids and locations, sorted by id. Missing items are left out."""
    rows = [{"product_id": product_id, "location": location} for product_id, location in places]
    return [_item(row) for row in _lock_at(tx, rows)]


def lock_of_reservations(tx: Connection, reservation_ids: Collection[str]) -> list[Item]:
    """Lock and return all items from which these reservations take units, sorted by id."""
    return [_item(row) for row in _lock_of_reservations(tx, [{"id": each} for each in reservation_ids])]


def insert_empty(tx: Connection, places: Iterable[tuple[int, str]], now: datetime) -> None:
    """Insert items without units at these product ids and locations. Existing items do not change."""
    _insert_empty(
        tx,
        [
            {
                "product_id": product_id,
                "location": location,
                "quantity": 0,
                "reserved_quantity": 0,
                "version": 0,
                "created_at": now,
                "updated_at": now,
            }
            # Sorted, so that two transactions that insert the same items wait for each other and do not deadlock.
            for product_id, location in sorted(places)
        ],
    )


def save_counters(tx: Connection, changed: Iterable[Item]) -> None:
    """Write the counters of locked items. Absolute values are safe: no other transaction changes a locked row."""
    _save(tx, [_counters(item, item.reserved_quantity, item.updated_at) for item in changed])


def free(tx: Connection, locked: Mapping[int, Item], units: Mapping[int, int], now: datetime) -> None:
    """Subtract units from the reserved quantities of locked items. `locked` and `units` are by item id."""
    _save(
        tx,
        [
            _counters(locked[item_id], locked[item_id].reserved_quantity - quantity, now)
            for item_id, quantity in units.items()
        ],
    )


def _item(row: Row[Any]) -> Item:
    return Item(*row)


def _counters(item: Item, reserved_quantity: int, now: datetime) -> dict[str, object]:
    # No dataclasses.replace here: it is slow, and this runs for each of a million expired reservations.
    return {
        "id": item.id,
        "quantity": item.quantity,
        "reserved_quantity": reserved_quantity,
        "version": item.version,
        "updated_at": now,
    }


_COUNTERS: dict[str, TypeEngine[Any]] = {
    "id": BigInteger(),
    "quantity": BigInteger(),
    "reserved_quantity": BigInteger(),
    "version": BigInteger(),
    "updated_at": Timestamp(),
}

_load = Statement(
    lambda given: select(*COLUMNS).where(in_rows(_items.c.id, given.c.id)).order_by(_items.c.id),
    id=BigInteger(),
)
_load_products = Statement(
    lambda given: select(*COLUMNS).where(in_rows(_items.c.product_id, given.c.product_id)),
    product_id=BigInteger(),
)
_lock_products = Statement(
    lambda given: (
        select(*COLUMNS)
        .where(in_rows(_items.c.product_id, given.c.product_id))
        .order_by(_items.c.id)
        .with_for_update(of=_items)  # failpoint: item-row-lock
    ),
    product_id=BigInteger(),
)
_lock_at = Statement(
    lambda given: (
        select(*COLUMNS)
        .where(
            in_rows(_items.c.product_id, given.c.product_id),
            tuple_(_items.c.product_id, _items.c.location).in_(select(given.c.product_id, given.c.location)),
        )
        .order_by(_items.c.id)
        .with_for_update(of=_items)
    ),
    product_id=BigInteger(),
    location=Text(),
)
# The allocations of a reservation never change, so the subquery needs no lock.
_lock_of_reservations = Statement(
    lambda given: (
        select(*COLUMNS)
        .where(
            in_rows(
                _items.c.id,
                select(_allocations.c.item_id).where(in_rows(_allocations.c.reservation_id, given.c.id)),
            )
        )
        .order_by(_items.c.id)
        .with_for_update(of=_items)
    ),
    id=Id(),
)
_insert_empty = insert_into(
    _items,
    "product_id",
    "location",
    "quantity",
    "reserved_quantity",
    "version",
    "created_at",
    "updated_at",
    or_ignore=True,
)
_save = Statement(
    lambda given: (
        update(_items)
        .values({name: given.c[name] for name in _COUNTERS if name != "id"})
        .where(*join_rows(_items.c.id, given.c.id))
    ),
    **_COUNTERS,
)
