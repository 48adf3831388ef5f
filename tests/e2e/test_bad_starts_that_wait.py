"""A process whose database, broker or APIs are unavailable waits: it is alive, not ready, and logs the reason once."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url

from devstack.kafka import Kafka
from devstack.postgres import PostgresServer
from devstack.process import Process
from shopctl.system.layout import ORDER_API, REAPER, RELAY
from testkit.eventually import eventually
from tests.e2e.starts import (
    DATABASE_SETTING,
    SCHEMAS,
    START_SECONDS,
    UNKNOWN_HOST,
    Start,
    migrate,
    starting,
    warnings,
)

ATTEMPTS = 4


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with starting(tmp_path) as start:
        yield start


@pytest.fixture
def role(postgres_server: PostgresServer) -> Iterator[Callable[[str], str]]:
    """Creates a database and a user. Returns a URL whose password the server refuses until the test sets it."""
    with ExitStack() as after_the_test:
        urls: list[str] = []

        def make(prefix: str) -> str:
            admin = make_url(postgres_server.new_database(prefix))
            after_the_test.callback(postgres_server.drop_database, admin.render_as_string(hide_password=False))
            execute(postgres_server, f"CREATE ROLE {admin.database}_user LOGIN SUPERUSER PASSWORD 'as it was before'")
            after_the_test.callback(execute, postgres_server, f"DROP ROLE {admin.database}_user")
            urls.append(admin.set(username=f"{admin.database}_user", password="hunter2").render_as_string(False))
            return urls[-1]

        yield make


@pytest.mark.parametrize("name", DATABASE_SETTING)
def test_a_process_waits_until_its_password_is_accepted(
    start: Start, postgres_server: PostgresServer, role: Callable[[str], str], best_broker: Kafka, name: str
) -> None:
    url = role("shop")
    user = make_url(url).username
    admin = make_url(url).set(username=make_url(postgres_server.url).username)
    admin = admin.set(password=make_url(postgres_server.url).password)
    migrate(SCHEMAS.get(name, SCHEMAS[ORDER_API]), admin.render_as_string(hide_password=False))

    process = start(name, {DATABASE_SETTING[name]: url, "KAFKA_BOOTSTRAP_SERVERS": best_broker.bootstrap})
    assert_waits(process, f'password authentication failed for user \\"{user}\\"')
    execute(postgres_server, f"ALTER ROLE {user} PASSWORD 'hunter2'")

    process.wait_ready(START_SECONDS)
    assert "hunter2" not in process.log


@pytest.mark.parametrize("name", DATABASE_SETTING)
def test_a_process_waits_for_a_database_whose_host_does_not_resolve(
    start: Start, name: str, embedded_broker: Kafka
) -> None:
    settings = {
        DATABASE_SETTING[name]: f"postgresql://shop:hunter2@{UNKNOWN_HOST}/shop",
        "KAFKA_BOOTSTRAP_SERVERS": embedded_broker.bootstrap,
    }

    process = start(name, settings)

    assert_waits(process, f"failed to resolve host '{UNKNOWN_HOST}'")
    assert "hunter2" not in process.log


@pytest.mark.parametrize("name", DATABASE_SETTING)
def test_an_unavailable_database_is_logged_once_however_often_the_process_retries(
    start: Start, name: str, embedded_broker: Kafka
) -> None:
    with ClosingServer() as database:
        settings = {
            DATABASE_SETTING[name]: f"postgresql://shop:hunter2@{database.address}/shop",
            "KAFKA_BOOTSTRAP_SERVERS": embedded_broker.bootstrap,
        }
        process = start(name, settings)
        process.wait_ready(START_SECONDS, "liveness")
        eventually(lambda: warnings(process) != [])
        database.wait_for_attempts()

    assert not process.is_ready()
    (warning,) = warnings(process)
    assert "server closed the connection" in json.dumps(warning)


def test_an_unavailable_broker_is_logged_once_and_makes_the_relay_not_ready(start: Start, tmp_path: Path) -> None:
    database_url = f"sqlite:///{tmp_path}/orders.db"
    migrate(SCHEMAS[ORDER_API], database_url)
    with ClosingServer() as broker:
        settings = {"ORDERS_DATABASE_URL": database_url, "KAFKA_BOOTSTRAP_SERVERS": broker.address}
        relay = start(RELAY, settings)
        relay.wait_ready(START_SECONDS, "liveness")
        eventually(lambda: warnings(relay) != [])
        broker.wait_for_attempts()

    assert not relay.is_ready()
    (warning,) = warnings(relay)
    assert warning["kind"] == "BrokerAway"


@pytest.mark.parametrize("name", SCHEMAS)
def test_without_a_broker_an_api_serves_and_logs_once_that_no_events_arrive(
    start: Start, tmp_path: Path, name: str
) -> None:
    database_url = f"sqlite:///{tmp_path}/shop.db"
    migrate(SCHEMAS[name], database_url)
    with ClosingServer() as broker:
        api = start(name, {"DATABASE_URL": database_url, "KAFKA_BOOTSTRAP_SERVERS": broker.address})
        api.wait_ready(START_SECONDS)
        eventually(lambda: warnings(api) != [])
        broker.wait_for_attempts()

    api.wait_ready(START_SECONDS)
    (warning,) = warnings(api)
    assert warning["event"] == "no events from the broker"


def test_the_reaper_waits_for_the_apis_and_logs_each_failing_task_once(start: Start) -> None:
    with ClosingServer() as apis:
        settings = {"INVENTORY_TARGET": apis.address, "ORDER_TARGET": apis.address, "REAP_INTERVAL_SECONDS": "0.05"}
        reaper = start(REAPER, settings)
        reaper.wait_ready(START_SECONDS, "liveness")
        eventually(lambda: len(warnings(reaper)) == 6)
        apis.wait_for_attempts()

    assert not reaper.is_ready()
    tasks = [line["task"] for line in warnings(reaper)]
    assert sorted(tasks) == [
        "cancel-abandoned-orders", "expire-reservations", "purge-inventory", "purge-orders", "reconcile-orders",
        "verify-stock",
    ]  # fmt: skip


class ClosingServer:
    """A server that counts connections and closes each as soon as it is accepted."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.attempts = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> "ClosingServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def wait_for_attempts(self) -> None:
        """Wait for several more connections."""
        target = self.attempts + ATTEMPTS
        eventually(lambda: self.attempts >= target)

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                self._listener.accept()[0].close()
                self.attempts += 1


def execute(server: PostgresServer, statement: str) -> None:
    plain = make_url(server.url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute(statement)


def assert_waits(process: Process, reason: str) -> None:
    """Check that the process is alive, not ready, and has logged the reason once."""
    process.wait_ready(START_SECONDS, "liveness")
    process.wait_for_line(reason, START_SECONDS)
    assert not process.is_ready()
    assert process.log.count(reason) == 1
