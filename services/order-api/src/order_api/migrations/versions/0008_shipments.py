"""Creates the table of shipments, and counts the shipped and the cancelled units of each line.

A process of the previous version neither writes the columns nor reads them: for it, every unit of an order has the
status of the order. So order-api changes some units of orders only if PARTIAL_CHANGES_ENABLED is set (docs/release.md).

A failed run is repeated from the start. The migration locks `orders` first, for the foreign key, and `order_items`
second, for the columns. A transaction that creates an order uses the same sequence, so the two cannot deadlock.
"""

import sqlalchemy as sa
from alembic import op

from shop_common.db import online_ddl
from shop_common.db.sql import Id, Timestamp

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.create_table(
        "shipments",
        sa.Column("id", Id, nullable=False),
        sa.Column("tenant", sa.Text, server_default="default", nullable=False),
        sa.Column("order_id", Id, nullable=False),
        sa.Column("carrier", sa.Text, nullable=False),
        sa.Column("tracking_number", sa.Text, nullable=False),
        sa.Column("items", sa.Text, nullable=False),
        sa.Column("created_at", Timestamp, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_shipments"),
        sa.ForeignKeyConstraint(
            ["tenant", "order_id"], ["orders.tenant", "orders.id"], name="fk_shipments_tenant_order_id"
        ),
        if_not_exists=True,
    )
    op.create_index("ix_shipments_tenant_order_id", "shipments", ["tenant", "order_id"], if_not_exists=True)
    for name in ("shipped", "cancelled"):
        online_ddl.add_column(
            "order_items", sa.Column(name, sa.BigInteger, nullable=False, server_default=sa.text("0"))
        )
