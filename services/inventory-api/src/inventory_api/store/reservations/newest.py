"""Finds the newest active reservations that have units of an item. Locks nothing.

Reservations that were set aside are left out.
"""

from typing import Any

from sqlalchemy import BigInteger, Connection, Select, Text, TextClause, bindparam, literal, select

from inventory_api.domain.model import Item, OrderKey, ReservationKey
from inventory_api.domain.shortage import ReservedUnits
from inventory_api.store import tables

_reservations = tables.stock_reservations
_allocations = tables.reservation_allocations


def held(tx: Connection, item: Item, limit: int) -> list[ReservedUnits]:
    """Return at most `limit` held reservations that have units of the item, the newest first.

    Reads all held reservations of the item.
    """
    return _read(tx, _HELD, item, limit)


def confirmed(tx: Connection, item: Item, limit: int) -> list[ReservedUnits]:
    """Return at most `limit` confirmed reservations that have units of the item, the newest first."""
    return _read(tx, _CONFIRMED, item, limit)


def _read(tx: Connection, queries: tuple[Select[Any], Select[Any]], item: Item, limit: int) -> list[ReservedUnits]:
    if limit <= 0:
        return []
    given = {"product_id": item.product_id, "tenant": item.tenant, "item_id": item.id, "row_limit": limit}
    rows = sorted(
        (row for query in queries for row in tx.execute(query, given)),
        key=lambda row: (row.created_at, row.id),
        reverse=True,
    )
    return [
        ReservedUnits(ReservationKey(item.tenant, row.id), OrderKey(item.tenant, row.owner, row.order_id), row.units)
        for row in rows[:limit]
    ]


def _newest(state: TextClause, *, is_sole: bool) -> Select[Any]:
    units = select(_allocations.c.quantity).where(
        _allocations.c.reservation_id == _reservations.c.id, _allocations.c.item_id == _item_id
    )
    query = (
        select(
            _reservations.c.id,
            _reservations.c.owner,
            _reservations.c.order_id,
            _reservations.c.created_at,
            (_reservations.c.quantity if is_sole else units.scalar_subquery()).label("units"),
        )
        .where(
            state,
            _reservations.c.set_aside_at.is_(None),
            _reservations.c.sole_item_id == (_item_id if is_sole else literal(0, literal_execute=True)),
            _reservations.c.product_id == bindparam("product_id", type_=BigInteger()),
            _reservations.c.tenant == bindparam("tenant", type_=Text()),
        )
        .order_by(_reservations.c.created_at.desc(), _reservations.c.id.desc())
        .limit(bindparam("row_limit", type_=BigInteger()))
    )
    return query if is_sole else query.where(units.exists())


_item_id = bindparam("item_id", type_=BigInteger())
# One query for the reservations of this item alone, and one for those of several items. A query for both, or one that
# joins the allocations, would not read the first rows of an index.
_HELD = (_newest(tables.HELD, is_sole=True), _newest(tables.HELD, is_sole=False))
_CONFIRMED = (_newest(tables.CONFIRMED, is_sole=True), _newest(tables.CONFIRMED, is_sole=False))
