"""Finds and deletes reservations that ended long ago. Their allocations are deleted with them."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, delete, or_, select, update

from inventory_api.store import tables
from shop_common.db.sql import Id, Statement, clock, in_rows

_reservations = tables.stock_reservations


def ids_ended_before(tx: Connection, timestamp: datetime, limit: int) -> Sequence[str]:
    """Return the ids of at most `limit` reservations that ended before the timestamp, oldest end first.

    Replaced reservations come last. Locks nothing. Reservations that were set aside are left out.
    """
    ids: list[str] = []
    # One query for each index. Replaced reservations are few.
    for has_ended in (tables.ENDED, tables.REPLACED):
        if len(ids) == limit:
            break
        query = (
            select(_reservations.c.id)
            .where(has_ended, _reservations.c.ended_at < timestamp, _reservations.c.set_aside_at.is_(None))
            .order_by(_reservations.c.ended_at)
            .limit(limit - len(ids))
        )
        ids += tx.execute(query).scalars()
    return ids


def fill_ended_at(tx: Connection, limit: int) -> int:
    """Set `ended_at` to now for at most `limit` ended reservations without it. Returns how many were changed.

    Versions before the column `ended_at` ended reservations without setting it.
    """
    lacking = select(_reservations.c.id).where(tables.ENDED, _reservations.c.ended_at.is_(None)).limit(limit)
    return tx.execute(update(_reservations).where(_reservations.c.id.in_(lacking)).values(ended_at=clock())).rowcount


def delete_ended(tx: Connection, ids: Sequence[str]) -> int:
    """Delete the reservations with these ids that have ended. Returns the number of deleted ones."""
    return len(_delete(tx, [{"id": each} for each in ids]))


_delete = Statement(
    lambda given: (
        delete(_reservations)
        .where(in_rows(_reservations.c.id, given.c.id), or_(tables.ENDED, tables.REPLACED))
        .returning(_reservations.c.id)
    ),
    id=Id(),
)
