"""The audit log: which caller changed which data. The transaction that makes a change also writes its rows.

Nothing changes a row afterwards. On PostgreSQL the role of an API may only insert rows (docs/postgresql.md, Roles).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

import orjson
from sqlalchemy import Column, Connection, Identity, Index, MetaData, Table, Text, delete, select

from shop_common.db.sql import Clock, RowId, Timestamp, insert_into
from shop_common.identity import tenant
from shop_common.identity.caller import Caller

CHARACTERS_MAX = 256
"""The most characters of a name that a row keeps. The identity provider and the certificates choose the names."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One row: a call, or the handling of an event. `resources` is a JSON array with the ids of what it changed.

    `subject` is the user to whom the caller's token was issued, or for whom a delegate acted, or else None.
    """

    tenant: str
    caller: str
    subject: str | None
    method: str
    request_id: str | None
    resources: str


def entry(caller: Caller, method: str, resources: Iterable[str], request_id: str | None = None) -> Entry:
    """Return the entry for a caller. `method` is the name of the RPC, without its service."""
    subject = None if caller.subject is None else caller.subject[:CHARACTERS_MAX]
    ids = orjson.dumps(list(resources)).decode()
    return Entry(caller.tenant, caller.name[:CHARACTERS_MAX], subject, method, request_id, ids)


def event_entry(event_type: str, event_tenant: str, event_id: str, resources: Iterable[str]) -> Entry:
    """Return the entry for an event that changed data. Its caller is `event:` and the type, its request_id the id."""
    ids = orjson.dumps(list(resources)).decode()
    return Entry(event_tenant, f"event:{event_type}", None, "", event_id, ids)


class AuditLog:
    """The audit log of one service's database."""

    def __init__(self, metadata: MetaData) -> None:
        self.table = Table(
            "audit_log",
            metadata,
            Column("id", RowId, Identity(cache=1), primary_key=True),
            Column("at", Timestamp, nullable=False, server_default=Clock()),
            Column("tenant", Text, nullable=False, server_default=tenant.DEFAULT),
            Column("caller", Text, nullable=False),
            Column("subject", Text),
            Column("method", Text, nullable=False),
            Column("request_id", Text),
            Column("resources", Text, nullable=False),
            Index("ix_audit_log_at_id", "at", "id"),
            sqlite_autoincrement=True,
        )
        # The role of the API may not read the table, so the statement returns nothing.
        self._insert = insert_into(self.table, *Entry.__slots__)

    def append(self, tx: Connection, entries: Sequence[Entry]) -> None:
        """Write the entries, in order, with one statement. `tx` is the transaction of the changes."""
        if entries:
            self._insert(tx, entries)

    def purge(self, tx: Connection, before: datetime, max_count: int) -> int:
        """Delete up to `max_count` rows that are older than `before`, oldest first. Returns the number of deleted rows.

        Only the owner of the table can do this on PostgreSQL.
        """
        table = self.table
        oldest = select(table.c.id).where(table.c.at < before).order_by(table.c.at, table.c.id).limit(max_count)
        return tx.execute(delete(table).where(table.c.id.in_(oldest))).rowcount
