"""Forgetting: keys of calls long past are deleted in bounded batches. Orders never are."""

from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from sqlalchemy import Connection

from order_api import tables
from shop_common.database import Database
from shop_common.sql import now

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
    purged = 0
    while purged < request.max_count:
        limit = min(TURN_KEYS, request.max_count - purged)
        found = database.transact(partial(_purge, older_than_seconds=request.older_than_seconds, limit=limit))
        purged += found
        if found < limit:
            break
    return purged


def _purge(tx: Connection, older_than_seconds: float, limit: int) -> int:
    return tables.idempotency_keys.purge(tx, now(tx) - timedelta(seconds=older_than_seconds), limit)
