"""Reservations that ended before this was written down count as ended now, and are kept as long as any from now on."""

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
