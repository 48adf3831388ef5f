"""Creates the table of limits per buyer. It locks `orders` against writes for a moment, for the foreign key.

A process of the previous version ignores the limits of the orders that it creates.
"""

import sqlalchemy as sa
from alembic import op

from shop_common.db.sql import Id

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.create_table(
        "order_buyer_limits",
        sa.Column("order_id", Id, nullable=False),
        sa.Column("product_id", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("tenant", sa.Text, server_default="default", nullable=False),
        sa.Column("units", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("order_id", "product_id", name="pk_order_buyer_limits"),
        sa.ForeignKeyConstraint(
            ["tenant", "order_id"], ["orders.tenant", "orders.id"], name="fk_order_buyer_limits_tenant_order_id"
        ),
        sa.CheckConstraint("units > 0", name="ck_order_buyer_limits_units_positive"),
        if_not_exists=True,
    )
