"""After a restore, PostgreSQL has no statistics until autovacuum runs. Plans must use indexes until then, too."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import event, text

from devstack.postgres import PostgresServer
from inventory_api.domain.model import Item, OrderSize
from inventory_api.migrations import SCHEMA
from inventory_api.store.reservations import by_order, newest
from shop_common.db.database import Database
from shop_common.identity.tenant import DEFAULT
from testkit.drivers.inventory_api import order_key

ORDERS = [order_key(f"order-{number}") for number in range(64)]

FILL = (
    (
        "INSERT INTO inventory_items"
        " (product_id, location, quantity, reserved_quantity, version, created_at, updated_at)"
        " SELECT n, 'A', 1000000, 0, 1, now(), now() FROM generate_series(1, 100) n"
    ),
    (
        "INSERT INTO stock_reservations (id, product_id, quantity, order_id, state, created_at, expires_at)"
        " SELECT gen_random_uuid(), 1 + n % 100, 1, 'order-' || n / 50, 'HELD', now(), now() + interval '1 day'"
        " FROM generate_series(1, 200000) n"
    ),
    (
        "INSERT INTO reservation_allocations (reservation_id, item_id, quantity)"
        " SELECT r.id, i.id, 1 FROM stock_reservations r JOIN inventory_items i USING (product_id)"
    ),
)


@pytest.fixture
def restored(postgres_server: PostgresServer) -> Iterator[Database]:
    """A database with 4,000 orders that was never analyzed."""
    url = postgres_server.new_database("restored")
    database = Database(url)
    SCHEMA.upgrade(database)
    with database.write("; SET LOCAL statement_timeout = 0; SET LOCAL session_replication_role = replica") as tx:
        for table in ("stock_reservations", "reservation_allocations"):
            tx.execute(text(f"ALTER TABLE {table} SET (autovacuum_enabled = false)"))
        for statement in FILL:
            tx.execute(text(statement))
    yield database
    database.close()
    postgres_server.drop_database(url)


@pytest.fixture
def plans(restored: Database) -> Iterator[list[str]]:
    """The plans of all statements that the test runs."""
    plans: list[str] = []

    def explain(_connection: object, cursor: Any, statement: str, parameters: Any, *_: object) -> None:
        cursor.execute(f"EXPLAIN {statement}", parameters)
        plans.append("\n".join(line for (line,) in cursor.fetchall()))

    event.listen(restored.engine, "before_cursor_execute", explain)
    yield plans
    event.remove(restored.engine, "before_cursor_execute", explain)


def test_the_reservations_of_orders_are_counted_by_index(restored: Database, plans: list[str]) -> None:
    with restored.read() as tx:
        _, by_size = by_order.sizes(tx, ORDERS)
        overviews = by_order.overviews(tx, ORDERS)
        counted = by_order.count_unreleased(tx, ORDERS)

    assert by_size[ORDERS[1]] == overviews[ORDERS[1]].size == OrderSize(50, 50)
    assert counted[ORDERS[1]] == 50
    assert len(plans) == 3
    assert [plan for plan in plans if "Seq Scan" in plan or "Join" in plan] == []


def test_the_newest_reservations_of_an_item_are_found_by_index(restored: Database, plans: list[str]) -> None:
    timestamp = datetime.now(UTC)
    with restored.read() as tx:
        item_id = tx.execute(text("SELECT id FROM inventory_items WHERE product_id = 8")).scalar_one()
        item = Item(DEFAULT, item_id, 8, "A", 1_000_000, 0, 1, timestamp, timestamp)
        plans.clear()
        found = newest.held(tx, item, 10), newest.confirmed(tx, item, 10)

    assert [len(each) for each in found] == [10, 0]
    assert len(plans) == 4
    assert [plan for plan in plans if "Seq Scan" in plan] == []
