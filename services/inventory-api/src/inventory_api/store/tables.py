"""The tables of the inventory database.

No other service reads or writes them, except event-relay, which uses the outbox and its leases.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Computed,
    ForeignKeyConstraint,
    Identity,
    Index,
    MetaData,
    Table,
    Text,
    text,
)

from shop_common.db.audit import AuditLog
from shop_common.db.idempotency import IdempotencyKeys
from shop_common.db.sql import NAMING_CONVENTION, Id, RowId, Timestamp
from shop_common.events.outbox import Outbox
from shop_common.identity import tenant

metadata = MetaData(naming_convention=NAMING_CONVENTION)

# Indexes for lookups by a caller's value have the tenant as their second column. All statements state both columns. A
# version without tenants can use the index by its first column.

# The conditions of the partial indexes. Queries must repeat these conditions literally: the planner cannot know that a
# condition with a parameter implies the condition of an index, so a prepared statement would not use the index.
HELD = text("state = 'HELD'")
CONFIRMED = text("state = 'CONFIRMED'")
ACTIVE = text("state IN ('HELD', 'CONFIRMED')")
ENDED = text("state IN ('EXPIRED', 'RELEASED', 'FULFILLED')")
REPLACED = text("state = 'REPLACED'")
SET_ASIDE = text("set_aside_at IS NOT NULL")
OF_ORDER = text("order_id <> ''")

inventory_items = Table(
    "inventory_items",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("product_id", BigInteger, nullable=False),
    Column("location", Text, nullable=False),
    Column("quantity", BigInteger, nullable=False),
    # Units of all active reservations, due ones included.
    Column("reserved_quantity", BigInteger, nullable=False),
    # The number of changes of the quantity. A change of the reserved quantity alone does not count.
    Column("version", BigInteger, nullable=False),
    Column("created_at", Timestamp, nullable=False),
    Column("updated_at", Timestamp, nullable=False),
    Column("tenant", Text, nullable=False, server_default=tenant.DEFAULT),
    # The number of movements, and the quantity after the last one. A process of a version without movements changes
    # only the quantity.
    Column("revision", BigInteger, nullable=False, server_default=text("0")),
    Column("booked_quantity", BigInteger, nullable=False, server_default=text("0")),
    # The units that are in stock but not for sale: the sum of the item's rows in stock_withholdings.
    Column("withheld_quantity", BigInteger, nullable=False, server_default=text("0")),
    CheckConstraint(
        "reserved_quantity >= 0 AND withheld_quantity >= 0 AND withheld_quantity + reserved_quantity <= quantity",
        name="reserved_within_quantity",
    ),
    Index("ix_inventory_items_product_id_tenant_location", "product_id", "tenant", "location", unique=True),
    # For ListInventoryItems, and by location.
    Index("ix_inventory_items_tenant_id", "tenant", "id", unique=True),
    Index("ix_inventory_items_location_tenant_id", "location", "tenant", "id"),
    sqlite_autoincrement=True,
)

# The units of an item that are withheld for a reason. A row is only written under the lock of its item.
stock_withholdings = Table(
    "stock_withholdings",
    metadata,
    Column("tenant", Text, nullable=False),
    Column("item_id", BigInteger, primary_key=True),
    Column("reason", Text, primary_key=True),
    Column("quantity", BigInteger, nullable=False),
    CheckConstraint("quantity > 0", name="quantity_positive"),
    # A withholding is always of the same tenant as its item.
    ForeignKeyConstraint(["tenant", "item_id"], [inventory_items.c.tenant, inventory_items.c.id]),
)

# The properties of locations. A location without a row is active and has priority 0. Items name locations that have no
# row, so there is no foreign key.
locations = Table(
    "locations",
    metadata,
    Column("tenant", Text, primary_key=True, server_default=tenant.DEFAULT),
    Column("location", Text, primary_key=True),
    Column("is_active", Boolean, nullable=False),
    Column("priority", BigInteger, nullable=False),
    Column("region", Text, nullable=False),
    # A JSON object: the values of the labels by name.
    Column("labels", Text, nullable=False),
    Column("updated_at", Timestamp, nullable=False),
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
    # NULL while the reservation is active. If a version before this column ended the reservation, the value is NULL
    # until the first purge.
    Column("ended_at", Timestamp),
    # The item of the reservation, if there is only one. 0 if there are several items, or if a version before this
    # column inserted the row.
    Column("sole_item_id", BigInteger, nullable=False, server_default=text("0")),
    # The time at which expiring or purging the reservation failed. An operator has to inspect it.
    Column("set_aside_at", Timestamp),
    Column("tenant", Text, nullable=False, server_default=tenant.DEFAULT),
    # The caller that made the reservation. Empty for order-api, and for rows from before this column.
    Column("owner", Text, nullable=False, server_default=""),
    CheckConstraint("quantity > 0", name="quantity_positive"),
    CheckConstraint(
        "state IN ('HELD', 'CONFIRMED', 'EXPIRED', 'RELEASED', 'FULFILLED', 'REPLACED')", name="state_known"
    ),
    CheckConstraint("state <> 'HELD' OR expires_at IS NOT NULL", name="hold_expires"),
    # For an order's reservations by state, and for ListReservations by order. The owner is last, because
    # ListReservations reads the reservations of all owners in the order of their ids.
    Index("ix_stock_reservations_order_id_tenant_state_id_owner", "order_id", "tenant", "state", "id", "owner"),
    # For ListReservations, and for the foreign key of the allocations.
    Index("ix_stock_reservations_tenant_id", "tenant", "id", unique=True),
    # For the reaper: due reservations, oldest first.
    Index(
        "ix_stock_reservations_due",
        "expires_at",
        postgresql_where=HELD,
        sqlite_where=HELD,
    ),
    # For covering a shortage of a product.
    Index(
        "ix_stock_reservations_product_tenant_due",
        "product_id",
        "tenant",
        "expires_at",
        postgresql_where=HELD,
        sqlite_where=HELD,
    ),
    # For covering a shortage of a product at one location.
    Index(
        "ix_stock_reservations_item_tenant_due",
        "sole_item_id",
        "product_id",
        "tenant",
        "expires_at",
        postgresql_where=HELD,
        sqlite_where=HELD,
    ),
    # For releasing the newest confirmed reservations of an item.
    Index(
        "ix_stock_reservations_item_tenant_confirmed",
        "sole_item_id",
        "product_id",
        "tenant",
        "created_at",
        "id",
        postgresql_where=CONFIRMED,
        sqlite_where=CONFIRMED,
    ),
    # For ListReservations by product.
    Index("ix_stock_reservations_product_id_tenant_id", "product_id", "tenant", "id"),
    # For PurgeHistory.
    Index(
        "ix_stock_reservations_ended_at",
        "ended_at",
        postgresql_where=ENDED,
        sqlite_where=ENDED,
    ),
    # For PurgeHistory. It is a separate index, because processes of a version without REPLACED use the index above.
    Index(
        "ix_stock_reservations_replaced",
        "ended_at",
        postgresql_where=REPLACED,
        sqlite_where=REPLACED,
    ),
    # Only versions before the column `ended_at` use this index. Drop it once no process of such a version can run.
    Index(
        "ix_stock_reservations_ended",
        "created_at",
        postgresql_where=ENDED,
        sqlite_where=ENDED,
    ),
    # For counting reservations that were set aside. Normally there are none.
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
    Column("reservation_id", Id, primary_key=True),
    Column("item_id", BigInteger, primary_key=True),
    Column("quantity", BigInteger, nullable=False),
    Column("tenant", Text, nullable=False, server_default=tenant.DEFAULT),
    CheckConstraint("quantity > 0", name="quantity_positive"),
    # An allocation is always of the same tenant as its reservation.
    ForeignKeyConstraint(
        ["tenant", "reservation_id"], [stock_reservations.c.tenant, stock_reservations.c.id], ondelete="CASCADE"
    ),
    # An allocation takes units from an item of its own tenant. Row-level security cannot ensure this in a transaction
    # that serves several tenants.
    ForeignKeyConstraint(["tenant", "item_id"], [inventory_items.c.tenant, inventory_items.c.id]),
    Index("ix_reservation_allocations_item_id", "item_id"),
)

order_effects = Table(
    "order_effects",
    metadata,
    Column("tenant", Text, primary_key=True, server_default=tenant.DEFAULT),
    Column("order_id", Text, primary_key=True),
    # The highest version of the order whose targets the reservations have reached. 0 while the first one is applied.
    Column("applied_version", BigInteger, nullable=False),
    # JSON: the units kept, shipped and restocked so far, by product. The rows outlive the reservations, so that an
    # event that is repeated after the reservations were purged still changes nothing.
    Column("totals", Text, nullable=False),
    Column("updated_at", Timestamp, nullable=False),
    # JSON: the reservations that were added for changes of the order and are not part of the totals yet.
    Column("additions", Text, nullable=False, server_default="[]"),
)

# Rows are only inserted. Product and location are those of the item, which never change.
stock_movements = Table(
    "stock_movements",
    metadata,
    Column("id", RowId, Identity(cache=1), primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("item_id", BigInteger, nullable=False),
    Column("product_id", BigInteger, nullable=False),
    Column("location", Text, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("quantity", BigInteger, nullable=False),
    Column("quantity_after", BigInteger, nullable=False),
    Column("order_id", Text, nullable=False, server_default=""),
    Column("reason", Text, nullable=False, server_default=""),
    Column("actor", Text, nullable=False, server_default=""),
    Column("created_at", Timestamp, nullable=False),
    Column("reference", Text, nullable=False, server_default=""),
    # The time that the caller stated. NULL if it stated none.
    Column("occurred_at", Timestamp),
    # Like `quantity` and `quantity_after`, for the withheld units.
    Column("withheld", BigInteger, nullable=False, server_default=text("0")),
    Column("withheld_after", BigInteger, nullable=False, server_default=text("0")),
    Index("ix_stock_movements_item_id_revision", "item_id", "revision", unique=True),
    # For the quantity of an item at an earlier time.
    Index("ix_stock_movements_item_id_created_at_revision", "item_id", "created_at", "revision"),
    # For ListMovements, and by product, location and order.
    Index("ix_stock_movements_tenant_created_at_id", "tenant", "created_at", "id"),
    Index("ix_stock_movements_product_id_tenant_created_at_id", "product_id", "tenant", "created_at", "id"),
    Index("ix_stock_movements_location_tenant_created_at_id", "location", "tenant", "created_at", "id"),
    Index(
        "ix_stock_movements_order_id_tenant_created_at_id",
        "order_id",
        "tenant",
        "created_at",
        "id",
        postgresql_where=OF_ORDER,
        sqlite_where=OF_ORDER,
    ),
    sqlite_autoincrement=True,
)

outbox = Outbox(metadata)
idempotency_keys = IdempotencyKeys(metadata)
audit_log = AuditLog(metadata)
