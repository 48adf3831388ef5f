"""An order's reservations by their state: how many there are, which to act on, what has left.

Each statement reads a bounded number of rows of an order, whatever has been made for it and has ended since.
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

from inventory_api.domain.errors import ReservationsLimit
from inventory_api.domain.model import ORDER_ALLOCATIONS_MAX, ORDER_RESERVATIONS_MAX, State
from inventory_api.store import tables
from shop_common.db.sql import Clock, Statement, among

UNRELEASED_STATES = (State.HELD, State.CONFIRMED, State.FULFILLED)

_reservations = tables.stock_reservations
_allocations = tables.reservation_allocations


@dataclass(frozen=True, slots=True)
class Size:
    """Active reservations of an order and their allocations, each counted to one more than its limit."""

    reservations: int
    allocations: int

    def plus(self, reservations: int, allocations: int) -> "Size":
        return Size(self.reservations + reservations, self.allocations + allocations)

    def refusal(self, order_id: str) -> ReservationsLimit | None:
        """What refuses an order of this size, if it is too large."""
        if self.reservations <= ORDER_RESERVATIONS_MAX and self.allocations <= ORDER_ALLOCATIONS_MAX:
            return None
        return ReservationsLimit(order_id, self.reservations, self.allocations)


@dataclass(frozen=True, slots=True)
class Overview:
    """Of an order: its size, and whether some of its reservations have ended this way."""

    size: Size
    has_expired: bool
    has_released: bool


def sizes(tx: Connection, order_ids: Iterable[str]) -> tuple[datetime, dict[str, Size]]:
    """The database's clock, and the size of each order; what other transactions have not committed is not counted."""
    rows = _sizes(tx, [{"order_id": order_id} for order_id in dict.fromkeys(order_ids)])
    return rows[0].now, {row.order_id: Size(row.reservations, row.allocations) for row in rows}


def overviews(tx: Connection, order_ids: Iterable[str]) -> dict[str, Overview]:
    """An overview of each order."""
    rows = _overviews(tx, [{"order_id": order_id} for order_id in dict.fromkeys(order_ids)])
    return {
        row.order_id: Overview(Size(row.reservations, row.allocations), bool(row.has_expired), bool(row.has_released))
        for row in rows
    }


def unreleased(tx: Connection, order_ids: Iterable[str]) -> dict[str, list[str]]:
    """The ids of each order's active and fulfilled reservations. Locks nothing."""
    found: dict[str, list[str]] = {order_id: [] for order_id in order_ids}
    for row in _unreleased(tx, [{"order_id": order_id} for order_id in found]) if found else ():
        found[row.order_id].append(row.id)
    return found


@dataclass(frozen=True, slots=True)
class Found:
    """A reservation of an order, and how many allocations it has."""

    order_id: str
    id: str
    allocations: int


def in_states(tx: Connection, order_ids: Iterable[str], states: Iterable[State], limit: int) -> list[Found]:
    """Some reservations of these orders in one of the states. Locks nothing."""
    rows = [{"order_id": order_id, "state": state} for order_id in dict.fromkeys(order_ids) for state in states]
    return [Found(*row) for row in _in_states(tx, rows, row_limit=limit)] if rows else []


def fulfilled_units(tx: Connection, order_ids: Iterable[str]) -> dict[str, dict[int, int]]:
    """Units of each product that have left for each order."""
    units: dict[str, dict[int, int]] = {order_id: {} for order_id in order_ids}
    for row in _fulfilled_units(tx, [{"order_id": order_id} for order_id in units]) if units else ():
        units[row.order_id][row.product_id] = int(row.quantity)
    return units


def _counted(rows: Select[tuple[int]], limit: int) -> ScalarSelect[int]:
    bound = literal(limit + 1, literal_execute=True)
    return select(func.count()).select_from(rows.limit(bound).subquery()).scalar_subquery()


def _size_columns(given: Subquery) -> tuple[Label[int], Label[int]]:
    one = literal(1, literal_execute=True)
    of_order = (_reservations.c.order_id == given.c.order_id, tables.ACTIVE)
    active = select(one).select_from(_reservations).where(*of_order).correlate(given)
    # Not joined: without statistics, as after a restore, PostgreSQL would read all allocations for each order.
    ids = select(_reservations.c.id).where(*of_order).limit(literal(ORDER_RESERVATIONS_MAX + 1, literal_execute=True))
    drawn = select(one).select_from(_allocations).where(among(_allocations.c.reservation_id, ids, outer=given))
    return (
        _counted(active, ORDER_RESERVATIONS_MAX).label("reservations"),
        _counted(drawn, ORDER_ALLOCATIONS_MAX).label("allocations"),
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
            among(_reservations.c.order_id, given.c.order_id),
            _reservations.c.state.in_(UNRELEASED_STATES),
        )
        .order_by(_reservations.c.id)
    ),
    order_id=Text(),
)
_allocations_each = (
    select(func.count())
    .select_from(_allocations)
    .where(_allocations.c.reservation_id == _reservations.c.id)
    .correlate(_reservations)
    .scalar_subquery()
)
_in_states = Statement(
    lambda given: (
        select(_reservations.c.order_id, _reservations.c.id, _allocations_each)
        .where(among(_reservations.c.order_id, given.c.order_id), among(_reservations.c.state, given.c.state))
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
            among(_reservations.c.order_id, given.c.order_id),
            _reservations.c.state == literal(State.FULFILLED, literal_execute=True),
        )
        .group_by(_reservations.c.order_id, _reservations.c.product_id)
    ),
    order_id=Text(),
)
