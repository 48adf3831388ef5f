"""When a reservation ended, the only item that it draws on, and whether it can't be ended.

A process of the version before writes none of them: it ends reservations without `ended_at`, which the purge fills in
when it comes by, and makes them with the default of `sole_item_id`, which says nothing.
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
