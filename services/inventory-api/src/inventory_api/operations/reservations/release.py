"""Releases reservations: single ones for ReleaseStock, and those of cancelled orders for ORDER_CANCELLED."""

from collections.abc import Sequence

from sqlalchemy import Connection

from inventory_api.domain import transitions
from inventory_api.domain.commands import OrderRequest, ReleaseRequest
from inventory_api.domain.errors import ReservationNotFound
from inventory_api.domain.model import ACTIVE, State
from inventory_api.operations.reservations import turns
from inventory_api.operations.reservations.state_changes import change_states
from inventory_api.store.reservations import locks
from inventory_api.store.reservations.locks import Locked
from shop_common.db.audit import AuditLog

STATES = ACTIVE
"""The states of the reservations that `release_orders` releases."""


def release(tx: Connection, requests: Sequence[ReleaseRequest]) -> list[int | ReservationNotFound]:
    """Release each reservation.

    Returns one outcome per request, in order: the released units, or ReservationNotFound if the tenant has no such
    reservation or the caller is not its owner. The outcome is 0 for a due reservation, which becomes EXPIRED, and for
    one that has ended in another way than by a release. May be repeated: a repeated call returns the same outcome and
    changes nothing. Emits one event per state change.
    """
    locked = locks.lock(tx, (request.reservation_key for request in requests))
    permitted = [request for request in requests if _may_release(request, locked)]
    reservations = {request.reservation_id: locked.reservations[request.reservation_id] for request in permitted}
    changes = transitions.release(reservations.values(), locked.now)
    change_states(tx, locked, changes, {request.reservation_id: request.cause for request in permitted})
    outcomes: list[int | ReservationNotFound] = []
    for request in requests:
        if not _may_release(request, locked):
            outcomes.append(ReservationNotFound(reservation_id=request.reservation_id))
        else:
            reservation = locked.reservations[request.reservation_id]
            outcomes.append(reservation.quantity if reservation.state is State.RELEASED else 0)
    return outcomes


def _may_release(request: ReleaseRequest, locked: Locked) -> bool:
    """Return whether the tenant of the request has the reservation, and the caller is its owner.

    `locked` has reservations of several tenants. A caller without an owner may release all reservations of its tenant.
    """
    reservation = locked.reservations.get(request.reservation_id)
    if reservation is None or reservation.tenant != request.tenant:
        return False
    return request.owner in ("", reservation.owner)


def release_orders(tx: Connection, orders: Sequence[OrderRequest], audit_log: AuditLog | None = None) -> bool:
    """Release active reservations of cancelled orders, as many as one turn may change. A due one becomes EXPIRED.

    May be repeated. Returns True if there may be more active reservations: the caller then calls this function again in
    another transaction. Emits one event per state change.

    With `audit_log`, writes a row there per order whose reservations it changed.
    """
    turn = turns.lock_turn(tx, orders, STATES)
    changes = transitions.release(turn.locked.reservations.values(), turn.locked.now)
    change_states(tx, turn.locked, changes, turn.causes)
    turn.record(tx, audit_log, "ORDER_CANCELLED", changes)
    return turn.has_more
