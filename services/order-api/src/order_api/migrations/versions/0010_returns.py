"""Creates the table of returns, counts the returned units of each line, and limits the counts of a line.

A process of the previous version neither writes the columns nor reads them, so its rows meet the condition. PostgreSQL
checks the existing rows while others read and write.

A failed run is repeated from the start. The migration locks `orders` first, for the foreign key, and `order_items`
second, for the column. A transaction that creates an order uses the same sequence, so the two cannot deadlock.
"""

import sqlalchemy as sa
from alembic import op

from shop_common.db import online_ddl
from shop_common.db.sql import Id, Timestamp

revision = "0010"
down_revision = "0009"

_TABLE, _CONSTRAINT = "order_items", "ck_order_items_units_within_quantity"
_CONDITION = "shipped + cancelled <= quantity AND returned + cancelled <= quantity"


def upgrade() -> None:
    op.create_table(
        "order_returns",
        sa.Column("id", Id, nullable=False),
        sa.Column("tenant", sa.Text, server_default="default", nullable=False),
        sa.Column("order_id", Id, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("items", sa.Text, nullable=False),
        sa.Column("created_at", Timestamp, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_order_returns"),
        sa.ForeignKeyConstraint(
            ["tenant", "order_id"], ["orders.tenant", "orders.id"], name="fk_order_returns_tenant_order_id"
        ),
        if_not_exists=True,
    )
    op.create_index("ix_order_returns_tenant_order_id", "order_returns", ["tenant", "order_id"], if_not_exists=True)
    if op.get_context().dialect.name == "sqlite":
        # SQLite can add a constraint only together with a column. It checks the existing rows but does not copy them.
        op.execute(
            f"ALTER TABLE {_TABLE} ADD COLUMN returned BIGINT NOT NULL DEFAULT 0"
            f" CONSTRAINT {_CONSTRAINT} CHECK ({_CONDITION})"
        )
        return
    online_ddl.add_column(_TABLE, sa.Column("returned", sa.BigInteger, nullable=False, server_default=sa.text("0")))
    online_ddl.replace_check(_TABLE, _CONSTRAINT, _CONDITION)
