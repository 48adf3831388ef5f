"""Confirms the reservations of orders, for ConfirmReservations."""

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection

from inventory_api.domain import transitions
from inventory_api.domain.commands import OrderRequest
from inventory_api.domain.errors import (
    ReservationExpired,
    ReservationNotFound,
    ReservationReleased,
    ReservationsLimit,
)
from inventory_api.domain.model import OrderKey, Reservation, ReservationKey, State
from inventory_api.domain.transitions import StateChanges
from inventory_api.operations.reservations.state_changes import change_states
from inventory_api.store.reservations import by_order, locks
from inventory_api.store.reservations.locks import Locked
from shop_common.api.command import Cause

Outcome = list[Reservation] | ReservationNotFound | ReservationExpired | ReservationReleased | ReservationsLimit


def confirm(tx: Connection, orders: Sequence[OrderRequest]) -> list[Outcome]:
    """Confirm all held reservations of each order, or none of them.

    Returns one outcome per order, in order: its confirmed and fulfilled reservations, or the error that refused the
    order. An order with a due reservation is refused with ReservationExpired, and the reservation becomes EXPIRED
    although the call is refused. May be repeated: for a confirmed order it returns the same reservations and changes
    nothing. Emits one event per state change.
    """
    overviews = by_order.overviews(tx, (order.order_key for order in orders))
    ids, locked = lock_unreleased(
        tx, [each.order_key for each in orders if not overviews[each.order_key].size.is_too_large]
    )
    confirmations = {}
    changes: StateChanges = {}
    causes: dict[str, Cause] = {}
    for order in orders:
        if order.order_key not in ids:
            continue
        overview = overviews[order.order_key]
        confirmation = transitions.confirm(
            order.order_id,
            [locked.reservations[each] for each in ids[order.order_key] if each in locked.reservations],
            has_expired=overview.has_expired,
            has_released=overview.has_released,
            now=locked.now,
        )
        confirmations[order.order_key] = confirmation
        changes |= confirmation.changes
        causes |= dict.fromkeys(confirmation.changes, order.cause)
    change_states(tx, locked, changes, causes)
    outcomes: list[Outcome] = []
    for order in orders:
        if order.order_key not in ids:
            size = overviews[order.order_key].size
            outcomes.append(ReservationsLimit(order.order_id, size.reservations, size.allocations))
        elif refusal := confirmations[order.order_key].refusal:
            outcomes.append(refusal)
        else:
            of_order = [locked.reservations[each] for each in ids[order.order_key] if each in locked.reservations]
            outcomes.append([each for each in of_order if each.state is not State.RELEASED])
    return outcomes


def lock_unreleased(tx: Connection, orders: Sequence[OrderKey]) -> tuple[dict[OrderKey, list[str]], Locked]:
    """Lock the active and fulfilled reservations of the orders. Returns their ids by order, and the locked rows."""
    ids = by_order.unreleased(tx, orders)
    locked = locks.lock(tx, _keys(ids))
    split = [
        order
        for order, of_order in ids.items()
        if any(each in locked.reservations and locked.reservations[each].state is State.REPLACED for each in of_order)
    ]
    if split:
        # After we read and before we locked, other reservations replaced these. Lock the new ones too. They take their
        # units from the same items, which are locked now. So no other transaction can lock or replace them.
        again = by_order.unreleased(tx, split)
        parts = locks.lock(tx, _keys(again))
        locked.reservations.update(parts.reservations)
        locked.items.update(parts.items)
        ids.update(again)
    return ids, locked


def _keys(ids: Mapping[OrderKey, Sequence[str]]) -> list[ReservationKey]:
    return [ReservationKey(order.tenant, each) for order, of_order in ids.items() for each in of_order]
