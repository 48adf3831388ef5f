"""Reads what VerifyStock compares, and restores allocations."""

from collections.abc import Sequence

from sqlalchemy import BigInteger, Connection, and_, bindparam, func, or_, select

from inventory_api.domain.model import Item
from inventory_api.domain.verification import Counters, WrongAllocations
from inventory_api.store import items, tables
from inventory_api.store.reservations import rows
from shop_common.db.sql import Id, Statement, in_rows

WRONG_ALLOCATIONS_MAX = 100
"""The most reservations with wrong allocations that are read for one item."""

_items = tables.inventory_items
_reservations = tables.stock_reservations
_allocations = tables.reservation_allocations
_movements = tables.stock_movements
_withholdings = tables.stock_withholdings


def read_counters(tx: Connection, after_id: int, limit: int) -> list[Counters]:
    """Return the counters of at most `limit` items with ids above `after_id`, sorted by id. Locks nothing.

    One statement reads all values, so they are from the same snapshot. Every transaction that changes one of them also
    changes the others, so they contradict each other only if the data is damaged.
    """
    return [Counters(*map(int, row)) for row in tx.execute(_page, {"after_id": after_id, "rows": limit})]


def lock_item(tx: Connection, item_id: int) -> tuple[Item, Counters]:
    """Lock an item. Returns it and its counters. Items are never deleted."""
    item = Item(*tx.execute(_lock, {"id": item_id}).one())
    # Use a new statement, because it sees what was committed while this transaction waited for the lock.
    return item, Counters(*map(int, tx.execute(_counters_of, {"id": item_id}).one()))


def wrong_allocations(tx: Connection, item_id: int) -> list[WrongAllocations]:
    """Return active reservations with wrong allocations that may concern this item, at most WRONG_ALLOCATIONS_MAX.

    They are of the product of the item, and take units from this item only or from an unknown set of items. Locks
    nothing.
    """
    return [WrongAllocations(*row) for row in tx.execute(_wrong_of_item, {"id": item_id}).all()]


def lock_wrong_allocations(tx: Connection, found: Sequence[WrongAllocations]) -> list[WrongAllocations]:
    """Lock these reservations, sorted by id. Returns those that are still active, with their present allocations.

    The caller has locked the item. That alone is not enough: if a reservation has no allocations, a transaction that
    ends it does not find the item, so it does not lock the item.
    """
    if not found:
        return []
    ids = [{"id": each.reservation_id} for each in found]
    active = {row.id for row in _lock_active(tx, ids)}
    return [WrongAllocations(*row) for row in _wrong_of_ids(tx, ids) if row.id in active]


def restore_allocations(tx: Connection, item: Item, lost: Sequence[WrongAllocations]) -> None:
    """Insert the lost allocations of locked reservations that take all their units from this item."""
    if lost:
        rows.insert_allocations(
            tx,
            [
                {
                    "tenant": item.tenant,
                    "reservation_id": each.reservation_id,
                    "item_id": item.id,
                    "quantity": each.quantity,
                }
                for each in lost
            ],
        )


_id = bindparam("id", type_=BigInteger())

_allocated = (
    select(func.coalesce(func.sum(_allocations.c.quantity), 0))
    .join_from(_allocations, _reservations, _reservations.c.id == _allocations.c.reservation_id)
    .where(_reservations.c.is_active)
)
_of_item = select(func.count()).select_from(_movements).where(_movements.c.item_id == _items.c.id).correlate(_items)
_moved = func.coalesce(func.sum(_movements.c.quantity), 0)
_counters = select(
    _items.c.id,
    _items.c.quantity,
    _items.c.reserved_quantity,
    _items.c.booked_quantity,
    _items.c.revision,
    _allocated.where(_allocations.c.item_id == _items.c.id).correlate(_items).scalar_subquery(),
    _of_item.scalar_subquery(),
    _of_item.with_only_columns(_moved).scalar_subquery(),
    _items.c.withheld_quantity,
    select(func.coalesce(func.sum(_withholdings.c.quantity), 0))
    .where(_withholdings.c.item_id == _items.c.id)
    .correlate(_items)
    .scalar_subquery(),
    _of_item.with_only_columns(func.coalesce(func.sum(_movements.c.withheld), 0)).scalar_subquery(),
)
_page = (
    _counters.where(_items.c.id > bindparam("after_id", type_=BigInteger()))
    .order_by(_items.c.id)
    .limit(bindparam("rows", type_=BigInteger()))
)
_lock = items.SELECT.where(_items.c.id == _id).with_for_update(of=_items)
_counters_of = _counters.where(_items.c.id == _id)

_allocated_by_reservation = (
    select(func.coalesce(func.sum(_allocations.c.quantity), 0))
    .where(_allocations.c.reservation_id == _reservations.c.id)
    .correlate(_reservations)
    .scalar_subquery()
)
_wrong = select(
    _reservations.c.id, _reservations.c.quantity, _allocated_by_reservation, _reservations.c.sole_item_id
).where(_reservations.c.is_active, _reservations.c.quantity != _allocated_by_reservation)
_wrong_of_item = (
    _wrong.join_from(
        _reservations,
        _items,
        and_(_items.c.product_id == _reservations.c.product_id, _items.c.tenant == _reservations.c.tenant),
    )
    .where(_items.c.id == _id, or_(_reservations.c.sole_item_id == _id, _reservations.c.sole_item_id == 0))
    .order_by(_reservations.c.id)
    .limit(WRONG_ALLOCATIONS_MAX)
)
_wrong_of_ids = Statement(
    lambda given: _wrong.where(in_rows(_reservations.c.id, given.c.id)).order_by(_reservations.c.id), id=Id()
)
_lock_active = Statement(
    lambda given: (
        select(_reservations.c.id)
        .where(in_rows(_reservations.c.id, given.c.id), _reservations.c.is_active)
        .order_by(_reservations.c.id)
        .with_for_update(of=_reservations)
    ),
    id=Id(),
)
