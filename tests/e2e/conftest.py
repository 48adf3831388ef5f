"""The running system under test: started once for each kind of database, spoken to by gRPC and Kafka only."""

from collections.abc import Iterator

import pytest

from devstack.kafka import Kafka
from devstack.postgres import PostgresServer
from devstack.stack import Databases, Options, Stack
from shopctl.system.layout import RELAY
from tests.e2e.shop_driver import ShopDriver


@pytest.fixture(scope="session")
def database_server(database_kind: str, request: pytest.FixtureRequest) -> PostgresServer | None:
    """The PostgreSQL under test, None when it is SQLite."""
    if database_kind == "sqlite":
        return None
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return server


@pytest.fixture(scope="session")
def stack(
    database_server: PostgresServer | None, kafka: Kafka, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """The four processes, on SQLite files and then on PostgreSQL."""
    if database_server is None:
        databases = Databases.in_folder(tmp_path_factory.mktemp("data"))
    else:
        databases = Databases.on_server(database_server)
    # A killed relay's shards wait for its lease to run out; tests need not wait as long as a real outage may take.
    options = Options(per_process={RELAY: {"LEASE_SECONDS": "3"}})
    with Stack(databases, kafka, options=options) as running:
        yield running
        assert set(running.stop().values()) == {0}, "each process ends well when it is asked to"


@pytest.fixture
def shop(stack: Stack) -> Iterator[ShopDriver]:
    """A shop in which everything runs, before the test and after it."""
    with ShopDriver.connect(stack) as opened:
        opened.wait_ready()
        yield opened
    for process in stack.processes:
        assert process.alive, f"{process.name} ended during the test\n{process.tail()}"
