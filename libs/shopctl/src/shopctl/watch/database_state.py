"""The state of one service's database: row counts, outbox backlog and relay leases."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Integer, func, inspect, select
from sqlalchemy.sql import column, table

from shop_common.db.database import Database
from shop_common.db.sql import Timestamp, clock, now
from shopctl.system import target


@dataclass(frozen=True)
class DatabaseState:
    """A database at one point in time, by the database's clock."""

    rows: dict[str, int]
    """The number of rows in each table."""
    outbox_backlog: int
    oldest_unshipped_seconds: float | None
    leases: dict[str, int]
    """The number of shards that each relay owns now."""


def read(url: str) -> DatabaseState:
    """Return the state of the database at this URL.

    Raises CommandFailed if its SQLite file is missing, ShopError if the database is unavailable, and the driver's error
    for any other failure.
    """
    target.require(url)
    database = Database(url, connections_max=1)
    try:
        return database.query(_read)
    finally:
        database.close()


def _read(tx: Connection) -> DatabaseState:
    names = [name for name in sorted(inspect(tx).get_table_names()) if not name.endswith("_schema_version")]
    rows = {name: tx.execute(select(func.count()).select_from(table(name))).scalar_one() for name in names}
    oldest = tx.execute(select(func.min(_OUTBOX.c.created_at))).scalar_one() if "outbox" in rows else None
    return DatabaseState(
        rows=rows,
        outbox_backlog=rows.get("outbox", 0),
        oldest_unshipped_seconds=_seconds_since(oldest, now(tx)),
        leases=_leases(tx) if "relay_lease" in rows else {},
    )


def _seconds_since(time: datetime | None, present: datetime) -> float | None:
    return None if time is None else max(0.0, (present - time).total_seconds())


def _leases(tx: Connection) -> dict[str, int]:
    held = select(_LEASE.c.owner, func.count()).group_by(_LEASE.c.owner).order_by(_LEASE.c.owner)
    # Negative shards are the relays' membership slots.
    held = held.where(_LEASE.c.shard >= 0, _LEASE.c.expires_at > clock())
    return {row.owner: row[1] for row in tx.execute(held)}


# These are the columns that the queries above need, as shop_common.events.outbox declares them.
_OUTBOX = table("outbox", column("created_at", Timestamp()))
_LEASE = table("relay_lease", column("shard", Integer()), column("owner"), column("expires_at", Timestamp()))
