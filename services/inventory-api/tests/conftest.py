"""A migrated inventory database of each kind, one for all tests and emptied before each."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from inventory_api.migrations import SCHEMA
from inventory_api.operations.coalescing import Operations
from shop_common.db.database import Database

# The tests' own driver lies beside them, in folders that are no packages.
sys.path.append(str(Path(__file__).parent))

from stockroom import TTL_SECONDS, Stockroom, empty


@pytest.fixture(scope="session")
def inventory_url(
    database_kind: str, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[str]:
    with ExitStack() as at_the_end:
        if database_kind == "sqlite":
            url = f"sqlite:///{tmp_path_factory.mktemp('inventory') / 'inventory.db'}"
        else:
            server = request.getfixturevalue("postgres_server")
            url = server.new_database("inventory")
            at_the_end.callback(server.drop_database, url)
        yield url


@pytest.fixture(scope="session")
def migrated(inventory_url: str) -> Iterator[Database]:
    """Shared by all tests, so that its connections are made once."""
    database = Database(inventory_url)
    SCHEMA.upgrade(database)
    yield database
    database.close()


@pytest.fixture
def database(migrated: Database) -> Database:
    """Migrated and empty."""
    empty(migrated)
    return migrated


@pytest.fixture
def open_for_business() -> Iterator[Callable[[Database], Operations]]:
    """Opens the operations of one process; a flusher that dies fails the test."""
    with ExitStack() as after_the_test:
        deaths: list[str] = []

        def check() -> None:
            assert deaths == []

        after_the_test.callback(check)

        def start(database: Database) -> Operations:
            operations = Operations(
                database, ttl_seconds=TTL_SECONDS, die=lambda said, error: deaths.append(f"{said}: {error!r}")
            )
            after_the_test.callback(operations.close)
            return operations

        yield start


@pytest.fixture
def operations(database: Database, open_for_business: Callable[[Database], Operations]) -> Operations:
    return open_for_business(database)


@pytest.fixture
def stockroom(database: Database, operations: Operations) -> Iterator[Stockroom]:
    """The inventory as callers see it. After each test its books must balance and its events keep the contract."""
    stockroom = Stockroom(database, operations)
    yield stockroom
    stockroom.audit()


@pytest.fixture
def second_process(
    inventory_url: str, database: Database, open_for_business: Callable[[Database], Operations]
) -> Iterator[Stockroom]:
    """Another process on the same database: connections, queues and locks of its own."""
    other = Database(inventory_url)
    yield Stockroom(other, open_for_business(other))
    other.close()
