"""A migrated inventory database of each kind, shared by all tests and emptied before each."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from inventory_api.migrations import SCHEMA
from inventory_api.operations.coalescing import Operations
from shop_common.db.database import Database
from testkit.drivers.inventory_api import TTL_SECONDS, InventoryDriver, empty


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
    """A migrated database that all tests share, so that migrations run and connections open only once."""
    database = Database(inventory_url)
    SCHEMA.upgrade(database)
    yield database
    database.close()


@pytest.fixture
def database(migrated: Database) -> Database:
    """The migrated database, emptied."""
    empty(migrated)
    return migrated


@pytest.fixture
def start_operations() -> Iterator[Callable[[Database], Operations]]:
    """Starts the operations of one process. The test fails if a thread of theirs dies."""
    with ExitStack() as after_the_test:
        fatal_errors: list[str] = []

        def check() -> None:
            assert fatal_errors == []

        after_the_test.callback(check)

        def start(database: Database) -> Operations:
            operations = Operations(
                database,
                ttl_seconds=TTL_SECONDS,
                on_fatal=lambda reason, error: fatal_errors.append(f"{reason}: {error!r}"),
            )
            after_the_test.callback(operations.close)
            return operations

        yield start


@pytest.fixture
def operations(database: Database, start_operations: Callable[[Database], Operations]) -> Operations:
    return start_operations(database)


@pytest.fixture
def inventory(database: Database, operations: Operations) -> Iterator[InventoryDriver]:
    """The inventory as callers see it. After each test, its counters and events must be consistent."""
    inventory = InventoryDriver(database, operations)
    yield inventory
    inventory.check_consistency()


@pytest.fixture
def second_process(
    inventory_url: str, database: Database, start_operations: Callable[[Database], Operations]
) -> Iterator[InventoryDriver]:
    """A second process on the same database, with its own connections, queues and locks."""
    other = Database(inventory_url)
    yield InventoryDriver(other, start_operations(other))
    other.close()
