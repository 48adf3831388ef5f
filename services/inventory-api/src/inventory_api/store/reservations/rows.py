"""Reads reservations by id, with their allocations, and inserts new ones."""

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import BigInteger, Connection, Row, Text, bindparam, select

from inventory_api.domain.errors import ReservationNotFound
from inventory_api.domain.model import Allocation, Reservation, ReservationKey, State
from inventory_api.store import tables
from shop_common.api.valid import INT64_MAX
from shop_common.db.sql import Id, Statement, count_by, in_rows, insert_into, is_each, now

_reservations = tables.stock_reservations
_allocations = tables.reservation_allocations
_items = tables.inventory_items

COLUMNS = tuple(_reservations.c[name] for name in Reservation.__slots__ if name != "allocations")

READ_ALLOCATIONS_MAX = 25_000
"""The most allocations to read at once for many reservations. No single reservation of any version has so many."""

count_allocations = count_by(_allocations, "tenant", "reservation_id")
"""Returns the number of allocations of each reservation."""


def get(tx: Connection, keys: Sequence[ReservationKey]) -> list[Reservation | ReservationNotFound]:
    """Return one outcome per key, in order: the reservation or ReservationNotFound. A due reservation is EXPIRED."""
    timestamp = now(tx)
    reservations = {reservation.key: reservation.as_of(timestamp) for reservation in load(tx, keys)}
    return [reservations.get(key) or ReservationNotFound(reservation_id=key.id) for key in keys]


def load(tx: Connection, keys: Iterable[ReservationKey]) -> list[Reservation]:
    """Return reservations in their stored state, sorted by id, without a lock. Unknown keys are left out.

    If the reservations have more than READ_ALLOCATIONS_MAX allocations in total, the reservations with the largest ids
    are returned without allocations.
    """
    rows = [key._asdict() for key in set(keys)]
    if not rows:
        return []
    stored = _load(tx, rows)
    complete = {reservation.id: reservation for reservation in with_allocations(tx, stored, READ_ALLOCATIONS_MAX)}
    return [complete.get(row.id) or _reservation(row, ()) for row in stored]


def with_allocations(tx: Connection, rows: Sequence[Row[Any]], limit: int | None = None) -> list[Reservation]:
    """Return the reservations of these rows, in order, with their allocations. Each row has the columns COLUMNS.

    If the reservations have more than `limit` allocations in total, only those with the smallest ids are returned. At
    least one reservation is returned, even if it exceeds `limit`: old versions had no limit on allocations.
    """
    if not rows:
        return []
    allocations: dict[str, list[Allocation]] = {row.id: [] for row in rows}
    ids = [{"id": row.id} for row in rows]
    stored = _allocations_of(tx, ids, row_limit=INT64_MAX if limit is None else limit + 1)
    for row in stored:
        allocations[row.reservation_id].append(Allocation(row.item_id, row.location, row.quantity))
    if limit is not None and len(stored) > limit:
        cut = stored[-1].reservation_id
        first = min(allocations)
        if cut == first:
            return with_allocations(tx, [row for row in rows if row.id == first])
        rows = [row for row in rows if row.id < cut]
    return [_reservation(row, tuple(allocations[row.id])) for row in rows]


def insert(tx: Connection, reservations: Sequence[Reservation]) -> None:
    """Insert new reservations and their allocations."""
    _insert_reservations(tx, [_row(reservation) for reservation in reservations])
    insert_allocations(
        tx,
        [
            {
                "tenant": reservation.tenant,
                "reservation_id": reservation.id,
                "item_id": part.item_id,
                "quantity": part.quantity,
            }
            for reservation in reservations
            for part in reservation.allocations
        ],
    )


def _row(reservation: Reservation) -> dict[str, object]:
    return {
        "tenant": reservation.tenant,
        "owner": reservation.owner,
        "id": reservation.id,
        "product_id": reservation.product_id,
        "quantity": reservation.quantity,
        "order_id": reservation.order_id,
        "state": reservation.state,
        "created_at": reservation.created_at,
        "expires_at": reservation.expires_at,
        "sole_item_id": reservation.allocations[0].item_id if len(reservation.allocations) == 1 else 0,
    }


def _reservation(row: Row[Any], allocations: tuple[Allocation, ...]) -> Reservation:
    return Reservation(
        row.tenant,
        row.owner,
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
    lambda given: (
        select(*COLUMNS).where(*is_each(_reservations, given, *ReservationKey._fields)).order_by(_reservations.c.id)
    ),
    tenant=Text(),
    id=Id(),
)
_allocations_of = Statement(
    lambda given: (
        select(_allocations.c.reservation_id, _allocations.c.item_id, _items.c.location, _allocations.c.quantity)
        .join_from(_allocations, _items, _items.c.id == _allocations.c.item_id)
        .where(in_rows(_allocations.c.reservation_id, given.c.id))
        .order_by(_allocations.c.reservation_id, _allocations.c.item_id)
        .limit(bindparam("row_limit", type_=BigInteger()))
    ),
    id=Id(),
)
_insert_reservations = insert_into(
    _reservations,
    "tenant",
    "owner",
    "id",
    "product_id",
    "quantity",
    "order_id",
    "state",
    "created_at",
    "expires_at",
    "sole_item_id",
)
insert_allocations = insert_into(_allocations, "tenant", "reservation_id", "item_id", "quantity")
"""Inserts allocations. A row has the tenant, reservation_id, item_id and quantity."""
