"""The SQL of EraseUser: finds the orders of a user, and overwrites their personal data in all tables."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Subquery,
    Table,
    Text,
    case,
    delete,
    select,
    tuple_,
    update,
)
from sqlalchemy.types import TypeEngine

from order_api.domain.erasure import ERASABLE, OPEN
from order_api.domain.model import Order, OrderKey
from order_api.store import tables
from order_api.store.details import NO_LABELS, packed_charges
from shop_common.db.sql import Id, Statement, Timestamp, in_rows, is_each, join_rows
from shop_common.identity.caller import user_name

_orders = tables.orders
_labels = tables.order_labels
_changes = tables.order_status_changes
_shipments = tables.shipments
_returns = tables.order_returns


def erasable(tx: Connection, tenant: str, user_id: int, count_max: int) -> list[OrderKey]:
    """Return up to `count_max` orders of the user that can be erased, in any order. Locks nothing."""
    rows = tx.execute(_of_user(tenant, user_id).where(_orders.c.status.in_(ERASABLE)).limit(count_max))
    return [OrderKey(tenant, row.id) for row in rows]


def has_open(tx: Connection, tenant: str, user_id: int) -> bool:
    """Return whether the user has an order that has not ended. Locks nothing."""
    return tx.execute(_of_user(tenant, user_id).where(_orders.c.status.in_(OPEN)).limit(1)).first() is not None


def _of_user(tenant: str, user_id: int) -> Any:
    # The index on tenant, user and status serves this query.
    return select(_orders.c.id).where(_orders.c.tenant == tenant, _orders.c.user_id == user_id)


def save(tx: Connection, erased: Sequence[Order], user_id: int) -> None:
    """Overwrite the personal data of these orders. `user_id` is their former user. The transaction has locked them."""
    keys = [{"tenant": order.tenant, "order_id": order.id} for order in erased]
    _save_orders(tx, [_order_row(order) for order in erased])
    _delete_labels(tx, keys)
    _clear_history(tx, [{**key, "actor": user_name(str(user_id))} for key in keys])
    _clear_shipments(tx, keys)
    _clear_returns(tx, keys)


def _order_row(order: Order) -> dict[str, object]:
    return {
        "tenant": order.tenant,
        "order_id": order.id,
        "user_id": order.user_id,
        "version": order.version,
        "updated_at": order.updated_at,
        "created_by": order.created_by,
        "charges": packed_charges(order.charges),
    }


_KEY: dict[str, TypeEngine[Any]] = {"tenant": Text(), "order_id": Id()}
_CHANGED: dict[str, TypeEngine[Any]] = {
    "user_id": BigInteger(),
    "version": BigInteger(),
    "updated_at": Timestamp(),
    "created_by": Text(),
    "charges": Text(),
}


def _of_order(table: Table, given: Subquery) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions for an UPDATE of the rows of these orders. An index on the order's id serves them."""
    order_id = table.c.id if table is _orders else table.c.order_id
    return (*join_rows(order_id, given.c.order_id), table.c.tenant == given.c.tenant)


_save_orders = Statement(
    lambda given: (
        update(_orders)
        .values({name: given.c[name] for name in _CHANGED})
        .values(status_reason="", external_reference="", labels=NO_LABELS)
        .where(*_of_order(_orders, given))
    ),
    **_KEY,
    **_CHANGED,
)
_delete_labels = Statement(
    lambda given: delete(_labels).where(
        in_rows(_labels.c.order_id, given.c.order_id),
        tuple_(_labels.c.tenant, _labels.c.order_id).in_(select(given.c.tenant, given.c.order_id)),
    ),
    **_KEY,
)
_clear_history = Statement(
    lambda given: (
        update(_changes)
        .values(reason="", actor=case((_changes.c.actor == given.c.actor, ""), else_=_changes.c.actor))
        .where(*_of_order(_changes, given))
    ),
    **_KEY,
    actor=Text(),
)
_clear_shipments = Statement(
    lambda given: update(_shipments).values(tracking_number="").where(*is_each(_shipments, given, *_KEY)), **_KEY
)
_clear_returns = Statement(
    lambda given: update(_returns).values(reason="").where(*is_each(_returns, given, *_KEY)), **_KEY
)
