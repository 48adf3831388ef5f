"""Makes the outbox messages of inventory-events. proto/asyncapi.yaml describes them."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from inventory_api.domain.model import Item, ProductKey, Reservation, State
from inventory_api.domain.movements import Movement
from shop_common.api.command import Cause
from shop_common.events.outbox import Message
from shop_common.identity import tenant
from shop_common.timestamps import rfc3339

TOPIC = "inventory-events"


def stock_updated(item: Item, now: datetime, cause: Cause) -> Message:
    """Return the event STOCK_UPDATED: the quantity or the withheld units of the item have changed."""
    data = {
        "item_id": item.id,
        "product_id": item.product_id,
        "location": item.location,
        "quantity": item.quantity,
        "reserved_quantity": item.reserved_quantity,
        "version": item.version,
    }
    if item.withheld_quantity:
        data["withheld_quantity"] = item.withheld_quantity
    return Message(TOPIC, _key(item.product), "STOCK_UPDATED", data, now, cause.traceparent, item.tenant, cause.actor)


def stock_moved(movement: Movement, now: datetime, cause: Cause) -> Message:
    """Return the event STOCK_MOVED: a movement of the item was recorded."""
    data: dict[str, Any] = {
        "item_id": movement.item_id,
        "product_id": movement.product_id,
        "location": movement.location,
        "revision": movement.revision,
        "kind": movement.kind,
        "quantity": movement.quantity,
        "quantity_after": movement.quantity_after,
    }
    if movement.withheld or movement.withheld_after:
        data["withheld"] = movement.withheld
        data["withheld_after"] = movement.withheld_after
    if movement.order_id:
        data["order_id"] = movement.order_id
    if movement.reason:
        data["reason"] = movement.reason
    if movement.reference:
        data["reference"] = movement.reference
    if movement.occurred_at is not None:
        data["occurred_at"] = rfc3339(movement.occurred_at)
    key = _key(movement.product)
    return Message(TOPIC, key, "STOCK_MOVED", data, now, cause.traceparent, movement.tenant, cause.actor)


def stock_reserved(reservation: Reservation, now: datetime, cause: Cause) -> Message:
    """Return the event STOCK_RESERVED: the units are reserved until `expires_at`."""
    expires_at = reservation.expires_at
    return _reservation_event(
        "STOCK_RESERVED",
        reservation,
        {"reserved_quantity": reservation.quantity, "expires_at": rfc3339(expires_at) if expires_at else None},
        now,
        cause,
    )


def stock_reservation_confirmed(reservation: Reservation, now: datetime, cause: Cause) -> Message:
    """Return the event STOCK_RESERVATION_CONFIRMED: the reservation was confirmed and no longer expires."""
    return _reservation_event(
        "STOCK_RESERVATION_CONFIRMED", reservation, {"quantity": reservation.quantity}, now, cause
    )


def stock_reservation_expired(reservation: Reservation, now: datetime, cause: Cause) -> Message:
    """Return the event STOCK_RESERVATION_EXPIRED: the reservation has passed its expiry, and its units are free."""
    expired_at = reservation.expires_at
    return _reservation_event(
        "STOCK_RESERVATION_EXPIRED",
        reservation,
        {"quantity": reservation.quantity, "expired_at": rfc3339(expired_at) if expired_at else None},
        now,
        cause,
    )


def stock_reservation_extended(reservation: Reservation, now: datetime, cause: Cause) -> Message:
    """Return the event STOCK_RESERVATION_EXTENDED: the reservation is held until the later `expires_at`."""
    expires_at = reservation.expires_at
    details = {"quantity": reservation.quantity, "expires_at": rfc3339(expires_at) if expires_at else None}
    return _reservation_event("STOCK_RESERVATION_EXTENDED", reservation, details, now, cause)


def stock_released(reservation: Reservation, now: datetime, cause: Cause) -> Message:
    """Return the event STOCK_RELEASED: the reservation was released, and its units are free."""
    quantity = reservation.quantity
    return _reservation_event(
        "STOCK_RELEASED", reservation, {"quantity": quantity, "released_quantity": quantity}, now, cause
    )


def stock_fulfilled(reservation: Reservation, now: datetime, cause: Cause) -> Message:
    """Return the event STOCK_FULFILLED: the units were shipped and have left the stock."""
    quantity = reservation.quantity
    return _reservation_event(
        "STOCK_FULFILLED", reservation, {"quantity": quantity, "fulfilled_quantity": quantity}, now, cause
    )


def stock_reservation_changed(
    reservation: Reservation, parts: Sequence[Reservation], now: datetime, cause: Cause
) -> Message:
    """Return the event STOCK_RESERVATION_CHANGED: the parts have replaced the reservation, in the same state."""
    details = {
        "quantity": reservation.quantity,
        "parts": [
            {"reservation_id": part.id, "quantity": part.quantity, "allocations": part.allocations} for part in parts
        ],
    }
    return _reservation_event("STOCK_RESERVATION_CHANGED", reservation, details, now, cause)


EVENT_OF_STATE: dict[State, Callable[[Reservation, datetime, Cause], Message]] = {
    State.HELD: stock_reserved,
    State.CONFIRMED: stock_reservation_confirmed,
    State.EXPIRED: stock_reservation_expired,
    State.RELEASED: stock_released,
    State.FULFILLED: stock_fulfilled,
}
"""For each state, the function that makes the event of a reservation that has changed to this state."""


def _reservation_event(
    event_type: str, reservation: Reservation, details: dict[str, Any], now: datetime, cause: Cause
) -> Message:
    data = {
        "product_id": reservation.product_id,
        **details,
        "order_id": reservation.order_id,
        "reservation_id": reservation.id,
        "allocations": reservation.allocations,
    }
    if reservation.owner:
        data["owner"] = reservation.owner
    if cause.order_version is not None:
        data["order_version"] = cause.order_version
    return Message(
        TOPIC,
        _key(reservation.product),
        event_type,
        data,
        now,
        cause.traceparent,
        reservation.tenant,
        cause.actor,
    )


def _key(product: ProductKey) -> str:
    # The events of the default tenant keep the key, and so the partition, that they had before tenants existed.
    return tenant.qualified(product.tenant, str(product.product_id))
