"""What happens to reservations after they were made: confirm, release, expire, fulfil.

Each operation takes a list and returns a list, one outcome per request, in order. docs/states.md draws the states.
"""

from collections.abc import Callable, Sequence

from sqlalchemy import Connection

from inventory_api.domain.commands import OrderRequest, ReleaseRequest
from inventory_api.domain.errors import ReservationExpired, ReservationNotFound, ReservationReleased, ReservationsLimit
from inventory_api.domain.model import ENDED, Reservation, State
from inventory_api.store import by_order, reservations
from inventory_api.store.reservations import Locked
from shop_common.batching.turns import slices

TURN_RESERVATIONS = 100
"""Of one transaction of what goes in turns: buyers wait for the items that it has locked."""

TURN_ALLOCATIONS = 2000
"""And so many allocations, unless a single reservation has more."""

Confirmed = list[Reservation] | ReservationNotFound | ReservationExpired | ReservationReleased | ReservationsLimit


def confirm(tx: Connection, orders: Sequence[OrderRequest]) -> list[Confirmed]:
    """Keep each order's holds for good, all of them or none; returns its reservations without released ones.

    Repeatable: what is confirmed already answers the same. A hold past its time refuses the order with
    ReservationExpired and becomes EXPIRED here, although the call is refused. Emits one event per transition.
    """
    overviews = by_order.overviews(tx, (order.order_id for order in orders))
    too_large = {each: refusal for each, overview in overviews.items() if (refusal := overview.size.refusal(each))}
    ids = by_order.unreleased(tx, (order.order_id for order in orders if order.order_id not in too_large))
    locked = reservations.lock(tx, (each for of_order in ids.values() for each in of_order))
    outcomes: list[Confirmed] = []
    for order in orders:
        if order.order_id in too_large:
            outcomes.append(too_large[order.order_id])
            continue
        overview = overviews[order.order_id]
        of_order = [locked.reservations[each] for each in ids[order.order_id] if each in locked.reservations]
        # Released or expired before our locks were granted.
        alive = [reservation for reservation in of_order if reservation.state is not State.RELEASED]
        due = [reservation for reservation in alive if reservation.is_due(locked.now)]
        if due or overview.has_expired or any(reservation.state is State.EXPIRED for reservation in alive):
            _move_all(tx, locked, due, State.EXPIRED, order.traceparent)
            outcomes.append(ReservationExpired(order.order_id))
        elif alive:
            held = [reservation for reservation in alive if reservation.state is State.HELD]
            _move_all(tx, locked, held, State.CONFIRMED, order.traceparent)
            outcomes.append([locked.reservations[reservation.id] for reservation in alive])
        elif of_order or overview.has_released:
            outcomes.append(ReservationReleased(order.order_id))
        else:
            outcomes.append(ReservationNotFound(order_id=order.order_id))
    return outcomes


def release(tx: Connection, requests: Sequence[ReleaseRequest]) -> list[int | ReservationNotFound]:
    """Give back each reservation; returns the released units.

    Repeatable: a second release answers the same and changes nothing. One that has expired or was fulfilled has
    nothing to give back: 0; a hold past its time becomes EXPIRED here.
    """
    locked = reservations.lock(tx, (request.reservation_id for request in requests))
    _end(tx, locked, {request.reservation_id: request.traceparent for request in requests})
    outcomes: list[int | ReservationNotFound] = []
    for request in requests:
        reservation = locked.reservations.get(request.reservation_id)
        if reservation is None:
            outcomes.append(ReservationNotFound(reservation_id=request.reservation_id))
        else:
            outcomes.append(reservation.quantity if reservation.state is State.RELEASED else 0)
    return outcomes


def release_orders(tx: Connection, orders: Sequence[OrderRequest]) -> bool:
    """Give back active reservations of cancelled orders, as many as one transaction should.

    Repeatable. Returns whether there may be more: then it is to be called again, in another transaction.
    """
    return _in_turn(tx, orders, (State.HELD, State.CONFIRMED), _end)


def fulfil_orders(tx: Connection, orders: Sequence[OrderRequest]) -> bool:
    """Take confirmed units of shipped orders out of the stock, as many as one transaction should.

    A hold that is not confirmed is left to expire. Repeatable. Returns whether there may be more: then it is to be
    called again, in another transaction.
    """
    return _in_turn(tx, orders, (State.CONFIRMED,), _fulfil)


def _in_turn(
    tx: Connection,
    orders: Sequence[OrderRequest],
    states: Sequence[State],
    act: Callable[[Connection, Locked, dict[str, str | None]], None],
) -> bool:
    traceparents = {order.order_id: order.traceparent for order in orders}
    found = by_order.in_states(tx, traceparents, states, TURN_RESERVATIONS + 1)
    turns = slices(found, lambda each: each.allocations, TURN_ALLOCATIONS, count_max=TURN_RESERVATIONS)
    turn = next(turns, ())
    chosen = {each.id: traceparents[each.order_id] for each in turn}
    act(tx, reservations.lock(tx, chosen), chosen)
    return len(found) > len(turn)


def expire(tx: Connection, locked: Locked) -> list[Reservation]:
    """Expire those of the locked reservations that are due; the state is checked again, now that they are locked."""
    due = [reservation for reservation in locked.reservations.values() if reservation.is_due(locked.now)]
    _move_all(tx, locked, due, State.EXPIRED, None)
    return due


def _end(tx: Connection, locked: Locked, traceparents: dict[str, str | None]) -> None:
    """Release what is active; what is past its time was not the caller's to release any more, so it expires."""
    moves = {
        reservation.id: State.EXPIRED if reservation.is_due(locked.now) else State.RELEASED
        for reservation in locked.reservations.values()
        if reservation.state not in ENDED
    }
    reservations.move(tx, locked, moves, traceparents)


def _fulfil(tx: Connection, locked: Locked, traceparents: dict[str, str | None]) -> None:
    confirmed = [each.id for each in locked.reservations.values() if each.state is State.CONFIRMED]
    reservations.move(tx, locked, dict.fromkeys(confirmed, State.FULFILLED), traceparents)


def _move_all(
    tx: Connection, locked: Locked, chosen: Sequence[Reservation], state: State, traceparent: str | None
) -> None:
    ids = [reservation.id for reservation in chosen]
    reservations.move(tx, locked, dict.fromkeys(ids, state), dict.fromkeys(ids, traceparent))
