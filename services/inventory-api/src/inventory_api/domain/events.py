"""Facts of the inventory as messages. Keyed by product; proto/asyncapi.yaml describes them."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from inventory_api.domain.model import Item, Reservation, State
from shop_common.events.outbox import Message
from shop_common.moments import rfc3339

TOPIC = "inventory-events"


def stock_updated(item: Item, now: datetime, traceparent: str | None) -> Message:
    """The item has a new total."""
    data = {
        "item_id": item.id,
        "product_id": item.product_id,
        "location": item.location,
        "quantity": item.quantity,
        "reserved_quantity": item.reserved_quantity,
        "version": item.version,
    }
    return Message(TOPIC, str(item.product_id), "STOCK_UPDATED", data, now, traceparent)


def stock_reserved(reservation: Reservation, now: datetime, traceparent: str | None) -> Message:
    """Units are held until `expires_at`."""
    expires_at = reservation.expires_at
    return _of(
        "STOCK_RESERVED",
        reservation,
        {"reserved_quantity": reservation.quantity, "expires_at": rfc3339(expires_at) if expires_at else None},
        now,
        traceparent,
    )


def stock_reservation_confirmed(reservation: Reservation, now: datetime, traceparent: str | None) -> Message:
    """The hold no longer expires."""
    return _of("STOCK_RESERVATION_CONFIRMED", reservation, {"quantity": reservation.quantity}, now, traceparent)


def stock_reservation_expired(reservation: Reservation, now: datetime, traceparent: str | None) -> Message:
    """The hold ran out at `expired_at`; its units are free."""
    expired_at = reservation.expires_at
    return _of(
        "STOCK_RESERVATION_EXPIRED",
        reservation,
        {"quantity": reservation.quantity, "expired_at": rfc3339(expired_at) if expired_at else None},
        now,
        traceparent,
    )


def stock_released(reservation: Reservation, now: datetime, traceparent: str | None) -> Message:
    """The units were given back."""
    quantity = reservation.quantity
    return _of("STOCK_RELEASED", reservation, {"quantity": quantity, "released_quantity": quantity}, now, traceparent)


def stock_fulfilled(reservation: Reservation, now: datetime, traceparent: str | None) -> Message:
    """The units have left the house."""
    quantity = reservation.quantity
    return _of("STOCK_FULFILLED", reservation, {"quantity": quantity, "fulfilled_quantity": quantity}, now, traceparent)


OF_STATE: dict[State, Callable[[Reservation, datetime, str | None], Message]] = {
    State.HELD: stock_reserved,
    State.CONFIRMED: stock_reservation_confirmed,
    State.EXPIRED: stock_reservation_expired,
    State.RELEASED: stock_released,
    State.FULFILLED: stock_fulfilled,
}
"""What tells of a reservation's arrival in a state."""


def _of(
    event_type: str, reservation: Reservation, more: dict[str, Any], now: datetime, traceparent: str | None
) -> Message:
    data = {
        "product_id": reservation.product_id,
        **more,
        "order_id": reservation.order_id,
        "reservation_id": reservation.id,
        "allocations": reservation.allocations,
    }
    return Message(TOPIC, str(reservation.product_id), event_type, data, now, traceparent)
