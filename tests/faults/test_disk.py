"""PostgreSQL's disk fills up, it may crash, and then there is space again."""

from collections.abc import Iterator

import psycopg
import pytest

from devstack.kafka import Kafka
from devstack.postgres import PostgresServer
from devstack.servers.containers import Container
from devstack.stack import Databases
from tests.faults.clients import Clients
from tests.faults.containers import SmallDisk, postgres_on_a_small_disk
from tests.faults.system import running
from tests.faults.test_database import plain

pytestmark = [pytest.mark.timeout(500), pytest.mark.usefixtures("docker_engine")]

FULL_SECONDS = 90
READY_SECONDS = 60
Small = tuple[PostgresServer, SmallDisk, Container]


@pytest.fixture(scope="module")
def small(docker_engine: str) -> Iterator[Small]:
    with postgres_on_a_small_disk() as server:
        yield server


@pytest.mark.parametrize("affected", ["tables", pytest.param("log", marks=pytest.mark.short)])
def test_postgresql_has_no_disk_space(small: Small, own_broker: Kafka, seed: int, affected: str) -> None:
    server, disk, container = small
    with (
        running(Databases.on_server(server), own_broker) as system,
        system.history(seed) as clients,
        clients.working(count=12, pause_seconds=0),
    ):
        clients.wait_for(20)
        unknown = clients.call_log.count("unknown")
        if affected == "log":
            system.eventually(
                lambda: crashes(server, disk), FULL_SECONDS, "it crashes when there is no space for its log"
            )
        system.eventually(
            lambda: calls_fail(disk, clients, more_than=unknown + 5), FULL_SECONDS, "calls fail when the disk is full"
        )
        clients.wait_for_attempts(30)
        disk.clear()
        system.eventually(lambda: runs_again(server, container), FULL_SECONDS, "it runs again when there is space")
        system.wait_ready()
        clients.wait_for(60)


def crashes(server: PostgresServer, disk: SmallDisk) -> bool:
    """Fill the disk and make the server write a new log segment. True if it crashed."""
    disk.fill()
    try:
        with psycopg.connect(plain(server.url), autocommit=True, connect_timeout=5) as connection:
            connection.execute("SELECT pg_switch_wal()")
    except psycopg.OperationalError:
        return True
    return False


def runs_again(server: PostgresServer, container: Container) -> bool:
    """True if the server accepts a connection. Start its container again if that has exited.

    A server that finds no space while it recovers from a crash exits. It may notice that only after there is space.
    """
    if not container.alive:
        container.start_again()
    try:
        psycopg.connect(plain(server.url), connect_timeout=5).close()
    except psycopg.OperationalError:
        return False
    return True


def calls_fail(disk: SmallDisk, clients: Clients, more_than: int) -> bool:
    """Fill the disk. Return whether more than `more_than` calls have an unknown outcome.

    The calls do not fail at once, because tables have free space inside.
    """
    disk.fill()
    return clients.call_log.count("unknown") > more_than
