"""All SQL on the table order_returns."""

from collections.abc import Iterable, Sequence

import orjson
from sqlalchemy import Connection, select

from order_api.domain.model import OrderKey, Return, ReturnedUnits, Treatment
from order_api.store import tables
from shop_common.db.sql import Statement, insert_into, is_each

_returns = tables.order_returns
_COLUMNS = ("tenant", "order_id", "id", "reason", "items", "created_at")


def append(tx: Connection, returns: Sequence[tuple[OrderKey, Return]]) -> None:
    """Insert new returns. The transaction has locked their orders."""
    rows = [
        {
            "tenant": order.tenant,
            "order_id": order.id,
            "id": each.id,
            "reason": each.reason,
            "items": orjson.dumps(
                [(units.item_id, units.quantity, units.treatment, *units.place) for units in each.units]
            ).decode(),
            "created_at": each.created_at,
        }
        for order, each in returns
    ]
    if rows:
        _insert(tx, rows)


def of(tx: Connection, orders: Iterable[OrderKey]) -> dict[OrderKey, list[Return]]:
    """Return the returns of these orders, oldest first. Locks nothing."""
    rows = [{"tenant": order.tenant, "order_id": order.id} for order in set(orders)]
    found: dict[OrderKey, list[Return]] = {}
    for tenant, order_id, return_id, reason, items, created_at in _of(tx, rows) if rows else ():
        units = tuple(
            ReturnedUnits(item_id, quantity, Treatment(treatment), *place)
            for item_id, quantity, treatment, *place in orjson.loads(items)
        )
        found.setdefault(OrderKey(tenant, order_id), []).append(Return(return_id, reason, units, created_at))
    return found


_insert = insert_into(_returns, *_COLUMNS)
_of = Statement(
    lambda given: (
        select(*(_returns.c[name] for name in _COLUMNS))
        .where(*is_each(_returns, given, "tenant", "order_id"))
        .order_by(_returns.c.order_id, _returns.c.id)
    ),
    tenant=_returns.c.tenant.type,
    order_id=_returns.c.order_id.type,
)
