"""Adds the tenant to orders and their lines. Rows from before are of the tenant `default`.

A process of the previous version inserts this default too, and needs the old indexes on orders until it has ended. A
constant default rewrites no rows, so nothing is filled in. PostgreSQL builds the indexes and checks the foreign key
while others read and write. Each ALTER TABLE locks a table only for a change of the catalogue. If it does not get the
lock in time, the migration fails, and can be run again.
"""

import sqlalchemy as sa
from alembic import op

from shop_common.db import online_ddl

revision = "0004"
down_revision = "0003"

_OLD_KEY = "fk_order_items_order_id"
_KEY = "fk_order_items_tenant_order_id"
_COLUMNS, _REFERRED = ["tenant", "order_id"], ["tenant", "id"]

_LISTS = (["created_at"], ["user_id", "created_at"], ["status", "created_at"], ["user_id", "status", "created_at"])
"""The columns by which ListOrders filters and sorts."""


def upgrade() -> None:
    for table in ("orders", "order_items"):
        online_ddl.add_column(table, sa.Column("tenant", sa.Text, nullable=False, server_default="default"))
    for columns in _LISTS:
        online_ddl.add_index(f"ix_orders_tenant_{'_'.join(columns)}_id", "orders", ["tenant", *columns, "id"])
    online_ddl.add_index("ix_orders_tenant_id", "orders", _REFERRED, unique=True)
    if op.get_context().dialect.name == "sqlite":
        with op.batch_alter_table("order_items", recreate="always") as items:
            items.drop_constraint(_OLD_KEY, type_="foreignkey")
            items.create_foreign_key(_KEY, "orders", _COLUMNS, _REFERRED)
    else:
        online_ddl.add_foreign_key("order_items", _KEY, _COLUMNS, "orders", _REFERRED, replaced=_OLD_KEY)
