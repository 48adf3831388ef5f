"""Forgetting: keys of calls long past are deleted in bounded batches. Orders never are."""

from dataclasses import dataclass
from datetime import timedelta

from order_api.store import tables
from shop_common.batching.turns import repeat
from shop_common.db.database import Database
from shop_common.db.sql import now

TURN_KEYS = 1_000
"""Deleted in one transaction: on SQLite nobody else writes meanwhile."""


@dataclass(frozen=True, slots=True)
class PurgeRequest:
    """Forget keys older than this, at most so many."""

    older_than_seconds: float
    max_count: int


def purge_keys(database: Database, request: PurgeRequest) -> int:
    """Delete idempotency keys older than the age, by the database's clock; returns how many.

    In turns, each a transaction of its own.
    """
    before = database.query(now) - timedelta(seconds=request.older_than_seconds)

    def purge(limit: int) -> int:
        return database.transact(lambda tx: tables.idempotency_keys.purge(tx, before, limit))

    return repeat(purge, most=request.max_count, turn_max=TURN_KEYS)
