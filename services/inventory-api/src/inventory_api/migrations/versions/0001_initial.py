"""Creates items, reservations and allocations, and the tables of every API: outbox, leases and idempotency keys.

Do not change this revision: it creates the tables of the first version, which differ from today's tables.py.
"""

import sqlalchemy as sa
from alembic import op

from shop_common.db.sql import Clock, Id, RowId, Timestamp

revision = "0001"
down_revision = None


def upgrade() -> None:
    _create_inventory_items()
    _create_stock_reservations()
    _create_reservation_allocations()
    _create_outbox()
    _create_idempotency_keys()


def _create_inventory_items() -> None:
    op.create_table(
        "inventory_items",
        sa.Column("id", RowId, nullable=False),
        sa.Column("product_id", sa.BigInteger, nullable=False),
        sa.Column("location", sa.Text, nullable=False),
        sa.Column("quantity", sa.BigInteger, nullable=False),
        sa.Column("reserved_quantity", sa.BigInteger, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("created_at", Timestamp, nullable=False),
        sa.Column("updated_at", Timestamp, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_inventory_items"),
        sa.UniqueConstraint("product_id", "location", name="uq_inventory_items_product_id_location"),
        sa.CheckConstraint(
            "reserved_quantity >= 0 AND reserved_quantity <= quantity",
            name="ck_inventory_items_reserved_within_quantity",
        ),
        sqlite_autoincrement=True,  # failpoint: sqlite-autoincrement
    )
    if op.get_context().dialect.name == "postgresql":
        # Items are updated about a hundred times as often as they are added. With free space on the page of a row,
        # PostgreSQL stores the new version on the same page and writes no index entries. The next update can then
        # reuse the space of the old version.
        op.execute("ALTER TABLE inventory_items SET (fillfactor = 50)")


def _create_stock_reservations() -> None:
    op.create_table(
        "stock_reservations",
        sa.Column("id", Id, nullable=False),
        sa.Column("product_id", sa.BigInteger, nullable=False),
        sa.Column("quantity", sa.BigInteger, nullable=False),
        sa.Column("order_id", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("is_active", sa.Boolean, sa.Computed("state IN ('HELD', 'CONFIRMED')", persisted=True)),
        sa.Column("created_at", Timestamp, nullable=False),
        sa.Column("expires_at", Timestamp),
        sa.PrimaryKeyConstraint("id", name="pk_stock_reservations"),
        sa.CheckConstraint("quantity > 0", name="ck_stock_reservations_quantity_positive"),
        sa.CheckConstraint(
            "state IN ('HELD', 'CONFIRMED', 'EXPIRED', 'RELEASED', 'FULFILLED')",
            name="ck_stock_reservations_state_known",
        ),
        sa.CheckConstraint("state <> 'HELD' OR expires_at IS NOT NULL", name="ck_stock_reservations_hold_expires"),
    )
    op.create_index("ix_stock_reservations_order_id", "stock_reservations", ["order_id"])
    op.create_index("ix_stock_reservations_product_id_id", "stock_reservations", ["product_id", "id"])
    held = sa.text("state = 'HELD'")
    op.create_index(
        "ix_stock_reservations_due",
        "stock_reservations",
        ["expires_at"],
        postgresql_where=held,
        sqlite_where=held,
    )
    op.create_index(
        "ix_stock_reservations_product_due",
        "stock_reservations",
        ["product_id", "expires_at"],
        postgresql_where=held,
        sqlite_where=held,
    )
    ended = sa.text("state IN ('EXPIRED', 'RELEASED', 'FULFILLED')")
    op.create_index(
        "ix_stock_reservations_ended",
        "stock_reservations",
        ["created_at"],
        postgresql_where=ended,
        sqlite_where=ended,
    )


def _create_reservation_allocations() -> None:
    op.create_table(
        "reservation_allocations",
        sa.Column("reservation_id", Id, nullable=False),
        sa.Column("item_id", sa.BigInteger, nullable=False),
        sa.Column("quantity", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("reservation_id", "item_id", name="pk_reservation_allocations"),
        sa.ForeignKeyConstraint(
            ["reservation_id"],
            ["stock_reservations.id"],
            name="fk_reservation_allocations_reservation_id",
            ondelete="CASCADE",
        ),
        sa.CheckConstraint("quantity > 0", name="ck_reservation_allocations_quantity_positive"),
    )
    op.create_index("ix_reservation_allocations_item_id", "reservation_allocations", ["item_id"])


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
        # Every row is soon deleted. So vacuum starts after 2,000 dead rows, whatever the size of the table, and runs
        # at full speed. Otherwise the relay would read many dead rows at the start of the index.
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
