"""Lists of reservations: each page reads a bounded number of rows, whatever is stored, and fits into an answer.

A page may be shorter than it was asked to be, even empty, and still be followed by another one: when it has looked at
WINDOW_ROWS rows without finding enough that match, or when its reservations draw on many locations.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, literal, or_, select, union_all

from inventory_api.domain.model import Reservation, State
from inventory_api.store import tables
from inventory_api.store.reservations import COLUMNS, with_allocations
from shop_common.api.paging import Page, PageRequest, page_of
from shop_common.db.sql import now

WINDOW_ROWS = 5_000
"""Rows that a page looks at. No fewer than a page may have."""

PAGE_ALLOCATIONS = 5_000
"""Of a page's reservations together; one at least comes, whatever it has. At most 0.5 MB."""

_reservations = tables.stock_reservations


@dataclass(frozen=True, slots=True)
class ReservationFilter:
    """Which reservations to list; None is any. `state` is the state as callers see it."""

    order_id: str | None = None
    product_id: int | None = None
    state: State | None = None


def list_page(tx: Connection, asked: PageRequest[ReservationFilter]) -> Page[Reservation]:
    """A page by id; ids are drawn in the order of time, so that rows inserted meanwhile come later."""
    moment = now(tx)
    after = () if asked.after is None else (_reservations.c.id > asked.after[0],)
    walks = [
        select(*COLUMNS).where(*walk, *after).order_by(_reservations.c.id).limit(WINDOW_ROWS)
        for walk in _walks(asked.wanted)
    ]
    window = _merged(walks)
    matching = select(window).where(*_matches(window.c, asked.wanted, moment)).order_by(window.c.id)
    page = page_of(tx.execute(matching.limit(asked.size + 1)).all(), asked.size, lambda row: (row.id,))
    if page.next_position is None:
        last = select(window.c.id).order_by(window.c.id).offset(WINDOW_ROWS - 1)
        looked_at = tx.execute(last).scalar_one_or_none()
        page = Page(page.rows, None if looked_at is None else (looked_at,))
    found = [reservation.as_of(moment) for reservation in with_allocations(tx, page.rows, PAGE_ALLOCATIONS)]
    cut = len(found) < len(page.rows)
    return Page(found, (found[-1].id,) if cut else page.next_position)


def _walks(wanted: ReservationFilter) -> Sequence[tuple[ColumnElement[bool], ...]]:
    """Conditions, each of which is a walk along an index in the order of ids; all that matches is on one of them."""
    if wanted.order_id is not None:
        states = list(State) if wanted.state is None else _stored_as(wanted.state)
        of_order = _reservations.c.order_id == wanted.order_id
        return [(of_order, _reservations.c.state == literal(state, literal_execute=True)) for state in states]
    return [(_reservations.c.product_id == wanted.product_id,)] if wanted.product_id is not None else [()]


def _merged(walks: Sequence[Select[Any]]) -> Any:
    if len(walks) == 1:
        return walks[0].subquery("looked_at")
    all_rows = union_all(*(select(walk.subquery()) for walk in walks)).subquery()
    return select(all_rows).order_by(all_rows.c.id).limit(WINDOW_ROWS).subquery("looked_at")


def _matches(row: Any, wanted: ReservationFilter, moment: datetime) -> Sequence[ColumnElement[bool]]:
    matches: list[ColumnElement[bool]] = []
    if wanted.product_id is not None:
        matches.append(row.product_id == wanted.product_id)
    if wanted.state is not None:
        matches.append(_seen_as(row, wanted.state, moment))
    return matches


def _stored_as(state: State) -> Sequence[State]:
    return (State.EXPIRED, State.HELD) if state is State.EXPIRED else (state,)


def _seen_as(row: Any, state: State, moment: datetime) -> ColumnElement[bool]:
    if state is State.HELD:
        return and_(row.state == State.HELD, row.expires_at > moment)
    if state is State.EXPIRED:
        return or_(row.state == State.EXPIRED, and_(row.state == State.HELD, row.expires_at <= moment))
    return row.state == state  # type: ignore[no-any-return]  # a comparison of columns
