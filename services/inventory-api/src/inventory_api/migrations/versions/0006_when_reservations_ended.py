"""Sets `ended_at` to now for reservations that ended without it. Their age for PurgeHistory counts from now on."""

import sqlalchemy as sa

from shop_common.db import online_ddl
from shop_common.db.sql import Clock, Id, Timestamp

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    reservations = sa.table(
        "stock_reservations", sa.column("id", Id), sa.column("state", sa.Text), sa.column("ended_at", Timestamp)
    )
    ended = sa.text("state IN ('EXPIRED', 'RELEASED', 'FULFILLED')")
    online_ddl.fill(
        reservations, {"ended_at": sa.select(Clock()).scalar_subquery()}, ended, reservations.c.ended_at.is_(None)
    )
