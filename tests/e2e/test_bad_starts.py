"""A process that cannot start exits with a message that names the reason and the remedy.

A process whose dependencies may still become available waits instead: see test_bad_starts_that_wait.
"""

import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import make_url, text

from devstack.kafka import Kafka
from devstack.postgres import PostgresServer
from devstack.process import Process
from shop_common.db.database import Database
from shopctl.system.layout import INVENTORY_API, ORDER_API, REAPER, RELAY
from tests.e2e.starts import (
    DATABASE_SETTING,
    PORT_SETTING,
    SCHEMAS,
    START_SECONDS,
    UNKNOWN_HOST,
    Start,
    migrate,
    starting,
)

WRONG_SETTINGS = 2
REFUSED = 1


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with starting(tmp_path) as start:
        yield start


def assert_refused(process: Process, exit_code: int, *sentences: str) -> None:
    """Check that the process exited with this code and printed these lines and no others."""
    assert process.wait(START_SECONDS) == exit_code, process.tail()
    lines = process.log.splitlines()
    assert len(lines) == len(sentences), process.tail()
    for sentence in sentences:
        assert len([line for line in lines if sentence in line]) == 1, sentence


HEADING = "These settings are wrong; correct them in the environment, or see --help:"

WRONG = {
    INVENTORY_API: {
        "DATABASE_URL": ("mysql://shop:hunter2@db/shop", "DATABASE_URL: must be sqlite:///PATH or postgresql://"),
        "DATABASE_PASSWORD_FILE": ("/nowhere/password", "DATABASE_PASSWORD_FILE: cannot read '/nowhere/password'"),
        "KAFKA_BOOTSTRAP_SERVERS": ("kafka", "KAFKA_BOOTSTRAP_SERVERS: must be HOST:PORT"),
        "RESERVATION_TTL": ("0", "RESERVATION_TTL: must be greater than or equal to 1"),
    },
    ORDER_API: {
        "DATABASE_URL": ("postgresql://shop:hunter2@db:port/shop", "DATABASE_URL: must be sqlite:///PATH or"),
        "DATABASE_PASSWORD_FILE": ("/", "DATABASE_PASSWORD_FILE: cannot read '/': Is a directory"),
        "INVENTORY_TARGET": ("http://inventory-api", "INVENTORY_TARGET: must be HOST:PORT"),
    },
    REAPER: {
        "INVENTORY_TARGET_FILE": ("/nowhere/target", "INVENTORY_TARGET_FILE: cannot read '/nowhere/target'"),
        "ORDER_TARGET": ("order-api", "ORDER_TARGET: must be HOST:PORT"),
        "PURGE_CRON": ("0 3 * * 0", "PURGE_CRON: must name weekdays"),
    },
    RELAY: {
        "INVENTORY_DATABASE_URL": ("hunter2", "INVENTORY_DATABASE_URL: must be sqlite:///PATH or"),
        "ORDERS_DATABASE_PASSWORD_FILE": ("/nowhere/password", "ORDERS_DATABASE_PASSWORD_FILE: cannot read"),
    },
}

CONTRADICTIONS = [
    (INVENTORY_API, {"GRPC_PORT": "0", "WORKERS": "2"}, "WORKERS: must be 1 with GRPC_PORT 0"),
    (INVENTORY_API, {"DATABASE_PASSWORD": "hunter2"}, "DATABASE_URL: must be a PostgreSQL URL"),
    (ORDER_API, {"GRPC_PORT": "9464", "METRICS_PORT": "9464"}, "METRICS_PORT: must differ from GRPC_PORT"),
    (ORDER_API, {"GRACE_SECONDS": "1"}, "GRACE_SECONDS: must not be less than INVENTORY_CALL_SECONDS (5)"),
    (REAPER, {"HEALTH_PORT": "9464", "METRICS_PORT": "9464"}, "METRICS_PORT: must differ from HEALTH_PORT"),
    (
        REAPER,
        {"PURGE_CRON": "0 3 * * *", "PURGE_INTERVAL_SECONDS": "60"},
        "PURGE_CRON: must not be set together with PURGE_",
    ),
    (RELAY, {}, "ORDERS_DATABASE_URL: must be set, or INVENTORY_DATABASE_URL: there is nothing to ship"),
    (
        RELAY,
        {"INVENTORY_DATABASE_URL": "sqlite:///one.db", "ORDERS_DATABASE_URL": "sqlite:///one.db"},
        "ORDERS_DATABASE_URL: must be another database than INVENTORY_DATABASE_URL",
    ),
    (
        RELAY,
        {"ORDERS_DATABASE_URL": "sqlite:///one.db", "INVENTORY_DATABASE_PASSWORD": "hunter2"},
        "INVENTORY_DATABASE_PASSWORD: is set without INVENTORY_DATABASE_URL",
    ),
    (
        RELAY,
        {"ORDERS_DATABASE_URL": "sqlite:///one.db", "POLL_SECONDS": "2"},
        "POLL_SECONDS: must be at most a tenth of LEASE_SECONDS (10)",
    ),
]


@pytest.mark.parametrize("name", WRONG)
def test_all_wrong_settings_are_reported_at_once_without_secrets(start: Start, name: str) -> None:
    wrong = WRONG[name]

    process = start(name, {setting: value for setting, (value, _) in wrong.items()})

    assert_refused(process, WRONG_SETTINGS, HEADING, *(message for _, message in wrong.values()))
    assert "hunter2" not in process.log


@pytest.mark.parametrize(("name", "settings", "message"), CONTRADICTIONS)
def test_settings_that_contradict_each_other_are_refused(
    start: Start, name: str, settings: dict[str, str], message: str
) -> None:
    process = start(name, settings)

    assert_refused(process, WRONG_SETTINGS, HEADING, message)
    assert "hunter2" not in process.log


@pytest.mark.parametrize("name", PORT_SETTING)
def test_a_busy_port_is_refused(start: Start, name: str) -> None:
    settings = {DATABASE_SETTING[name]: "sqlite:///not-looked-at.db"} if name in DATABASE_SETTING else {}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        process = start(name, settings | {PORT_SETTING[name]: port, "LISTEN_HOST": "127.0.0.1"})

        assert_refused(process, REFUSED, f"cannot listen on 127.0.0.1:{port}")
    assert f"or choose another by {PORT_SETTING[name]}" in process.log


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_database_without_schema_is_refused(start: Start, database_url: str, name: str) -> None:
    process = start(name, {"DATABASE_URL": database_url})

    command = f"Run `./task db-init` or `python -m {name.replace('-', '_')} migrate`."
    assert_refused(process, REFUSED, f"{name}: the database has no schema yet. {command}")


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_database_of_an_older_revision_is_refused(start: Start, database_url: str, name: str) -> None:
    schema = SCHEMAS[name]
    migrate(schema, database_url, to=schema.revisions()[-2])

    process = start(name, {"DATABASE_URL": database_url})

    command = f"Run `./task db-init` or `python -m {name.replace('-', '_')} migrate`."
    assert_refused(process, REFUSED, f"{name}: the database has a schema older than this version needs. {command}")


@pytest.mark.parametrize("words", [[], ["migrate"]], ids=["start", "migrate"])
@pytest.mark.parametrize("name", SCHEMAS)
def test_the_database_of_the_other_service_is_refused(
    start: Start, database_url: str, name: str, words: list[str]
) -> None:
    (other,) = SCHEMAS.keys() - {name}
    migrate(SCHEMAS[other], database_url)

    process = start(name, {"DATABASE_URL": database_url}, *words)

    assert_refused(process, REFUSED, f"{name}: the database belongs to {other}, not to {name}. Check DATABASE_URL.")


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_database_of_a_newer_revision_is_served(start: Start, database_url: str, name: str, kafka: Kafka) -> None:
    schema = SCHEMAS[name]
    migrate(schema, database_url)
    with closing(Database(database_url)) as database, database.write() as tx:
        tx.execute(text(f"UPDATE {schema.version_table} SET version_num = 'of the next version'"))

    process = start(name, {"DATABASE_URL": database_url, "KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap})

    process.wait_ready(START_SECONDS)


@pytest.mark.parametrize(
    ("password", "host", "reason"),
    [
        ("wrong", "", "password authentication failed"),
        ("", UNKNOWN_HOST, "failed to resolve host"),
        ("", "127.0.0.1:1", "Connection refused"),
    ],
)
def test_a_migration_that_cannot_connect_exits_with_the_reason(
    start: Start, postgres_server: PostgresServer, password: str, host: str, reason: str
) -> None:
    url = make_url(postgres_server.url)
    if password:
        url = url.set(password=password)
    if host:
        name, _, port = host.partition(":")
        url = url.set(host=name, port=int(port or 5432))

    process = start(INVENTORY_API, {"DATABASE_URL": url.render_as_string(hide_password=False)}, "migrate")

    assert_refused(process, REFUSED, "inventory-api: the database was not migrated: ")
    assert reason in process.log
    assert str(url.password) not in process.log
