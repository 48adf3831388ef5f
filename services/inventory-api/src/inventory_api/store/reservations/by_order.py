"""Reads the reservations of orders by state. Locks nothing.

The number of rows that a statement reads for an order does not grow with its expired and released reservations.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import (
    BigInteger,
    Connection,
    Exists,
    Label,
    ScalarSelect,
    Select,
    Subquery,
    Text,
    bindparam,
    exists,
    func,
    literal,
    select,
)

from inventory_api.domain.model import ORDER_ALLOCATIONS_MAX, ORDER_RESERVATIONS_MAX, OrderSize, State
from inventory_api.store import tables
from shop_common.db.sql import Clock, Statement, count_by, in_rows

UNRELEASED_STATES = (State.HELD, State.CONFIRMED, State.FULFILLED)

_reservations = tables.stock_reservations
_allocations = tables.reservation_allocations

# Counts reservations and not their allocations: without statistics PostgreSQL would read the allocations of all orders.
# Expired and released reservations do not count: confirming does not read them, and their number has no limit.
count_unreleased = count_by(_reservations.c.order_id, _reservations.c.state.in_(UNRELEASED_STATES))
"""Returns the number of active and fulfilled reservations of each order, by order id."""


@dataclass(frozen=True, slots=True)
class Overview:
    """The size of an order, and whether it has reservations that have expired or were released."""

    size: OrderSize
    has_expired: bool
    has_released: bool


@dataclass(frozen=True, slots=True)
class ReservationSize:
    """A reservation of an order and the number of its allocations."""

    order_id: str
    id: str
    allocations: int


def sizes(tx: Connection, order_ids: Iterable[str]) -> tuple[datetime, dict[str, OrderSize]]:
    """Return the time of the database's clock, and the size of each order, by order id.

    Reservations that other transactions have not committed yet are not counted.
    """
    rows = _sizes(tx, [{"order_id": order_id} for order_id in dict.fromkeys(order_ids)])
    return rows[0].now, {row.order_id: OrderSize(row.reservations, row.allocations) for row in rows}


def overviews(tx: Connection, order_ids: Iterable[str]) -> dict[str, Overview]:
    """Return an overview of each order, by order id."""
    rows = _overviews(tx, [{"order_id": order_id} for order_id in dict.fromkeys(order_ids)])
    return {
        row.order_id: Overview(
            OrderSize(row.reservations, row.allocations), bool(row.has_expired), bool(row.has_released)
        )
        for row in rows
    }


def unreleased(tx: Connection, order_ids: Iterable[str]) -> dict[str, list[str]]:
    """Return, by order id, the sorted ids of each order's active and fulfilled reservations."""
    ids: dict[str, list[str]] = {order_id: [] for order_id in order_ids}
    for row in _unreleased(tx, [{"order_id": order_id} for order_id in ids]) if ids else ():
        ids[row.order_id].append(row.id)
    return ids


def in_states(tx: Connection, order_ids: Iterable[str], states: Iterable[State], limit: int) -> list[ReservationSize]:
    """Return at most `limit` reservations of these orders that are in one of the states, in no particular order."""
    rows = [{"order_id": order_id, "state": state} for order_id in dict.fromkeys(order_ids) for state in states]
    return [ReservationSize(*row) for row in _in_states(tx, rows, row_limit=limit)] if rows else []


def fulfilled_units(tx: Connection, order_ids: Iterable[str]) -> dict[str, dict[int, int]]:
    """Return how many units of each product were fulfilled for each order, by order id and product id."""
    units: dict[str, dict[int, int]] = {order_id: {} for order_id in order_ids}
    for row in _fulfilled_units(tx, [{"order_id": order_id} for order_id in units]) if units else ():
        units[row.order_id][row.product_id] = int(row.quantity)
    return units


def _count(rows: Select[tuple[int]], limit: int) -> ScalarSelect[int]:
    # One more than the limit is enough to know that an order exceeds it.
    bound = literal(limit + 1, literal_execute=True)
    return select(func.count()).select_from(rows.limit(bound).subquery()).scalar_subquery()


def _size_columns(given: Subquery) -> tuple[Label[int], Label[int]]:
    one = literal(1, literal_execute=True)
    is_active = (_reservations.c.order_id == given.c.order_id, tables.ACTIVE)
    active = select(one).select_from(_reservations).where(*is_active).correlate(given)
    # Do not use a join: without statistics, as after a restore, PostgreSQL would read all allocations for each order.
    ids = select(_reservations.c.id).where(*is_active).limit(literal(ORDER_RESERVATIONS_MAX + 1, literal_execute=True))
    allocations = select(one).select_from(_allocations).where(in_rows(_allocations.c.reservation_id, ids, outer=given))
    return (
        _count(active, ORDER_RESERVATIONS_MAX).label("reservations"),
        _count(allocations, ORDER_ALLOCATIONS_MAX).label("allocations"),
    )


def _has(given: Subquery, state: State) -> Exists:
    return exists().where(
        _reservations.c.order_id == given.c.order_id,
        _reservations.c.state == literal(state, literal_execute=True),
    )


_sizes = Statement(
    lambda given: select(Clock().label("now"), given.c.order_id, *_size_columns(given)),
    order_id=Text(),
)
_overviews = Statement(
    lambda given: select(
        given.c.order_id,
        *_size_columns(given),
        _has(given, State.EXPIRED).label("has_expired"),
        _has(given, State.RELEASED).label("has_released"),
    ),
    order_id=Text(),
)
_unreleased = Statement(
    lambda given: (
        select(_reservations.c.order_id, _reservations.c.id)
        .where(
            in_rows(_reservations.c.order_id, given.c.order_id),
            _reservations.c.state.in_(UNRELEASED_STATES),
        )
        .order_by(_reservations.c.id)
    ),
    order_id=Text(),
)
_allocation_count = (
    select(func.count())
    .select_from(_allocations)
    .where(_allocations.c.reservation_id == _reservations.c.id)
    .correlate(_reservations)
    .scalar_subquery()
)
_in_states = Statement(
    lambda given: (
        select(_reservations.c.order_id, _reservations.c.id, _allocation_count)
        .where(in_rows(_reservations.c.order_id, given.c.order_id), in_rows(_reservations.c.state, given.c.state))
        .limit(bindparam("row_limit", type_=BigInteger()))
    ),
    order_id=Text(),
    state=Text(),
)
_fulfilled_units = Statement(
    lambda given: (
        select(
            _reservations.c.order_id, _reservations.c.product_id, func.sum(_reservations.c.quantity).label("quantity")
        )
        .where(
            in_rows(_reservations.c.order_id, given.c.order_id),
            _reservations.c.state == literal(State.FULFILLED, literal_execute=True),
        )
        .group_by(_reservations.c.order_id, _reservations.c.product_id)
    ),
    order_id=Text(),
)
