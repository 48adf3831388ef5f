"""The events of orders, keyed by order id. proto/asyncapi.yaml describes them."""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

import orjson

from order_api.domain.model import Order, OrderItem, Return, Shipment, Status, Treatment
from order_api.domain.units import Target, returned, targets
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
    return _message(order, _TYPES[order.status], _data(order), traceparent, actor)


def extended(order: Order, traceparent: str | None, actor: str | None) -> Message:
    """Return the event ORDER_EXTENDED: the stock of the PENDING order is held until the later `reserved_until`."""
    return _message(order, "ORDER_EXTENDED", _data(order), traceparent, actor)


def units_shipped(order: Order, shipment: Shipment, traceparent: str | None, actor: str | None) -> Message:
    """Return the event for a shipment of some units. It is ORDER_SHIPPED if the order has no open unit any more."""
    event_type = "ORDER_SHIPPED" if order.status is Status.SHIPPED else "ORDER_PARTIALLY_SHIPPED"
    data = _data(order)
    data["shipment"] = {
        "id": shipment.id,
        "carrier": shipment.carrier,
        "tracking_number": shipment.tracking_number,
        "items": _units(order, shipment.units),
    }
    return _message(order, event_type, data, traceparent, actor)


def units_cancelled(
    before: Order, order: Order, units: Mapping[int, int], reason: str, traceparent: str | None, actor: str | None
) -> Message:
    """Return the event for a cancellation of some units. If the status has changed, it is that of the new status."""
    event_type = "ORDER_ITEMS_CANCELLED" if order.status is before.status else _TYPES[order.status]
    data = _data(order)
    data["cancellation"] = {"reason": reason, "items": _units(order, units.items())}
    return _message(order, event_type, data, traceparent, actor)


def changed(before: Order, order: Order, traceparent: str | None, actor: str | None) -> Message:
    """Return the event for a change of lines or charges. If the status has changed, it is that of the new status.

    If a change was given up, only the version of the order is new. The event then tells inventory-api that no unit was
    added.
    """
    event_type = "ORDER_CHANGED" if order.status is before.status else _TYPES[order.status]
    return _message(order, event_type, _data(order), traceparent, actor)


def units_returned(order: Order, returning: Return, traceparent: str | None, actor: str | None) -> Message:
    """Return the event for a return of shipped units. The order has its present status."""
    products = {item.id: item.product_id for item in order.items}
    data = _data(order)
    data["return"] = {
        "id": returning.id,
        "reason": returning.reason,
        "items": [
            {
                "product_id": products[each.item_id],
                **_treated(each.treatment, each.location, each.withholding_reason, each.quantity),
            }
            for each in returning.units
        ],
    }
    return _message(order, "ORDER_RETURNED", data, traceparent, actor)


def user_erased(order: Order, traceparent: str | None, actor: str | None) -> Message:
    """Return the event for an order whose user was erased. It has no personal data."""
    return _message(order, "ORDER_USER_ERASED", _data(order), traceparent, actor)


def _data(order: Order) -> dict[str, Any]:
    returns = returned(order)
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
            _target(product_id, units, returns.get(product_id)) for product_id, units in targets(order).items()
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
    return data


def _target(product_id: int, units: Target, returns: Mapping[tuple[Treatment, str, str], int] | None) -> dict[str, Any]:
    target: dict[str, Any] = {"product_id": product_id, "kept": units.kept, "shipped": units.shipped}
    if returns:
        target["returned"] = [
            _treated(treatment, location, withholding_reason, quantity)
            for (treatment, location, withholding_reason), quantity in returns.items()
        ]
    return target


def _treated(treatment: Treatment, location: str, withholding_reason: str, quantity: int) -> dict[str, Any]:
    treated: dict[str, Any] = {"treatment": treatment, "quantity": quantity}
    if location:
        treated["location"] = location
    if withholding_reason:
        treated["withholding_reason"] = withholding_reason
    return treated


def _message(
    order: Order, event_type: str, data: dict[str, Any], traceparent: str | None, actor: str | None
) -> Message:
    return Message(TOPIC, order.id, event_type, data, order.updated_at, traceparent, tenant=order.tenant, actor=actor)


def _units(order: Order, units: Iterable[tuple[int, int]]) -> list[dict[str, int]]:
    products = {item.id: item.product_id for item in order.items}
    return [{"product_id": products[item_id], "quantity": quantity} for item_id, quantity in units]


def _item(item: OrderItem) -> dict[str, Any]:
    data = {"product_id": item.product_id, "quantity": item.quantity, "price": _number(item.price)}
    if item.location:
        data["location"] = item.location
    return data


def _number(amount: Decimal) -> orjson.Fragment:
    return orjson.Fragment(as_json_number(amount))
