"""Reservations as rows: locking, reading, and the one way in which their state changes.

Every transition takes the locks of the items first, then of the reservations, and acts on what the locked rows say.
So no two transitions of one reservation can both happen, and the counters of an item always equal the sum of its
active reservations.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Connection, Row, Text, bindparam, select, update

from inventory_api.domain import events
from inventory_api.domain.errors import ReservationNotFound
from inventory_api.domain.model import ENDED, Allocation, Item, Reservation, State
from inventory_api.store import items, tables
from shop_common.api.valid import INT64_MAX
from shop_common.db.sql import Id, Statement, Timestamp, among, clock, joined, now

_reservations = tables.stock_reservations
_allocations = tables.reservation_allocations
_items = tables.inventory_items

COLUMNS = tuple(_reservations.c[name] for name in Reservation.__slots__ if name != "allocations")

READ_MAX = 25_000
"""Allocations that are read for many reservations at once; above what the largest reservation of any version has."""


def get(tx: Connection, ids: Sequence[str]) -> list[Reservation | ReservationNotFound]:
    """One outcome per id, in order; holds past their time read as expired."""
    moment = now(tx)
    found = {reservation.id: reservation.as_of(moment) for reservation in load(tx, ids)}
    return [found.get(each) or ReservationNotFound(reservation_id=each) for each in ids]


def load(tx: Connection, ids: Iterable[str]) -> list[Reservation]:
    """The reservations as they are stored, with their allocations, sorted by id. Locks nothing.

    When they have very many allocations together, some come without.
    """
    rows = [{"id": each} for each in set(ids)]
    if not rows:
        return []
    stored = _load(tx, rows)
    whole = {reservation.id: reservation for reservation in with_allocations(tx, stored, READ_MAX)}
    return [whole.get(row.id) or _reservation(row, ()) for row in stored]


@dataclass(slots=True)
class Locked:
    """Reservations and their items, locked, as of `now`: nobody else changes them until the transaction ends."""

    now: datetime
    reservations: dict[str, Reservation]
    items: dict[int, Item]


def lock(tx: Connection, ids: Iterable[str]) -> Locked:
    """Lock the reservations, after the items that they draw on. Ids that don't exist are left out."""
    rows = [{"id": each} for each in set(ids)]
    if not rows:
        return Locked(now(tx), {}, {})
    # Which items a reservation draws on never changes, so the subquery needs no lock.
    shelves = {row.id: items.from_row(row) for row in _lock_items(tx, rows)}
    reservations = with_allocations(tx, _lock(tx, rows))
    return Locked(now(tx), {reservation.id: reservation for reservation in reservations}, shelves)


def move(
    tx: Connection,
    locked: Locked,
    moves: Mapping[str, State],
    traceparents: Mapping[str, str | None] | None = None,
) -> None:
    """Bring locked reservations into new states, with the effect on their items and one event each.

    The caller has checked on `locked` that each step is legal. Releasing and expiring give units back to the
    item; fulfilling takes them out. `locked` is brought up to date. `traceparents` is by reservation id.
    """
    if not moves:
        return
    traceparents = traceparents or {}
    messages = []
    changed: dict[int, Item] = {}
    shipped: dict[int, str | None] = {}
    for reservation_id, state in moves.items():
        reservation = locked.reservations[reservation_id]
        traceparent = traceparents.get(reservation_id)
        for part in reservation.allocations if state is not State.CONFIRMED else ():
            item = changed.get(part.item_id, locked.items[part.item_id])
            taken_out = part.quantity if state is State.FULFILLED else 0
            changed[item.id] = replace(
                item,
                quantity=item.quantity - taken_out,
                reserved_quantity=item.reserved_quantity - part.quantity,
                # The version counts changes of quantity, once a transaction.
                version=locked.items[item.id].version + 1 if taken_out or item.id in shipped else item.version,
                updated_at=locked.now,
            )
            if taken_out:
                shipped[item.id] = traceparent
        moved = replace(reservation, state=state)
        messages.append(events.EVENT_OF_STATE[state](moved, locked.now, traceparent))
        locked.reservations[reservation_id] = replace(moved, expires_at=None) if state is State.CONFIRMED else moved
    messages += [events.stock_updated(changed[item_id], locked.now, tp) for item_id, tp in shipped.items()]
    _set_state(tx, [_state_row(locked.reservations[each], locked.now) for each in moves])
    if changed:
        items.save_counters(tx, changed.values())
        locked.items.update(changed)
    tables.outbox.append(tx, messages)


def due(tx: Connection, limit: int, *, since: datetime | None = None) -> list[Reservation]:
    """The oldest holds past their time, or of those that ran out at `since` or later. Locks nothing.

    Fewer than there are when together they have too many allocations to be read at once.
    """
    query = select(*COLUMNS).where(
        tables.HELD, _reservations.c.set_aside_at.is_(None), _reservations.c.expires_at <= clock()
    )
    if since is not None:
        query = query.where(_reservations.c.expires_at >= since)
    return with_allocations(tx, tx.execute(query.order_by(_reservations.c.expires_at).limit(limit)).all(), READ_MAX)


def set_aside(tx: Connection, reservation_id: str) -> None:
    """Pass over it from now on, in all that is done to many: it can't be ended. A person has to look at it."""
    tx.execute(update(_reservations).where(_reservations.c.id == reservation_id).values(set_aside_at=clock()))


def expire(tx: Connection, found: Sequence[Reservation]) -> int:
    """Expire those of these holds, `due` when they were read, that still are; returns how many.

    What `lock` and `move` do, for a million of them: all that never changes of a hold was read before, so that their
    items are locked for as short as can be, and the UPDATE itself checks the rest.
    """
    if not found:
        return 0
    shelves = {item.id: item for item in items.lock_products(tx, {reservation.product_id for reservation in found})}
    moment = now(tx)
    ended = {row.id for row in _expire(tx, [{"id": reservation.id} for reservation in found])}
    expired = [reservation for reservation in found if reservation.id in ended]
    if expired:
        freed: dict[int, int] = {}
        for reservation in expired:
            for part in reservation.allocations:
                freed[part.item_id] = freed.get(part.item_id, 0) + part.quantity
        items.free(tx, shelves, freed, moment)
        tables.outbox.append(tx, [events.stock_reservation_expired(each, moment, None) for each in expired])
    return len(expired)


def _state_row(reservation: Reservation, now: datetime) -> dict[str, object]:
    return {
        "id": reservation.id,
        "state": reservation.state,
        "expires_at": reservation.expires_at,
        "ended_at": now if reservation.state in ENDED else None,
    }


def with_allocations(tx: Connection, rows: Sequence[Row[Any]], limit: int | None = None) -> list[Reservation]:
    """The reservations of these rows, in order.

    Those with the smallest ids only, when all have more allocations than `limit` together. One at least: a version
    without bounds may have made it larger than that.
    """
    if not rows:
        return []
    parts: dict[str, list[Allocation]] = {row.id: [] for row in rows}
    given = [{"id": row.id} for row in rows]
    read = _allocations_of(tx, given, row_limit=INT64_MAX if limit is None else limit + 1)
    for part in read:
        parts[part.reservation_id].append(Allocation(part.item_id, part.location, part.quantity))
    if limit is not None and len(read) > limit:
        cut = read[-1].reservation_id
        first = min(parts)
        if cut == first:
            return with_allocations(tx, [row for row in rows if row.id == first])
        rows = [row for row in rows if row.id < cut]
    return [_reservation(row, tuple(parts[row.id])) for row in rows]


def _reservation(row: Row[Any], allocations: tuple[Allocation, ...]) -> Reservation:
    return Reservation(
        row.id,
        row.product_id,
        row.quantity,
        row.order_id,
        State(row.state),
        row.created_at,
        row.expires_at,
        allocations,
    )


_load = Statement(
    lambda given: select(*COLUMNS).where(among(_reservations.c.id, given.c.id)).order_by(_reservations.c.id),
    id=Id(),
)
_lock = Statement(
    lambda given: (
        select(*COLUMNS)
        .where(among(_reservations.c.id, given.c.id))
        .order_by(_reservations.c.id)
        .with_for_update(of=_reservations)
    ),
    id=Id(),
)
_lock_items = Statement(
    lambda given: (
        select(*items.COLUMNS)
        .where(
            among(_items.c.id, select(_allocations.c.item_id).where(among(_allocations.c.reservation_id, given.c.id)))
        )
        .order_by(_items.c.id)
        .with_for_update(of=_items)
    ),
    id=Id(),
)
_allocations_of = Statement(
    lambda given: (
        select(_allocations.c.reservation_id, _allocations.c.item_id, _items.c.location, _allocations.c.quantity)
        .join_from(_allocations, _items, _items.c.id == _allocations.c.item_id)
        .where(among(_allocations.c.reservation_id, given.c.id))
        .order_by(_allocations.c.reservation_id, _allocations.c.item_id)
        .limit(bindparam("row_limit", type_=BigInteger()))
    ),
    id=Id(),
)
_set_state = Statement(
    lambda given: (
        update(_reservations)
        .values(state=given.c.state, expires_at=given.c.expires_at, ended_at=given.c.ended_at)
        .where(*joined(_reservations.c.id, given.c.id))
    ),
    id=Id(),
    state=Text(),
    expires_at=Timestamp(),
    ended_at=Timestamp(),
)
# A hold is what is active and has an end. In the words of the partial indexes a planner might walk one of them, through
# all that is held, instead of the primary key.
_expire = Statement(
    lambda given: (
        update(_reservations)
        .values(state=State.EXPIRED, ended_at=clock())
        .where(
            among(_reservations.c.id, given.c.id),
            _reservations.c.is_active,
            _reservations.c.expires_at <= clock(),
        )
        .returning(_reservations.c.id)
    ),
    id=Id(),
)
