"""What happens to reservations after they were made: confirm, release, expire, fulfil.

Each operation takes a list and returns a list, one outcome per request, in order. docs/states.md draws the states.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from sqlalchemy import BigInteger, Connection, bindparam, select

from inventory_api import reservations, tables
from inventory_api.domain import (
    ENDED,
    Reservation,
    ReservationExpired,
    ReservationNotFound,
    ReservationReleased,
    State,
)
from inventory_api.reservations import Locked
from shop_common.sql import Statement, among, clock

_reservations = tables.stock_reservations


@dataclass(frozen=True, slots=True)
class OrderRequest:
    """All reservations of one order, for a caller with this trace context."""

    order_id: str
    traceparent: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class ReleaseRequest:
    """One reservation to give back."""

    reservation_id: str
    traceparent: str | None = field(default=None, compare=False)


def confirm(
    tx: Connection, orders: Sequence[OrderRequest]
) -> list[list[Reservation] | ReservationNotFound | ReservationExpired | ReservationReleased]:
    """Keep each order's holds for good, all of them or none; returns its reservations without released ones.

    Repeatable: what is confirmed already answers the same. A hold past its time refuses the order with
    ReservationExpired and becomes EXPIRED here, although the call is refused. Emits one event per transition.
    """
    ids = reservations.of_orders(tx, (order.order_id for order in orders))
    locked = reservations.lock(tx, (each for of_order in ids.values() for each in of_order))
    outcomes: list[list[Reservation] | ReservationNotFound | ReservationExpired | ReservationReleased] = []
    for order in orders:
        # Released before our locks were granted, or never there.
        of_order = [locked.reservations[each] for each in ids[order.order_id] if each in locked.reservations]
        alive = [reservation for reservation in of_order if reservation.state is not State.RELEASED]
        due = [reservation for reservation in alive if reservation.is_due(locked.now)]
        if not of_order:
            outcomes.append(ReservationNotFound(order_id=order.order_id))
        elif not alive:
            outcomes.append(ReservationReleased(order.order_id))
        elif due or any(reservation.state is State.EXPIRED for reservation in alive):
            _move_all(tx, locked, due, State.EXPIRED, order.traceparent)
            outcomes.append(ReservationExpired(order.order_id))
        else:
            held = [reservation for reservation in alive if reservation.state is State.HELD]
            _move_all(tx, locked, held, State.CONFIRMED, order.traceparent)
            outcomes.append([locked.reservations[reservation.id] for reservation in alive])
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


def release_orders(tx: Connection, orders: Sequence[OrderRequest]) -> None:
    """Give back all active reservations of cancelled orders. Repeatable."""
    ids = reservations.of_orders(tx, (order.order_id for order in orders))
    traceparents = {each: order.traceparent for order in orders for each in ids[order.order_id]}
    _end(tx, reservations.lock(tx, traceparents), traceparents)


def fulfil_orders(tx: Connection, orders: Sequence[OrderRequest]) -> dict[str, dict[int, int]]:
    """Take the confirmed units of shipped orders out of the stock; a hold that is not confirmed is left to expire.

    Repeatable. Returns for each order the units of each product that have left, now or at an earlier run.
    """
    ids = reservations.of_orders(tx, (order.order_id for order in orders))
    traceparents = {each: order.traceparent for order in orders for each in ids[order.order_id]}
    locked = reservations.lock(tx, traceparents)
    confirmed = [each.id for each in locked.reservations.values() if each.state is State.CONFIRMED]
    reservations.move(tx, locked, dict.fromkeys(confirmed, State.FULFILLED), traceparents)
    fulfilled: dict[str, dict[int, int]] = {order.order_id: {} for order in orders}
    for reservation in locked.reservations.values():
        if reservation.state is State.FULFILLED:
            products = fulfilled[reservation.order_id]
            products[reservation.product_id] = products.get(reservation.product_id, 0) + reservation.quantity
    return fulfilled


def due_of_products(tx: Connection, product_ids: Iterable[int], limit: int) -> list[str]:
    """The ids of the oldest holds of these products past their time. Locks nothing."""
    rows = [{"product_id": product_id} for product_id in product_ids]
    return [row.id for row in _due_of_products(tx, rows, row_limit=limit)]


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


def _move_all(
    tx: Connection, locked: Locked, chosen: Sequence[Reservation], state: State, traceparent: str | None
) -> None:
    ids = [reservation.id for reservation in chosen]
    reservations.move(tx, locked, dict.fromkeys(ids, state), dict.fromkeys(ids, traceparent))


_due_of_products = Statement(
    lambda given: (
        select(_reservations.c.id)
        .where(
            tables.HELD,
            among(_reservations.c.product_id, given.c.product_id),
            _reservations.c.expires_at <= clock(),
        )
        .order_by(_reservations.c.expires_at)
        .limit(bindparam("row_limit", type_=BigInteger()))
    ),
    product_id=BigInteger(),
)
