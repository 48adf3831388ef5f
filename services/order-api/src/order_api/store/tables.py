"""The tables of the orders database. Other services get orders only by RPC and by events."""

from sqlalchemy import (
    BigInteger,
    Boolean,
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
    # An estimate, by the clock of this database. inventory-api decides when the reservations expire.
    Column("reserved_until", Timestamp, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("created_at", Timestamp, nullable=False),
    Column("updated_at", Timestamp, nullable=False),
    Column("tenant", Text, nullable=False, server_default=tenant.DEFAULT),
    Column("created_by", Text, nullable=False, server_default=""),
    Column("external_reference", Text, nullable=False, server_default=""),
    # JSON; store/details.py has the form. Charges and labels are always read with their order. Only order_labels can
    # find an order by a label.
    Column("charges", Text, nullable=False, server_default="[]"),
    Column("labels", Text, nullable=False, server_default="{}"),
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
    Index(None, "tenant", "updated_at", "id"),
    # Most orders have no reference, and so no entry in this index.
    *(
        Index(
            f"ix_orders_{name}",
            *columns,
            "created_at",
            "id",
            postgresql_where=text("external_reference <> ''"),
            sqlite_where=text("external_reference <> ''"),
        )
        for name, columns in (
            ("reference", ("tenant", "external_reference")),
            ("user_reference", ("tenant", "user_id", "external_reference")),
        )
    ),
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
    Column("location", Text, nullable=False, server_default=""),
    # The units that were shipped, cancelled and returned by calls about units. See domain/units.py.
    Column("shipped", BigInteger, nullable=False, server_default=text("0")),
    Column("cancelled", BigInteger, nullable=False, server_default=text("0")),
    Column("returned", BigInteger, nullable=False, server_default=text("0")),
    # A line is always of the same tenant as its order.
    ForeignKeyConstraint(["tenant", "order_id"], [orders.c.tenant, orders.c.id]),
    CheckConstraint("quantity > 0", name="quantity_positive"),
    CheckConstraint("CAST(price AS NUMERIC) >= 0", name="price_not_negative"),
    # Returned units may exceed `shipped`: an order that was shipped as a whole has no shipped units here.
    CheckConstraint(
        "shipped + cancelled <= quantity AND returned + cancelled <= quantity", name="units_within_quantity"
    ),
    Index(None, "order_id"),
    # This index serves ListOrders by product. Ids of lines grow with the time at which their orders were stored.
    Index(None, "tenant", "product_id", "id"),
)

shipments = Table(
    "shipments",
    metadata,
    Column("id", Id, primary_key=True),
    Column("tenant", Text, nullable=False, server_default=tenant.DEFAULT),
    Column("order_id", Id, nullable=False),
    Column("carrier", Text, nullable=False),
    Column("tracking_number", Text, nullable=False),
    # JSON: pairs of the id of a line and its units. Shipments are always read as a whole.
    Column("items", Text, nullable=False),
    Column("created_at", Timestamp, nullable=False),
    ForeignKeyConstraint(["tenant", "order_id"], [orders.c.tenant, orders.c.id]),
    Index(None, "tenant", "order_id"),
)

order_returns = Table(
    "order_returns",
    metadata,
    Column("id", Id, primary_key=True),
    Column("tenant", Text, nullable=False, server_default=tenant.DEFAULT),
    Column("order_id", Id, nullable=False),
    Column("reason", Text, nullable=False),
    # JSON: for each item the id of the line, its units, their treatment, their location, and for withheld ones the
    # reason. Always read as a whole.
    Column("items", Text, nullable=False),
    Column("created_at", Timestamp, nullable=False),
    ForeignKeyConstraint(["tenant", "order_id"], [orders.c.tenant, orders.c.id]),
    Index(None, "tenant", "order_id"),
)

# Changes of orders for which inventory-api is being asked to reserve stock. A row is deleted when its change has ended.
order_intents = Table(
    "order_intents",
    metadata,
    Column("order_id", Id, primary_key=True),
    Column("tenant", Text, nullable=False, server_default=tenant.DEFAULT),
    Column("change_id", Id, nullable=False),
    # The version that the order gets by the change.
    Column("version", BigInteger, nullable=False),
    # A digest of the content of the change. A call with the same digest continues the change.
    Column("content", Text, nullable=False),
    # Whether an earlier call may have reserved the stock, even if inventory-api refuses the present one.
    Column("is_uncertain", Boolean, nullable=False),
    Column("created_at", Timestamp, nullable=False),
    ForeignKeyConstraint(["tenant", "order_id"], [orders.c.tenant, orders.c.id]),
    # For CancelAbandonedOrders.
    Index(None, "created_at"),
)

order_status_changes = Table(
    "order_status_changes",
    metadata,
    # The creation of an order is not stored here: it is known from the order.
    Column("order_id", Id, primary_key=True),
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("tenant", Text, nullable=False, server_default=tenant.DEFAULT),
    Column("status", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("changed_at", Timestamp, nullable=False),
    ForeignKeyConstraint(["tenant", "order_id"], [orders.c.tenant, orders.c.id]),
)

order_labels = Table(
    "order_labels",
    metadata,
    # ListOrders finds orders by these rows only. The labels of an order are read from orders.labels.
    Column("order_id", Id, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("tenant", Text, nullable=False, server_default=tenant.DEFAULT),
    Column("value", Text, nullable=False),
    # Copies of the order's columns, because an index has columns of one table only. They never change.
    Column("user_id", BigInteger, nullable=False),
    Column("created_at", Timestamp, nullable=False),
    ForeignKeyConstraint(["tenant", "order_id"], [orders.c.tenant, orders.c.id]),
    Index("ix_order_labels_label", "tenant", "name", "value", "created_at", "order_id"),
    Index("ix_order_labels_user_label", "tenant", "user_id", "name", "value", "created_at", "order_id"),
)

order_buyer_limits = Table(
    "order_buyer_limits",
    metadata,
    # The limits per buyer that an order was created with, to check them again if the order is reinstated.
    Column("order_id", Id, primary_key=True),
    Column("product_id", BigInteger, primary_key=True, autoincrement=False),
    Column("tenant", Text, nullable=False, server_default=tenant.DEFAULT),
    Column("units", BigInteger, nullable=False),
    ForeignKeyConstraint(["tenant", "order_id"], [orders.c.tenant, orders.c.id]),
    CheckConstraint("units > 0", name="units_positive"),
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
