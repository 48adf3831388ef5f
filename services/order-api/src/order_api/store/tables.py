"""The tables of the orders database. Other services get orders only by RPC and by events."""

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKeyConstraint,
    Index,
    MetaData,
    Table,
    Text,
    text,
)

from shop_common.db.audit import AuditLog
from shop_common.db.idempotency import IdempotencyKeys
from shop_common.db.sql import NAMING_CONVENTION, Amount, Id, RowId, Timestamp
from shop_common.events.outbox import Outbox
from shop_common.identity import tenant

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
    Column("tenant", Text, nullable=False, server_default=tenant.DEFAULT),
    # Amounts are text on SQLite; the cast makes both databases compare numbers.
    CheckConstraint("CAST(total_amount AS NUMERIC) >= 0", name="total_not_negative"),
    CheckConstraint("length(currency) = 3", name="currency_code"),
    CheckConstraint(
        "status IN ('PENDING', 'CONFIRMED', 'PROCESSING', 'SHIPPED', 'DELIVERED', 'CANCELLED')", name="status_known"
    ),
    # An id is unique over all tenants. The foreign key of the lines needs this index.
    Index(None, "tenant", "id", unique=True),
    # Each of these indexes serves ListOrders with one combination of filters, newest first.
    Index(None, "tenant", "created_at", "id"),
    Index(None, "tenant", "user_id", "created_at", "id"),
    Index(None, "tenant", "status", "created_at", "id"),
    Index(None, "tenant", "user_id", "status", "created_at", "id"),
    # Only the release without tenants uses these indexes. The release after the first one with tenants drops them.
    Index(None, "created_at", "id"),
    Index(None, "user_id", "created_at", "id"),
    Index(None, "status", "created_at", "id"),
    Index(None, "user_id", "status", "created_at", "id"),
    # This index serves CancelAbandonedOrders: all tenants' orders still PENDING after their reservations have expired.
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
    Column("order_id", Id, nullable=False),
    Column("product_id", BigInteger, nullable=False),
    Column("quantity", BigInteger, nullable=False),
    Column("price", Amount, nullable=False),
    Column("tenant", Text, nullable=False, server_default=tenant.DEFAULT),
    # A line is always of the same tenant as its order.
    ForeignKeyConstraint(["tenant", "order_id"], [orders.c.tenant, orders.c.id]),
    CheckConstraint("quantity > 0", name="quantity_positive"),
    CheckConstraint("CAST(price AS NUMERIC) >= 0", name="price_not_negative"),
    Index(None, "order_id"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, nullable=False, server_default="default"),
    Column("name", Text, nullable=False),
    # The SHA-256 of the key's text, in hexadecimal.
    Column("digest", Text, nullable=False),
    # Names separated by spaces, sorted.
    Column("permissions", Text, nullable=False),
    Column("created_at", Timestamp, nullable=False),
    Column("expires_at", Timestamp),
    Column("revoked_at", Timestamp),
    Column("last_used_at", Timestamp),
    # This index serves ListApiKeys, newest first.
    Index(None, "tenant", "created_at", "id"),
)

outbox = Outbox(metadata)
idempotency_keys = IdempotencyKeys(metadata)
audit_log = AuditLog(metadata)
