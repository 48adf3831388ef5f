"""Creates the tables of orders and their lines, and those of every service: outbox, leases, idempotency keys.

Do not change this revision: it creates the tables of the first version, which differ from today's tables.py.
"""

import sqlalchemy as sa
from alembic import op

from shop_common.db.sql import Amount, Clock, Id, RowId, Timestamp

revision = "0001"
down_revision = None


def upgrade() -> None:
    _create_orders()
    _create_order_items()
    _create_outbox()
    _create_idempotency_keys()


def _create_orders() -> None:
    op.create_table(
        "orders",
        sa.Column("id", Id, nullable=False),
        sa.Column("user_id", sa.BigInteger, nullable=False),
        sa.Column("total_amount", Amount, nullable=False),
        sa.Column("currency", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("status_reason", sa.Text, nullable=False),
        sa.Column("reserved_until", Timestamp, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("created_at", Timestamp, nullable=False),
        sa.Column("updated_at", Timestamp, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_orders"),
        sa.CheckConstraint("CAST(total_amount AS NUMERIC) >= 0", name="ck_orders_total_not_negative"),
        sa.CheckConstraint("length(currency) = 3", name="ck_orders_currency_code"),
        sa.CheckConstraint(
            "status IN ('PENDING', 'CONFIRMED', 'PROCESSING', 'SHIPPED', 'DELIVERED', 'CANCELLED')",
            name="ck_orders_status_known",
        ),
    )
    op.create_index("ix_orders_created_at_id", "orders", ["created_at", "id"])
    op.create_index("ix_orders_user_id_created_at_id", "orders", ["user_id", "created_at", "id"])
    op.create_index("ix_orders_status_created_at_id", "orders", ["status", "created_at", "id"])
    op.create_index("ix_orders_user_id_status_created_at_id", "orders", ["user_id", "status", "created_at", "id"])
    pending = sa.text("status = 'PENDING'")
    op.create_index(
        "ix_orders_abandoned",
        "orders",
        ["reserved_until"],
        postgresql_where=pending,
        sqlite_where=pending,
    )


def _create_order_items() -> None:
    op.create_table(
        "order_items",
        sa.Column("id", RowId, nullable=False),
        sa.Column("order_id", Id, nullable=False),
        sa.Column("product_id", sa.BigInteger, nullable=False),
        sa.Column("quantity", sa.BigInteger, nullable=False),
        sa.Column("price", Amount, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_order_items"),
        sa.ForeignKeyConstraint(["order_id"], ["orders.id"], name="fk_order_items_order_id"),
        sa.CheckConstraint("quantity > 0", name="ck_order_items_quantity_positive"),
        sa.CheckConstraint("CAST(price AS NUMERIC) >= 0", name="ck_order_items_price_not_negative"),
    )
    op.create_index("ix_order_items_order_id", "order_items", ["order_id"])


def _create_outbox() -> None:
    op.create_table(
        "outbox",
        sa.Column("id", RowId, sa.Identity(cache=1), nullable=False),
        sa.Column("shard", sa.SmallInteger, nullable=False),
        sa.Column("event_id", Id, nullable=False),
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("payload", sa.Text, nullable=False),
        sa.Column("headers", sa.Text),
        sa.Column("traceparent", sa.Text),
        sa.Column("created_at", Timestamp, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_outbox"),
        sqlite_autoincrement=True,  # failpoint: sqlite-autoincrement
    )
    op.create_index("ix_outbox_shard_id", "outbox", ["shard", "id"])
    if op.get_context().dialect.name == "postgresql":
        # Every row is soon deleted. So vacuum after 2,000 dead rows, however large the table is, and without pauses.
        # Otherwise the relay reads many dead rows at the front of the index.
        op.execute(
            "ALTER TABLE outbox SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,"
            " autovacuum_vacuum_cost_delay = 0)"
        )
    op.create_table(
        "relay_lease",
        sa.Column("shard", sa.SmallInteger, autoincrement=False, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("expires_at", Timestamp, nullable=False),
        sa.PrimaryKeyConstraint("shard", name="pk_relay_lease"),
    )


def _create_idempotency_keys() -> None:
    op.create_table(
        "idempotency_keys",
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("scope", sa.Text, nullable=False),
        sa.Column("method", sa.Text, nullable=False),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("resources", sa.Text, nullable=False),
        sa.Column("created_at", Timestamp, server_default=Clock(), nullable=False),
        sa.PrimaryKeyConstraint("request_id", "scope", "method", name="pk_idempotency_keys"),
    )
    op.create_index("ix_idempotency_keys_created_at", "idempotency_keys", ["created_at"])
