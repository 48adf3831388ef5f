"""Releases reservations: single ones for ReleaseStock, and those of cancelled orders for ORDER_CANCELLED."""

from collections.abc import Sequence

from sqlalchemy import Connection

from inventory_api.domain import transitions
from inventory_api.domain.commands import OrderRequest, ReleaseRequest
from inventory_api.domain.errors import ReservationNotFound
from inventory_api.domain.model import State
from inventory_api.operations.reservations import turns
from inventory_api.operations.reservations.state_changes import change_states
from inventory_api.store.reservations import locks


def release(tx: Connection, requests: Sequence[ReleaseRequest]) -> list[int | ReservationNotFound]:
    """Release each reservation; returns the released units of each, in order.

    A reservation that has expired or was fulfilled has no units to release and returns 0. A due one becomes EXPIRED.
    May be repeated: a released reservation returns its units again and does not change. Emits one event per state
    change.
    """
    locked = locks.lock(tx, (request.reservation_id for request in requests))
    changes = transitions.release(locked.reservations.values(), locked.now)
    change_states(tx, locked, changes, {request.reservation_id: request.traceparent for request in requests})
    outcomes: list[int | ReservationNotFound] = []
    for request in requests:
        reservation = locked.reservations.get(request.reservation_id)
        if reservation is None:
            outcomes.append(ReservationNotFound(reservation_id=request.reservation_id))
        else:
            outcomes.append(reservation.quantity if reservation.state is State.RELEASED else 0)
    return outcomes


def release_orders(tx: Connection, orders: Sequence[OrderRequest]) -> bool:
    """Release active reservations of cancelled orders, up to the limit of one turn.

    May be repeated. Returns True if there may be more reservations: the caller then calls it again in another
    transaction.
    """
    turn = turns.lock_turn(tx, orders, (State.HELD, State.CONFIRMED))
    changes = transitions.release(turn.locked.reservations.values(), turn.locked.now)
    change_states(tx, turn.locked, changes, turn.traceparents)
    return turn.has_more
