"""Locks reservations together with their items.

Every transaction locks items first, sorted by id, and then reservations, sorted by id. If two transactions need the
same rows, one waits for the other, and they cannot deadlock. `changes.expire` is the only exception: it locks
reservations in an order that PostgreSQL chooses. The docstring of changes.py states why that is safe.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Text, select

from inventory_api.domain.model import Item, Reservation, ReservationKey
from inventory_api.store import items, tables
from inventory_api.store.reservations import rows
from shop_common.db.sql import Id, Statement, is_each, now

_reservations = tables.stock_reservations


@dataclass(slots=True)
class Locked:
    """Locked reservations and their locked items, by id.

    No other transaction changes these rows until this transaction ends. `now` was read after the locks were granted.
    """

    now: datetime
    reservations: dict[str, Reservation]
    items: dict[int, Item]


def lock(tx: Connection, keys: Iterable[ReservationKey]) -> Locked:
    """Lock the items of these reservations, then the reservations. Unknown keys are left out."""
    keys = set(keys)
    if not keys:
        return Locked(now(tx), {}, {})
    locked_items = items.lock_of_reservations(tx, keys)
    reservations = rows.with_allocations(tx, _lock(tx, [key._asdict() for key in keys]))
    return Locked(
        now(tx),
        {reservation.id: reservation for reservation in reservations},
        {item.id: item for item in locked_items},
    )


_lock = Statement(
    lambda given: (
        select(*rows.COLUMNS)
        .where(*is_each(_reservations, given, *ReservationKey._fields))
        .order_by(_reservations.c.id)
        .with_for_update(of=_reservations)
    ),
    tenant=Text(),
    id=Id(),
)
