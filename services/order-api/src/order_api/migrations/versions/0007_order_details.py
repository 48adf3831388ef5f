"""Adds charges, references, labels, locations of lines, and the history of the status. Adds indexes for ListOrders.

Rows from before have none of these, and neither have the rows that a process of the previous version inserts. Constant
defaults rewrite no rows. PostgreSQL builds the indexes while others read and write. Everything may be repeated after a
failure.
"""

import sqlalchemy as sa
from alembic import op

from shop_common.db import online_ddl
from shop_common.db.sql import Id, Timestamp

revision = "0007"
down_revision = "0006"

_ORDER = (["tenant", "order_id"], ["orders.tenant", "orders.id"])


def upgrade() -> None:
    for name, default in (("created_by", ""), ("external_reference", ""), ("charges", "[]"), ("labels", "{}")):
        online_ddl.add_column("orders", sa.Column(name, sa.Text, nullable=False, server_default=default))
    online_ddl.add_column("order_items", sa.Column("location", sa.Text, nullable=False, server_default=""))
    _create_order_status_changes()
    _create_order_labels()
    online_ddl.add_index("ix_orders_tenant_updated_at_id", "orders", ["tenant", "updated_at", "id"])
    online_ddl.add_index("ix_order_items_tenant_product_id_id", "order_items", ["tenant", "product_id", "id"])
    has_reference = sa.text("external_reference <> ''")
    for index, columns in (("reference", ["tenant"]), ("user_reference", ["tenant", "user_id"])):
        online_ddl.add_index(
            f"ix_orders_{index}",
            "orders",
            [*columns, "external_reference", "created_at", "id"],
            postgresql_where=has_reference,
            sqlite_where=has_reference,
        )


def _create_order_status_changes() -> None:
    op.create_table(
        "order_status_changes",
        sa.Column("order_id", Id, nullable=False),
        sa.Column("version", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("tenant", sa.Text, server_default="default", nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("changed_at", Timestamp, nullable=False),
        sa.PrimaryKeyConstraint("order_id", "version", name="pk_order_status_changes"),
        sa.ForeignKeyConstraint(*_ORDER, name="fk_order_status_changes_tenant_order_id"),
        if_not_exists=True,
    )


def _create_order_labels() -> None:
    op.create_table(
        "order_labels",
        sa.Column("order_id", Id, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, server_default="default", nullable=False),
        sa.Column("value", sa.Text, nullable=False),
        sa.Column("user_id", sa.BigInteger, nullable=False),
        sa.Column("created_at", Timestamp, nullable=False),
        sa.PrimaryKeyConstraint("order_id", "name", name="pk_order_labels"),
        sa.ForeignKeyConstraint(*_ORDER, name="fk_order_labels_tenant_order_id"),
        if_not_exists=True,
    )
    label = ["name", "value", "created_at", "order_id"]
    for index, columns in (("label", ["tenant"]), ("user_label", ["tenant", "user_id"])):
        op.create_index(f"ix_order_labels_{index}", "order_labels", [*columns, *label], if_not_exists=True)
