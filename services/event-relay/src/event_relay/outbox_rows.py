"""The relay's SQL on the outbox: read the oldest rows, delete acknowledged rows, count the backlog."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import (
    Connection,
    Select,
    SelectBase,
    Table,
    delete,
    func,
    select,
    union_all,
)

from shop_common.db.sql import Clock, Statement, in_rows, micros_of
from shop_common.events.outbox import SHARDS

ROWS_MAX = 4000
"""The maximum number of rows in one read. It limits memory. A read of only some shards gives each shard an equal part
of this number, so no shard waits for another."""

READS_KEPT = 64
"""The maximum number of cached statements. A relay needs one for its shards and two for their halves. It needs others
while a topic is absent or a shard waits, because their rows are left out."""

BACKLOG_COUNTED_MAX = 100_000


class OutboxRow(NamedTuple):
    """A row of the outbox. `headers` is a JSON object of headers that override those of the relay.

    `created_micros` is in microseconds since 1970 UTC. This is a named tuple, because the relay creates one per event:
    creating a frozen dataclass takes a call per field.
    """

    id: int
    shard: int
    event_id: str
    topic: str
    key: str
    type: str
    payload: str
    headers: str | None
    traceparent: str | None
    created_micros: int


class OutboxReplaced(Exception):
    """The outbox is not the one whose rows were read: a backup was restored in the meantime."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """The number of rows, counted up to 100,000, and the age and id of the oldest. `oldest_id` is None without rows."""

    rows: int
    oldest_seconds: float
    oldest_id: int | None


class OutboxRows:
    """Reads and deletes the rows of one outbox. Its transactions need FORCE_INDEX_PLANS."""

    def __init__(self, outbox: Table) -> None:
        self._outbox = outbox
        self._delete = Statement(
            lambda given: delete(outbox).where(in_rows(outbox.c.id, given.c.id)).returning(outbox.c.event_id),
            id=outbox.c.id.type,
        )
        self._reads: dict[object, str] = {}

    def oldest(self, tx: Connection, shards: Sequence[int], *, without_topics: Collection[str] = ()) -> list[OutboxRow]:
        """Return the oldest rows of these shards, at most 4,000, sorted by id within a shard.

        With all shards, these are the oldest rows of the outbox. With fewer shards, each has at most an equal part of
        the 4,000. Rows of `without_topics` are left out.

        Every read starts at the oldest row, never after the last id that was read: a transaction with lower ids may
        commit later, and its rows would be skipped.
        """
        if not shards:
            return []
        wanted = (tuple(shards), frozenset(without_topics))
        read = self._reads.get(wanted)
        if read is None:
            if len(self._reads) >= READS_KEPT:
                self._reads.clear()
            read = self._reads[wanted] = self._reading(tx, *wanted)
        # Read from the driver's cursor: no value needs conversion, and SQLAlchemy's result would double the cost.
        return list(map(OutboxRow._make, tx.exec_driver_sql(read).cursor.fetchall()))

    def delete(self, tx: Connection, rows: Sequence[OutboxRow]) -> None:
        """Delete exactly these rows; rows that are already gone are ignored.

        Raises OutboxReplaced if one of these ids belongs to another event. The caller must then roll back.
        """
        deleted = {row.event_id for row in self._delete(tx, [{"id": row.id} for row in rows])}
        if not deleted <= {row.event_id for row in rows}:
            raise OutboxReplaced("the ids of shipped rows belong to other events now: was a backup restored?")

    def backlog(self, tx: Connection) -> Backlog:
        """Count the rows, up to 100,000, and return the age and id of the oldest."""
        ids = self._outbox.c.id
        counted = tx.execute(
            select(func.count()).select_from(select(ids).order_by(ids).limit(BACKLOG_COUNTED_MAX).subquery())
        ).scalar_one()
        oldest = tx.execute(select(self._outbox.c.created_at, Clock(), ids).order_by(ids).limit(1)).first()
        if oldest is None:
            return Backlog(counted, 0.0, None)
        created_at, at, oldest_id = oldest
        return Backlog(counted, (at - created_at).total_seconds(), oldest_id)

    def _reading(self, tx: Connection, shards: Sequence[int], without_topics: Collection[str]) -> str:
        """Return the SQL with literal values: with parameters, PostgreSQL would plan sixteen selects at each read."""
        if len(shards) == SHARDS:
            # Use one index scan instead of sixteen. If the backlog of one shard fills this read, the next passes read
            # halves of the shards, and there each shard gets an equal part.
            reads: SelectBase = self._selected(without_topics).order_by(self._outbox.c.id).limit(ROWS_MAX)
        else:
            limit = ROWS_MAX // len(shards)
            reads = union_all(*(self._oldest_of(shard, limit, without_topics) for shard in shards))
        return str(reads.compile(dialect=tx.dialect, compile_kwargs={"literal_binds": True}))

    def _oldest_of(self, shard: int, limit: int, without_topics: Collection[str]) -> Select[tuple[object, ...]]:
        outbox = self._outbox
        rows = (
            self._selected(without_topics)
            # Use BETWEEN instead of `=`, so that only the index (shard, id) has this sort order. With `=`, the primary
            # key has it too, and a scan of the primary key reads the rows of all other shards.
            .where(outbox.c.shard.between(shard, shard))
            .order_by(outbox.c.shard, outbox.c.id)
            .limit(limit)
        )
        # SQLite accepts a LIMIT inside a UNION only in a subquery.
        return select(rows.subquery())

    def _selected(self, without_topics: Collection[str]) -> Select[tuple[object, ...]]:
        outbox = self._outbox
        rows = select(
            *(outbox.c[name] for name in OutboxRow._fields if name != "created_micros"),
            micros_of(outbox.c.created_at).label("created_micros"),
        )
        return rows.where(outbox.c.topic.not_in(sorted(without_topics))) if without_topics else rows
