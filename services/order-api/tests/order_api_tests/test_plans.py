"""With many tenants, every statement on orders finds its rows by an index, also before the database has statistics."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import event, make_url, text

from devstack.postgres import PostgresServer
from order_api.domain.buyer_limits import Buyer, Purchase
from order_api.domain.commands import OrderFilter
from order_api.domain.model import NO_DETAILS, NewDetails, Order, Status
from order_api.migrations import SCHEMA
from order_api.store import buyer_limits, order_lists, orders, tables
from shop_common.api.paging import PageRequest
from shop_common.db import row_security
from shop_common.db.database import Database
from shop_common.identity.caller import ANYONE
from testkit.drivers.order_api import new_order, stored

TENANTS = [f"tenant-{number}" for number in range(100)]
ORDERS_PER_TENANT = 50
API, CONSOLE = "plans_api", "plans_console"
LISTS = [
    OrderFilter(TENANTS[7]),
    OrderFilter(TENANTS[7], user_id=1),
    OrderFilter(TENANTS[7], statuses=(Status.PENDING,)),
    OrderFilter(TENANTS[7], user_id=1, statuses=(Status.PENDING,)),
    OrderFilter(TENANTS[7], statuses=(Status.PENDING, Status.CANCELLED)),
    OrderFilter(TENANTS[7], user_id=1, statuses=(Status.PENDING, Status.CANCELLED)),
    OrderFilter(TENANTS[7], product_id=1),
    OrderFilter(TENANTS[7], external_reference="web-7"),
    OrderFilter(TENANTS[7], user_id=1, external_reference="web-7"),
    OrderFilter(TENANTS[7], label=("channel", "web")),
    OrderFilter(TENANTS[7], user_id=1, label=("channel", "web")),
    OrderFilter(TENANTS[7], updated_after=datetime(2024, 1, 1, tzinfo=UTC)),
]


def fill(database: Database) -> list[Order]:
    """Store orders of all tenants, in batches with one order of each tenant."""
    created: list[Order] = []
    for number in range(ORDERS_PER_TENANT):
        details = (
            NewDetails((), f"web-{number}", (("channel", "web" if number % 2 else "shop"),))
            if number % 5
            else NO_DETAILS
        )
        of_user = [
            new_order(user_id=1 + number % 7, details=details, caller=replace(ANYONE, tenant=tenant))
            for tenant in TENANTS
        ]
        added = stored(database, *of_user)
        with database.write() as tx:
            buyer_limits.insert(tx, map(purchase, added))
        created += added
    return created


def purchase(order: Order) -> Purchase:
    return Purchase(order.key, Buyer(order.tenant, order.user_id), {1: 2}, {1: 2})


@contextmanager
def plans(database: Database) -> Iterator[list[str]]:
    """Collect the plan of every query of the block and of every change of rows that exist."""
    collected: list[str] = []
    word = "EXPLAIN QUERY PLAN" if database.is_sqlite else "EXPLAIN"

    def explain(_connection: object, cursor: Any, statement: str, parameters: Any, *_: object) -> None:
        if statement.startswith(("SELECT", "UPDATE")):
            cursor.execute(f"{word} {statement}", parameters)
            collected.append("\n".join(str(row[-1]) for row in cursor.fetchall()))

    event.listen(database.engine, "before_cursor_execute", explain)
    try:
        yield collected
    finally:
        event.remove(database.engine, "before_cursor_execute", explain)


@pytest.fixture
def protected(postgres_server: PostgresServer) -> Iterator[tuple[Database, Database]]:
    """An orders database with row-level security, as its owner sees it, and as the role of the API does."""
    url = postgres_server.new_database("orders")
    owner = Database(url)
    SCHEMA.upgrade(owner)
    with owner.write() as tx:
        for role in (API, CONSOLE):
            tx.execute(text(f"CREATE ROLE {role} LOGIN PASSWORD '{role}'"))
        tx.execute(text(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {API}"))
        for statement in row_security.protection(
            ["orders", "order_items", "order_labels", "order_status_changes", "order_buyer_limits"],
            api=API,
            console=CONSOLE,
        ):
            tx.execute(text(statement))
    api = Database(make_url(url).set(username=API, password=API))
    yield owner, api
    api.close()
    with owner.write() as tx:
        for role in (API, CONSOLE):
            tx.execute(text(f"DROP OWNED BY {role}"))
            tx.execute(text(f"DROP ROLE {role}"))
    owner.close()
    postgres_server.drop_database(url)


@pytest.fixture
def truncated(database: Database) -> Iterator[Database]:
    """The orders database, emptied without a check of the foreign keys of each of the many orders."""
    yield database
    if not database.is_sqlite:
        names = ", ".join(table.name for table in tables.metadata.sorted_tables)
        database.transact(lambda tx: tx.execute(text(f"TRUNCATE {names}")))


@pytest.mark.parametrize("is_analyzed", [False, True])
def test_orders_of_many_tenants_are_found_by_index(truncated: Database, *, is_analyzed: bool) -> None:
    filled = fill(truncated)
    if is_analyzed:
        truncated.transact(lambda tx: tx.execute(text("ANALYZE")))

    check_plans(truncated, filled)


@pytest.mark.parametrize("is_analyzed", [False, True])
def test_row_level_security_keeps_the_indexes_in_use(
    protected: tuple[Database, Database], *, is_analyzed: bool
) -> None:
    owner, api = protected
    filled = fill(owner)
    if is_analyzed:
        owner.transact(lambda tx: tx.execute(text("ANALYZE")))

    check_plans(api, filled)


def check_plans(database: Database, filled: list[Order]) -> None:
    """Read and change a batch of orders of all tenants, and list those of one. No statement scans a whole table."""
    batch = [order.key for order in filled[:300]]
    with plans(database) as collected:
        for keys in (batch[:1], batch):
            tenants = row_security.of(keys)
            with database.read(tenants) as tx:
                assert orders.load(tx, keys).keys() == set(keys)
                assert orders.statuses(tx, keys).keys() == set(keys)
                assert orders.count_lines(tx, keys).keys() == set(keys)
            with database.write(tenants) as tx:
                locked = orders.lock(tx, keys)
                for key in keys:
                    locked.change_status(key, Status.CANCELLED, "", None)
                locked.save(tx)
        with database.read(row_security.of(LISTS)) as tx:
            for each in LISTS:
                order_lists.list_page(tx, PageRequest("orders", each, None, 10))
        for some in (filled[:1], filled[:300]):
            wanted = [purchase(each) for each in some]
            keys = [each.key for each in some]
            with database.read(row_security.of(keys)) as tx:
                buyer_limits.bought(tx, wanted)
                assert buyer_limits.of(tx, keys).keys() == set(keys)

    full_scans = (
        ("SCAN orders", "SCAN order_items", "SCAN order_labels", "SCAN order_buyer_limits")
        if database.is_sqlite
        else ("Seq Scan",)
    )
    assert [plan for plan in collected if any(scan in plan for scan in full_scans)] == []
