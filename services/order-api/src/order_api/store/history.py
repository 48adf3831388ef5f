"""All SQL on the table order_status_changes."""

from collections.abc import Iterable, Sequence

from sqlalchemy import Connection, select

from order_api.domain.model import Order, OrderKey, Status, StatusChange
from order_api.store import tables
from shop_common.db.sql import Statement, insert_into, is_each

_changes = tables.order_status_changes
_COLUMNS = ("tenant", "order_id", "version", "status", "reason", "actor", "changed_at")


def append(tx: Connection, changed: Sequence[tuple[Order, str]]) -> None:
    """Record the present status of each order and the actor of the change. The transaction has locked the orders.

    An order may occur several times, once per change, with a different version each time.
    """
    rows = [
        {
            "tenant": order.tenant,
            "order_id": order.id,
            "version": order.version,
            "status": order.status,
            "reason": order.status_reason,
            "actor": actor,
            "changed_at": order.updated_at,
        }
        for order, actor in changed
    ]
    if rows:
        _insert(tx, rows)


def of(tx: Connection, keys: Iterable[OrderKey]) -> dict[OrderKey, list[StatusChange]]:
    """Return the recorded changes of these orders, by key and in the sequence of their versions. Locks nothing."""
    rows = [{"tenant": key.tenant, "order_id": key.id} for key in set(keys)]
    found: dict[OrderKey, list[StatusChange]] = {}
    for tenant, order_id, version, status, reason, actor, changed_at in _of(tx, rows) if rows else ():
        change = StatusChange(version, Status(status), changed_at, reason, actor)
        found.setdefault(OrderKey(tenant, order_id), []).append(change)
    return found


_insert = insert_into(_changes, *_COLUMNS)
_of = Statement(
    lambda given: (
        select(*(_changes.c[name] for name in _COLUMNS))
        .where(*is_each(_changes, given, "tenant", "order_id"))
        .order_by(_changes.c.order_id, _changes.c.version)
    ),
    tenant=_changes.c.tenant.type,
    order_id=_changes.c.order_id.type,
)
