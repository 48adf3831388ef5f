"""The UPDATE statements that change the state of a reservation, or set it aside.

Two functions change the state:

- `save_states` writes the new states of reservations that the transaction has locked with locks.py.
- `expire` checks and changes the state in one statement, without locking the reservations first. ExpireReservations
  uses it. If it locked and read each of a million due reservations first, their items would be locked for longer.

`expire` locks its rows in an order that PostgreSQL chooses, not sorted by id. Nevertheless it cannot deadlock: its
caller has locked all items of the products, and every transaction that changes the state of an active reservation locks
the items of the reservation first. So no other transaction locks several of these rows at the same time.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime

from sqlalchemy import Connection, Text, update

from inventory_api.domain.model import ENDED, Reservation, State
from inventory_api.store import tables
from shop_common.db.sql import Id, Statement, Timestamp, clock, in_rows, join_rows

_reservations = tables.stock_reservations


def save_states(tx: Connection, locked: Iterable[Reservation], now: datetime) -> None:
    """Write the state and expiry of locked reservations. Sets `ended_at` to `now` for those that have ended."""
    _save_states(
        tx,
        [
            {
                "id": reservation.id,
                "state": reservation.state,
                "expires_at": reservation.expires_at,
                "ended_at": now if reservation.state in ENDED else None,
            }
            for reservation in locked
        ],
    )


def expire(tx: Connection, ids: Sequence[str]) -> set[str]:
    """Expire the reservations with these ids that are held and past their expiry. Returns the ids of the expired ones.

    The caller must have locked all items of the products of these reservations.
    """
    return {row.id for row in _expire(tx, [{"id": each} for each in ids])}


def set_aside(tx: Connection, reservation_id: str) -> None:
    """Set aside a reservation that cannot be expired or deleted. Expiring and purging then skip it.

    An operator has to inspect the reservation.
    """
    tx.execute(update(_reservations).where(_reservations.c.id == reservation_id).values(set_aside_at=clock()))


_save_states = Statement(
    lambda given: (
        update(_reservations)
        .values(state=given.c.state, expires_at=given.c.expires_at, ended_at=given.c.ended_at)
        .where(*join_rows(_reservations.c.id, given.c.id))
    ),
    id=Id(),
    state=Text(),
    expires_at=Timestamp(),
    ended_at=Timestamp(),
)
# An active reservation that has an expiry is a held one. Do not write the condition as state = 'HELD', because the
# partial indexes have that condition. PostgreSQL might then scan all held reservations in such an index instead of
# using the primary key.
_expire = Statement(
    lambda given: (
        update(_reservations)
        .values(state=State.EXPIRED, ended_at=clock())
        .where(
            in_rows(_reservations.c.id, given.c.id),
            _reservations.c.is_active,
            _reservations.c.expires_at <= clock(),
        )
        .returning(_reservations.c.id)
    ),
    id=Id(),
)
