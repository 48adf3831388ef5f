"""Everything works through PgBouncer in transaction mode, where each transaction may get another server connection."""

from collections.abc import Iterator
from contextlib import ExitStack, closing

import psycopg
import pytest
from sqlalchemy import Connection, make_url, text

from devstack import kafka
from devstack.postgres import PostgresServer
from devstack.stack import Databases, Stack
from shop_common.db.database import LOCK_TIMEOUT_SECONDS, STATEMENT_TIMEOUT_SECONDS, Database
from shop_common.errors import Contention
from tests.e2e.shop_driver import (
    CONFIRMED,
    DELIVERED,
    PROCESSING,
    SHIPPED,
    ShopDriver,
    call_concurrently,
    reason_counts,
    succeeded,
)
from tests.postgres import pgbouncer
from tests.postgres.pgbouncer import POOL_SIZE, PgBouncer

pytestmark = pytest.mark.usefixtures("docker_engine")

PREPARED_AFTER = 5
"""psycopg's prepare_threshold: a statement is prepared after this many runs on a connection."""


@pytest.fixture(scope="module")
def pooler(
    docker_engine: str, postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PgBouncer]:
    assert docker_engine
    with pgbouncer.provide(postgres_server, tmp_path_factory.mktemp("pgbouncer")) as pooler:
        yield pooler


@pytest.fixture(scope="module")
def shop(pooler: PgBouncer, postgres_server: PostgresServer) -> Iterator[ShopDriver]:
    """The four processes and the migrations, with PgBouncer in front of both databases."""
    direct = Databases.on_server(postgres_server)
    pooled = Databases(pooler.url(direct.inventory), pooler.url(direct.orders))
    with kafka.provide() as broker, Stack(pooled, broker) as stack, ShopDriver.connect(stack) as shop:
        shop.wait_ready()
        yield shop
        assert set(stack.stop().values()) == {0}


@pytest.fixture
def database(pooler: PgBouncer, postgres_server: PostgresServer) -> Iterator[Database]:
    direct = postgres_server.new_database()
    with closing(Database(pooler.url(direct))) as database:
        yield database
    postgres_server.drop_database(direct)


def test_an_order_is_created_and_delivered(shop: ShopDriver) -> None:
    product = shop.stocked_product(units=3)

    order = shop.create_order((product, 2))
    shop.change_status(order.id, CONFIRMED, PROCESSING, SHIPPED, DELIVERED)

    assert shop.order_events(order.id, "ORDER_DELIVERED")[0] == "ORDER_CREATED"
    shop.eventually(lambda: shop.on_hand(product) == 1 == shop.available(product))
    shop.assert_consistent(product, stocked=3)


def test_one_of_100_concurrent_reservations_gets_the_last_unit(shop: ShopDriver) -> None:
    product = shop.stocked_product(units=1)

    outcomes = call_concurrently(100, lambda _: shop.reserve(product, 1))

    assert len(succeeded(outcomes)) == 1
    assert reason_counts(outcomes) == {"INSUFFICIENT_STOCK": 99}
    shop.assert_consistent(product, stocked=1)


def test_60_concurrent_orders_of_two_products_sell_exactly_the_stock(shop: ShopDriver) -> None:
    one, two = shop.stocked_product(units=30), shop.stocked_product(NORTH=20, SOUTH=10)

    outcomes = call_concurrently(
        60,
        lambda number: shop.create_order((one, 1), (two, 1)) if number % 2 else shop.create_order((two, 1), (one, 1)),
    )

    assert len(succeeded(outcomes)) == 30
    shop.assert_consistent(one, stocked=30)
    shop.assert_consistent(two, stocked=30)


def test_a_statement_prepared_on_one_server_connection_runs_on_another(database: Database) -> None:
    def prepared(tx: Connection) -> set[str]:
        tx.execute(text("SELECT :number + 1"), {"number": 1})
        return set(tx.execute(text("SELECT name FROM pg_prepared_statements")).scalars())

    names = [database.query(prepared) for _ in range(PREPARED_AFTER + 2)][-1]
    assert names, "the statement is prepared by now"

    with closing(Database(url_of(database))) as others, ExitStack() as open_ones:
        # Each open transaction occupies a server connection, so that the next query runs on another one.
        for _ in range(POOL_SIZE - 1):
            open_ones.enter_context(others.read()).execute(text("SELECT 1"))
            assert database.query(prepared) >= names


def test_timeouts_apply_inside_our_transactions_and_to_no_other_client(database: Database, pooler: PgBouncer) -> None:
    def timeouts(tx: Connection) -> tuple[str, str]:
        lock = tx.execute(text("SHOW lock_timeout")).scalar_one()
        return lock, tx.execute(text("SHOW statement_timeout")).scalar_one()

    assert database.transact(timeouts) == (f"{LOCK_TIMEOUT_SECONDS:g}s", f"{STATEMENT_TIMEOUT_SECONDS:g}s")

    # PgBouncer assigns the server connection that was used last.
    with psycopg.connect(pooler.plain_url(url_of(database)), autocommit=True) as other_client:
        row = other_client.execute("SELECT current_setting('lock_timeout'), current_setting('statement_timeout')")
        assert row.fetchone() == ("0", "0")


def test_our_session_settings_apply_on_every_server_connection(
    postgres_server: PostgresServer, pooler: PgBouncer
) -> None:
    direct = postgres_server.new_database()
    name = make_url(direct).database
    odd = {
        "TimeZone": "Europe/Berlin",
        "DateStyle": "SQL, DMY",
        "IntervalStyle": "iso_8601",
        "client_encoding": "LATIN1",
    }

    def settings(tx: Connection) -> tuple[str, ...]:
        return tuple(str(tx.execute(text(f"SHOW {setting}")).scalar_one()) for setting in odd)

    with closing(Database(direct)) as administrator, administrator.write() as tx:
        for setting, value in odd.items():
            tx.execute(text(f"ALTER DATABASE {name} SET {setting} = '{value}'"))
    with closing(Database(pooler.url(direct))) as one, closing(Database(pooler.url(direct))) as others:
        for _ in range(2):
            with ExitStack() as open_ones:
                for _ in range(POOL_SIZE - 1):
                    assert settings(open_ones.enter_context(others.read())) == ("UTC", "ISO, MDY", "postgres", "UTF8")
                    assert one.query(settings) == ("UTC", "ISO, MDY", "postgres", "UTF8")
    postgres_server.drop_database(direct)


def test_a_wait_for_a_lock_ends_with_contention(database: Database) -> None:
    database.transact(lambda tx: tx.exec_driver_sql("CREATE TABLE shelf (id int PRIMARY KEY)"))
    database.transact(lambda tx: tx.exec_driver_sql("INSERT INTO shelf VALUES (1)"))
    with database.write() as holder:
        holder.exec_driver_sql("SELECT FROM shelf FOR UPDATE")
        with pytest.raises(Contention):
            database.transact(lambda tx: tx.exec_driver_sql("SELECT FROM shelf FOR UPDATE"))


def url_of(database: Database) -> str:
    return database.engine.url.render_as_string(hide_password=False)
