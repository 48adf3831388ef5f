"""Handles order events. A repeated delivery is safe, because the handlers check the state of each reservation."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from sqlalchemy import Connection

from inventory_api.domain.commands import OrderRequest
from inventory_api.operations.reservations.fulfil import fulfil_orders
from inventory_api.operations.reservations.release import release_orders
from inventory_api.store.reservations import by_order
from shop_common.db.audit import AuditLog
from shop_common.events.consumer import Event, Handler
from shop_common.identity.caller import ANYONE
from shop_common.telemetry import logs, metrics

TOPIC = "order-events"
GROUP = "inventory-api"

_log = logs.get(__name__)

_short_fulfilments = metrics.counter(
    __name__,
    "shop_short_fulfilments_total",
    "Orders that were shipped with fewer fulfilled units than ordered",
)


def handlers(audit_log: AuditLog | None = None) -> Mapping[str, Handler]:
    """Return the handlers of this service by event type. With `audit_log`, changes are recorded there."""
    return {
        "ORDER_CANCELLED": partial(release, audit_log=audit_log),
        "ORDER_SHIPPED": partial(fulfil, audit_log=audit_log),
    }


def weigh(event: Event) -> int:
    """Return the weight of an event: one plus the number of order lines. Each line may have a reservation."""
    return 1 + len(event.data["items"])


def release(tx: Connection, events: Sequence[Event], *, audit_log: AuditLog | None = None) -> bool:
    """Release reservations of cancelled orders, one turn per call. Returns True if another turn may be needed."""
    return release_orders(tx, [_order(event) for event in events], audit_log)


def fulfil(tx: Connection, events: Sequence[Event], *, audit_log: AuditLog | None = None) -> bool:
    """Take units of shipped orders out of the stock, one turn per call. Returns True if another turn may be needed."""
    orders = [_order(event) for event in events]
    if fulfil_orders(tx, orders, audit_log):
        return True
    # These units include the ones that earlier turns fulfilled.
    fulfilled = by_order.fulfilled_units(tx, (order.order_key for order in orders))
    for event, order in zip(events, orders, strict=True):
        missing = _missing(event.data, fulfilled[order.order_key])
        if missing:
            # The goods were shipped, but the stock still has their units. An operator must correct the quantity.
            _short_fulfilments().inc()
            _log.error(
                "an order was shipped with less stock than its lines", order_id=event.data["id"], missing=missing
            )
    return False


def _order(event: Event) -> OrderRequest:
    # The events are about the reservations of order-api, whose owner is empty as ANYONE's is. The actor of the event is
    # also that of the events that follow from it.
    caller = replace(ANYONE, tenant=event.tenant, name=event.actor or ANYONE.name)
    return OrderRequest(str(event.data["id"]), caller=caller, request_id=event.event_id, traceparent=event.traceparent)


def _missing(order: Mapping[str, Any], fulfilled: Mapping[int, int]) -> dict[int, int]:
    ordered: dict[int, int] = {}
    for line in order["items"]:
        ordered[line["product_id"]] = ordered.get(line["product_id"], 0) + line["quantity"]
    return {
        product: units - fulfilled.get(product, 0)
        for product, units in ordered.items()
        if units > fulfilled.get(product, 0)
    }
