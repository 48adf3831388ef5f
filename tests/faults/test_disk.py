"""PostgreSQL has no room left on its disk, crash and all, and then has again."""

from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy.engine import make_url

from devstack.kafka import Kafka
from devstack.postgres import PostgresServer, wait_until_it_answers
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


@pytest.mark.parametrize("what", ["tables", pytest.param("log", marks=pytest.mark.short)])
def test_postgresql_has_no_room_left(small: Small, own_broker: Kafka, seed: int, what: str) -> None:
    server, disk, container = small
    with (
        running(Databases.on_server(server), own_broker) as system,
        system.history(seed) as clients,
        clients.at_work(count=12, pause_seconds=0),
    ):
        clients.wait_for(20)
        silent = clients.call_log.count("unknown")
        if what == "log":
            system.eventually(
                lambda: crashes(server, disk), FULL_SECONDS, "it crashes when there is no room for its log"
            )
        system.eventually(
            lambda: hurts(disk, clients, more_than=silent + 5), FULL_SECONDS, "calls fail when there is no room"
        )
        clients.wait_for_attempts(30)
        disk.clear()
        if not container.alive:
            # A server that finds no room when it comes back from a crash ends.
            container.start_again()
        wait_until_it_answers(make_url(server.url))
        system.wait_ready()
        clients.wait_for(60)


def crashes(server: PostgresServer, disk: SmallDisk) -> bool:
    """Leave no room, and let it ask for some more for its log."""
    disk.fill()
    try:
        with psycopg.connect(plain(server.url), autocommit=True, connect_timeout=5) as connection:
            connection.execute("SELECT pg_switch_wal()")
    except psycopg.OperationalError:
        return True
    return False


def hurts(disk: SmallDisk, clients: Clients, more_than: int) -> bool:
    """Leave no room: what is written into the room inside of tables still fits, for a while."""
    disk.fill()
    return clients.call_log.count("unknown") > more_than
