"""Creates the table of the movements, and one opening movement per item with units.

A process of the previous version does not know the movements. It leaves `booked_quantity` as it is, so the next process
of this version that changes the quantity finds the difference, and writes a movement for it first. The same is true
for items that are locked while this migration reads them.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

from shop_common.db import online_ddl
from shop_common.db.sql import Clock, RowId, Timestamp

revision = "0014"
down_revision = "0013"

_ITEMS, _MOVEMENTS = "inventory_items", "stock_movements"


def upgrade() -> None:
    # An earlier run may have failed after it had created the table.
    _create_table()
    for name in ("revision", "booked_quantity"):
        online_ddl.add_column(_ITEMS, sa.Column(name, sa.BigInteger, nullable=False, server_default="0"))
    items = sa.table(
        _ITEMS,
        *map(sa.column, ("id", "tenant", "product_id", "location", "quantity", "revision", "booked_quantity")),
    )
    online_ddl.in_turns(items, lambda within: _open(items, *within))


def _create_table() -> None:
    op.create_table(
        _MOVEMENTS,
        sa.Column("id", RowId, sa.Identity(cache=1), nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("item_id", sa.BigInteger, nullable=False),
        sa.Column("product_id", sa.BigInteger, nullable=False),
        sa.Column("location", sa.Text, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("quantity", sa.BigInteger, nullable=False),
        sa.Column("quantity_after", sa.BigInteger, nullable=False),
        sa.Column("order_id", sa.Text, nullable=False, server_default=""),
        sa.Column("reason", sa.Text, nullable=False, server_default=""),
        sa.Column("actor", sa.Text, nullable=False, server_default=""),
        sa.Column("created_at", Timestamp, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_stock_movements"),
        sqlite_autoincrement=True,
        if_not_exists=True,
    )
    of_order = sa.text("order_id <> ''")
    for columns, options in (
        (["item_id", "revision"], {"unique": True}),
        (["tenant", "created_at", "id"], {}),
        (["product_id", "tenant", "created_at", "id"], {}),
        (["location", "tenant", "created_at", "id"], {}),
        (["order_id", "tenant", "created_at", "id"], {"postgresql_where": of_order, "sqlite_where": of_order}),
    ):
        name = f"ix_{_MOVEMENTS}_{'_'.join(columns)}"
        op.create_index(name, _MOVEMENTS, columns, if_not_exists=True, **options)


def _open(items: sa.TableClause, *within: Any) -> None:
    """Write the opening movements of some items. PostgreSQL skips items that other transactions have locked."""
    unopened = (
        sa.select(items.c.id, items.c.tenant, items.c.product_id, items.c.location, items.c.quantity)
        .where(*within, items.c.revision == 0, items.c.quantity > 0)
        .with_for_update(skip_locked=True)
        .cte("unopened")
    )
    columns = ("tenant", "item_id", "product_id", "location", "revision", "kind", "quantity", "quantity_after")
    movements = sa.table(_MOVEMENTS, *map(sa.column, (*columns, "reason", "created_at")))
    opening = sa.select(
        unopened.c.tenant,
        unopened.c.id,
        unopened.c.product_id,
        unopened.c.location,
        sa.literal_column("1"),
        sa.literal_column("'ADJUSTED'"),
        unopened.c.quantity,
        unopened.c.quantity,
        sa.literal_column("'OPENING'"),
        Clock(),
    )
    insert = sa.insert(movements).from_select([column.name for column in movements.columns], opening)
    update = sa.update(items).values(revision=1, booked_quantity=items.c.quantity)
    tx = op.get_bind()
    if tx.dialect.name == "sqlite":
        tx.execute(insert)
        tx.execute(update.where(*within, items.c.revision == 0, items.c.quantity > 0))
    else:
        # Use one statement, so that both parts concern the same locked rows, in one transaction.
        tx.execute(update.where(items.c.id == unopened.c.id).add_cte(insert.cte("written")))
