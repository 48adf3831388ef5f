"""A migrated orders database of each kind, and the real inventory-api, shared by all tests."""

import sys
from collections.abc import Iterator

import pytest
import structlog

from devstack.ports import free_ports
from devstack.process import Process
from order_api.migrations import SCHEMA
from order_api.store import tables
from shop_common.db.database import Database
from testkit.drivers.order_api import InventoryClient, OrderApiDriver

# By default structlog prints all local variables of a traceback, which takes seconds.
structlog.configure(processors=[structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)])


@pytest.fixture(scope="session")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InventoryClient]:
    """A client of the real inventory-api. Tests share it, and each uses its own products."""
    (port,) = free_ports(1)
    environment = {
        "DATABASE_URL": f"sqlite:///{tmp_path_factory.mktemp('inventory')}/inventory.db",
        "GRPC_PORT": str(port),
        "HEALTH_PORT": "0",
        "CONSUMER_ENABLED": "false",
        "DRAIN_SECONDS": "0",
    }
    program = [sys.executable, "-m", "inventory_api"]
    assert Process("migration", [*program, "migrate"], environment).start().wait(30) == 0
    process = Process("inventory-api", program, environment, health_address=f"localhost:{port}").start()
    try:
        process.wait_ready(30)
        with InventoryClient.at(f"localhost:{port}") as opened:
            yield opened
    finally:
        process.stop()


@pytest.fixture(scope="session")
def orders_database(
    database_kind: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Database]:
    """A migrated orders database that all tests share: a migration takes longer than most tests."""
    if database_kind == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('orders')}/orders.db"
    else:
        url = request.getfixturevalue("postgres_server").new_database("orders")
    database = Database(url)
    SCHEMA.upgrade(database)
    yield database
    database.close()


@pytest.fixture
def database(orders_database: Database) -> Database:
    """The orders database, emptied."""
    with orders_database.write() as tx:
        for table in reversed(tables.metadata.sorted_tables):
            tx.execute(table.delete())
    return orders_database


@pytest.fixture
def driver(database: Database, stock: InventoryClient) -> Iterator[OrderApiDriver]:
    """OrderService, served by this process over gRPC, with the real inventory-api behind it."""
    with OrderApiDriver.serving(database, stock.address) as opened:
        yield opened
