"""Finds due reservations: held reservations that are past their expiry. Locks nothing.

Reservations that were set aside are left out.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Connection, Row, Select, Text, bindparam, exists, func, literal, select

from inventory_api.domain.model import Item, ProductKey, Reservation, ReservationKey, StockKey
from inventory_api.store import tables
from inventory_api.store.reservations import rows
from shop_common.db.sql import Statement, clock, is_each

_reservations = tables.stock_reservations
_allocations = tables.reservation_allocations


def oldest(tx: Connection, limit: int, *, since: datetime | None = None) -> list[Reservation]:
    """Return at most `limit` due reservations, sorted by expiry. Starts at the expiry `since` if it is set.

    Returns fewer if their allocations are too many to read at once.
    """
    query = select(*rows.COLUMNS).where(*_IS_DUE)
    if since is not None:
        query = query.where(_reservations.c.expires_at >= since)
    stored = tx.execute(query.order_by(_reservations.c.expires_at).limit(limit)).all()
    return rows.with_allocations(tx, stored, rows.READ_ALLOCATIONS_MAX)


def units_by_item(tx: Connection, products: Iterable[ProductKey]) -> dict[int, int]:
    """Return how many units due reservations take from each item of these products, by item id."""
    rows = [product._asdict() for product in set(products)]
    return {row.item_id: int(row.quantity) for row in _units_by_item(tx, rows)} if rows else {}


def keys_to_cover(
    tx: Connection, shortage: Mapping[StockKey, int], stock: Mapping[int, Item], limit: int
) -> list[ReservationKey]:
    """Return the keys of at most `limit` due reservations that may cover the shortage, sorted by expiry.

    `stock` has the items of the products, by id.
    """
    item_ids = {item.stock_key: item.id for item in stock.values()}
    products = [product._asdict() for product in dict.fromkeys(key.product for key in shortage)]
    has_due = {ProductKey(*row) for row in _products_with_due(tx, products)} if products else set()
    expires_at: dict[ReservationKey, datetime] = {}
    for key, units in shortage.items():
        if key.product not in has_due:
            continue
        # Each reservation frees at least one unit, so never read more reservations than there are missing units.
        parameters = {**key.product._asdict(), "row_limit": min(units, limit)}
        if key.location is None:
            due = _execute(tx, _due_of_product, parameters)
        elif item_id := item_ids.get(key):
            at_item = parameters | {"item_id": item_id}
            due = [*_execute(tx, _due_of_item, at_item), *_execute(tx, _split_due_of_item, at_item)]
        else:
            due = []
        expires_at |= {ReservationKey(key.tenant, row.id): row.expires_at for row in due}
    return sorted(expires_at, key=expires_at.__getitem__)[:limit]


def _execute(tx: Connection, query: Select[Any], parameters: Mapping[str, Any]) -> Sequence[Row[Any]]:
    return tx.execute(query, parameters).all()


_IS_DUE = (
    tables.HELD,
    _reservations.c.set_aside_at.is_(None),
    _reservations.c.expires_at <= clock(),
)
_OLDEST_OF_PRODUCT = (
    select(_reservations.c.id, _reservations.c.expires_at)
    .where(
        *_IS_DUE,
        _reservations.c.product_id == bindparam("product_id", type_=BigInteger()),
        _reservations.c.tenant == bindparam("tenant", type_=Text()),
    )
    .order_by(_reservations.c.expires_at)
    .limit(bindparam("row_limit", type_=BigInteger()))
)
_item_id = bindparam("item_id", type_=BigInteger())

# Each query is for one stock key, so that PostgreSQL reads only the first rows of an index. In a query for several
# keys, it would read and sort all due reservations of these keys.
_due_of_product = _OLDEST_OF_PRODUCT
_due_of_item = _OLDEST_OF_PRODUCT.where(_reservations.c.sole_item_id == _item_id)
_split_due_of_item = _OLDEST_OF_PRODUCT.where(
    _reservations.c.sole_item_id == literal(0, literal_execute=True),
    exists().where(_allocations.c.reservation_id == _reservations.c.id, _allocations.c.item_id == _item_id),
)
_products_with_due = Statement(
    lambda given: select(given.c.tenant, given.c.product_id).where(
        exists().where(*_IS_DUE, *is_each(_reservations, given, *ProductKey._fields)).correlate(given)
    ),
    tenant=Text(),
    product_id=BigInteger(),
)
_units_by_item = Statement(
    lambda given: (
        select(_allocations.c.item_id, func.sum(_allocations.c.quantity).label("quantity"))
        .join_from(_reservations, _allocations, _allocations.c.reservation_id == _reservations.c.id)
        .where(*_IS_DUE, *is_each(_reservations, given, *ProductKey._fields))
        .group_by(_allocations.c.item_id)
    ),
    tenant=Text(),
    product_id=BigInteger(),
)
