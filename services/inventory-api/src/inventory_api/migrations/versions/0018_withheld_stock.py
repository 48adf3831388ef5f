"""Creates the table of withheld units, and counts these units in items and movements.

A process of the previous version does not know withheld units, and would reserve them. The constraint of the items
refuses that. So units are withheld only if WITHHOLDING_ENABLED is set (docs/release.md).

A failed run is repeated from the start.
"""

import sqlalchemy as sa
from alembic import op

from shop_common.db import online_ddl

revision = "0018"
down_revision = "0017"

_ITEMS, _CONSTRAINT = "inventory_items", "ck_inventory_items_reserved_within_quantity"
_OLD = "reserved_quantity >= 0 AND reserved_quantity <= quantity"
_NEW = "reserved_quantity >= 0 AND withheld_quantity >= 0 AND withheld_quantity + reserved_quantity <= quantity"


def upgrade() -> None:
    op.create_table(
        "stock_withholdings",
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("item_id", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("quantity", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("item_id", "reason", name="pk_stock_withholdings"),
        sa.CheckConstraint("quantity > 0", name="ck_stock_withholdings_quantity_positive"),
        sa.ForeignKeyConstraint(
            ["tenant", "item_id"], [f"{_ITEMS}.tenant", f"{_ITEMS}.id"], name="fk_stock_withholdings_tenant_item_id"
        ),
        if_not_exists=True,
    )
    for name in ("withheld", "withheld_after"):
        online_ddl.add_column("stock_movements", sa.Column(name, sa.BigInteger, nullable=False, server_default="0"))
    online_ddl.add_column(_ITEMS, sa.Column("withheld_quantity", sa.BigInteger, nullable=False, server_default="0"))
    if op.get_context().dialect.name == "sqlite":
        _replace_check_on_sqlite()
    else:
        online_ddl.replace_check(_ITEMS, _CONSTRAINT, _NEW)


def _replace_check_on_sqlite() -> None:
    # SQLite cannot change a constraint. No unit is withheld yet, so the new one allows the same rows as the old one.
    # Changing the text of the table is enough (https://www.sqlite.org/lang_altertable.html, "Making Other Kinds Of
    # Table Schema Changes").
    connection = op.get_bind()
    version = connection.exec_driver_sql("PRAGMA schema_version").scalar_one()
    connection.exec_driver_sql("PRAGMA writable_schema = ON")
    changed = connection.exec_driver_sql(
        "UPDATE sqlite_master SET sql = replace(sql, ?, ?) WHERE type = 'table' AND name = ?", (_OLD, _NEW, _ITEMS)
    )
    assert changed.rowcount == 1
    connection.exec_driver_sql(f"PRAGMA schema_version = {version + 1}")
    connection.exec_driver_sql("PRAGMA writable_schema = OFF")
