"""A database of any revision, with rows, is migrated to the newest revision, which matches the tables in the code."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, func, inspect, select, text, update

import inventory_api.migrations
import inventory_api.store.tables
import order_api.migrations
from shop_common.db import online_ddl
from shop_common.db.database import Database
from shop_common.db.schema import Schema
from shop_common.db.sql import now
from tests.migrations.rows import ROWS, fill

SCHEMAS = (inventory_api.migrations.SCHEMA, order_api.migrations.SCHEMA)

EVERY_REVISION = [
    pytest.param(schema, revision, id=f"{schema.service}-{revision}")
    for schema in SCHEMAS
    for revision in schema.revisions()
]


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    yield database
    database.close()


@pytest.mark.parametrize("schema", [pytest.param(schema, id=schema.service) for schema in SCHEMAS])
def test_migrating_an_empty_database_creates_the_tables_of_the_code(database: Database, schema: Schema) -> None:
    schema.upgrade(database)

    assert schema.drift(database) == []
    schema.check(database)


@pytest.mark.parametrize(("schema", "revision"), EVERY_REVISION)
def test_migrating_from_every_revision_keeps_the_rows(database: Database, schema: Schema, revision: str) -> None:
    for each in schema.revisions():
        schema.upgrade(database, to=each)
        with database.write() as tx:
            fill(tx, ROWS.get((schema.service, each), {}))
        if each == revision:
            break
    before = database.query(contents)
    del before[schema.version_table]
    empty = [name for name, rows in before.items() if not rows]
    assert not empty, f"revision {revision} creates tables for which tests/migrations/rows.py has no rows: {empty}"

    schema.upgrade(database)

    assert schema.drift(database) == []
    schema.check(database)
    after = database.query(contents)
    for name, rows in before.items():
        assert_kept(name, rows, after[name])


@pytest.mark.parametrize("schema", [pytest.param(schema, id=schema.service) for schema in SCHEMAS])
def test_rows_from_before_tenants_existed_are_of_the_default_tenant(database: Database, schema: Schema) -> None:
    schema.upgrade(database, to="0001")
    with database.write() as tx:
        fill(tx, ROWS[schema.service, "0001"])

    schema.upgrade(database)

    of_tenants = {name: rows for name, rows in database.query(contents).items() if rows and "tenant" in rows[0]}
    assert "idempotency_keys" in of_tenants
    for name, rows in of_tenants.items():
        assert {row["tenant"] for row in rows} == {"default"}, name
    assert {row["owner"] for row in of_tenants.get("stock_reservations", ())} <= {""}


def test_reservations_that_ended_before_ended_at_existed_get_the_time_of_the_migration(database: Database) -> None:
    schema = inventory_api.migrations.SCHEMA
    schema.upgrade(database, to="0003")
    with database.write() as tx:
        fill(tx, ROWS[schema.service, "0001"])
        before = now(tx)

    schema.upgrade(database)

    reservations = inventory_api.store.tables.stock_reservations
    with database.read() as tx:
        ends = {row.state: row.ended_at for row in tx.execute(select(reservations.c.state, reservations.c.ended_at))}
    assert {state for state, ended_at in ends.items() if ended_at is None} == {"HELD", "CONFIRMED"}
    assert all(ended_at >= before for ended_at in ends.values() if ended_at is not None)


def test_a_migration_fills_a_new_column_in_several_bounded_turns(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(online_ddl, "TURN_ROWS", 2)
    schema = inventory_api.migrations.SCHEMA
    schema.upgrade(database, to="0005")
    reservations = inventory_api.store.tables.stock_reservations
    with database.write() as tx:
        fill(tx, ROWS[schema.service, "0001"])
        tx.execute(update(reservations).values(state="RELEASED"))

    schema.upgrade(database)

    with database.read() as tx:
        assert tx.execute(select(func.count()).where(reservations.c.ended_at.is_(None))).scalar_one() == 0


def contents(tx: Connection) -> dict[str, list[dict[str, Any]]]:
    """All rows of all tables, ordered by their first column."""
    return {
        name: [dict(row) for row in tx.execute(text(f"SELECT * FROM {name} ORDER BY 1")).mappings()]
        for name in inspect(tx).get_table_names()
        if name != "sqlite_sequence"
    }


def assert_kept(name: str, before: list[dict[str, Any]], after: list[dict[str, Any]]) -> None:
    assert len(after) == len(before), name
    for old, new in zip(before, after, strict=True):
        # A later revision may add columns and fill in nulls. It must not drop a column that older code uses.
        assert new.items() >= {key: value for key, value in old.items() if value is not None}.items(), name
