"""The events of orders, keyed by order id. proto/asyncapi.yaml describes them."""

from decimal import Decimal
from typing import Any

import orjson

from order_api.domain.model import Order, OrderItem, Status, targets
from shop_common.api.money import as_json_number
from shop_common.events.outbox import Message
from shop_common.timestamps import rfc3339

TOPIC = "order-events"

_TYPES = {
    Status.PENDING: "ORDER_CREATED",
    Status.CONFIRMED: "ORDER_CONFIRMED",
    Status.PROCESSING: "ORDER_PROCESSING",
    Status.SHIPPED: "ORDER_SHIPPED",
    Status.DELIVERED: "ORDER_DELIVERED",
    Status.CANCELLED: "ORDER_CANCELLED",
}


def status_changed(order: Order, traceparent: str | None, actor: str | None) -> Message:
    """Return the event for the order's current status, which it got at `updated_at`. A new order is PENDING.

    The event always has the lines of the order, because consumers need them.
    """
    data: dict[str, Any] = {
        "id": order.id,
        "user_id": order.user_id,
        "total_amount": _number(order.total_amount),
        "currency": order.currency,
        "status": order.status,
        "status_reason": order.status_reason,
        "version": order.version,
        "items": [_item(item) for item in order.items],
        "targets": [
            {"product_id": product_id, "kept": units.kept, "shipped": units.shipped}
            for product_id, units in targets(order).items()
        ],
    }
    if order.charges:
        data["charges"] = [
            {"kind": charge.kind, "label": charge.label, "amount": _number(charge.amount)} for charge in order.charges
        ]
    if order.external_reference:
        data["external_reference"] = order.external_reference
    if order.labels:
        data["labels"] = dict(order.labels)
    if order.status is Status.PENDING:
        data["reserved_until"] = rfc3339(order.reserved_until)
    event_type = _TYPES[order.status]
    return Message(TOPIC, order.id, event_type, data, order.updated_at, traceparent, tenant=order.tenant, actor=actor)


def _item(item: OrderItem) -> dict[str, Any]:
    data = {"product_id": item.product_id, "quantity": item.quantity, "price": _number(item.price)}
    if item.location:
        data["location"] = item.location
    return data


def _number(amount: Decimal) -> orjson.Fragment:
    return orjson.Fragment(as_json_number(amount))
