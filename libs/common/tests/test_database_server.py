"""PostgreSQL with unusual defaults, after a failover, and after a change of the schema that prepared statements use."""

import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

import psycopg
import pytest
from sqlalchemy import Connection, exc, make_url, text

from devstack.postgres import PostgresServer
from shop_common.db import database as database_module
from shop_common.db.database import CONNECTIONS_MAX, Database, cause_of
from shop_common.db.sql import now
from shop_common.errors import DatabaseUnavailable
from shop_common.timestamps import micros

PATIENCE_SECONDS = 60.0
PREPARED_AFTER = 5
"""psycopg's prepare_threshold: a statement that has run so often on a connection is prepared at its next run."""

HALF_AN_HOUR = timedelta(minutes=30)
ODD_DEFAULTS = {
    "TimeZone": "'Europe/Berlin'",
    "DateStyle": "'SQL, DMY'",
    "IntervalStyle": "'sql_standard'",
    "client_encoding": "'LATIN1'",
    "bytea_output": "'escape'",
    "standard_conforming_strings": "off",
}


@pytest.fixture
def url(postgres_server: PostgresServer) -> Iterator[str]:
    url = postgres_server.new_database()
    yield url
    postgres_server.drop_database(url)


@pytest.fixture
def odd_url(url: str) -> str:
    for name, value in ODD_DEFAULTS.items():
        administer(url, f"ALTER DATABASE {name_of(url)} SET {name} = {value}")
    return url


@pytest.fixture
def database(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    # Many connections are opened at the same time, perhaps on a busy machine.
    for limit in ("CONNECT_TIMEOUT_SECONDS", "POOL_TIMEOUT_SECONDS"):
        monkeypatch.setattr(database_module, limit, 60)
    database = Database(url)
    yield database
    database.close()


@pytest.fixture
def odd(odd_url: str) -> Iterator[Database]:
    database = Database(odd_url)
    yield database
    database.close()


def administer(url: str, statement: str) -> list[tuple[object, ...]]:
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute("SET default_transaction_read_only = off")
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def name_of(url: str) -> str:
    return str(make_url(url).database)


def end_connections(url: str, condition: str = "true") -> int:
    """End the connections to the database from the server's side, wait until they are gone, and return their number."""
    ended = administer(
        url,
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
        f" WHERE datname = current_database() AND pid <> pg_backend_pid() AND {condition}",
    )
    assert all(done for (done,) in ended)
    return len(ended)


def one(tx: Connection) -> int:
    return int(tx.execute(text("SELECT 1")).scalar_one())


def at_once(count: int, run: Callable[[], int]) -> list[int]:
    """Run the function on `count` threads at the same time, and return the results. Raises the error of any of them."""
    with ThreadPoolExecutor(count) as callers:
        return [done.result(PATIENCE_SECONDS) for done in [callers.submit(run) for _ in range(count)]]


def with_all_connections_open(database: Database) -> None:
    all_open = threading.Barrier(CONNECTIONS_MAX)

    def hold(tx: Connection) -> int:
        all_open.wait(PATIENCE_SECONDS)
        return one(tx)

    at_once(CONNECTIONS_MAX, lambda: database.query(hold))


# --- defaults of the server, the database or the role ---


def test_whatever_the_defaults_are_times_come_in_utc_and_text_as_it_was_written(odd: Database) -> None:
    def round_trip(tx: Connection) -> tuple[datetime, datetime, timedelta, str]:
        summer = datetime(2027, 7, 1, 12, 0, 0, 123456, UTC)
        values = {"time": summer, "span": timedelta(days=-1, hours=2), "text": "Größe 42 € \\ 'x' 🙂"}
        row = tx.execute(
            text("SELECT CAST(:time AS timestamptz), CAST(:span AS interval), CAST(:text AS text)"), values
        )
        return now(tx), *row.one()

    moment, summer, span, said = odd.transact(round_trip)

    assert (moment.tzname(), summer.tzname()) == ("UTC", "UTC")
    assert summer == datetime(2027, 7, 1, 12, 0, 0, 123456, UTC)
    assert span == timedelta(days=-1, hours=2)
    assert said == "Größe 42 € \\ 'x' 🙂"


@pytest.mark.parametrize("role_too", [False, True])
@pytest.mark.parametrize("change", ["2027-03-28 01:00+00", "2027-10-31 01:00+00"])
@pytest.mark.parametrize("minutes_before", [45, 15, 1, -15])
def test_half_an_hour_is_half_an_hour_when_the_clocks_change(
    url: str, change: str, minutes_before: int, role_too: bool
) -> None:
    # The catalog is searched last, so that another clock_timestamp() is found before PostgreSQL's own.
    name, user = name_of(url), make_url(url).username
    shifted = f"TIMESTAMPTZ '{change}' - INTERVAL '{minutes_before} minutes' + (pg_catalog.clock_timestamp() - now())"
    administer(url, "CREATE SCHEMA shifted")
    body = f"CREATE FUNCTION shifted.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS $$ SELECT {shifted} $$"
    administer(url, body)
    administer(url, f"ALTER DATABASE {name} SET search_path = shifted, public, pg_catalog")
    administer(url, f"ALTER DATABASE {name} SET TimeZone = 'Europe/Berlin'")
    if role_too:
        administer(url, f"ALTER ROLE \"{user}\" IN DATABASE {name} SET TimeZone = 'Europe/Berlin'")
    database = Database(url)

    def reserve_and_look(tx: Connection) -> tuple[datetime, datetime, datetime]:
        began = now(tx)
        stored = {"until": began + HALF_AN_HOUR}
        until = tx.execute(text("SELECT CAST(:until AS timestamptz)"), stored).scalar_one()
        return began, until, now(tx) + HALF_AN_HOUR - timedelta(minutes=1)

    began, until, a_minute_before = database.transact(reserve_and_look)
    database.close()

    assert micros(until) - micros(began) == HALF_AN_HOUR // timedelta(microseconds=1)
    assert until - began == HALF_AN_HOUR
    assert a_minute_before < until


@pytest.mark.parametrize("name", ["50% of a shop", "what? #1", "shop%2Fone", "größe"])
def test_the_name_of_a_database_is_percent_decoded(url: str, name: str) -> None:
    administer(url, f'CREATE DATABASE "{name}"')
    written = make_url(url).set(database=quote(name, safe="")).render_as_string(hide_password=False)
    database = Database(written)
    try:
        assert database.query(lambda tx: tx.execute(text("SELECT current_database()")).scalar_one()) == name
    finally:
        database.close()
        administer(url, f'DROP DATABASE "{name}" WITH (FORCE)')


def test_the_name_of_a_host_is_percent_decoded(url: str) -> None:
    direct = make_url(url)
    database = Database(direct.set(host=str(direct.host).replace("1", "%31")).render_as_string(hide_password=False))

    assert database.query(one) == 1
    database.close()


# --- connections that cannot be used any more ---


def test_ended_idle_connections_are_replaced_without_an_error(database: Database, url: str) -> None:
    for _ in range(3):
        with_all_connections_open(database)
        assert end_connections(url) == CONNECTIONS_MAX

        assert at_once(4 * CONNECTIONS_MAX, lambda: database.transact(one)) == [1] * 4 * CONNECTIONS_MAX


def test_a_connection_that_is_ended_before_the_first_statement_is_replaced_unseen(database: Database, url: str) -> None:
    ended: list[int] = []

    def end_once(tx: Connection) -> int:
        if not ended:
            driver = tx.connection.driver_connection
            assert isinstance(driver, psycopg.Connection)
            ended.append(end_connections(url, f"pid = {driver.info.backend_pid}"))
        return one(tx)

    assert database.transact(end_once) == 1
    assert ended == [1]


def test_one_failure_replaces_all_connections_that_are_older_than_it(database: Database, url: str) -> None:
    with_all_connections_open(database)
    before = {pid for (pid,) in administer(url, PIDS)}
    assert len(before) == CONNECTIONS_MAX

    def end_my_own(tx: Connection) -> None:
        one(tx)
        end_connections(url, f"pid = {tx.execute(text('SELECT pg_backend_pid()')).scalar_one()}")
        one(tx)

    with pytest.raises(DatabaseUnavailable):
        database.transact(end_my_own)
    with_all_connections_open(database)

    assert before.isdisjoint(pid for (pid,) in administer(url, PIDS))


PIDS = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


def test_when_the_server_takes_writes_again_the_very_next_transaction_writes(database: Database, url: str) -> None:
    administer(url, "CREATE TABLE parcels (id int PRIMARY KEY)")
    # Simulates a standby: a connection stays read-only, even after the server takes writes again.
    administer(url, f"ALTER DATABASE {name_of(url)} SET default_transaction_read_only = on")
    with_all_connections_open(database)
    with pytest.raises(DatabaseUnavailable) as read_only:
        database.transact(lambda tx: tx.execute(text("INSERT INTO parcels VALUES (1)")))
    assert "read-only" in cause_of(read_only.value)
    assert read_only.value.rolled_back

    administer(url, f"ALTER DATABASE {name_of(url)} RESET default_transaction_read_only")

    assert database.transact(lambda tx: tx.execute(text("INSERT INTO parcels VALUES (1)")).rowcount) == 1


def test_no_connection_is_made_to_a_standby_unless_the_address_asks_for_it(url: str) -> None:
    plain, asking = Database(url), Database(f"{url}?target_session_attrs=any")

    def target(tx: Connection) -> str:
        driver = tx.connection.driver_connection
        assert isinstance(driver, psycopg.Connection)
        return driver.info.get_parameters().get("target_session_attrs", "any")

    assert [each.query(target) for each in (plain, asking)] == ["primary", "any"]
    plain.close()
    asking.close()


# --- a schema that changes ---


def test_a_table_that_changes_under_prepared_statements_is_not_noticed(database: Database, url: str) -> None:
    administer(url, "CREATE TABLE parcels (place varchar(64))")
    administer(url, "INSERT INTO parcels VALUES ('here')")

    def read(tx: Connection) -> list[str]:
        return list(tx.execute(text("SELECT place FROM parcels")).scalars())

    def read_on_all_connections() -> None:
        all_open = threading.Barrier(CONNECTIONS_MAX)

        def read_together(tx: Connection) -> int:
            with_others = all_open.wait(PATIENCE_SECONDS)
            read(tx)
            return with_others

        for _ in range(PREPARED_AFTER + 2):
            at_once(CONNECTIONS_MAX, lambda: database.query(read_together))

    read_on_all_connections()
    for kind in ("text", "varchar(80)"):
        administer(url, f"ALTER TABLE parcels ALTER COLUMN place TYPE {kind}")

        assert at_once(CONNECTIONS_MAX, lambda: len(database.query(read))) == [1] * CONNECTIONS_MAX


# --- the text of errors ---


def test_an_error_quotes_no_row_and_no_parameter(database: Database, url: str) -> None:
    administer(url, "CREATE TABLE parcels (id int PRIMARY KEY, address text, CHECK (id > 0))")
    rows = [{"id": -1, "address": "Secret Street 1"}]
    with pytest.raises(exc.IntegrityError) as refused:
        database.transact(lambda tx: tx.execute(text("INSERT INTO parcels VALUES (:id, :address)"), rows))

    told = "".join(traceback.format_exception(refused.value))
    assert 'violates check constraint "parcels_id_check"' in told
    assert "Secret Street" not in told
    assert "DETAIL" not in told
