"""Deletes the idempotency keys of old calls. Orders are never deleted."""

from datetime import datetime, timedelta

from sqlalchemy import Connection

from order_api.domain.commands import PurgeKeys
from order_api.store import tables
from shop_common.batching.turns import repeat
from shop_common.db.audit import AuditLog, entry
from shop_common.db.database import Database
from shop_common.db.row_security import ALL_TENANTS
from shop_common.db.sql import now

TURN_KEYS = 1_000
"""The number of keys that one transaction deletes. On SQLite no other transaction can write meanwhile."""


class KeyPurge:
    """Deletes idempotency keys of one database."""

    def __init__(self, database: Database, audit_log: AuditLog | None = None) -> None:
        self._database = database
        self._audit_log = audit_log

    def purge(self, command: PurgeKeys) -> int:
        """Delete keys that are older than `older_than_seconds` by the database's clock. Returns the number deleted.

        Deletes at most `max_count` keys, in turns of one transaction each.
        """
        before = self._database.query(now) - timedelta(seconds=command.older_than_seconds)

        def purge_turn(limit: int) -> int:
            return self._database.transact(lambda tx: self._purge(tx, command, before, limit), ALL_TENANTS)

        return repeat(purge_turn, most=command.max_count, turn_max=TURN_KEYS)

    def _purge(self, tx: Connection, command: PurgeKeys, before: datetime, limit: int) -> int:
        count = tables.idempotency_keys.purge(tx, before, limit)
        if count and self._audit_log is not None:
            self._audit_log.append(tx, [entry(command.caller, "PurgeHistory", ())])
        return count
