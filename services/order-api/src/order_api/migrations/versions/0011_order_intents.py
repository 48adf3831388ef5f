"""Creates a table with a row for each change of an order that has begun and not ended.

A process of the previous version neither reads nor writes it. The foreign key locks `orders` for a moment.
"""

import sqlalchemy as sa
from alembic import op

from shop_common.db.sql import Id, Timestamp

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.create_table(
        "order_intents",
        sa.Column("order_id", Id, nullable=False),
        sa.Column("tenant", sa.Text, server_default="default", nullable=False),
        sa.Column("change_id", Id, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("is_uncertain", sa.Boolean, nullable=False),
        sa.Column("created_at", Timestamp, nullable=False),
        sa.PrimaryKeyConstraint("order_id", name="pk_order_intents"),
        sa.ForeignKeyConstraint(
            ["tenant", "order_id"], ["orders.tenant", "orders.id"], name="fk_order_intents_tenant_order_id"
        ),
        if_not_exists=True,
    )
    op.create_index("ix_order_intents_created_at", "order_intents", ["created_at"], if_not_exists=True)
