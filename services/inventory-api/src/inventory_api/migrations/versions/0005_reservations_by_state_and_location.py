"""Adds indexes on reservations: by order and state, due ones by item, ended ones by `ended_at`, and ones set aside."""

import sqlalchemy as sa

from shop_common.db import online_ddl

revision = "0005"
down_revision = "0004"

_TABLE = "stock_reservations"


def upgrade() -> None:
    held = sa.text("state = 'HELD'")
    ended = sa.text("state IN ('EXPIRED', 'RELEASED', 'FULFILLED')")
    set_aside = sa.text("set_aside_at IS NOT NULL")
    online_ddl.add_index("ix_stock_reservations_order_id_state_id", _TABLE, ["order_id", "state", "id"])
    online_ddl.add_index(
        "ix_stock_reservations_item_due",
        _TABLE,
        ["sole_item_id", "product_id", "expires_at"],
        postgresql_where=held,
        sqlite_where=held,
    )
    online_ddl.add_index(
        "ix_stock_reservations_ended_at", _TABLE, ["ended_at"], postgresql_where=ended, sqlite_where=ended
    )
    online_ddl.add_index(
        "ix_stock_reservations_set_aside", _TABLE, ["set_aside_at"], postgresql_where=set_aside, sqlite_where=set_aside
    )
    # The previous version uses this index. It can use the new index instead, which begins with the same column.
    online_ddl.drop_index("ix_stock_reservations_order_id", _TABLE)
