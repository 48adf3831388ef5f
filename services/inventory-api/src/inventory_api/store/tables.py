"""The inventory database. Private to this service: others know stock by RPC and by events only."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Computed,
    ForeignKey,
    Index,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from shop_common.db.idempotency import IdempotencyKeys
from shop_common.db.sql import Id, RowId, Timestamp
from shop_common.events.outbox import Outbox

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# The conditions of the partial indexes. Queries use these very words: whether a parameter implies the condition, a
# planner can't tell, and a prepared statement would not use the index.
HELD = text("state = 'HELD'")
ACTIVE = text("state IN ('HELD', 'CONFIRMED')")
ENDED = text("state IN ('EXPIRED', 'RELEASED', 'FULFILLED')")
SET_ASIDE = text("set_aside_at IS NOT NULL")

inventory_items = Table(
    "inventory_items",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("product_id", BigInteger, nullable=False),
    Column("location", Text, nullable=False),
    Column("quantity", BigInteger, nullable=False),
    # What active reservations draw on this item, past their time or not.
    Column("reserved_quantity", BigInteger, nullable=False),
    # Counts the changes of quantity; reservations do not touch it.
    Column("version", BigInteger, nullable=False),
    Column("created_at", Timestamp, nullable=False),
    Column("updated_at", Timestamp, nullable=False),
    UniqueConstraint("product_id", "location"),
    CheckConstraint("reserved_quantity >= 0 AND reserved_quantity <= quantity", name="reserved_within_quantity"),
    # For the pages of one location.
    Index(None, "location", "id"),
    sqlite_autoincrement=True,
)

stock_reservations = Table(
    "stock_reservations",
    metadata,
    Column("id", Id, primary_key=True),
    Column("product_id", BigInteger, nullable=False),
    Column("quantity", BigInteger, nullable=False),
    Column("order_id", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("is_active", Boolean, Computed("state IN ('HELD', 'CONFIRMED')", persisted=True)),
    Column("created_at", Timestamp, nullable=False),
    Column("expires_at", Timestamp),
    # Null while it is active; and of what a version before this column has ended, until a purge comes by.
    Column("ended_at", Timestamp),
    # The only item that it draws on; 0 if there are several, or if a version before this column has written it.
    Column("sole_item_id", BigInteger, nullable=False, server_default=text("0")),
    # When it was found that it can't be expired or purged. A person has to look at it.
    Column("set_aside_at", Timestamp),
    CheckConstraint("quantity > 0", name="quantity_positive"),
    CheckConstraint("state IN ('HELD', 'CONFIRMED', 'EXPIRED', 'RELEASED', 'FULFILLED')", name="state_known"),
    CheckConstraint("state <> 'HELD' OR expires_at IS NOT NULL", name="hold_expires"),
    # For all that is done to an order's reservations by their state, and for the pages of an order.
    Index(None, "order_id", "state", "id"),
    # For the reaper, and for a request in need of stock.
    Index(
        "ix_stock_reservations_due",
        "expires_at",
        postgresql_where=HELD,
        sqlite_where=HELD,
    ),
    Index(
        "ix_stock_reservations_product_due",
        "product_id",
        "expires_at",
        postgresql_where=HELD,
        sqlite_where=HELD,
    ),
    # The same, at one location.
    Index(
        "ix_stock_reservations_item_due",
        "sole_item_id",
        "product_id",
        "expires_at",
        postgresql_where=HELD,
        sqlite_where=HELD,
    ),
    # For the pages of one product.
    Index(None, "product_id", "id"),
    # For purging what has ended.
    Index(
        "ix_stock_reservations_ended_at",
        "ended_at",
        postgresql_where=ENDED,
        sqlite_where=ENDED,
    ),
    # Used by the version before `ended_at` only. Drop it when no process of that version can run any more.
    Index(
        "ix_stock_reservations_ended",
        "created_at",
        postgresql_where=ENDED,
        sqlite_where=ENDED,
    ),
    # For counting what was set aside: there should be none.
    Index(
        "ix_stock_reservations_set_aside",
        "set_aside_at",
        postgresql_where=SET_ASIDE,
        sqlite_where=SET_ASIDE,
    ),
)

reservation_allocations = Table(
    "reservation_allocations",
    metadata,
    Column("reservation_id", Id, ForeignKey(stock_reservations.c.id, ondelete="CASCADE"), primary_key=True),
    Column("item_id", BigInteger, primary_key=True),
    Column("quantity", BigInteger, nullable=False),
    CheckConstraint("quantity > 0", name="quantity_positive"),
    Index(None, "item_id"),
)

outbox = Outbox(metadata)
idempotency_keys = IdempotencyKeys(metadata)
