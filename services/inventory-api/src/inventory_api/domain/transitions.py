"""Decides the state changes of reservations, and computes their effect on items. Needs no database.

docs/states.md draws the states. The caller has locked the reservations and their items.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from inventory_api.domain import events
from inventory_api.domain.errors import ExtensionLimit, ReservationExpired, ReservationNotFound, ReservationReleased
from inventory_api.domain.model import ENDED, HELD_SECONDS_MAX, Item, Reservation, State
from inventory_api.domain.movements import MovementKind, QuantityChange
from shop_common.api.command import UNKNOWN_CAUSE, Cause
from shop_common.events.outbox import Message

StateChanges = dict[str, State]
"""The new states of reservations, by reservation id."""


@dataclass(frozen=True, slots=True)
class Confirmation:
    """The result of confirming an order: the state changes, and the error for the caller, if any."""

    changes: StateChanges
    refusal: ReservationNotFound | ReservationExpired | ReservationReleased | None = None


def confirm(
    order_id: str, reservations: Sequence[Reservation], *, has_expired: bool, has_released: bool, now: datetime
) -> Confirmation:
    """Decide whether all held reservations of an order become CONFIRMED, or none.

    `reservations` are those that were active or fulfilled when they were read; some may have ended before they were
    locked. `has_expired` and `has_released` are true if the order has other reservations that expired or were released.
    If a reservation is due, it becomes EXPIRED and the order is refused.
    """
    unreleased = [reservation for reservation in reservations if reservation.state is not State.RELEASED]
    due = expire(unreleased, now)
    if due or has_expired or any(reservation.state is State.EXPIRED for reservation in unreleased):
        return Confirmation(due, ReservationExpired(order_id))
    if unreleased:
        return Confirmation({each.id: State.CONFIRMED for each in unreleased if each.state is State.HELD})
    if reservations or has_released:
        return Confirmation({}, ReservationReleased(order_id))
    return Confirmation({}, ReservationNotFound(order_id=order_id))


@dataclass(frozen=True, slots=True)
class Extension:
    """The result of extending an order: its reservations with a later expiry, and the error for the caller, if any."""

    extended: list[Reservation]
    refusal: ReservationNotFound | ReservationExpired | ReservationReleased | ExtensionLimit | None = None


def extend(
    order_id: str,
    reservations: Sequence[Reservation],
    ttl_seconds: float,
    *,
    has_expired: bool,
    has_released: bool,
    now: datetime,
) -> Extension:
    """Decide whether all held reservations of an order get a later expiry, or none.

    The parameters are as for `confirm`. A reservation that expires later anyway does not change. The parts of a split
    reservation have its creation time, so a split does not prolong the time for which the units may be held.
    """
    unreleased = [each for each in reservations if each.state is not State.RELEASED]
    if has_expired or any(each.state is State.EXPIRED or each.is_due(now) for each in unreleased):
        return Extension([], ReservationExpired(order_id))
    if not unreleased:
        released = bool(reservations) or has_released
        return Extension([], ReservationReleased(order_id) if released else ReservationNotFound(order_id=order_id))
    held = [each for each in unreleased if each.state is State.HELD]
    expires_at = now + timedelta(seconds=ttl_seconds)
    latest = min((each.created_at for each in held), default=now) + timedelta(seconds=HELD_SECONDS_MAX)
    if held and expires_at > latest:
        return Extension([], ExtensionLimit(order_id, latest))
    return Extension(
        [replace(each, expires_at=expires_at) for each in held if each.expires_at and each.expires_at < expires_at]
    )


def release(reservations: Iterable[Reservation], now: datetime) -> StateChanges:
    """Release active reservations. A due one becomes EXPIRED, because its time had ended before the release."""
    return {
        reservation.id: State.EXPIRED if reservation.is_due(now) else State.RELEASED
        for reservation in reservations
        if reservation.state not in ENDED  # failpoint: reservation-state-check
    }


def fulfil(reservations: Iterable[Reservation]) -> StateChanges:
    """Fulfil confirmed reservations."""
    return {each.id: State.FULFILLED for each in reservations if each.state is State.CONFIRMED}


def expire(reservations: Iterable[Reservation], now: datetime) -> StateChanges:
    """Expire due reservations."""
    return {each.id: State.EXPIRED for each in reservations if each.is_due(now)}


@dataclass(frozen=True, slots=True)
class Effect:
    """The changed reservations and items, by id, the events of the changes, and the changes of quantities."""

    reservations: dict[str, Reservation]
    items: dict[int, Item]
    messages: list[Message]
    quantity_changes: list[QuantityChange]


def apply(
    changes: Mapping[str, State],
    reservations: Mapping[str, Reservation],
    items: Mapping[int, Item],
    now: datetime,
    causes: Mapping[str, Cause],
) -> Effect:
    """Compute the effect of state changes on reservations and their items. The state changes must be legal.

    `items` is by item id, and the other mappings are by reservation id. A release or an expiry frees the units of a
    reservation. Fulfilment takes the units out of the item. The effect has one event per change, and one STOCK_UPDATED
    per item that lost units.
    """
    changed_reservations: dict[str, Reservation] = {}
    changed_items: dict[int, Item] = {}
    fulfilled_items: dict[int, Cause] = {}
    quantity_changes = []
    messages = []
    for reservation_id, state in changes.items():
        reservation = reservations[reservation_id]
        cause = causes.get(reservation_id, UNKNOWN_CAUSE)
        for part in reservation.allocations if state is not State.CONFIRMED else ():
            item = changed_items.get(part.item_id, items[part.item_id])
            taken_out = part.quantity if state is State.FULFILLED else 0
            changed_items[item.id] = replace(
                item,
                quantity=item.quantity - taken_out,
                reserved_quantity=item.reserved_quantity - part.quantity,
                # The version counts changes of the quantity, once per transaction.
                version=items[item.id].version + 1 if taken_out or item.id in fulfilled_items else item.version,
                updated_at=now,
            )
            if taken_out:
                fulfilled_items[item.id] = cause
                quantity_changes.append(
                    QuantityChange(
                        changed_items[item.id], MovementKind.FULFILLED, -taken_out, cause, reservation.order_id
                    )
                )
        changed = replace(reservation, state=state)
        messages.append(events.EVENT_OF_STATE[state](changed, now, cause))
        changed_reservations[reservation_id] = (
            replace(changed, expires_at=None) if state is State.CONFIRMED else changed
        )
    messages += [events.stock_updated(changed_items[item_id], now, cause) for item_id, cause in fulfilled_items.items()]
    return Effect(changed_reservations, changed_items, messages, quantity_changes)
