"""Adds a column to the effects of orders, for the reservations that were added for changes of orders.

A process of the previous version neither writes the column nor reads it. The constant default rewrites no row.
"""

import sqlalchemy as sa

from shop_common.db import online_ddl

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    online_ddl.add_column("order_effects", sa.Column("additions", sa.Text, nullable=False, server_default="[]"))
