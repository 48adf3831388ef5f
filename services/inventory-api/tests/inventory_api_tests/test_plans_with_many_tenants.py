"""Every statement finds its rows by an index when there are many tenants, also before the database has statistics."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import event, text

from inventory_api.domain.commands import (
    AddStock,
    ItemFilter,
    OrderLines,
    OrderRequest,
    ReleaseRequest,
    ReservationFilter,
    SetQuantity,
    StockQuestion,
)
from inventory_api.domain.model import Item, ItemKey, Line, Reservation, State, StockKey
from inventory_api.operations.items.add_stock import add_stock
from inventory_api.operations.items.check_stock import check_stock
from inventory_api.operations.items.read_items import get_items, list_items
from inventory_api.operations.items.set_quantity import set_quantity
from inventory_api.operations.reservations.confirm import confirm
from inventory_api.operations.reservations.fulfil import fulfil_orders
from inventory_api.operations.reservations.release import release, release_orders
from inventory_api.operations.reservations.reserve import reserve
from inventory_api.store.reservations import by_order, pages, rows
from shop_common.api.paging import PageRequest
from shop_common.db.database import Database
from shop_common.identity.caller import ANYONE, Caller

CALLERS = [replace(ANYONE, tenant=f"tenant-{number}") for number in range(100)]
PRODUCTS = range(1, 31)
TENANT = CALLERS[7].tenant


def order_lines(caller: Caller, order: str) -> OrderLines:
    return OrderLines(order, tuple(Line(product, 1) for product in (1, 2, 3)), caller=caller)


@pytest.fixture
def filled(database: Database) -> tuple[list[Item], list[Reservation]]:
    """The items and the reservations of all tenants, who use the same product ids and order ids."""
    items: list[Item] = []
    reservations: list[Reservation] = []
    for product in PRODUCTS:
        requests = [AddStock(product, "A", 100, caller=caller) for caller in CALLERS]
        items += [each for each in database.transact(lambda tx: add_stock(tx, requests)) if isinstance(each, Item)]  # noqa: B023
    for number in range(10):
        orders = [order_lines(caller, f"order-{number}") for caller in CALLERS]
        for outcome in database.transact(lambda tx: reserve(tx, orders, default_ttl_seconds=600)):  # noqa: B023
            assert isinstance(outcome, list)
            reservations += outcome
    return items, reservations


@contextmanager
def plans(database: Database) -> Iterator[list[str]]:
    """Collect the plan of every query of the block and of every change of rows that exist."""
    collected: list[str] = []
    word = "EXPLAIN QUERY PLAN" if database.is_sqlite else "EXPLAIN"

    def explain(_connection: object, cursor: Any, statement: str, parameters: Any, *_: object) -> None:
        if statement.startswith(("SELECT", "UPDATE", "DELETE")):
            cursor.execute(f"{word} {statement}", parameters)
            plan = "\n".join(str(row[-1]) for row in cursor.fetchall())
            collected.append(f"{statement}\n{plan}\n")

    event.listen(database.engine, "before_cursor_execute", explain)
    try:
        yield collected
    finally:
        event.remove(database.engine, "before_cursor_execute", explain)


@pytest.mark.parametrize("is_analyzed", [False, True])
def test_rows_of_many_tenants_are_found_by_index(
    database: Database, filled: tuple[list[Item], list[Reservation]], *, is_analyzed: bool
) -> None:
    items, reservations = filled
    if is_analyzed:
        database.transact(lambda tx: tx.execute(text("ANALYZE")))
    with plans(database) as collected:
        for callers in (CALLERS[:1], CALLERS):
            work_as(database, callers, items[: len(callers)], reservations[: len(callers)])
        with database.read() as tx:
            for items_of in (ItemFilter(TENANT), ItemFilter(TENANT, product_id=1), ItemFilter(TENANT, location="A")):
                list_items(tx, PageRequest("items", items_of, None, 10))
            for reservations_of in (
                ReservationFilter(TENANT),
                ReservationFilter(TENANT, product_id=1),
                ReservationFilter(TENANT, order_id="order-1"),
                ReservationFilter(TENANT, order_id="order-1", state=State.HELD),
            ):
                pages.list_page(tx, PageRequest("reservations", reservations_of, None, 10))

    scans = re.compile(r"(SCAN|Seq Scan on) (stock_reservations|reservation_allocations|inventory_items)\b(?! USING)")
    found = [plan for plan in collected if scans.search(plan)]
    if not is_analyzed:
        # PostgreSQL may read the locations of allocations by a hash join with all items.
        found = [plan for plan in found if not plan.startswith("SELECT reservation_allocations.reservation_id")]
    assert found == []


def work_as(database: Database, callers: list[Caller], items: list[Item], reservations: list[Reservation]) -> None:
    """Run every operation once, with one request of each caller."""
    questions = [StockQuestion(StockKey(caller.tenant, 1, None)) for caller in callers]
    with database.read() as tx:
        assert len(get_items(tx, [item_key(item) for item in items])) == len(items)
        rows.get(tx, [each.key for each in reservations])
        check_stock(tx, questions)
    requests = [OrderRequest("order-1", caller=caller) for caller in callers]
    with database.write() as tx:
        add_stock(tx, [AddStock(1, "A", 1, caller=caller) for caller in callers])
        set_quantity(tx, [SetQuantity(item.id, 200, caller=caller_of(item)) for item in items])
        reserve(tx, [order_lines(caller, "order-1") for caller in callers], default_ttl_seconds=600)
        confirm(tx, requests)
        by_order.count_unreleased(tx, [request.order_key for request in requests])
        release(tx, [ReleaseRequest(each.id, caller=caller_of(each)) for each in reservations])
        fulfil_orders(tx, requests)
        by_order.fulfilled_units(tx, [request.order_key for request in requests])
        release_orders(tx, [replace(request, order_id="order-2") for request in requests])


def caller_of(value: Item | Reservation) -> Caller:
    return replace(ANYONE, tenant=value.tenant)


def item_key(item: Item) -> ItemKey:
    return ItemKey(item.tenant, item.id)
