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


class KeyPurge:
    """Deletes idempotency keys of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def purge(self, request: PurgeRequest) -> int:
        """Delete keys older than the given age, by the database's clock; return how many.

        Each turn is a transaction of its own.
        """
        before = self._database.query(now) - timedelta(seconds=request.older_than_seconds)

        def purge_turn(limit: int) -> int:
            return self._database.transact(lambda tx: tables.idempotency_keys.purge(tx, before, limit))

        return repeat(purge_turn, most=request.max_count, turn_max=TURN_KEYS)
