"""Adds an index of the confirmed reservations of an item, by their creation time.

BatchChangeStock with `release_shortfall` reads the newest ones. A process of the previous version does not need the
index, and is not blocked while it is built.
"""

import sqlalchemy as sa

from shop_common.db import online_ddl

revision = "0020"
down_revision = "0019"

_CONFIRMED = sa.text("state = 'CONFIRMED'")


def upgrade() -> None:
    online_ddl.add_index(
        "ix_stock_reservations_item_tenant_confirmed",
        "stock_reservations",
        ["sole_item_id", "product_id", "tenant", "created_at", "id"],
        postgresql_where=_CONFIRMED,
        sqlite_where=_CONFIRMED,
    )
