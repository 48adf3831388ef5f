"""All SQL on the table order_intents. The transaction has locked the orders, except for `begun_before`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, delete, select

from order_api.domain.model import OrderKey
from order_api.store import tables
from shop_common.db.sql import Statement, in_rows, insert_into, is_each

_intents = tables.order_intents
_COLUMNS = ("tenant", "order_id", "change_id", "version", "content", "is_uncertain", "created_at")


@dataclass(frozen=True, slots=True)
class Intent:
    """A change of an order that has begun, and has not ended. tables.py describes the columns."""

    order: OrderKey
    change_id: str
    version: int
    content: str
    is_uncertain: bool
    created_at: datetime


def of(tx: Connection, orders: Iterable[OrderKey]) -> dict[OrderKey, Intent]:
    """Return the intents of these orders. An order has at most one."""
    rows = _rows(orders)
    return {
        OrderKey(row.tenant, row.order_id): Intent(
            OrderKey(row.tenant, row.order_id),
            row.change_id,
            row.version,
            row.content,
            bool(row.is_uncertain),
            row.created_at,
        )
        for row in (_of(tx, rows) if rows else ())
    }


def replace(tx: Connection, intents: Sequence[Intent]) -> None:
    """Store one intent per order, in place of any earlier one."""
    if not intents:
        return
    remove(tx, [each.order for each in intents])
    _insert(
        tx,
        [
            {
                "tenant": each.order.tenant,
                "order_id": each.order.id,
                **{name: getattr(each, name) for name in _COLUMNS[2:]},
            }
            for each in intents
        ],
    )


def remove(tx: Connection, orders: Iterable[OrderKey]) -> None:
    """Delete the intents of these orders."""
    if ids := [{"order_id": order.id} for order in set(orders)]:
        _delete(tx, ids)


def begun_before(tx: Connection, time: datetime, max_count: int) -> list[OrderKey]:
    """Return the orders with the oldest intents that began before this time. Locks nothing."""
    oldest = (
        select(_intents.c.tenant, _intents.c.order_id)
        .where(_intents.c.created_at < time)
        .order_by(_intents.c.created_at)
        .limit(max_count)
    )
    return [OrderKey(row.tenant, row.order_id) for row in tx.execute(oldest)]


def _rows(orders: Iterable[OrderKey]) -> list[dict[str, str]]:
    return [{"tenant": order.tenant, "order_id": order.id} for order in set(orders)]


_insert = insert_into(_intents, *_COLUMNS)
_of = Statement(
    lambda given: select(*(_intents.c[name] for name in _COLUMNS)).where(
        *is_each(_intents, given, "tenant", "order_id")
    ),
    tenant=_intents.c.tenant.type,
    order_id=_intents.c.order_id.type,
)
_delete = Statement(
    # The ids are those of orders that were read by tenant, and are unique over all tenants.
    lambda given: delete(_intents).where(in_rows(_intents.c.order_id, given.c.order_id)),
    order_id=_intents.c.order_id.type,
)
