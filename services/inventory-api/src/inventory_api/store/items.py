"""All SQL on the table inventory_items."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Connection, Row, Text, and_, func, select, true, update
from sqlalchemy import delete as delete_from
from sqlalchemy.types import TypeEngine

from inventory_api.domain.model import Item, ItemKey, ProductKey, ReservationKey, StockKey
from inventory_api.store import tables
from shop_common.db.sql import Id, Statement, Timestamp, count_by, in_rows, insert_into, is_each, join_rows

_items = tables.inventory_items
_allocations = tables.reservation_allocations

_locations = tables.locations

# Every statement that reads items also reads the properties of their locations. Without them, every location would seem
# to be active.
_ITEMS = _items.outerjoin(_locations, and_(*is_each(_locations, _items, "tenant", "location")))
_NO_COLUMNS = ("is_active", "priority", "due", "withholdings")
_COLUMNS = (
    *(_items.c[name] for name in Item.__slots__ if name not in _NO_COLUMNS),
    func.coalesce(_locations.c.is_active, true()),
    func.coalesce(_locations.c.priority, 0),
)
SELECT = select(*_COLUMNS).select_from(_ITEMS)

count_locations = count_by(_items, *ProductKey._fields)
"""Returns the number of locations of each product."""


def load(tx: Connection, keys: Iterable[ItemKey]) -> dict[ItemKey, Item]:
    """Return the items with these keys, without a lock. Unknown keys are left out."""
    rows = _rows(keys)
    return {ItemKey(row.tenant, row.id): _item(row) for row in _load(tx, rows)} if rows else {}


def load_products(tx: Connection, products: Iterable[ProductKey]) -> list[Item]:
    """Return all items of these products, without a lock, in no particular order."""
    rows = _rows(products)
    return [_item(row) for row in _load_products(tx, rows)] if rows else []


def load_page(
    tx: Connection, tenant: str, *, product_id: int | None, location: str | None, after_id: int | None, limit: int
) -> list[Item]:
    """Return at most `limit` items of the tenant with an id above `after_id`, sorted by id.

    A value of None matches all items.
    """
    in_order = SELECT.order_by(_items.c.id).limit(limit)
    query = in_order.where(_items.c.tenant == tenant)  # failpoint: page-of-tenant
    if product_id is not None:
        query = query.where(_items.c.product_id == product_id)
    if location is not None:
        query = query.where(_items.c.location == location)
    if after_id is not None:
        query = query.where(_items.c.id > after_id)
    return [_item(row) for row in tx.execute(query)]


def load_at(tx: Connection, keys: Iterable[StockKey]) -> list[Item]:
    """Return the items with these stock keys, without a lock, in no particular order. Missing items are left out."""
    return [_item(row) for row in _load_at(tx, _rows(keys))]


def lock_products(tx: Connection, products: Iterable[ProductKey]) -> list[Item]:
    """Lock and return all items of these products, sorted by id. Products without items are left out."""
    rows = _rows(products)
    return [_item(row) for row in _lock_products(tx, rows)] if rows else []


def lock_at(tx: Connection, keys: Iterable[StockKey]) -> list[Item]:
    """Lock and return the items with these stock keys, sorted by id. Missing items are left out."""
    return [_item(row) for row in _lock_at(tx, _rows(keys))]


def lock_of_reservations(tx: Connection, keys: Iterable[ReservationKey]) -> list[Item]:
    """Lock and return all items from which these reservations take units, sorted by id."""
    rows = [{"tenant": key.tenant, "reservation_id": key.id} for key in set(keys)]
    return [_item(row) for row in _lock_of_reservations(tx, rows)]


def insert_empty(tx: Connection, keys: Iterable[StockKey], now: datetime) -> None:
    """Insert items without units with these stock keys. Existing items do not change."""
    _insert_empty(
        tx,
        [
            {
                **key._asdict(),
                "quantity": 0,
                "reserved_quantity": 0,
                "version": 0,
                "created_at": now,
                "updated_at": now,
            }
            # Sorted, so that two transactions that insert the same items wait for each other and do not deadlock.
            for key in sorted(keys)
        ],
    )


def delete(tx: Connection, item_ids: Sequence[int]) -> None:
    """Delete locked items that this transaction has inserted and does not need. No other transaction has seen them."""
    if item_ids:
        _delete(tx, [{"id": item_id} for item_id in item_ids])


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


def _rows(keys: Iterable[ItemKey | ProductKey | StockKey]) -> list[dict[str, Any]]:
    return [key._asdict() for key in set(keys)]


def _item(row: Row[Any]) -> Item:
    return Item(*row)


def _counters(item: Item, reserved_quantity: int, now: datetime) -> dict[str, object]:
    # No dataclasses.replace here: it is slow, and this runs for each of a million expired reservations.
    return {
        "id": item.id,
        "quantity": item.quantity,
        "reserved_quantity": reserved_quantity,
        "withheld_quantity": item.withheld_quantity,
        "version": item.version,
        "updated_at": now,
    }


_COUNTERS: dict[str, TypeEngine[Any]] = {
    "id": BigInteger(),
    "quantity": BigInteger(),
    "reserved_quantity": BigInteger(),
    "withheld_quantity": BigInteger(),
    "version": BigInteger(),
    "updated_at": Timestamp(),
}

_load = Statement(
    lambda given: SELECT.where(*is_each(_items, given, *ItemKey._fields)),
    tenant=Text(),
    id=BigInteger(),
)
_load_products = Statement(
    lambda given: SELECT.where(*is_each(_items, given, *ProductKey._fields)),
    tenant=Text(),
    product_id=BigInteger(),
)
_load_at = Statement(
    lambda given: SELECT.where(*is_each(_items, given, *StockKey._fields)),
    tenant=Text(),
    product_id=BigInteger(),
    location=Text(),
)
_lock_products = Statement(
    lambda given: (
        SELECT.where(*is_each(_items, given, *ProductKey._fields))
        .order_by(_items.c.id)
        .with_for_update(of=_items)  # failpoint: item-row-lock
    ),
    tenant=Text(),
    product_id=BigInteger(),
)
_lock_at = Statement(
    lambda given: (
        SELECT.where(*is_each(_items, given, *StockKey._fields)).order_by(_items.c.id).with_for_update(of=_items)
    ),
    tenant=Text(),
    product_id=BigInteger(),
    location=Text(),
)
# The allocations of a reservation never change, so the subquery needs no lock.
_lock_of_reservations = Statement(
    lambda given: (
        SELECT.where(
            in_rows(
                _items.c.id,
                select(_allocations.c.item_id).where(*is_each(_allocations, given, "tenant", "reservation_id")),
            )
        )
        .order_by(_items.c.id)
        .with_for_update(of=_items)
    ),
    tenant=Text(),
    reservation_id=Id(),
)
_insert_empty = insert_into(
    _items,
    *StockKey._fields,
    "quantity",
    "reserved_quantity",
    "version",
    "created_at",
    "updated_at",
    or_ignore=True,
)
_delete = Statement(lambda given: delete_from(_items).where(in_rows(_items.c.id, given.c.id)), id=BigInteger())
_save = Statement(
    lambda given: (
        update(_items)
        .values({name: given.c[name] for name in _COUNTERS if name != "id"})  # failpoint: item-counters
        .where(*join_rows(_items.c.id, given.c.id))
    ),
    **_COUNTERS,
)
