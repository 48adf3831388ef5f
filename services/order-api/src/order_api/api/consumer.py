"""The handlers of inventory events. A handler may be repeated, because it checks the order's status."""

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection

from order_api.domain.transitions import LostStock
from order_api.operations.cancel_orders import cancel_lost
from shop_common.events.consumer import Event, Handler

TOPIC = "inventory-events"
GROUP = "order-api"


def handlers() -> Mapping[str, Handler]:
    """Return the handlers by event type."""
    return {"STOCK_RESERVATION_EXPIRED": cancel_expired, "STOCK_RELEASED": cancel_released}


def cancel_expired(tx: Connection, events: Sequence[Event]) -> bool:
    """Cancel PENDING orders whose reservation expired. Returns whether orders are left for another transaction."""
    return cancel_lost(tx, [_loss(event, released=False) for event in events])


def cancel_released(tx: Connection, events: Sequence[Event]) -> bool:
    """Cancel orders that are not shipped and whose stock was released. Ignores orders that are already cancelled.

    Returns whether orders are left for another transaction.
    """
    return cancel_lost(tx, [_loss(event, released=True) for event in events])


def _loss(event: Event, *, released: bool) -> LostStock:
    return LostStock(str(event.data["order_id"]), released, event.traceparent)
