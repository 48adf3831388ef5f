"""What may come right by itself is waited for: alive, not ready, with the reason in the log, once."""

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
    NOBODY,
    SCHEMAS,
    START_SECONDS,
    Start,
    complaints,
    migrate,
    starting,
)

ATTEMPTS = 4


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with starting(tmp_path) as start:
        yield start


@pytest.fixture
def role(postgres_server: PostgresServer) -> Iterator[Callable[[str], str]]:
    """Makes a database, and a user whose password is yet to be set: the URL with the password that it will be."""
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
def test_a_password_that_is_not_yet_right_is_waited_for(
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
def test_a_database_whose_host_is_unknown_is_waited_for(start: Start, name: str, embedded_broker: Kafka) -> None:
    settings = {
        DATABASE_SETTING[name]: f"postgresql://shop:hunter2@{NOBODY}/shop",
        "KAFKA_BOOTSTRAP_SERVERS": embedded_broker.bootstrap,
    }

    process = start(name, settings)

    assert_waits(process, f"failed to resolve host '{NOBODY}'")
    assert "hunter2" not in process.log


@pytest.mark.parametrize("name", DATABASE_SETTING)
def test_a_database_that_is_away_is_told_of_once_however_often_it_is_looked_for(
    start: Start, name: str, embedded_broker: Kafka
) -> None:
    with Slammed() as database:
        settings = {
            DATABASE_SETTING[name]: f"postgresql://shop:hunter2@{database.address}/shop",
            "KAFKA_BOOTSTRAP_SERVERS": embedded_broker.bootstrap,
        }
        process = start(name, settings)
        process.wait_ready(START_SECONDS, "liveness")
        eventually(lambda: complaints(process) != [])
        database.wait_for_attempts()

    assert not process.is_ready()
    (complaint,) = complaints(process)
    assert "server closed the connection" in json.dumps(complaint)


def test_a_broker_that_is_away_is_told_of_once_and_keeps_the_relay_from_being_ready(
    start: Start, tmp_path: Path
) -> None:
    database_url = f"sqlite:///{tmp_path}/orders.db"
    migrate(SCHEMAS[ORDER_API], database_url)
    with Slammed() as broker:
        settings = {"ORDERS_DATABASE_URL": database_url, "KAFKA_BOOTSTRAP_SERVERS": broker.address}
        relay = start(RELAY, settings)
        relay.wait_ready(START_SECONDS, "liveness")
        eventually(lambda: complaints(relay) != [])
        broker.wait_for_attempts()

    assert not relay.is_ready()
    (complaint,) = complaints(relay)
    assert complaint["kind"] == "BrokerAway"


@pytest.mark.parametrize("name", SCHEMAS)
def test_without_a_broker_an_api_serves_and_says_once_that_no_events_come(
    start: Start, tmp_path: Path, name: str
) -> None:
    database_url = f"sqlite:///{tmp_path}/shop.db"
    migrate(SCHEMAS[name], database_url)
    with Slammed() as broker:
        api = start(name, {"DATABASE_URL": database_url, "KAFKA_BOOTSTRAP_SERVERS": broker.address})
        api.wait_ready(START_SECONDS)
        eventually(lambda: complaints(api) != [])
        broker.wait_for_attempts()

    api.wait_ready(START_SECONDS)
    (complaint,) = complaints(api)
    assert complaint["event"] == "no events from the broker"


def test_a_reaper_waits_for_the_apis_and_names_each_task_once(start: Start) -> None:
    with Slammed() as apis:
        settings = {"INVENTORY_TARGET": apis.address, "ORDER_TARGET": apis.address, "REAP_INTERVAL_SECONDS": "0.05"}
        reaper = start(REAPER, settings)
        reaper.wait_ready(START_SECONDS, "liveness")
        eventually(lambda: len(complaints(reaper)) == 4)
        apis.wait_for_attempts()

    assert not reaper.is_ready()
    tasks = [line["task"] for line in complaints(reaper)]
    assert sorted(tasks) == ["cancel-abandoned-orders", "expire-reservations", "purge-inventory", "purge-orders"]


class Slammed:
    """A server that closes each connection as soon as it is made, and counts them."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.attempts = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> "Slammed":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def wait_for_attempts(self) -> None:
        """Until someone who is here now has tried again several times."""
        until = self.attempts + ATTEMPTS
        eventually(lambda: self.attempts >= until)

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
    """It lives, is not ready, and its log says why, once."""
    process.wait_ready(START_SECONDS, "liveness")
    process.wait_for_line(reason, START_SECONDS)
    assert not process.is_ready()
    assert process.log.count(reason) == 1
