"""Adds an index for ListInventoryItems by location. Without it, a page reads the items of all locations."""

from shop_common.db import online_ddl

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    online_ddl.add_index("ix_inventory_items_location_id", "inventory_items", ["location", "id"])
