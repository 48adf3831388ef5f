"""The handlers of inventory events. A handler may be repeated, because it checks the order's status."""

from collections.abc import Mapping, Sequence
from functools import partial

from sqlalchemy import Connection

from order_api.domain.model import OrderKey
from order_api.domain.transitions import LostStock
from order_api.operations.cancel_orders import cancel_lost
from shop_common.db.audit import AuditLog
from shop_common.events.consumer import Event, Handler

TOPIC = "inventory-events"
GROUP = "order-api"


def handlers(audit_log: AuditLog | None = None) -> Mapping[str, Handler]:
    """Return the handlers by event type. With `audit_log`, changes are recorded there."""
    return {
        "STOCK_RESERVATION_EXPIRED": partial(cancel_expired, audit_log=audit_log),
        "STOCK_RELEASED": partial(cancel_released, audit_log=audit_log),
    }


def cancel_expired(tx: Connection, events: Sequence[Event], *, audit_log: AuditLog | None = None) -> bool:
    """Cancel PENDING orders whose reservation expired. Returns whether orders are left for another transaction."""
    return cancel_lost(tx, _losses(events, released=False), audit_log)


def cancel_released(tx: Connection, events: Sequence[Event], *, audit_log: AuditLog | None = None) -> bool:
    """Cancel orders that are not shipped and whose stock was released. Ignores orders that are already cancelled.

    Returns whether orders are left for another transaction.
    """
    return cancel_lost(tx, _losses(events, released=True), audit_log)


def _losses(events: Sequence[Event], *, released: bool) -> list[LostStock]:
    """Return the losses of orders.

    Leaves out reservations with an owner. Other callers made them, and may use the id of an order. Leaves out releases
    with an order_version, because a change of the order itself caused them. An expiry with an order_version counts: the
    change has found that the reservation of a PENDING order was due.
    """
    return [
        LostStock(
            OrderKey(event.tenant, str(event.data["order_id"])),
            released,
            event.traceparent,
            event.actor,
            event.event_id,
            event.data.get("product_id"),
        )
        for event in events
        if not event.data.get("owner") and not (released and event.data.get("order_version") is not None)
    ]
