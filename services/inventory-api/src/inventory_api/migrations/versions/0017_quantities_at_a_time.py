"""Adds the index for the quantity of an item at an earlier time."""

from shop_common.db import online_ddl

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    online_ddl.add_index(
        "ix_stock_movements_item_id_created_at_revision", "stock_movements", ["item_id", "created_at", "revision"]
    )
