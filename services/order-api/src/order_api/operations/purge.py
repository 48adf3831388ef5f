"""Deletes the idempotency keys of old calls, and API keys that ended long ago. Orders are never deleted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Connection

from order_api.domain.commands import PurgeKeys
from order_api.store import api_keys, tables
from shop_common.batching.turns import repeat
from shop_common.db.audit import AuditLog, entry
from shop_common.db.database import Database
from shop_common.db.row_security import ALL_TENANTS
from shop_common.db.sql import now

TURN_KEYS = 1_000
"""The number of keys that one transaction deletes. On SQLite no other transaction can write meanwhile."""

ENDED_API_KEYS_KEPT = timedelta(days=90)
"""A list shows an ended API key for at least this time, so that an operator can see when it was used last."""


@dataclass(frozen=True, slots=True)
class Purged:
    """The numbers of deleted rows."""

    keys: int
    api_keys: int


class KeyPurge:
    """Deletes idempotency keys and API keys of one database."""

    def __init__(self, database: Database, audit_log: AuditLog | None = None) -> None:
        self._database = database
        self._audit_log = audit_log

    def purge(self, command: PurgeKeys) -> Purged:
        """Delete idempotency keys that are older than `older_than_seconds` by the database's clock.

        Also deletes API keys that ended before that time and at least ENDED_API_KEYS_KEPT ago. Deletes at most
        `max_count` keys of each kind, in turns of one transaction each.
        """
        timestamp = self._database.query(now)
        before = timestamp - timedelta(seconds=command.older_than_seconds)
        ended_before = min(before, timestamp - ENDED_API_KEYS_KEPT)

        def purge_keys(tx: Connection, limit: int) -> tuple[int, Sequence[str]]:
            return tables.idempotency_keys.purge(tx, before, limit), ()

        def purge_api_keys(tx: Connection, limit: int) -> tuple[int, Sequence[str]]:
            ids = api_keys.delete_ended(tx, ended_before, limit)
            return len(ids), ids

        return Purged(self._in_turns(command, purge_keys), self._in_turns(command, purge_api_keys))

    def _in_turns(self, command: PurgeKeys, delete: Callable[[Connection, int], tuple[int, Sequence[str]]]) -> int:
        """Call `delete` in turns. It returns the number of deleted rows, and their ids for the audit log."""

        def run(tx: Connection, limit: int) -> int:
            count, ids = delete(tx, limit)
            if count and self._audit_log is not None:
                self._audit_log.append(tx, [entry(command.caller, "PurgeHistory", ids)])
            return count

        return repeat(
            lambda limit: self._database.transact(lambda tx: run(tx, limit), ALL_TENANTS),
            most=command.max_count,
            turn_max=TURN_KEYS,
        )
