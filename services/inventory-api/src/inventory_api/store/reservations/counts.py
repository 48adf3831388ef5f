"""Counts held reservations, and reservations that were set aside.

Each count reads at most COUNTED_MAX entries of an index, so its cost is bounded even if millions of reservations are
stored.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, ScalarSelect, TextClause, func, literal, select

from inventory_api.store import tables
from shop_common.db.sql import now

COUNTED_MAX = 100_000

_expires_at = tables.stock_reservations.c.expires_at
_set_aside_at = tables.stock_reservations.c.set_aside_at


@dataclass(frozen=True, slots=True)
class ReservationCounts:
    """Numbers of reservations: held but not due (`running`), due, and set aside. Each number is at most COUNTED_MAX."""

    running: int
    due: int
    set_aside: int


def count(tx: Connection) -> ReservationCounts:
    """Count reservations.

    Run this with FORCE_INDEX_PLANS. Otherwise PostgreSQL would read the whole table if it has no statistics.
    """
    timestamp = now(tx)
    return ReservationCounts(
        *tx.execute(
            select(
                _count(_expires_at, tables.HELD, _expires_at > timestamp),
                _count(_expires_at, tables.HELD, _expires_at <= timestamp),
                _count(_set_aside_at, tables.SET_ASIDE),
            )
        ).one()
    )


def _count(column: ColumnElement[Any], *where: ColumnElement[bool] | TextClause) -> ScalarSelect[int]:
    # ORDER BY and LIMIT make the database scan the index on the column and stop after COUNTED_MAX entries.
    limit = literal(COUNTED_MAX, literal_execute=True)
    values = select(column).where(*where).order_by(column).limit(limit)
    return select(func.count()).select_from(values.subquery()).scalar_subquery()
