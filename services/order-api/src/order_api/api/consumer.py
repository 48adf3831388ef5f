"""What inventory events do to orders. Each handler is safe to repeat by the status that it checks."""

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection

from order_api.operations import transitions
from order_api.operations.transitions import Loss
from shop_common.events.consumer import Event, Handler

TOPIC = "inventory-events"
GROUP = "order-api"


def handlers() -> Mapping[str, Handler]:
    """The handlers of this service by event type."""
    return {"STOCK_RESERVATION_EXPIRED": cancel_expired, "STOCK_RELEASED": cancel_released}


def cancel_expired(tx: Connection, events: Sequence[Event]) -> bool:
    """An order that is not confirmed is lost with its hold. True: more are left to do."""
    return transitions.cancel_lost(tx, [_loss(event, released=False) for event in events])


def cancel_released(tx: Connection, events: Sequence[Event]) -> bool:
    """An order that is not shipped is lost with its stock. If it was its own cancellation, nothing is left to do.

    True: more are left to do.
    """
    return transitions.cancel_lost(tx, [_loss(event, released=True) for event in events])


def _loss(event: Event, *, released: bool) -> Loss:
    return Loss(str(event.data["order_id"]), released, event.traceparent)
