"""Rows for the tables of each revision, so that later migrations run on tables that are not empty.

Every revision that creates a table needs rows here. Columns added to an existing table may stay empty.
"""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, Boolean, Connection, Text, column, insert, table
from sqlalchemy.types import TypeEngine

from shop_common.db.sql import Amount, Id, Timestamp

Rows = dict[str, list[dict[str, Any]]]

_MOMENT = datetime(2024, 1, 15, 10, 30, 0, 123456, tzinfo=UTC)
_RESERVATIONS = [UUID(int=number) for number in range(1, 6)]
_ORDERS = [UUID(int=number) for number in range(11, 13)]

_COMMON: Rows = {
    "outbox": [
        {
            "shard": 7,
            "event_id": UUID(int=21),
            "topic": "inventory-events",
            "key": "1",
            "type": "STOCK_UPDATED",
            "payload": "{}",
            "created_at": _MOMENT,
        }
    ],
    "relay_lease": [{"shard": 7, "owner": "relay", "expires_at": _MOMENT}],
    "idempotency_keys": [
        {"request_id": "r", "scope": "", "method": "M", "fingerprint": "f", "resources": "[]", "created_at": _MOMENT}
    ],
}

_INVENTORY_1: Rows = {
    "inventory_items": [
        {
            "id": number,
            "product_id": 1,
            "location": location,
            "quantity": 9_000_000_000_000_000,
            "reserved_quantity": number,
            "version": 3,
            "created_at": _MOMENT,
            "updated_at": _MOMENT,
        }
        for number, location in enumerate(["WAREHOUSE_A", "WAREHOUSE_B"], 1)
    ],
    "stock_reservations": [
        {
            "id": reservation,
            "product_id": 1,
            "quantity": 1,
            "order_id": "an order's id, of 64 characters at most",
            "state": state,
            "created_at": _MOMENT,
            **({"expires_at": _MOMENT} if state == "HELD" else {}),
        }
        for reservation, state in zip(
            _RESERVATIONS, ["HELD", "CONFIRMED", "EXPIRED", "RELEASED", "FULFILLED"], strict=True
        )
    ],
    "reservation_allocations": [
        {"reservation_id": reservation, "item_id": 1, "quantity": 1} for reservation in _RESERVATIONS
    ],
}

_ORDERS_1: Rows = {
    "orders": [
        {
            "id": order,
            "user_id": 1,
            "total_amount": Decimal("999999999999999.990000001"),
            "currency": "EUR",
            "status": status,
            "status_reason": "",
            "reserved_until": _MOMENT,
            "version": 1,
            "created_at": _MOMENT,
            "updated_at": _MOMENT,
        }
        for order, status in zip(_ORDERS, ["PENDING", "DELIVERED"], strict=True)
    ],
    "order_items": [
        {"id": number, "order_id": order, "product_id": 1, "quantity": 2, "price": Decimal("0.000000001")}
        for number, order in enumerate(_ORDERS, 1)
    ],
}

_ORDERS_5: Rows = {
    "api_keys": [
        {
            "id": "abcdefghijklmnop",
            "name": "a program",
            "digest": "00" * 32,
            "permissions": "inventory.read orders.read",
            "created_at": _MOMENT,
        }
    ],
}

_ORDERS_7: Rows = {
    "order_status_changes": [
        {
            "order_id": _ORDERS[1],
            "version": 2,
            "status": "CONFIRMED",
            "reason": "paid",
            "actor": "user:1",
            "changed_at": _MOMENT,
        }
    ],
    "order_labels": [
        {"order_id": _ORDERS[1], "name": "channel", "value": "web", "user_id": 1, "created_at": _MOMENT},
    ],
}

_INVENTORY_14: Rows = {
    "stock_movements": [
        {
            "id": 1_000,
            "tenant": "default",
            "item_id": 1,
            "product_id": 1,
            "location": "WAREHOUSE_A",
            "revision": 1_000,
            "kind": "FULFILLED",
            "quantity": -1,
            "quantity_after": 9_000_000_000_000_000,
            "order_id": "an order's id",
            "created_at": _MOMENT,
        }
    ],
}

_INVENTORY_16: Rows = {
    "stock_movements": [
        {
            **_INVENTORY_14["stock_movements"][0],
            "id": 1_001,
            "revision": 1_001,
            "kind": "ADJUSTED",
            "order_id": "",
            "reason": "damaged",
            "reference": "note 7",
            "occurred_at": _MOMENT,
        }
    ],
}

_INVENTORY_18: Rows = {
    "stock_withholdings": [{"tenant": "default", "item_id": 1, "reason": "DAMAGED", "quantity": 1}],
}

_AUDIT: Rows = {
    "audit_log": [{"id": 1, "at": _MOMENT, "caller": "user:1", "method": "M", "request_id": "r", "resources": "[]"}]
}

_ORDERS_8: Rows = {
    "shipments": [
        {
            "id": UUID(int=31),
            "order_id": _ORDERS[0],
            "carrier": "a carrier",
            "tracking_number": "1",
            "items": "[[1,1]]",
            "created_at": _MOMENT,
        }
    ]
}

_ORDERS_10: Rows = {
    "order_returns": [
        {
            "id": UUID(int=41),
            "order_id": _ORDERS[0],
            "reason": "too small",
            "items": '[[1,1,"RESTOCK","WAREHOUSE_A"]]',
            "created_at": _MOMENT,
        }
    ]
}

_ORDERS_11: Rows = {
    "order_intents": [
        {
            "order_id": _ORDERS[0],
            "change_id": UUID(int=51),
            "version": 4,
            "content": "a digest",
            "is_uncertain": False,
            "created_at": _MOMENT,
        }
    ]
}

_ORDERS_12: Rows = {"order_buyer_limits": [{"order_id": _ORDERS[0], "product_id": 1, "units": 2}]}

_INVENTORY_12: Rows = {
    "order_effects": [
        {"order_id": str(_ORDERS[0]), "applied_version": 3, "totals": '{"1":[2,1]}', "updated_at": _MOMENT}
    ]
}

_LOCATIONS: Rows = {
    "locations": [
        {
            "location": "WAREHOUSE_A",
            "is_active": False,
            "priority": 1,
            "region": "north",
            "labels": "{}",
            "updated_at": _MOMENT,
        }
    ]
}

ROWS: dict[tuple[str, str], Rows] = {
    ("inventory-api", "0001"): _INVENTORY_1 | _COMMON,
    ("order-api", "0001"): _ORDERS_1 | _COMMON,
    ("order-api", "0005"): _ORDERS_5,
    ("inventory-api", "0009"): _AUDIT,
    ("inventory-api", "0012"): _INVENTORY_12,
    ("inventory-api", "0013"): _LOCATIONS,
    ("order-api", "0008"): _ORDERS_8,
    ("inventory-api", "0014"): _INVENTORY_14,
    ("inventory-api", "0016"): _INVENTORY_16,
    ("inventory-api", "0018"): _INVENTORY_18,
    ("order-api", "0006"): _AUDIT,
    ("order-api", "0007"): _ORDERS_7,
    ("order-api", "0010"): _ORDERS_10,
    ("order-api", "0011"): _ORDERS_11,
    ("order-api", "0012"): _ORDERS_12,
}
"""(service, revision) → rows by table, in an order that foreign keys allow."""

_TYPES: dict[type, TypeEngine[Any]] = {
    datetime: Timestamp(),
    Decimal: Amount(),
    UUID: Id(),
    bool: Boolean(),
    int: BigInteger(),
    str: Text(),
}


def fill(tx: Connection, rows: Rows) -> None:
    """Insert the rows with the types that the migrations use."""
    for name, table_rows in rows.items():
        for row in table_rows:
            into = table(name, *(column(key, _TYPES[type(value)]) for key, value in row.items()))
            tx.execute(insert(into).values({k: str(v) if isinstance(v, UUID) else v for k, v in row.items()}))
