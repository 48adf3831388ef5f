"""PostgreSQL aborts transactions that have to be retried, and has no free connections."""

from collections.abc import Iterator
from contextlib import ExitStack

import psycopg
import pytest
from sqlalchemy.engine import make_url

from devstack.kafka import Kafka
from devstack.postgres import PostgresServer
from devstack.stack import Databases
from tests.faults.system import System, running

pytestmark = pytest.mark.timeout(400)

CONNECTIONS_MAX = 500
NO_RESPONSE_SECONDS = 60

# A third of all transactions that write an event fail, with one of the two errors that require a retry.
_INJECT = """
CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF random() < 0.33 THEN
        RAISE EXCEPTION 'injected' USING ERRCODE = CASE WHEN random() < 0.5 THEN '40001' ELSE '40P01' END;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER injected BEFORE INSERT ON outbox FOR EACH STATEMENT EXECUTE FUNCTION fail();
"""
_REMOVE = "DROP TRIGGER injected ON outbox; DROP FUNCTION fail()"


@pytest.fixture(scope="module")
def system(postgres_server: PostgresServer, own_broker: Kafka) -> Iterator[System]:
    with running(Databases.on_server(postgres_server), own_broker) as system:
        yield system


@pytest.mark.short
def test_serialization_failures_and_deadlocks(system: System, seed: int) -> None:
    databases = system.stacks[0].databases
    with system.history(seed, fault_free=True) as clients, clients.working():
        clients.wait_for(20)
        execute(databases, _INJECT)
        clients.wait_for(150)
        execute(databases, _REMOVE)
    refusals = {reason for call in clients.call_log.calls for reason in call.refusals}
    assert "CONTENTION" in refusals, f"seed {seed}: no call failed three times, so nothing was injected"


def test_no_connection_left(system: System, postgres_server: PostgresServer, seed: int) -> None:
    with system.history(seed) as clients, clients.working():
        clients.wait_for(20)
        with ExitStack() as taken:
            take_all_connections(postgres_server, taken)
            unknown = clients.call_log.count("unknown")
            clients.wait_for_attempts(30)
            system.eventually(
                lambda: clients.call_log.count("unknown") > unknown, NO_RESPONSE_SECONDS, "a call gets no response"
            )
        clients.wait_for(40)


def execute(databases: Databases, statements: str) -> None:
    for url in (databases.inventory, databases.orders):
        with psycopg.connect(plain(url)) as connection:
            connection.execute(statements)


def take_all_connections(server: PostgresServer, taken: ExitStack) -> None:
    """Terminate all other connections and take their places, until all connections of the server are ours."""
    mine: list[psycopg.Connection] = []

    def take() -> bool:
        try:
            mine.append(taken.enter_context(psycopg.connect(plain(server.url), autocommit=True)))
        except psycopg.OperationalError:
            return False
        return True

    assert take(), "no connection is free"
    others = 1
    while others:
        while len(mine) < CONNECTIONS_MAX and take():
            pass
        pids = [connection.info.backend_pid for connection in mine]
        terminated = mine[0].execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND NOT pid = ANY (%s)",
            [pids],
        )
        others = len(terminated.fetchall())


def plain(url: str) -> str:
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
