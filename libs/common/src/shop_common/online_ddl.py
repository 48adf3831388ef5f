"""Changes to a large table that is in use, done the long way: for revisions, instead of Alembic's operation alone.

    def upgrade() -> None:
        online_ddl.add_index("ix_parcels_address", "parcels", ["address"])

A revision that does such a thing does nothing else: it commits in the middle, and is run again when it failed there.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from alembic import op

from shop_common.database import OUTSIDE_TRANSACTION


def add_index(name: str, table: str, columns: Sequence[str], **options: Any) -> None:
    """An index. Nobody waits while it is built, as everyone who writes would for a plain CREATE INDEX.

    On PostgreSQL it takes about twice as long, and waits for every transaction that uses the table to end. A build that
    failed leaves an index behind that is of no use; that is dropped first.
    """
    with _outside_transaction():
        op.drop_index(name, table, if_exists=True, postgresql_concurrently=True)
        op.create_index(name, table, list(columns), postgresql_concurrently=True, **options)


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
