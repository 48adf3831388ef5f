"""Deleting the idempotency keys of old calls. Orders are never deleted."""

from datetime import timedelta

from order_api.domain.commands import PurgeKeys
from order_api.store import tables
from shop_common.batching.turns import repeat
from shop_common.db.database import Database
from shop_common.db.sql import now

TURN_KEYS = 1_000
"""Deleted in one transaction. On SQLite nobody else can write during it."""


class KeyPurge:
    """Deletes idempotency keys of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def purge(self, command: PurgeKeys) -> int:
        """Delete keys older than the given age, by the database's clock; return how many.

        Each turn is a transaction of its own.
        """
        before = self._database.query(now) - timedelta(seconds=command.older_than_seconds)

        def purge_turn(limit: int) -> int:
            return self._database.transact(lambda tx: tables.idempotency_keys.purge(tx, before, limit))

        return repeat(purge_turn, most=command.max_count, turn_max=TURN_KEYS)
