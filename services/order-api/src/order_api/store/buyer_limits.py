"""The SQL of limits per buyer: the limits that orders were created with, and the units that buyers have.

The units are summed over the lines of the buyer's orders, which an index finds. So they are right after every kind of
change of an order, and an order without a limit costs nothing.
"""

import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import BigInteger, Connection, Integer, Select, Subquery, Text, delete, func, literal, select, union_all

from order_api.domain.buyer_limits import Bought, Buyer, Counted, Purchase
from order_api.domain.erasure import OPEN
from order_api.domain.model import COUNTED_ORDERS_MAX, OrderKey, Status
from order_api.store import tables
from shop_common.db.sql import Id, Statement, insert_into, is_each

_orders = tables.orders
_items = tables.order_items
_limits = tables.order_buyer_limits

LOCKS = 1024
"""The number of locks that all buyers share. It limits the memory for locks that a transaction needs. Two buyers with
the same lock only wait for each other."""

_LOCK_CLASS = 1_914_217_315
"""Distinguishes these advisory locks from others in the same database. All processes must use the same number."""


def insert(tx: Connection, purchases: Iterable[Purchase]) -> None:
    """Store the limits of orders that this transaction has inserted."""
    if rows := [row for each in purchases for row in _rows(each.order, each.limits)]:
        _insert(tx, rows)


def replace(tx: Connection, order: OrderKey, units: Mapping[int, int]) -> None:
    """Store these limits of an order that this transaction has locked, in place of those of the same products."""
    if not units:
        return
    tx.execute(
        delete(_limits).where(
            _limits.c.tenant == order.tenant, _limits.c.order_id == order.id, _limits.c.product_id.in_(units)
        )
    )
    _insert(tx, _rows(order, units))


def of(tx: Connection, keys: Collection[OrderKey]) -> dict[OrderKey, dict[int, int]]:
    """Return the limits of these orders by key and product. Orders without limits are missing. Locks nothing."""
    found: dict[OrderKey, dict[int, int]] = {}
    for row in _of(tx, [{"tenant": key.tenant, "order_id": key.id} for key in set(keys)]) if keys else ():
        found.setdefault(OrderKey(row.tenant, row.order_id), {})[row.product_id] = row.units
    return found


def lock(tx: Connection, purchases: Iterable[Purchase]) -> None:
    """Lock the buyers until the transaction ends: no other transaction takes a purchase of theirs meanwhile.

    Afterwards, `bought` sees every purchase that was taken before. All transactions lock in this sequence, so that they
    cannot deadlock: the request_ids of CreateOrder, the buyers, the request_ids of other calls, the orders. Call this
    once per transaction, because the locks of one call are sorted.
    """
    if tx.dialect.name == "sqlite":
        return  # a transaction that writes excludes all others
    _lock(tx, [{"number": number} for number in sorted({_lock_number(each.buyer) for each in purchases})])


def bought(tx: Connection, purchases: Sequence[Purchase]) -> Bought:
    """Return what the buyers have of the products with limits. Locks nothing: without `lock`, it may change."""
    rows = [
        {
            "tenant": each.buyer.tenant,
            "user_id": each.buyer.user_id,
            "product_id": product_id,
            "order_id": each.order.id,
        }
        for each in purchases
        for product_id in each.limits
    ]
    return Bought(
        {
            (OrderKey(row.tenant, row.order_id), row.product_id): Counted(int(row.units), row.open_orders)
            for row in _bought(tx, rows)
        }
    )


def _rows(order: OrderKey, units: Mapping[int, int]) -> list[dict[str, object]]:
    return [
        {"order_id": order.id, "product_id": product_id, "tenant": order.tenant, "units": limit}
        for product_id, limit in units.items()
    ]


def _lock_number(buyer: Buyer) -> int:
    return zlib.crc32(f"{buyer.tenant}:{buyer.user_id}".encode()) % LOCKS


def _counted(given: Subquery, statuses: Iterable[Status], count_max: int) -> Any:
    """Return the newest orders of the buyer in each of these statuses. Each status is one range of an index."""
    ranges = [_newest(given, status, count_max).subquery() for status in statuses]
    return union_all(*(select(each.c.tenant, each.c.order_id) for each in ranges)).subquery()


def _newest(given: Subquery, status: Status, count_max: int) -> Select[Any]:
    return (
        select(_orders.c.tenant, _orders.c.id.label("order_id"))
        .where(
            _orders.c.tenant == given.c.tenant,
            _orders.c.user_id == given.c.user_id,
            _orders.c.status == literal(status.value, Text(), literal_execute=True),
            _orders.c.id != given.c.order_id,
        )
        .order_by(_orders.c.created_at.desc(), _orders.c.id.desc())
        .limit(literal(count_max, Integer(), literal_execute=True))
        .correlate(given)
    )


def _select_bought(given: Subquery) -> Select[Any]:
    kept = _counted(given, (status for status in Status if status is not Status.CANCELLED), COUNTED_ORDERS_MAX)
    open_orders = _counted(given, OPEN, COUNTED_ORDERS_MAX + 1)
    units = (
        select(func.coalesce(func.sum(_items.c.quantity - _items.c.cancelled - _items.c.returned), 0))
        .where(*is_each(_items, kept, "order_id", "tenant"), _items.c.product_id == given.c.product_id)
        .correlate(given)
        .scalar_subquery()
    )
    count = select(func.count()).select_from(open_orders).correlate(given).scalar_subquery()
    return select(
        given.c.tenant, given.c.order_id, given.c.product_id, units.label("units"), count.label("open_orders")
    )


_insert = insert_into(_limits, "order_id", "product_id", "tenant", "units")
_of = Statement(
    lambda given: select(_limits.c.tenant, _limits.c.order_id, _limits.c.product_id, _limits.c.units).where(
        *is_each(_limits, given, "order_id", "tenant")
    ),
    tenant=Text(),
    order_id=Id(),
)
_lock = Statement(
    # The database reads the input rows in their sequence, so it takes the locks in this sequence.
    lambda given: select(func.pg_advisory_xact_lock(literal(_LOCK_CLASS, Integer()), given.c.number)),
    number=Integer(),
)
_bought = Statement(_select_bought, tenant=Text(), user_id=BigInteger(), product_id=BigInteger(), order_id=Id())
