"""PostgreSQL hides the rows of tenants that a transaction does not serve, from a role that does not own the tables."""

from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Column, Connection, MetaData, Table, Text, exc, insert, make_url, select, text

from devstack.postgres import PostgresServer
from shop_common.db.database import Database, cause_of
from shop_common.db.row_security import ALL_TENANTS, only, protection
from shop_common.errors import DatabaseNeedsRepair

PARCELS = Table("parcels", MetaData(), Column("tenant", Text, primary_key=True), Column("id", Text, primary_key=True))
ROLE, READER = "parcels_api", "parcels_console"


@pytest.fixture
def database(postgres_server: PostgresServer) -> Iterator[Database]:
    """A database with one row of each of two tenants, opened by a role that does not own the table."""
    url = postgres_server.new_database("parcels")
    owner = Database(url)
    with owner.write() as tx:
        PARCELS.create(tx)
        for role, rights in ((ROLE, "SELECT, INSERT, UPDATE, DELETE"), (READER, "SELECT")):
            tx.execute(text(f"DROP ROLE IF EXISTS {role}"))
            tx.execute(text(f"CREATE ROLE {role} LOGIN PASSWORD 'parcels'"))
            tx.execute(text(f"GRANT {rights} ON parcels TO {role}"))
        for statement in 2 * [*protection(["parcels"], api=ROLE, console=READER)]:
            tx.execute(text(statement))
        tx.execute(insert(PARCELS), [{"tenant": "acme", "id": "1"}, {"tenant": "other", "id": "1"}])
    database = Database(make_url(url).set(username=ROLE, password="parcels"))
    yield database
    database.close()
    with owner.write() as tx:
        for role in (ROLE, READER):
            tx.execute(text(f"DROP OWNED BY {role}"))
            tx.execute(text(f"DROP ROLE {role}"))
    owner.close()
    postgres_server.drop_database(url)


def tenants(tx: Connection) -> list[str]:
    return sorted(tx.execute(select(PARCELS.c.tenant)).scalars())


@pytest.mark.parametrize(
    ("settings", "visible"),
    [
        (only(["acme"]), ["acme"]),
        (only(["nobody"]), []),
        (only(["other", "acme", "acme"]), ["acme", "other"]),
        (ALL_TENANTS, ["acme", "other"]),
    ],
)
def test_a_transaction_sees_the_rows_of_its_tenants_only(database: Database, settings: str, visible: list[str]) -> None:
    assert database.query(tenants, settings) == visible
    assert database.transact(tenants, settings) == visible


@pytest.mark.parametrize(
    "change",
    [
        lambda tx: tx.execute(insert(PARCELS).values(tenant="other", id="2")),
        lambda tx: tx.execute(PARCELS.update().values(tenant="other")),
    ],
)
def test_a_transaction_cannot_write_a_row_of_another_tenant(
    database: Database, change: Callable[[Connection], object]
) -> None:
    with pytest.raises(DatabaseNeedsRepair) as refused:
        database.transact(change, only(["acme"]))
    assert "row-level security" in cause_of(refused.value)


def test_a_transaction_cannot_change_or_delete_a_row_of_another_tenant(database: Database) -> None:
    database.transact(lambda tx: tx.execute(PARCELS.delete()), only(["acme"]))

    assert database.query(tenants, ALL_TENANTS) == ["other"]


def test_a_transaction_that_states_no_tenants_fails(database: Database) -> None:
    for _ in range(2):
        with pytest.raises(exc.DBAPIError, match="states no tenants"):
            database.query(tenants)
        # After this transaction, the session has an empty value of the setting.
        assert database.query(tenants, only(["acme"])) == ["acme"]


def test_the_reader_states_no_tenants_and_sees_all_rows(database: Database) -> None:
    reader = Database(database.engine.url.set(username=READER))
    try:
        assert reader.query(tenants) == ["acme", "other"]
    finally:
        reader.close()


@pytest.mark.parametrize("names", [[], ["a'b"], ["acme", "*"], ["A"], [""]])
def test_a_malformed_name_never_becomes_sql(names: list[str]) -> None:
    with pytest.raises(ValueError, match="tenants with valid names"):
        only(names)
