"""Reads the audit logs of both databases as one, newest first, and deletes old rows."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from heapq import merge
from typing import Any

import orjson
from sqlalchemy import BigInteger, Connection, MetaData, inspect, literal, select, tuple_

from shop_common.batching.turns import repeat
from shop_common.db.audit import AuditLog
from shop_common.db.database import Database
from shop_common.db.sql import Timestamp, now
from shopctl.system import target
from shopctl.system.layout import INVENTORY_API, ORDER_API, Databases
from shopctl.terminal.failures import CommandFailed

PAGE_ROWS = 1_000
TURN_ROWS = 1_000
"""The number of rows that one transaction deletes. On SQLite no other transaction can write meanwhile."""

_log = AuditLog(MetaData())
_table = _log.table

Row = dict[str, Any]
"""A row by column name, with `service` in addition. `resources` is a list."""


@dataclass(frozen=True)
class AuditFilter:
    """A filter for rows; a field that is None matches any row. `resource` is the id of something that was changed."""

    since: datetime | None = None
    tenant: str | None = None
    caller: str | None = None
    method: str | None = None
    resource: str | None = None


def rows(databases: Databases, wanted: AuditFilter) -> Iterator[Row]:
    """Yield the matching rows of both databases, newest first. Reads them page by page.

    Raises CommandFailed if a database has no audit log, and ShopError if it is unavailable.
    """
    with ExitStack() as opened:
        logs = [
            _rows(service, opened.enter_context(_opened(service, url)), wanted)
            for service, url in _services(databases).items()
        ]
        # The databases may have different clocks, so rows of two services may be in the wrong order.
        yield from merge(*logs, key=lambda row: row["at"], reverse=True)


def purge(databases: Databases, age: timedelta) -> dict[str, int]:
    """Delete the rows that are older than this age, by the database's clock, in turns of one transaction each.

    Returns the number of deleted rows of each service. Raises the errors of `rows`, and the driver's error if the role
    may not delete.
    """
    deleted = {}
    for service, url in _services(databases).items():
        with _opened(service, url) as database:
            before = database.query(now) - age
            deleted[service] = repeat(partial(_purge, database, before), most=2**63, turn_max=TURN_ROWS)
    return deleted


def _purge(database: Database, before: datetime, limit: int) -> int:
    return database.transact(lambda tx: _log.purge(tx, before, limit))


def _services(databases: Databases) -> dict[str, str]:
    return {INVENTORY_API: databases.inventory, ORDER_API: databases.orders}


@contextmanager
def _opened(service: str, url: str) -> Iterator[Database]:
    target.require(url)
    database = Database(url, connections_max=1)
    try:
        if not database.query(lambda tx: inspect(tx).has_table(_table.name)):
            raise CommandFailed(f"the database of {service} has no audit log; run its migrations")
        yield database
    finally:
        database.close()


def _rows(service: str, database: Database, wanted: AuditFilter) -> Iterator[Row]:
    after: tuple[datetime, int] | None = None
    while True:
        page = database.query(partial(_page, wanted=wanted, after=after))
        for row in page:
            yield {
                "at": row["at"],
                "service": service,
                **{name: row[name] for name in ("tenant", "caller", "subject", "method", "request_id")},
                "resources": orjson.loads(row["resources"]),
            }
        if len(page) < PAGE_ROWS:
            return
        after = page[-1]["at"], page[-1]["id"]


def _page(tx: Connection, wanted: AuditFilter, after: tuple[datetime, int] | None) -> list[Row]:
    columns = _table.c
    query = select(_table).order_by(columns.at.desc(), columns.id.desc()).limit(PAGE_ROWS)
    for name in ("tenant", "caller", "method"):
        if (value := getattr(wanted, name)) is not None:
            query = query.where(columns[name] == value)
    if wanted.since is not None:
        query = query.where(columns.at >= wanted.since)
    if wanted.resource is not None:
        # The column is a JSON array of strings.
        query = query.where(columns.resources.contains(orjson.dumps(wanted.resource).decode(), autoescape=True))
    if after is not None:
        query = query.where(
            tuple_(columns.at, columns.id) < tuple_(literal(after[0], Timestamp()), literal(after[1], BigInteger()))
        )
    return [dict(row) for row in tx.execute(query).mappings()]
