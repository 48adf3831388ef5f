"""Walks the orders of order-api that have active reservations. Each page reads a bounded number of rows."""

from typing import Any

from sqlalchemy import Connection, literal, select, tuple_

from inventory_api.domain.model import OrderKey
from inventory_api.store import tables
from shop_common.api.paging import Page, PageRequest

WINDOW_ROWS = 5_000
"""The most reservations that a page reads. Most of them may have ended."""

_reservations = tables.stock_reservations


def list_page(tx: Connection, request: PageRequest[None]) -> Page[OrderKey]:
    """Return a page of orders of all tenants, sorted by order id and tenant.

    A page reads a window of an index, which also has reservations that have ended and those of other owners. A full
    window may end in the middle of an order. Such an order is on the page even if it has no active reservation.
    """
    rows = tx.execute(_window(request)).all()
    keys: dict[OrderKey, bool] = {}
    for row in rows:
        key = OrderKey(row.tenant, "", row.order_id)
        keys[key] = keys.get(key, False) or (row.is_active and row.owner == "")
    is_last = len(rows) < WINDOW_ROWS
    orders = [
        key
        for number, (key, is_reserved) in enumerate(keys.items(), 1)
        if is_reserved or (number == len(keys) and not is_last)
    ]
    if len(orders) > request.size:
        orders, is_last = orders[: request.size], False
    return Page(orders, None if is_last else (orders[-1].order_id, orders[-1].tenant))


def _window(request: PageRequest[None]) -> Any:
    key = (_reservations.c.order_id, _reservations.c.tenant)
    window = (
        select(*key, _reservations.c.is_active, _reservations.c.owner)
        .order_by(*key, _reservations.c.state, _reservations.c.id)
        .limit(WINDOW_ROWS)
    )
    if request.after is None:
        return window
    return window.where(tuple_(*key) > tuple_(*map(literal, request.after)))
