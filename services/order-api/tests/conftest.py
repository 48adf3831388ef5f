import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from devstack.ports import free_ports
from devstack.process import Process

sys.path.append(str(Path(__file__).parent))

from desk import Desk, Stock, migrated

from shop_common.database import Database


@pytest.fixture(scope="session")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stock]:
    """The real inventory-api. Tests share it: each has products of its own."""
    (port,) = free_ports(1)
    environment = {
        "DATABASE_URL": f"sqlite:///{tmp_path_factory.mktemp('inventory')}/inventory.db",
        "GRPC_PORT": str(port),
        "CONSUMER_ENABLED": "false",
        "DRAIN_SECONDS": "0",
    }
    program = [sys.executable, "-m", "inventory_api"]
    assert Process("migration", [*program, "migrate"], environment).start().wait(30) == 0
    process = Process("inventory-api", program, environment, health_address=f"localhost:{port}").start()
    try:
        process.wait_ready(30)
        with Stock.at(f"localhost:{port}") as opened:
            yield opened
    finally:
        process.stop()


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """An empty orders database."""
    opened = migrated(database_url)
    yield opened
    opened.close()


@pytest.fixture
def desk(database: Database, stock: Stock) -> Iterator[Desk]:
    """The API of orders, served by this process over gRPC, before the real inventory-api."""
    with Desk.serving(database, stock.address) as opened:
        yield opened
