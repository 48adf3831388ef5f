"""Changes to a large table that is in use, done the long way: for revisions, instead of Alembic's operation alone.

    def upgrade() -> None:
        online_ddl.add_index("ix_parcels_address", "parcels", ["address"])

A revision that does such a thing does nothing else: it commits in the middle, and is run again when it failed there.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from alembic import op
from sqlalchemy import ColumnElement, TableClause, TextClause, select, update

from shop_common.db.database import OUTSIDE_TRANSACTION

TURN_ROWS = 2000
"""Looked at in one transaction of `fill`."""


def add_index(name: str, table: str, columns: Sequence[str], **options: Any) -> None:
    """An index. Nobody waits while it is built, as everyone who writes would for a plain CREATE INDEX.

    On PostgreSQL it takes about twice as long, and waits for every transaction that uses the table to end. A build that
    failed leaves an index behind that is of no use; that is dropped first.
    """
    with _outside_transaction():
        op.drop_index(name, table, if_exists=True, postgresql_concurrently=True)
        op.create_index(name, table, list(columns), postgresql_concurrently=True, **options)


def drop_index(name: str, table: str) -> None:
    """Drop an index. Nobody waits for it, and no statement that uses the index fails."""
    with _outside_transaction():
        op.drop_index(name, table, if_exists=True, postgresql_concurrently=True)


def fill(table: TableClause, values: Mapping[str, Any], *where: ColumnElement[bool] | TextClause) -> None:
    """Update the rows that meet the condition, in the order of their column `id`, a bounded number in a transaction.

    On PostgreSQL rows that others have locked are passed over: a writer never waits for more than one such transaction.
    """
    key = table.c.id
    after = None
    with _outside_transaction():
        while True:
            beyond = () if after is None else (key > after,)
            last = _scalar(select(key).where(*beyond).order_by(key).offset(TURN_ROWS - 1).limit(1))
            within = beyond if last is None else (*beyond, key <= last)
            chosen = select(key).where(*within, *where).with_for_update(skip_locked=True)
            op.get_bind().execute(update(table).where(key.in_(chosen)).values(dict(values)))
            if last is None:
                return
            after = last


def _scalar(query: Any) -> Any:
    return op.get_bind().execute(query).scalar_one_or_none()


@contextmanager
def _outside_transaction() -> Iterator[None]:
    tx = op.get_bind()
    if tx.dialect.name == "sqlite":
        yield  # one writer at a time: there is no other way than the short one
        return
    tx.commit()
    tx.execution_options(**{OUTSIDE_TRANSACTION: True})
    with tx.begin():
        yield
    tx.execution_options(**{OUTSIDE_TRANSACTION: False})
    tx.begin()
