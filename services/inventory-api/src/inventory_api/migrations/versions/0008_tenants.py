"""Adds the tenant to items, reservations and allocations, and the owner to reservations.

Rows from before are of the tenant `default` and have no owner. A process of the previous version inserts these defaults
too. Constant defaults rewrite no rows, so nothing is filled in. The new indexes begin with the columns of the old ones,
so the previous version can use them. From now on tenants may use the same product ids, so do not go back to the
previous version once another tenant than `default` has data.

PostgreSQL builds the indexes and checks the foreign key while others read and write. Each ALTER TABLE locks a table
only for a change of the catalogue. If it does not get the lock in time, the migration fails, and can be run again.
"""

import sqlalchemy as sa
from alembic import op

from shop_common.db import online_ddl
from shop_common.db.sql import RowId, Timestamp

revision = "0008"
down_revision = "0007"

_ITEMS, _RESERVATIONS, _ALLOCATIONS = "inventory_items", "stock_reservations", "reservation_allocations"

_OLD_PRODUCTS = "uq_inventory_items_product_id_location"
_OLD_KEY = "fk_reservation_allocations_reservation_id"
_KEY = "fk_reservation_allocations_tenant_reservation_id"
_KEY_COLUMNS, _REFERRED = ["tenant", "reservation_id"], ["tenant", "id"]


def upgrade() -> None:
    for table in (_ITEMS, _RESERVATIONS, _ALLOCATIONS):
        online_ddl.add_column(table, sa.Column("tenant", sa.Text, nullable=False, server_default="default"))
    online_ddl.add_column(_RESERVATIONS, sa.Column("owner", sa.Text, nullable=False, server_default=""))
    _drop_old_constraint_of_items()
    _add_indexes_of_items()
    _replace_indexes_of_reservations()
    _replace_foreign_key_of_allocations()


def _drop_old_constraint_of_items() -> None:
    # The new unique index must exist first: without it, two transactions could create the same item.
    if op.get_context().dialect.name != "sqlite":
        _add_unique_products()
        op.execute(f"ALTER TABLE {_ITEMS} DROP CONSTRAINT IF EXISTS {_OLD_PRODUCTS}")
        return
    # SQLite copies the table, and has only one writer. The copy must keep AUTOINCREMENT and the CHECK constraint.
    with op.batch_alter_table(_ITEMS, recreate="always", copy_from=_items()) as items:
        items.drop_constraint(_OLD_PRODUCTS, type_="unique")
    _add_unique_products()


def _add_unique_products() -> None:
    columns = ["product_id", "tenant", "location"]
    online_ddl.add_index("ix_inventory_items_product_id_tenant_location", _ITEMS, columns, unique=True)


def _add_indexes_of_items() -> None:
    online_ddl.add_index("ix_inventory_items_tenant_id", _ITEMS, ["tenant", "id"], unique=True)
    online_ddl.add_index("ix_inventory_items_location_tenant_id", _ITEMS, ["location", "tenant", "id"])
    online_ddl.drop_index("ix_inventory_items_location_id", _ITEMS)


def _replace_indexes_of_reservations() -> None:
    held = sa.text("state = 'HELD'")
    of_held = {"postgresql_where": held, "sqlite_where": held}
    for old, columns, options in (
        ("order_id_state_id", ["order_id", "tenant", "state", "id", "owner"], {}),
        ("product_id_id", ["product_id", "tenant", "id"], {}),
        ("product_due", ["product_id", "tenant", "expires_at"], of_held),
        ("item_due", ["sole_item_id", "product_id", "tenant", "expires_at"], of_held),
    ):
        new = old.replace("_due", "_tenant_due") if options else "_".join(columns)
        online_ddl.add_index(f"ix_{_RESERVATIONS}_{new}", _RESERVATIONS, columns, **options)
        online_ddl.drop_index(f"ix_{_RESERVATIONS}_{old}", _RESERVATIONS)


def _replace_foreign_key_of_allocations() -> None:
    online_ddl.add_index(f"ix_{_RESERVATIONS}_tenant_id", _RESERVATIONS, _REFERRED, unique=True)
    if op.get_context().dialect.name == "sqlite":
        with op.batch_alter_table(_ALLOCATIONS, recreate="always") as allocations:
            allocations.drop_constraint(_OLD_KEY, type_="foreignkey")
            allocations.create_foreign_key(_KEY, _RESERVATIONS, _KEY_COLUMNS, _REFERRED, ondelete="CASCADE")
        return
    online_ddl.add_foreign_key(
        _ALLOCATIONS, _KEY, _KEY_COLUMNS, _RESERVATIONS, _REFERRED, replaced=_OLD_KEY, on_delete="CASCADE"
    )


def _items() -> sa.Table:
    return sa.Table(
        _ITEMS,
        sa.MetaData(),
        sa.Column("id", RowId, nullable=False),
        sa.Column("product_id", sa.BigInteger, nullable=False),
        sa.Column("location", sa.Text, nullable=False),
        sa.Column("quantity", sa.BigInteger, nullable=False),
        sa.Column("reserved_quantity", sa.BigInteger, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("created_at", Timestamp, nullable=False),
        sa.Column("updated_at", Timestamp, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False, server_default="default"),
        sa.PrimaryKeyConstraint("id", name="pk_inventory_items"),
        sa.UniqueConstraint("product_id", "location", name=_OLD_PRODUCTS),
        sa.CheckConstraint(
            "reserved_quantity >= 0 AND reserved_quantity <= quantity",
            name="ck_inventory_items_reserved_within_quantity",
        ),
        sqlite_autoincrement=True,  # failpoint: sqlite-autoincrement
    )
