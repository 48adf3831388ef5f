"""The tables of the orders database. Other services get orders only by RPC and by events."""

from sqlalchemy import BigInteger, CheckConstraint, Column, ForeignKey, Index, MetaData, Table, Text, text

from shop_common.db.idempotency import IdempotencyKeys
from shop_common.db.sql import NAMING_CONVENTION, Amount, Id, RowId, Timestamp
from shop_common.events.outbox import Outbox

metadata = MetaData(naming_convention=NAMING_CONVENTION)

orders = Table(
    "orders",
    metadata,
    Column("id", Id, primary_key=True),
    Column("user_id", BigInteger, nullable=False),
    Column("total_amount", Amount, nullable=False),
    Column("currency", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("status_reason", Text, nullable=False),
    # An estimate by this database's clock. inventory-api decides when the reservations expire.
    Column("reserved_until", Timestamp, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("created_at", Timestamp, nullable=False),
    Column("updated_at", Timestamp, nullable=False),
    # Amounts are text on SQLite; the cast makes both databases compare numbers.
    CheckConstraint("CAST(total_amount AS NUMERIC) >= 0", name="total_not_negative"),
    CheckConstraint("length(currency) = 3", name="currency_code"),
    CheckConstraint(
        "status IN ('PENDING', 'CONFIRMED', 'PROCESSING', 'SHIPPED', 'DELIVERED', 'CANCELLED')", name="status_known"
    ),
    # Each of these indexes serves ListOrders with one combination of filters, newest first.
    Index(None, "created_at", "id"),
    Index(None, "user_id", "created_at", "id"),
    Index(None, "status", "created_at", "id"),
    Index(None, "user_id", "status", "created_at", "id"),
    # This index serves CancelAbandonedOrders: orders that are still PENDING after their reservations have expired.
    Index(
        "ix_orders_abandoned",
        "reserved_until",
        postgresql_where=text("status = 'PENDING'"),
        sqlite_where=text("status = 'PENDING'"),
    ),
)

order_items = Table(
    "order_items",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("order_id", Id, ForeignKey(orders.c.id), nullable=False),
    Column("product_id", BigInteger, nullable=False),
    Column("quantity", BigInteger, nullable=False),
    Column("price", Amount, nullable=False),
    CheckConstraint("quantity > 0", name="quantity_positive"),
    CheckConstraint("CAST(price AS NUMERIC) >= 0", name="price_not_negative"),
    Index(None, "order_id"),
)

outbox = Outbox(metadata)
idempotency_keys = IdempotencyKeys(metadata)
