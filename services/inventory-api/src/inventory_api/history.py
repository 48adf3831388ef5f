"""Forgetting: what ended long ago is deleted in bounded batches. Items never are."""

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Connection, delete, select

from inventory_api import tables
from shop_common.sql import now

_reservations = tables.stock_reservations


@dataclass(frozen=True, slots=True)
class PurgeRequest:
    """Forget what is older than this, at most so many of each kind."""

    older_than_seconds: float
    max_count: int


@dataclass(frozen=True, slots=True)
class Purged:
    """How much was forgotten."""

    keys: int
    reservations: int


def purge(tx: Connection, request: PurgeRequest) -> Purged:
    """Delete idempotency keys and ended reservations older than the age, by the database's clock."""
    before = now(tx) - timedelta(seconds=request.older_than_seconds)
    ended = (
        select(_reservations.c.id)
        .where(tables.ENDED, _reservations.c.created_at < before)
        .order_by(_reservations.c.created_at)
        .limit(request.max_count)
    )
    gone = tx.execute(delete(_reservations).where(_reservations.c.id.in_(ended)).returning(_reservations.c.id))
    return Purged(tables.idempotency_keys.purge(tx, before, request.max_count), len(gone.all()))
