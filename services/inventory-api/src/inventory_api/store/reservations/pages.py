"""Reads the pages of ListReservations. Each page reads a bounded number of rows and fits into a response.

A page may have fewer rows than requested, or none, even if it is not the last page. That happens if too few of the
WINDOW_ROWS rows that were read match the filter, or if the reservations have many allocations.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, literal, or_, select, union_all

from inventory_api.domain.commands import ReservationFilter
from inventory_api.domain.model import Reservation, State
from inventory_api.store import tables
from inventory_api.store.reservations.rows import COLUMNS, with_allocations
from shop_common.api.paging import Page, PageRequest, page_of
from shop_common.db.sql import now

WINDOW_ROWS = 5_000
"""The most rows that a page reads from one index. It must not be less than the largest page size."""

PAGE_ALLOCATIONS = 5_000
"""The most allocations on a page: about 0.5 MB. A page with a single reservation may have more."""

_reservations = tables.stock_reservations


def list_page(tx: Connection, request: PageRequest[ReservationFilter]) -> Page[Reservation]:
    """Return a page of a tenant's reservations, sorted by id.

    Ids grow with time, so new reservations are on later pages.
    """
    timestamp = now(tx)
    after = () if request.after is None else (_reservations.c.id > request.after[0],)
    scans = [
        select(*COLUMNS).where(*conditions, *after).order_by(_reservations.c.id).limit(WINDOW_ROWS)
        for conditions in _index_scans(request.filter)
    ]
    window = _merged(scans)
    matching = select(window).where(*_matches(window.c, request.filter, timestamp)).order_by(window.c.id)
    page = page_of(tx.execute(matching.limit(request.size + 1)).all(), request.size, lambda row: (row.id,))
    if page.next_position is None:
        last_in_window = select(window.c.id).order_by(window.c.id).offset(WINDOW_ROWS - 1)
        position = tx.execute(last_in_window).scalar_one_or_none()
        page = Page(page.rows, None if position is None else (position,))
    reservations = [each.as_of(timestamp) for each in with_allocations(tx, page.rows, PAGE_ALLOCATIONS)]
    is_cut = len(reservations) < len(page.rows)
    return Page(reservations, (reservations[-1].id,) if is_cut else page.next_position)


def _index_scans(filter_: ReservationFilter) -> Sequence[tuple[ColumnElement[bool], ...]]:
    """Return the conditions of each scan. A scan reads one index in id order. All scans together find all matches."""
    of_tenant = _reservations.c.tenant == filter_.tenant
    if filter_.order_id is not None:
        states = list(State) if filter_.state is None else _stored_states(filter_.state)
        of_order = _reservations.c.order_id == filter_.order_id
        return [
            (of_tenant, of_order, _reservations.c.state == literal(state, literal_execute=True)) for state in states
        ]
    if filter_.product_id is not None:
        return [(of_tenant, _reservations.c.product_id == filter_.product_id)]
    return [(of_tenant,)]


def _merged(scans: Sequence[Select[Any]]) -> Any:
    if len(scans) == 1:
        return scans[0].subquery("page_window")
    all_rows = union_all(*(select(scan.subquery()) for scan in scans)).subquery()
    return select(all_rows).order_by(all_rows.c.id).limit(WINDOW_ROWS).subquery("page_window")


def _matches(row: Any, filter_: ReservationFilter, timestamp: datetime) -> Sequence[ColumnElement[bool]]:
    matches: list[ColumnElement[bool]] = []
    if filter_.product_id is not None:
        matches.append(row.product_id == filter_.product_id)
    if filter_.state is not None:
        matches.append(_reads_as(row, filter_.state, timestamp))
    return matches


def _stored_states(state: State) -> Sequence[State]:
    """Return the stored states of reservations in this state. A due reservation is EXPIRED, but stored as HELD."""
    return (State.EXPIRED, State.HELD) if state is State.EXPIRED else (state,)


def _reads_as(row: Any, state: State, timestamp: datetime) -> ColumnElement[bool]:
    if state is State.HELD:
        return and_(row.state == State.HELD, row.expires_at > timestamp)
    if state is State.EXPIRED:
        return or_(row.state == State.EXPIRED, and_(row.state == State.HELD, row.expires_at <= timestamp))
    return row.state == state  # type: ignore[no-any-return]  # a comparison of columns
