"""Reads the stock of many products at one moment, with one statement."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import BigInteger, Connection, Row, Subquery, Text, and_, bindparam, cast, func, select, true

from inventory_api.domain.model import ProductKey
from inventory_api.store import tables
from shop_common.db.sql import Clock, Statement, is_each, micros_of

_items = tables.inventory_items
_locations = tables.locations
_reservations = tables.stock_reservations
_allocations = tables.reservation_allocations


def rows(tx: Connection, products: Sequence[ProductKey], limit: int) -> Sequence[Row[Any]]:
    """Return at most `limit` rows, one per item of these products, and one for a product without items.

    Each row has the product_id, the item's location (None without an item), quantity, reserved_quantity,
    withheld_quantity, whether its location is_active, its `due` units, the product's `next_release_at`, and `read_at`,
    the time of the reading in microseconds since 1970.
    """
    return _rows(tx, [product._asdict() for product in products], row_limit=limit)


def _build(given: Subquery) -> Any:
    # A common table expression, so that the whole statement uses one reading of the clock.
    moment = select(Clock().label("now")).cte("moment")
    timestamp = select(moment.c.now).scalar_subquery()
    due = (
        select(_allocations.c.item_id, func.sum(_allocations.c.quantity).label("quantity"))
        .join_from(_reservations, _allocations, _allocations.c.reservation_id == _reservations.c.id)
        .where(
            tables.HELD,
            _reservations.c.set_aside_at.is_(None),
            _reservations.c.expires_at <= timestamp,
            *is_each(_reservations, given, *ProductKey._fields),
        )
        .group_by(_allocations.c.item_id)
        .subquery("due")
    )
    next_release_at = (
        select(func.min(_reservations.c.expires_at))
        .where(tables.HELD, _reservations.c.expires_at > timestamp, *is_each(_reservations, given, *ProductKey._fields))
        .correlate(given)
        .scalar_subquery()
    )
    of_product = and_(*is_each(_items, given, *ProductKey._fields))
    at_location = and_(*is_each(_locations, _items, "tenant", "location"))
    return (
        select(
            given.c.product_id,
            _items.c.location,
            func.coalesce(_items.c.quantity, 0).label("quantity"),
            func.coalesce(_items.c.reserved_quantity, 0).label("reserved_quantity"),
            func.coalesce(_items.c.withheld_quantity, 0).label("withheld_quantity"),
            func.coalesce(_locations.c.is_active, true()).label("is_active"),
            # Integers: a sum is numeric on PostgreSQL, and a Decimal or datetime for each row is expensive to read.
            cast(func.coalesce(due.c.quantity, 0), BigInteger).label("due"),
            next_release_at.label("next_release_at"),
            micros_of(timestamp).label("read_at"),
        )
        .select_from(
            given.outerjoin(_items, of_product)
            .outerjoin(_locations, at_location)
            .outerjoin(due, due.c.item_id == _items.c.id)
        )
        .limit(bindparam("row_limit", type_=BigInteger()))
    )


_rows = Statement(_build, tenant=Text(), product_id=BigInteger())
