"""All SQL on the table shipments."""

from collections.abc import Iterable, Sequence

import orjson
from sqlalchemy import Connection, select

from order_api.domain.model import OrderKey, Shipment
from order_api.store import tables
from shop_common.db.sql import Statement, insert_into, is_each

_shipments = tables.shipments
_COLUMNS = ("tenant", "order_id", "id", "carrier", "tracking_number", "items", "created_at")


def append(tx: Connection, shipments: Sequence[tuple[OrderKey, Shipment]]) -> None:
    """Insert new shipments. The transaction has locked their orders."""
    rows = [
        {
            "tenant": order.tenant,
            "order_id": order.id,
            "id": shipment.id,
            "carrier": shipment.carrier,
            "tracking_number": shipment.tracking_number,
            "items": orjson.dumps(shipment.units).decode(),
            "created_at": shipment.created_at,
        }
        for order, shipment in shipments
    ]
    if rows:
        _insert(tx, rows)


def of(tx: Connection, orders: Iterable[OrderKey]) -> dict[OrderKey, list[Shipment]]:
    """Return the shipments of these orders, oldest first. Locks nothing."""
    rows = [{"tenant": order.tenant, "order_id": order.id} for order in set(orders)]
    found: dict[OrderKey, list[Shipment]] = {}
    for tenant, order_id, shipment_id, carrier, tracking_number, items, created_at in _of(tx, rows) if rows else ():
        units = tuple((item_id, quantity) for item_id, quantity in orjson.loads(items))
        shipment = Shipment(shipment_id, carrier, tracking_number, units, created_at)
        found.setdefault(OrderKey(tenant, order_id), []).append(shipment)
    return found


_insert = insert_into(_shipments, *_COLUMNS)
_of = Statement(
    lambda given: (
        select(*(_shipments.c[name] for name in _COLUMNS))
        .where(*is_each(_shipments, given, "tenant", "order_id"))
        .order_by(_shipments.c.order_id, _shipments.c.id)
    ),
    tenant=_shipments.c.tenant.type,
    order_id=_shipments.c.order_id.type,
)
