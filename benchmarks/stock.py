"""Fills the databases before the calls, and checks every count after them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, Select, Table, func, select

from benchmarks.scenarios import HOT_PRODUCT, LINES, ORDERS_PER_USER, PRODUCTS, USERS, order_id
from inventory_api.store import tables as inventory
from order_api.store import tables as orders
from shop_common.db.database import Database

QUANTITY = 10**12
_ROWS_AT_ONCE = 5_000
_PRICE = Decimal("12.99")


class WrongCount(Exception):
    """The rows contradict the responses of the calls, so the measurement is invalid."""


def fill_inventory(url: str) -> None:
    """Add stock of all products, more than any run can reserve."""
    add_items(url, (HOT_PRODUCT, *PRODUCTS), QUANTITY)


def add_items(url: str, product_ids: Iterable[int], quantity: int) -> None:
    """Add an item with this quantity for each product."""
    created_at = datetime.now(UTC)
    items = [
        {
            "product_id": product_id,
            "location": "WAREHOUSE_A",
            "quantity": quantity,
            "reserved_quantity": 0,
            "version": 1,
            "created_at": created_at,
            "updated_at": created_at,
        }
        for product_id in product_ids
    ]
    _fill(url, [(inventory.inventory_items, items)])


def fill_orders(url: str) -> None:
    """Add orders of all users, one minute apart."""
    start = datetime.now(UTC) - timedelta(days=30)
    placed = [
        {
            "id": order_id(number),
            "user_id": USERS[number % len(USERS)],
            "total_amount": _PRICE * LINES,
            "currency": "EUR",
            "status": "PENDING",
            "status_reason": "",
            "reserved_until": start + timedelta(days=365),
            "version": 1,
            "created_at": start + timedelta(minutes=number),
            "updated_at": start + timedelta(minutes=number),
        }
        for number in range(len(USERS) * ORDERS_PER_USER)
    ]
    lines = [
        {"order_id": order["id"], "product_id": product_id, "quantity": 1, "price": _PRICE}
        for order in placed
        for product_id in PRODUCTS[:LINES]
    ]
    _fill(url, [(orders.orders, placed), (orders.order_items, lines)])


def check_inventory(url: str, reservations: int, *, events: bool) -> None:
    """Check that every successful call reserved its units once, and nothing else did. Raises WrongCount."""
    held, items = inventory.stock_reservations, inventory.inventory_items
    parts = inventory.reservation_allocations
    drawn = select(func.sum(parts.c.quantity)).join_from(parts, held, parts.c.reservation_id == held.c.id)
    with reading(url) as tx:
        found = {
            "units of active reservations": _sum(tx, select(func.sum(held.c.quantity)).where(held.c.is_active)),
            "units that their allocations draw": _sum(tx, drawn.where(held.c.is_active)),
            "units that items count as reserved": _sum(tx, select(func.sum(items.c.reserved_quantity))),
        }
        if events:
            found["events in the outbox"] = _count(tx, inventory.outbox.table)
    compare(found, reservations, "reservations of one unit were granted")


def reserved_units(url: str, product_id: int) -> int:
    """Return the units of the product that active reservations hold."""
    held = inventory.stock_reservations
    with reading(url) as tx:
        query = select(func.sum(held.c.quantity)).where(held.c.is_active, held.c.product_id == product_id)
        return int(_sum(tx, query))


def uncounted_units(url: str) -> int:
    """Return the units of active reservations that the items do not count as reserved. They would be sold twice."""
    held, items = inventory.stock_reservations, inventory.inventory_items
    with reading(url) as tx:
        units = _sum(tx, select(func.sum(held.c.quantity)).where(held.c.is_active))
        return int(units - _sum(tx, select(func.sum(items.c.reserved_quantity))))


def check_orders(url: str, created: int, *, events: bool) -> None:
    """Check that every successful call created one order with its lines. Raises WrongCount."""
    before = len(USERS) * ORDERS_PER_USER
    with reading(url) as tx:
        found = {
            "orders": _count(tx, orders.orders) - before,
            "order lines / 3": _count(tx, orders.order_items) / LINES - before,
        }
        if events:
            found["events in the outbox"] = _count(tx, orders.outbox.table)
    compare(found, created, "orders were created")


def _fill(url: str, rows: Iterable[tuple[Table, Sequence[dict[str, Any]]]]) -> None:
    database = Database(url, connections_max=1)
    try:
        for table, values in rows:
            for start in range(0, len(values), _ROWS_AT_ONCE):
                with database.write() as tx:
                    tx.execute(table.insert(), values[start : start + _ROWS_AT_ONCE])
    finally:
        database.close()


@contextmanager
def reading(url: str) -> Iterator[Connection]:
    database = Database(url, connections_max=1)
    try:
        with database.read() as tx:
            yield tx
    finally:
        database.close()


def _sum(tx: Connection, query: Select[Any]) -> float:
    return int(tx.execute(query).scalar_one() or 0)


def _count(tx: Connection, table: Table) -> float:
    return int(tx.execute(select(func.count()).select_from(table)).scalar_one())


def compare(found: Mapping[str, float], expected: int, what: str) -> None:
    wrong = [f"{name}: {count:g}" for name, count in found.items() if count != expected]
    if wrong:
        raise WrongCount(f"{expected} {what}, but the database has {', '.join(wrong)}")
