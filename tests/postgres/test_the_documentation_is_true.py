"""Roles, connections and timeouts are as docs/postgresql.md describes them."""

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import URL, make_url

import inventory_api.migrations
import order_api.migrations
from devstack import kafka
from devstack.postgres import PostgresServer
from devstack.stack import Databases, Options, Stack
from event_relay import relay
from inventory_api.settings import InventorySettings
from order_api.settings import OrderSettings
from shop_common.db import database, schema
from shop_common.db.database import Database
from shop_common.events import consumer
from shop_common.process import lifecycle
from shopctl.system.layout import INVENTORY_API, ORDER_API, RELAY
from tests.e2e.shop_driver import CONFIRMED, PROCESSING, SHIPPED, ShopDriver
from tests.markdown import code_blocks

PAGE = (Path(__file__).parents[2] / "docs/postgresql.md").read_text()
ROLES, BEFORE, AFTER = code_blocks(PAGE, "sql")
SCHEMAS = {"inventory": inventory_api.migrations.SCHEMA, "orders": order_api.migrations.SCHEMA}


def test_the_timeouts_fit_together() -> None:
    lock, statement = database.LOCK_TIMEOUT_SECONDS, database.STATEMENT_TIMEOUT_SECONDS
    calls = OrderSettings.model_fields["inventory_call_seconds"].default
    grace = InventorySettings.model_fields["grace_seconds"].default

    # A lock timeout comes first, so that the error names it rather than the statement, the pool or the caller.
    assert lock < database.POOL_TIMEOUT_SECONDS < statement
    assert lock < calls
    assert calls > database.POOL_TIMEOUT_SECONDS
    assert calls > database.CONNECT_TIMEOUT_SECONDS
    # The locks of a frozen process are released almost as soon as those of a slow one.
    assert database.IDLE_TIMEOUT_SECONDS <= 5
    # A shutdown gives running work all the time that it may take.
    assert grace > statement
    assert grace > calls
    assert lifecycle.FLUSH_SECONDS_MAX > relay.BATCH_SECONDS_MAX
    assert lifecycle.FLUSH_SECONDS_MAX > consumer.STOP_SECONDS_MAX
    # A migration that waits for a table lock blocks other statements for less than their timeout.
    assert lock < schema.LOCK_TIMEOUT_SECONDS < statement
    assert statement < database.UNANSWERED_TIMEOUT_SECONDS


@pytest.mark.parametrize(
    ("row", "number"),
    [
        (r"wait for a row's lock", database.LOCK_TIMEOUT_SECONDS),
        (r"wait for a free connection of the pool", database.POOL_TIMEOUT_SECONDS),
        (r"connecting", database.CONNECT_TIMEOUT_SECONDS),
        (r"one statement", database.STATEMENT_TIMEOUT_SECONDS),
        (r"idle in a transaction", database.IDLE_TIMEOUT_SECONDS),
        (r"`INVENTORY_CALL_SECONDS`", OrderSettings.model_fields["inventory_call_seconds"].default),
        (r"`GRACE_SECONDS`", OrderSettings.model_fields["grace_seconds"].default),
        (r"a dead network", database.UNANSWERED_TIMEOUT_SECONDS),
    ],
)
def test_the_page_has_the_timeouts_of_the_code(row: str, number: float) -> None:
    assert re.search(rf"^\| {number:g} \| {row}", PAGE, re.MULTILINE)


def test_the_page_counts_the_connections_that_a_process_opens() -> None:
    assert f"up to {database.CONNECTIONS_MAX}," in PAGE
    assert "16 × 4 + 2 + 2 + 3 + 10 = 81" in PAGE
    assert database.CONNECTIONS_MAX * 4 + 2 + 2 + 3 + 10 == 81


@pytest.fixture
def separate_roles(postgres_server: PostgresServer) -> Iterator[dict[str, URL]]:
    """Migrated databases with the page's roles: for each database, the URLs of the API's and the relay's role."""
    names = {name: make_url(postgres_server.new_database(name)) for name in SCHEMAS}
    urls: dict[str, URL] = {}
    roles: list[str] = []
    for name, admin in names.items():
        owner, api, relay_role = (f"{admin.database}_{each}" for each in ("owner", "api", "relay"))
        roles += [owner, api, relay_role]

        def of_this(sql: str, name: str = name, admin: URL = admin) -> str:
            sql = sql.replace("inventory", name).replace("event_relay", f"{name}_relay")
            return re.sub(rf"\b{name}_", f"{admin.database}_", sql)

        make_roles, make_database = of_this(ROLES).split("CREATE DATABASE")
        assert f"OWNER {owner}" in make_database
        run(admin, make_roles)
        run(admin, f"ALTER DATABASE {admin.database} OWNER TO {owner}")
        run(admin, of_this(BEFORE))
        with closing(Database(as_role(admin, owner).render_as_string(hide_password=False))) as opened:
            SCHEMAS[name].upgrade(opened)
        run(admin, of_this(AFTER))
        urls |= {name: as_role(admin, api), f"{name}-relay": as_role(admin, relay_role)}
    yield urls
    for admin in names.values():
        postgres_server.drop_database(admin.render_as_string(hide_password=False))
    for role in roles:
        run(make_url(postgres_server.url), f"DROP ROLE {role}")


def as_role(url: URL, role: str) -> URL:
    return url.set(username=role, password="change me")


def run(url: URL, sql: str) -> None:
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute(sql.encode())


def test_each_process_works_with_the_rights_that_the_page_grants(
    separate_roles: dict[str, URL], tmp_path: Path
) -> None:
    def settings(prefix: str, role: str) -> dict[str, str]:
        url = separate_roles[role]
        secret = tmp_path / role
        secret.write_text(f"{url.password}\n")
        return {
            f"{prefix}_URL": f"postgresql://{url.username}@{url.host}:{url.port}/{url.database}",
            f"{prefix}_PASSWORD_FILE": str(secret),
        }

    options = Options(
        per_process={
            INVENTORY_API: settings("DATABASE", "inventory"),
            ORDER_API: settings("DATABASE", "orders"),
            RELAY: settings("INVENTORY_DATABASE", "inventory-relay") | settings("ORDERS_DATABASE", "orders-relay"),
        }
    )
    nothing = Databases(inventory="", orders="")
    with kafka.provide() as broker:
        stack = Stack(nothing, broker, options=options).start()
        try:
            with ShopDriver.connect(stack) as shop:
                product = shop.stocked_product(units=2)
                order = shop.create_order((product, 1))
                shop.change_status(order.id, CONFIRMED, PROCESSING, SHIPPED)
                shop.stock_events(product, "STOCK_FULFILLED")
                shop.assert_consistent(product, stocked=2)
        finally:
            codes = stack.stop()
    assert set(codes.values()) == {0}
