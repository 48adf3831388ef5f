"""An index for the pages of one location, which were a walk through the items of all of them."""

from shop_common.db import online_ddl

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    online_ddl.add_index("ix_inventory_items_location_id", "inventory_items", ["location", "id"])
