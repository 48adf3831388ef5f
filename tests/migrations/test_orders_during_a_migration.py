"""The release before tenants creates orders while the tables get their tenant. None of its transactions fails."""

import threading
from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, text

from devstack.postgres import PostgresServer
from order_api.migrations import SCHEMA
from shop_common.db.database import Database

ORDERS = 50_000
WRITERS = 4

INSERT_ORDERS = (
    "INSERT INTO orders (id, user_id, total_amount, currency, status, status_reason, reserved_until, version,"
    " created_at, updated_at) SELECT gen_random_uuid(), 1 + n % 1000, 1, 'EUR', 'PENDING', '', now(), 1, now(), now()"
    " FROM generate_series(1, :count) n RETURNING id"
)
INSERT_LINES = "INSERT INTO order_items (order_id, product_id, quantity, price) SELECT id, 1, 1, 1 FROM orders"
CONFIRM = (
    "SELECT id, status FROM orders WHERE id = :id FOR UPDATE",
    "SELECT id, product_id, quantity FROM order_items WHERE order_id = :id",
    "UPDATE orders SET status = 'CONFIRMED', version = 2 WHERE id = :id",
)


@pytest.fixture
def database(postgres_server: PostgresServer) -> Iterator[Database]:
    """The orders database of the release before tenants, with rows."""
    url = postgres_server.new_database("orders")
    database = Database(url)
    SCHEMA.upgrade(database, to="0002")
    with database.write("; SET LOCAL statement_timeout = 0") as tx:
        tx.execute(text(INSERT_ORDERS), {"count": ORDERS})
        tx.execute(text(INSERT_LINES))
    yield database
    database.close()
    postgres_server.drop_database(url)


def create_and_confirm(tx: Connection) -> None:
    """Does in one transaction what the previous release does for an order."""
    order = {"id": tx.execute(text(INSERT_ORDERS), {"count": 1}).scalar_one()}
    for statement in (f"{INSERT_LINES} WHERE id = :id", *CONFIRM):
        tx.execute(text(statement), order)


def test_the_release_before_creates_orders_while_the_tenant_is_added(database: Database) -> None:
    is_over = threading.Event()
    created: list[int] = []
    failures: list[Exception] = []

    def write() -> None:
        count = 0
        while not is_over.is_set():
            try:
                with database.write() as tx:  # no retry: a deadlock or a lock timeout is a failure
                    create_and_confirm(tx)
                count += 1
            except Exception as error:
                failures.append(error)
                return
        created.append(count)

    writers = [threading.Thread(target=write) for _ in range(WRITERS)]
    for writer in writers:
        writer.start()
    try:
        SCHEMA.upgrade(database)
    finally:
        is_over.set()
        for writer in writers:
            writer.join()

    assert failures == []
    assert min(created) > 0
    assert SCHEMA.drift(database) == []
    with database.read() as tx:
        found = tx.execute(text("SELECT count(*), count(*) FILTER (WHERE tenant = 'default') FROM order_items")).one()
        valid = tx.execute(text("SELECT bool_and(convalidated AND indisvalid) FROM pg_constraint, pg_index")).one()
    assert tuple(found) == (ORDERS + sum(created),) * 2
    assert valid == (True,)
