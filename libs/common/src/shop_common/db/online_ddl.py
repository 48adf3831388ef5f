"""Changes large tables without blocking their readers and writers. Revisions use it instead of plain Alembic.

    def upgrade() -> None:
        online_ddl.add_index("ix_parcels_address", "parcels", ["address"])

Such a revision must do nothing else, because it commits in between: after a failure it runs again from the start.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from alembic import op
from sqlalchemy import Column, ColumnElement, TableClause, TextClause, select, update

from shop_common.db.database import OUTSIDE_TRANSACTION

TURN_ROWS = 2000
"""The number of rows that `fill` and `in_turns` scan in one transaction."""


def add_index(name: str, table: str, columns: Sequence[str], **options: Any) -> None:
    """Create an index without blocking writers. A plain CREATE INDEX blocks them.

    On PostgreSQL this takes about twice as long as CREATE INDEX, and waits until every transaction that uses the table
    has ended. A failed build leaves an invalid index. The next run drops that index first.
    """
    with _outside_transaction():
        op.drop_index(name, table, if_exists=True, postgresql_concurrently=True)
        op.create_index(name, table, list(columns), postgresql_concurrently=True, **options)


def drop_index(name: str, table: str) -> None:
    """Drop an index without blocking readers or writers."""
    with _outside_transaction():
        op.drop_index(name, table, if_exists=True, postgresql_concurrently=True)


def add_column(table: str, column: Column[Any]) -> None:
    """Add a column, unless an earlier run has added it. A constant default rewrites no rows."""
    # On SQLite a failed run is rolled back. SQLite has no IF NOT EXISTS for columns.
    op.add_column(table, column, if_not_exists=op.get_context().dialect.name != "sqlite")


def replace_primary_key(table: str, columns: Sequence[str]) -> None:
    """Replace the primary key of a table without blocking its readers and writers for long.

    On PostgreSQL the index of the new key is built concurrently. Then one short transaction replaces the constraint, so
    the table is never without a key. SQLite copies the table.
    """
    name = f"pk_{table}"
    if op.get_context().dialect.name == "sqlite":
        with op.batch_alter_table(table, recreate="always") as batch:
            batch.drop_constraint(name, type_="primary")
            batch.create_primary_key(name, list(columns))
        return
    add_index(f"new_{name}", table, columns, unique=True)
    op.execute(f"ALTER TABLE {table} DROP CONSTRAINT {name}, ADD CONSTRAINT {name} PRIMARY KEY USING INDEX new_{name}")


def add_foreign_key(
    table: str,
    name: str,
    columns: Sequence[str],
    referred: str,
    referred_columns: Sequence[str],
    *,
    replaced: str | None = None,
    on_delete: str = "NO ACTION",
) -> None:
    """Add a foreign key to `table`, or replace the one named `replaced`, for PostgreSQL.

    A unique index on the referred columns must exist. Both tables are locked for a change of the catalogue. Existing
    rows are checked afterwards, while others read and write. A failed check leaves a key that is not valid. The next
    run replaces it.
    """
    # Transactions write the referred table first. Lock in the same order, so that this lock cannot deadlock with them.
    for each in (referred, table):
        op.execute(f"LOCK TABLE {each} IN ACCESS EXCLUSIVE MODE")
    drops = "".join(f"DROP CONSTRAINT IF EXISTS {each}, " for each in (replaced, name) if each is not None)
    op.execute(
        f"ALTER TABLE {table} {drops}ADD CONSTRAINT {name}"
        f" FOREIGN KEY ({', '.join(columns)}) REFERENCES {referred} ({', '.join(referred_columns)})"
        f" ON DELETE {on_delete} NOT VALID"
    )
    with _outside_transaction():
        op.execute(f"ALTER TABLE {table} VALIDATE CONSTRAINT {name}")


def replace_check(table: str, name: str, condition: str) -> None:
    """Replace a check constraint, for PostgreSQL.

    The table is locked for a change of the catalogue. Existing rows are checked afterwards, without that lock.
    """
    op.execute(
        f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {name}, ADD CONSTRAINT {name} CHECK ({condition}) NOT VALID"
    )
    with _outside_transaction():
        op.execute(f"ALTER TABLE {table} VALIDATE CONSTRAINT {name}")


def fill(table: TableClause, values: Mapping[str, Any], *where: ColumnElement[bool] | TextClause) -> None:
    """Update the rows that meet the condition, in the order of the column `id`. Each transaction scans TURN_ROWS rows.

    On PostgreSQL it skips rows that other transactions have locked, and does not update them. So it never waits while
    it has locks, and a writer waits for at most one transaction of `fill`.
    """
    key = table.c.id

    def fill_turn(within: Sequence[ColumnElement[bool]]) -> None:
        chosen = select(key).where(*within, *where).with_for_update(skip_locked=True)
        op.get_bind().execute(update(table).where(key.in_(chosen)).values(dict(values)))

    in_turns(table, fill_turn)


def in_turns(table: TableClause, act: Callable[[Sequence[ColumnElement[bool]]], None]) -> None:
    """Call `act` for one part of the table after another, in the order of the column `id`.

    A part has TURN_ROWS rows. `act` receives the conditions that select the rows of the part. On PostgreSQL each of its
    statements is a transaction of its own.
    """
    key = table.c.id
    after = None
    with _outside_transaction():
        while True:
            beyond = () if after is None else (key > after,)
            last = _scalar(select(key).where(*beyond).order_by(key).offset(TURN_ROWS - 1).limit(1))
            within = beyond if last is None else (*beyond, key <= last)
            act(within)
            if last is None:
                return
            after = last


def _scalar(query: Any) -> Any:
    return op.get_bind().execute(query).scalar_one_or_none()


@contextmanager
def _outside_transaction() -> Iterator[None]:
    tx = op.get_bind()
    if tx.dialect.name == "sqlite":
        yield  # SQLite has one writer and no concurrent DDL
        return
    tx.commit()
    tx.execution_options(**{OUTSIDE_TRANSACTION: True})
    with tx.begin():
        yield
    tx.execution_options(**{OUTSIDE_TRANSACTION: False})
    tx.begin()
