"""Reads the reservations of orders by state. Locks nothing.

The number of rows that a statement reads for an order does not grow with its expired and released reservations.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Exists,
    Label,
    Row,
    ScalarSelect,
    Select,
    Subquery,
    Text,
    and_,
    bindparam,
    exists,
    func,
    literal,
    select,
)
from sqlalchemy.types import TypeEngine

from inventory_api.domain.model import ACTIVE, ORDER_ALLOCATIONS_MAX, ORDER_RESERVATIONS_MAX, OrderKey, OrderSize, State
from inventory_api.store import tables
from shop_common.db.sql import Clock, Statement, in_rows, is_each

UNRELEASED_STATES = (*ACTIVE, State.FULFILLED)

_reservations = tables.stock_reservations
_allocations = tables.reservation_allocations


@dataclass(frozen=True, slots=True)
class Overview:
    """The size of an order, and whether it has reservations that have expired or were released."""

    size: OrderSize
    has_expired: bool
    has_released: bool


@dataclass(frozen=True, slots=True)
class ReservationSize:
    """A reservation of an order and the number of its allocations."""

    order: OrderKey
    id: str
    allocations: int


@dataclass(frozen=True, slots=True)
class ReservationSummary:
    """A reservation of an order with its product and its state, and the number of its allocations."""

    order: OrderKey
    id: str
    product_id: int
    state: State
    allocations: int


def sizes(tx: Connection, orders: Iterable[OrderKey]) -> tuple[datetime, dict[OrderKey, OrderSize]]:
    """Return the time of the database's clock, and the size of each order.

    Reservations that other transactions have not committed yet are not counted.
    """
    rows = _sizes(tx, _rows(orders))
    return rows[0].now, {_key(row): OrderSize(row.reservations, row.allocations) for row in rows}


def overviews(tx: Connection, orders: Iterable[OrderKey]) -> dict[OrderKey, Overview]:
    """Return an overview of each order."""
    return {
        _key(row): Overview(OrderSize(row.reservations, row.allocations), bool(row.has_expired), bool(row.has_released))
        for row in _overviews(tx, _rows(orders))
    }


def unreleased(tx: Connection, orders: Iterable[OrderKey]) -> dict[OrderKey, list[str]]:
    """Return the sorted ids of each order's active and fulfilled reservations."""
    ids: dict[OrderKey, list[str]] = {order: [] for order in orders}
    for row in _unreleased(tx, _rows_by_state(ids, UNRELEASED_STATES)) if ids else ():
        ids[_key(row)].append(row.id)
    return ids


def in_states(tx: Connection, orders: Iterable[OrderKey], states: Iterable[State], limit: int) -> list[ReservationSize]:
    """Return at most `limit` reservations of these orders that are in one of the states, in no particular order."""
    rows = _rows_by_state(orders, states)
    stored = _in_states(tx, rows, row_limit=limit) if rows else ()
    return [ReservationSize(_key(row), row.id, row.allocations) for row in stored]


def have_any(tx: Connection, orders: Iterable[OrderKey], states: Iterable[State]) -> set[OrderKey]:
    """Return the orders that have a reservation in one of the states."""
    rows = _rows_by_state(orders, states)
    return {_key(row) for row in _have_any(tx, rows)} if rows else set()


def fulfilled_units(tx: Connection, orders: Iterable[OrderKey]) -> dict[OrderKey, dict[int, int]]:
    """Return how many units of each product were fulfilled for each order, by order and product id."""
    units: dict[OrderKey, dict[int, int]] = {order: {} for order in orders}
    for row in _fulfilled_units(tx, _rows_by_state(units, (State.FULFILLED,))) if units else ():
        units[_key(row)][row.product_id] = int(row.quantity)
    return units


def count_unreleased(tx: Connection, orders: Iterable[OrderKey]) -> dict[OrderKey, int]:
    """Return the number of active and fulfilled reservations of each order that has any."""
    return _count_in(tx, orders, UNRELEASED_STATES)


def count_active(tx: Connection, orders: Iterable[OrderKey]) -> dict[OrderKey, int]:
    """Return the number of active reservations of each order that has any."""
    return _count_in(tx, orders, ACTIVE)


def summaries(
    tx: Connection, orders: Iterable[OrderKey], states: Iterable[State], limit: int
) -> list[ReservationSummary]:
    """Return at most `limit` reservations of these orders that are in one of the states, sorted by id."""
    rows = _rows_by_state(orders, states)
    return [
        ReservationSummary(_key(row), row.id, row.product_id, State(row.state), row.allocations)
        for row in (_summaries(tx, rows, row_limit=limit) if rows else ())
    ]


def _count_in(tx: Connection, orders: Iterable[OrderKey], states: Iterable[State]) -> dict[OrderKey, int]:
    rows = _rows_by_state(orders, states)
    return {_key(row): row.reservations for row in _count_by_state(tx, rows)} if rows else {}


def _rows(orders: Iterable[OrderKey]) -> list[dict[str, str]]:
    # Not `_asdict`, which is slow: this runs for every order that is reserved.
    return [
        {"tenant": tenant, "owner": owner, "order_id": order_id} for tenant, owner, order_id in dict.fromkeys(orders)
    ]


def _rows_by_state(orders: Iterable[OrderKey], states: Iterable[State]) -> list[dict[str, str]]:
    # The states are input rows, not a condition. Without statistics, PostgreSQL would expect few rows with these
    # states: it would scan the whole table for them once, and compare each of them with each order.
    return [{**order, "state": state} for order in _rows(orders) for state in states]


def _key(row: Row[Any]) -> OrderKey:
    """Return the key of a row that begins with the columns of the key."""
    return OrderKey(*row[:3])


def _count(rows: Select[tuple[int]], limit: int) -> ScalarSelect[int]:
    # One more than the limit is enough to know that an order exceeds it.
    bound = literal(limit + 1, literal_execute=True)
    return select(func.count()).select_from(rows.limit(bound).subquery()).scalar_subquery()


def _size_columns(given: Subquery) -> tuple[Label[int], Label[int]]:
    one = literal(1, literal_execute=True)
    is_active = and_(*_of_order(given), tables.ACTIVE)
    active = select(one).select_from(_reservations).where(is_active).correlate(given)
    # Do not use a join: without statistics, as after a restore, PostgreSQL would read all allocations for each order.
    ids = select(_reservations.c.id).where(is_active).limit(literal(ORDER_RESERVATIONS_MAX + 1, literal_execute=True))
    allocations = select(one).select_from(_allocations).where(in_rows(_allocations.c.reservation_id, ids, outer=given))
    return (
        _count(active, ORDER_RESERVATIONS_MAX).label("reservations"),
        _count(allocations, ORDER_ALLOCATIONS_MAX).label("allocations"),
    )


def _has(given: Subquery, state: State) -> Exists:
    return exists().where(*_of_order(given), _reservations.c.state == literal(state, literal_execute=True))


def _of_order(given: Subquery) -> tuple[ColumnElement[bool], ...]:
    return tuple(_reservations.c[name] == given.c[name] for name in OrderKey._fields)


_KEY: dict[str, TypeEngine[Any]] = {name: Text() for name in OrderKey._fields}
_KEY_COLUMNS = [_reservations.c[name] for name in OrderKey._fields]


_sizes = Statement(
    lambda given: select(*(given.c[name] for name in _KEY), Clock().label("now"), *_size_columns(given)),
    **_KEY,
)
_overviews = Statement(
    lambda given: select(
        *(given.c[name] for name in _KEY),
        *_size_columns(given),
        _has(given, State.EXPIRED).label("has_expired"),
        _has(given, State.RELEASED).label("has_released"),
    ),
    **_KEY,
)
# Counts reservations and not their allocations: without statistics PostgreSQL would read the allocations of all orders.
# Expired and released reservations do not count: confirming does not read them, and their number has no limit.
_count_by_state = Statement(
    lambda given: (
        select(*_KEY_COLUMNS, func.count().label("reservations"))
        .where(*is_each(_reservations, given, *_KEY, "state"))
        .group_by(*_KEY_COLUMNS)
    ),
    **_KEY,
    state=Text(),
)
_unreleased = Statement(
    lambda given: (
        select(*_KEY_COLUMNS, _reservations.c.id)
        .where(*is_each(_reservations, given, *_KEY, "state"))
        .order_by(_reservations.c.id)
    ),
    **_KEY,
    state=Text(),
)
_allocation_count = (
    select(func.count())
    .select_from(_allocations)
    .where(_allocations.c.reservation_id == _reservations.c.id)
    .correlate(_reservations)
    .scalar_subquery()
    .label("allocations")
)
_in_states = Statement(
    lambda given: (
        select(*_KEY_COLUMNS, _reservations.c.id, _allocation_count)
        .where(*is_each(_reservations, given, *_KEY, "state"))
        .limit(bindparam("row_limit", type_=BigInteger()))
    ),
    **_KEY,
    state=Text(),
)
_summaries = Statement(
    lambda given: (
        select(*_KEY_COLUMNS, _reservations.c.id, _reservations.c.product_id, _reservations.c.state, _allocation_count)
        .where(*is_each(_reservations, given, *_KEY, "state"))
        .order_by(_reservations.c.id)
        .limit(bindparam("row_limit", type_=BigInteger()))
    ),
    **_KEY,
    state=Text(),
)
_have_any = Statement(
    lambda given: (
        select(*(given.c[name] for name in _KEY))
        .where(exists().where(*is_each(_reservations, given, *_KEY, "state")).correlate(given))
        .distinct()
    ),
    **_KEY,
    state=Text(),
)
_fulfilled_units = Statement(
    lambda given: (
        select(*_KEY_COLUMNS, _reservations.c.product_id, func.sum(_reservations.c.quantity).label("quantity"))
        .where(*is_each(_reservations, given, *_KEY, "state"))
        .group_by(*_KEY_COLUMNS, _reservations.c.product_id)
    ),
    **_KEY,
    state=Text(),
)
