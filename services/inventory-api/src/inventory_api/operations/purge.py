"""Deletes old idempotency keys and reservations that ended long ago, for PurgeHistory. Items are never deleted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from sqlalchemy import Connection

from inventory_api.domain.commands import PurgeRequest
from inventory_api.operations.reservations.bisection import Bisection
from inventory_api.store import tables
from inventory_api.store.reservations import changes, ended
from shop_common.batching.turns import repeat
from shop_common.db.audit import AuditLog, entry
from shop_common.db.database import Database
from shop_common.db.row_security import ALL_TENANTS
from shop_common.db.sql import now

TURN_ROWS = 500
"""The most rows that one transaction changes or deletes."""


@dataclass(frozen=True, slots=True)
class Purged:
    """The numbers of deleted rows."""

    keys: int
    reservations: int


class Purge:
    """Purges one database."""

    def __init__(self, database: Database, audit_log: AuditLog | None = None) -> None:
        self._database = database
        self._audit_log = audit_log

    def run(self, request: PurgeRequest) -> Purged:
        """Delete old idempotency keys and old ended reservations, at most `max_count` of each.

        The age of a key counts from its claim, and the age of a reservation from its end, by the database's clock.
        Works in turns of one transaction each. If a version without the column `ended_at` ended a reservation, the time
        of the first purge is stored as its end. A reservation that cannot be deleted is set aside.
        """
        before = self._database.query(now) - timedelta(seconds=request.older_than_seconds)
        self._in_turns(request, ended.fill_ended_at, request.max_count)
        ids = self._database.query(lambda tx: ended.ids_ended_before(tx, before, request.max_count), ALL_TENANTS)
        bisection = Bisection(partial(self._delete, request), id_of=str, set_aside=self._set_aside)
        deleted = sum(bisection.run(ids[begin : begin + TURN_ROWS]) for begin in range(0, len(ids), TURN_ROWS))
        keys = self._in_turns(
            request, lambda tx, limit: tables.idempotency_keys.purge(tx, before, limit), request.max_count
        )
        return Purged(keys, deleted)

    def _in_turns(self, request: PurgeRequest, act: Callable[[Connection, int], int], max_count: int) -> int:
        return repeat(
            lambda limit: self._recorded(request, lambda tx: act(tx, limit)), most=max_count, turn_max=TURN_ROWS
        )

    def _recorded(self, request: PurgeRequest, act: Callable[[Connection], int]) -> int:
        """Run one transaction. If it has changed rows, it also writes a row of the audit log."""

        def run(tx: Connection) -> int:
            count = act(tx)
            if count and self._audit_log is not None:
                self._audit_log.append(tx, [entry(request.caller, "PurgeHistory", ())])
            return count

        return self._database.transact(run, ALL_TENANTS)

    def _set_aside(self, reservation_id: str) -> None:
        self._database.transact(lambda tx: changes.set_aside(tx, reservation_id), ALL_TENANTS)

    def _delete(self, request: PurgeRequest, ids: Sequence[str]) -> int:
        return self._recorded(request, lambda tx: ended.delete_ended(tx, ids))
