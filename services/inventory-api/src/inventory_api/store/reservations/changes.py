"""The UPDATE statements that change the state of a reservation, or set it aside.

There are two of them for the state:

- `save_states` writes states that were decided on reservations which the transaction has locked (locks.py).
- `expire` checks and changes the state in one statement, without a lock beforehand. The reaper uses it, because
  locking and reading each of a million due reservations first would keep their items locked for longer.

`expire` locks its rows in an order that PostgreSQL chooses, not sorted by id. Nevertheless it cannot deadlock: its
caller has locked all items of the products, and every transaction that changes a reservation locks the items of the
reservation first. So no two transactions wait for reservation rows at the same time.
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
    """Expire the reservations that are held and past their expiry. Returns the ids of the expired ones.

    The caller has locked all items of their products.
    """
    return {row.id for row in _expire(tx, [{"id": each} for each in ids])}


def set_aside(tx: Connection, reservation_id: str) -> None:
    """Exclude a reservation that cannot be expired or deleted from all bulk work. An operator has to inspect it."""
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
# An active reservation that has an expiry is a held one. The condition is not written as state = 'HELD': that is the
# condition of the partial indexes, and PostgreSQL might then scan one of them, with all held reservations, instead of
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
