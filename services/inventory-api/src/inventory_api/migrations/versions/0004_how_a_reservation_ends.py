"""Adds columns for when a reservation ended, for its only item, and for when it was set aside.

A process of the previous version does not write these columns. It ends reservations without `ended_at`, which the next
purge fills in. It inserts reservations with the default 0 of `sole_item_id`, which means that a reservation has several
items, or that its only item is unknown.
"""

import sqlalchemy as sa
from alembic import op

from shop_common.db.sql import Timestamp

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("stock_reservations", sa.Column("ended_at", Timestamp))
    op.add_column(
        "stock_reservations", sa.Column("sole_item_id", sa.BigInteger, nullable=False, server_default=sa.text("0"))
    )
    op.add_column("stock_reservations", sa.Column("set_aside_at", Timestamp))
