"""Adds a foreign key: an allocation takes units from an item of its own tenant.

The previous version writes allocations and items of the same tenant, so it can use the new schema. PostgreSQL checks
the existing rows while others read and write. If the migration does not get its short locks in time, it fails, and can
be run again.
"""

from alembic import op

from shop_common.db import online_ddl

revision = "0015"
down_revision = "0014"

_ALLOCATIONS, _ITEMS = "reservation_allocations", "inventory_items"
_KEY = "fk_reservation_allocations_tenant_item_id"
_COLUMNS, _REFERRED = ["tenant", "item_id"], ["tenant", "id"]


def upgrade() -> None:
    if op.get_context().dialect.name == "sqlite":
        with op.batch_alter_table(_ALLOCATIONS, recreate="always") as allocations:
            allocations.create_foreign_key(_KEY, _ITEMS, _COLUMNS, _REFERRED)
        return
    online_ddl.add_foreign_key(_ALLOCATIONS, _KEY, _COLUMNS, _ITEMS, _REFERRED)
