"""What order events do to the stock. Each handler is safe to repeat by the states that it checks."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection

from inventory_api.domain.commands import OrderRequest
from inventory_api.operations import transitions
from inventory_api.store import by_order
from shop_common.events.consumer import Event, Handler
from shop_common.telemetry import logs, metrics

TOPIC = "order-events"
GROUP = "inventory-api"

_log = logs.get(__name__)

_short_fulfilments = metrics.counter(
    __name__, "shop_short_fulfilments_total", "Orders that were shipped with less stock than their lines"
)


def handlers() -> Mapping[str, Handler]:
    """The handlers of this service by event type."""
    return {"ORDER_CANCELLED": release, "ORDER_SHIPPED": fulfil}


def weigh(event: Event) -> int:
    """An order's lines: each has reservations of its own."""
    return 1 + len(event.data["items"])


def release(tx: Connection, events: Sequence[Event]) -> bool:
    """A cancelled order gives back what it holds, in turns."""
    return transitions.release_orders(tx, [_order(event) for event in events])


def fulfil(tx: Connection, events: Sequence[Event]) -> bool:
    """A shipped order's units leave the stock, in turns."""
    orders = [_order(event) for event in events]
    if transitions.fulfil_orders(tx, orders):
        return True
    # By this turn or by earlier ones.
    fulfilled = by_order.fulfilled_units(tx, (order.order_id for order in orders))
    for event in events:
        missing = _missing(event.data, fulfilled[str(event.data["id"])])
        if missing:
            # The goods are gone, whatever the books say; a person has to look at it.
            _short_fulfilments().inc()
            _log.error(
                "an order was shipped with less stock than its lines", order_id=event.data["id"], missing=missing
            )
    return False


def _order(event: Event) -> OrderRequest:
    return OrderRequest(str(event.data["id"]), traceparent=event.traceparent)


def _missing(order: Mapping[str, Any], fulfilled: Mapping[int, int]) -> dict[int, int]:
    wanted: dict[int, int] = {}
    for line in order["items"]:
        wanted[line["product_id"]] = wanted.get(line["product_id"], 0) + line["quantity"]
    return {
        product: units - fulfilled.get(product, 0)
        for product, units in wanted.items()
        if units > fulfilled.get(product, 0)
    }
