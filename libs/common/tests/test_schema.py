"""Migrations of a made-up service, on both databases."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import BigInteger, CheckConstraint, Column, Index, MetaData, Table, Text, inspect

from devstack.postgres import PostgresServer
from shop_common.db.database import Database, plain_engine
from shop_common.db.schema import Schema, SchemaError, SchemaTooOld, WrongDatabase, main
from shop_common.errors import DatabaseNeedsRepair
from testkit.eventually import eventually

FIRST = """
import sqlalchemy as sa
from alembic import op
revision = "0001"
down_revision = None
def upgrade():
    op.create_table(
        "parcels",
        sa.Column("id", sa.BigInteger, primary_key=True),
        sa.CheckConstraint("id > 0", name="id_positive"),
    )
"""
SECOND = """
import sqlalchemy as sa
from alembic import op
revision = "0002"
down_revision = "0001"
def upgrade():
    op.add_column("parcels", sa.Column("address", sa.Text))
    parcel_id = sa.Column("parcel_id", sa.BigInteger, sa.ForeignKey("parcels.id"), primary_key=True)
    op.create_table("labels", parcel_id)
"""
THE_LONG_WAY = """
from shop_common.db import online_ddl
revision = "0002"
down_revision = "0001"
def upgrade():
    online_ddl.add_index("ix_parcels_id", "parcels", ["id"])
"""
FAILS_HALFWAY = """
from alembic import op
revision = "0002"
down_revision = "0001"
def upgrade():
    op.rename_table("parcels", "packages")
    op.execute("SELECT nonsense")
"""


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    yield database
    database.close()


@pytest.fixture
def on_postgres(postgres_server: PostgresServer) -> Iterator[Database]:
    url = postgres_server.new_database()
    database = Database(url)
    yield database
    database.close()
    postgres_server.drop_database(url)


@pytest.fixture
def parcels(tmp_path: Path) -> Schema:
    """The first version of the service."""
    return schema_of(tmp_path / "migrations", "parcel-api", FIRST)


def schema_of(folder: Path, service: str, *versions: str) -> Schema:
    (folder / "versions").mkdir(parents=True)
    (folder / "env.py").write_text("from shop_common.db.schema import run_migrations\nrun_migrations()\n")
    for number, version in enumerate(versions):
        (folder / "versions" / f"{number:04}.py").write_text(version)
    metadata = MetaData()
    Table(
        "parcels",
        metadata,
        Column("id", BigInteger, primary_key=True),
        CheckConstraint("id > 0", "id_positive"),
    )
    return Schema(service, folder, metadata)


def tables(database: Database) -> set[str]:
    with database.read() as tx:
        return set(inspect(tx).get_table_names())


def test_an_empty_database_is_refused_with_the_command_that_fills_it(database: Database, parcels: Schema) -> None:
    with pytest.raises(SchemaTooOld, match=r"no schema yet.*\./task db-init.*python -m parcel_api migrate"):
        parcels.check(database)


def test_upgrading_satisfies_the_check_and_may_be_repeated(database: Database, parcels: Schema) -> None:
    parcels.upgrade(database)
    parcels.upgrade(database)

    parcels.check(database)
    assert tables(database) == {"parcels", "parcel_api_schema_version"}


def test_an_older_schema_is_refused_until_it_is_upgraded_with_its_data(
    database: Database, parcels: Schema, tmp_path: Path
) -> None:
    parcels.upgrade(database)
    database.transact(lambda tx: tx.exec_driver_sql("INSERT INTO parcels (id) VALUES (7)"))
    next_version = schema_of(tmp_path / "next", "parcel-api", FIRST, SECOND)

    with pytest.raises(SchemaTooOld, match="older than this version needs"):
        next_version.check(database)
    next_version.upgrade(database)

    next_version.check(database)
    with database.read() as tx:
        assert tx.exec_driver_sql("SELECT id, address FROM parcels").one()._tuple() == (7, None)


def test_a_newer_schema_serves_the_version_before_and_is_left_alone(
    database: Database, parcels: Schema, tmp_path: Path
) -> None:
    schema_of(tmp_path / "next", "parcel-api", FIRST, SECOND).upgrade(database)

    parcels.check(database)
    parcels.upgrade(database)

    assert "labels" in tables(database)


def test_a_migration_that_fails_halfway_leaves_nothing_behind(
    database: Database, parcels: Schema, tmp_path: Path
) -> None:
    parcels.upgrade(database)

    with pytest.raises(DatabaseNeedsRepair):
        schema_of(tmp_path / "next", "parcel-api", FIRST, FAILS_HALFWAY).upgrade(database)

    parcels.check(database)
    assert "parcels" in tables(database)


def test_an_index_is_added_in_place_of_one_whose_building_failed(
    database: Database, parcels: Schema, tmp_path: Path
) -> None:
    parcels.upgrade(database)
    database.transact(lambda tx: tx.exec_driver_sql("CREATE INDEX ix_parcels_id ON parcels (id) WHERE id > 7"))
    next_version = schema_of(tmp_path / "next", "parcel-api", FIRST, THE_LONG_WAY)
    Index("ix_parcels_id", next_version.metadata.tables["parcels"].c.id)

    next_version.upgrade(database)

    next_version.check(database)
    assert next_version.drift(database) == []


def test_adding_an_index_blocks_no_statement(on_postgres: Database, parcels: Schema, tmp_path: Path) -> None:
    database = on_postgres
    parcels.upgrade(database)
    next_version = schema_of(tmp_path / "next", "parcel-api", FIRST, THE_LONG_WAY)
    with ThreadPoolExecutor(1) as other_thread, database.write() as long_one:
        long_one.exec_driver_sql("INSERT INTO parcels (id) VALUES (1)")
        upgrade = other_thread.submit(next_version.upgrade, database)
        eventually(lambda: builds_an_index(database))

        database.transact(lambda tx: tx.exec_driver_sql("INSERT INTO parcels (id) VALUES (2)"))
        assert not upgrade.done(), "it waits for the long transaction, and nobody for it"

        long_one.commit()
        long_one.begin()
        upgrade.result(timeout=20)
    next_version.check(database)


def test_a_second_migration_waits_for_one_that_goes_the_long_way(
    on_postgres: Database, parcels: Schema, tmp_path: Path
) -> None:
    database = on_postgres
    parcels.upgrade(database)
    next_version = schema_of(tmp_path / "next", "parcel-api", FIRST, THE_LONG_WAY)
    with ThreadPoolExecutor(2) as other_threads, database.write() as long_one:
        long_one.exec_driver_sql("INSERT INTO parcels (id) VALUES (1)")
        first = other_threads.submit(next_version.upgrade, database)
        eventually(lambda: builds_an_index(database))
        second = other_threads.submit(next_version.upgrade, database)
        eventually(lambda: wants_a_turn(database))

        long_one.commit()
        long_one.begin()
        first.result(timeout=20)
        second.result(timeout=20)
    next_version.check(database)


def builds_an_index(database: Database) -> bool:
    with database.read() as tx:
        return bool(tx.exec_driver_sql("SELECT count(*) FROM pg_stat_progress_create_index").scalar_one())


def wants_a_turn(database: Database) -> bool:
    """Return whether two idle transactions are open: one has the migration lock, and the other one polls for it."""
    idle = "SELECT FROM pg_stat_activity WHERE starts_with(query, 'SET LOCAL idle') AND datname = current_database()"
    with database.read() as tx:
        return len(tx.exec_driver_sql(idle).all()) == 2


def test_a_missing_privilege_is_reported_in_one_sentence(
    on_postgres: Database, parcels: Schema, capsys: pytest.CaptureFixture[str]
) -> None:
    parcels.upgrade(on_postgres)
    url = on_postgres.engine.url
    role = f"stranger_{url.database}"
    on_postgres.transact(lambda tx: tx.exec_driver_sql(f"CREATE ROLE {role} LOGIN PASSWORD 'p'"))
    theirs = url.set(username=role, password="p").render_as_string(hide_password=False)
    try:
        refusal = "refuses to show its schema: permission denied for table parcel"
        with closing(Database(theirs)) as stranger, pytest.raises(SchemaError, match=refusal):
            parcels.check(stranger)
        assert main([], parcels, theirs) == 1
        said = capsys.readouterr().err
        assert said.startswith("parcel-api: the database was not migrated; its error: permission denied for table")
        assert said.count("\n") == 1
    finally:
        on_postgres.transact(lambda tx: tx.exec_driver_sql(f"DROP ROLE {role}"))


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_in_another_encoding_is_refused_in_one_sentence(
    on_postgres: Database, parcels: Schema, capsys: pytest.CaptureFixture[str], encoding: str
) -> None:
    url = on_postgres.engine.url.set(database=f"{on_postgres.engine.url.database}_{encoding.lower()}")
    creating = f"CREATE DATABASE {url.database} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0"
    administrator = plain_engine(on_postgres.engine.url)
    with administrator.connect() as connection:
        connection.exec_driver_sql(creating)
    try:
        with closing(Database(url)) as database, pytest.raises(SchemaError, match=f"has the encoding {encoding}"):
            parcels.check(database)
        assert main([], parcels, url.render_as_string(hide_password=False)) == 1
        said = capsys.readouterr().err
        assert said.startswith(f"parcel-api: the database has the encoding {encoding}, but must have UTF8")
        assert said.count("\n") == 1
    finally:
        with administrator.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {url.database} WITH (FORCE)")


@pytest.mark.parametrize("operation", [Schema.check, Schema.upgrade, Schema.reset])
def test_the_database_of_another_service_is_refused_and_untouched(
    database: Database, parcels: Schema, tmp_path: Path, operation: Callable[[Schema, Database], None]
) -> None:
    parcels.upgrade(database)

    with pytest.raises(WrongDatabase, match="belongs to parcel-api"):
        operation(schema_of(tmp_path / "other", "letter-api", FIRST), database)

    assert tables(database) == {"parcels", "parcel_api_schema_version"}


def test_a_reset_drops_all_rows_and_tables_that_this_version_does_not_know(
    database: Database, parcels: Schema, tmp_path: Path
) -> None:
    schema_of(tmp_path / "next", "parcel-api", FIRST, SECOND).upgrade(database)
    database.transact(lambda tx: tx.exec_driver_sql("INSERT INTO parcels (id) VALUES (7)"))
    database.transact(lambda tx: tx.exec_driver_sql("INSERT INTO labels (parcel_id) VALUES (7)"))

    parcels.reset(database)

    assert tables(database) == {"parcels", "parcel_api_schema_version"}
    with database.read() as tx:
        assert tx.exec_driver_sql("SELECT count(*) FROM parcels").scalar_one() == 0


def test_a_reset_spares_tables_that_are_not_this_services(database: Database, parcels: Schema) -> None:
    database.transact(lambda tx: tx.exec_driver_sql("CREATE TABLE diary (id INTEGER)"))

    parcels.reset(database)

    assert "diary" in tables(database)


def test_migrations_started_at_once_wait_for_each_other(database: Database, database_url: str, parcels: Schema) -> None:
    program = (
        "import sys; from pathlib import Path; from sqlalchemy import MetaData;"
        "from shop_common.db import schema;"
        "sys.exit(schema.main([], schema.Schema('parcel-api', Path(sys.argv[1]), MetaData()), sys.argv[2]))"
    )
    arguments = [sys.executable, "-c", program, str(parcels.migrations), database_url]
    migrations = [subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) for _ in range(3)]

    outcomes = [(migration.communicate(timeout=60)[1], migration.returncode) for migration in migrations]

    assert outcomes == [("", 0)] * 3
    parcels.check(database)


def test_drift_names_what_was_declared_and_not_migrated(database: Database, parcels: Schema) -> None:
    parcels.upgrade(database)
    assert parcels.drift(database) == []

    parcels.metadata.tables["parcels"].append_column(Column("address", Text))
    Table("labels", parcels.metadata, Column("id", BigInteger, CheckConstraint("id > 0", "label_positive")))

    found = "\n".join(parcels.drift(database))
    assert "add_table" in found
    assert "address" in found
    assert "label_positive" in found


def test_the_command_migrates_resets_and_says_why_it_can_not(
    database: Database, database_url: str, parcels: Schema, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([], parcels, database_url) == 0
    assert main(["--reset"], parcels, database_url) == 0
    assert main([], schema_of(tmp_path / "other", "letter-api", FIRST), database_url) == 1

    assert "belongs to parcel-api" in capsys.readouterr().err
