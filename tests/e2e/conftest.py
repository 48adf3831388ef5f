"""The running system under test: started once for each kind of database. Tests use it through gRPC and Kafka only."""

from collections.abc import Iterator

import pytest

from devstack.kafka import Kafka
from devstack.postgres import PostgresServer
from devstack.stack import Databases, Options, Stack
from shopctl.system.layout import RELAY
from tests.e2e.shop_driver import ShopDriver


@pytest.fixture(scope="session")
def database_server(database_kind: str, request: pytest.FixtureRequest) -> PostgresServer | None:
    """The PostgreSQL server under test, None with SQLite."""
    if database_kind == "sqlite":
        return None
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return server


@pytest.fixture(scope="session")
def stack(
    database_server: PostgresServer | None, kafka: Kafka, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """The four processes, on SQLite files or on PostgreSQL."""
    if database_server is None:
        databases = Databases.in_folder(tmp_path_factory.mktemp("data"))
    else:
        databases = Databases.on_server(database_server)
    # The shards of a killed relay wait until its lease expires. A short lease keeps the tests short.
    options = Options(per_process={RELAY: {"LEASE_SECONDS": "3"}})
    with Stack(databases, kafka, options=options) as running:
        yield running
        assert set(running.stop().values()) == {0}, "every process exits with 0 on SIGTERM"


@pytest.fixture
def shop(stack: Stack) -> Iterator[ShopDriver]:
    """The driver of a system whose processes are all ready before the test and alive after it."""
    with ShopDriver.connect(stack) as opened:
        opened.wait_ready()
        yield opened
    for process in stack.processes:
        assert process.alive, f"{process.name} ended during the test\n{process.tail()}"
