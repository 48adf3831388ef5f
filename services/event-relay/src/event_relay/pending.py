"""The rows of an outbox that wait to be shipped: read in their order, deleted by what they are."""

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
"""Rows in one read, so that memory has a bound. Of some of the shards the same number of each: none waits for another's
backlog."""

READS_KEPT = 64
"""Statements that are kept: one for the shards that are ours, two for their halves, others while topics are absent."""

BACKLOG_COUNTED_MAX = 100_000


class Pending(NamedTuple):
    """A row as it is shipped. `headers` is a JSON object of headers that go before our own; microseconds since 1970.

    A tuple, since one is made for every event: a frozen dataclass is made by a call for each of its fields.
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
    """The outbox is not the one whose rows were read, such as a backup of it that was restored meanwhile."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits. `rows` counts to 100,000 and no further. When nothing waits `oldest_id` is None."""

    rows: int
    oldest_seconds: float
    oldest_id: int | None


class PendingRows:
    """The waiting rows of one outbox. Its transactions want FORCE_INDEX_PLANS."""

    def __init__(self, outbox: Table) -> None:
        self._outbox = outbox
        self._delete = Statement(
            lambda given: delete(outbox).where(in_rows(outbox.c.id, given.c.id)).returning(outbox.c.event_id),
            id=outbox.c.id.type,
        )
        self._reads: dict[object, str] = {}

    def oldest(self, tx: Connection, shards: Sequence[int], *, without_topics: Collection[str] = ()) -> list[Pending]:
        """The oldest rows of these shards, at most 4,000, in the order of their ids within a shard.

        Of all shards the oldest, whosesoever they are; of some, as many of each.

        Always from the very first: a row whose transaction was slow to commit has a lower id than rows that were
        read and shipped long before it could be seen.
        """
        if not shards:
            return []
        wanted = (tuple(shards), frozenset(without_topics))
        read = self._reads.get(wanted)
        if read is None:
            if len(self._reads) >= READS_KEPT:
                self._reads.clear()
            read = self._reads[wanted] = self._reading(tx, *wanted)
        # As the driver gives them: there is nothing to convert, and a result of SQLAlchemy's costs as much again.
        return list(map(Pending._make, tx.exec_driver_sql(read).cursor.fetchall()))

    def delete(self, tx: Connection, rows: Sequence[Pending]) -> None:
        """Delete exactly these rows; those that are gone already are no fault.

        Raises OutboxReplaced when one of these ids is another event's: then nothing may be deleted.
        """
        deleted = {row.event_id for row in self._delete(tx, [{"id": row.id} for row in rows])}
        if not deleted <= {row.event_id for row in rows}:
            raise OutboxReplaced("the rows that were shipped are others now: was the database restored?")

    def backlog(self, tx: Connection) -> Backlog:
        """How much waits, and since when."""
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
        """The SQL, with all values written into it: with parameters PostgreSQL would plan sixteen selects each time."""
        if len(shards) == SHARDS:
            # One walk instead of sixteen. Should one shard's backlog fill it, the halves that follow are fair again.
            reads: SelectBase = self._selected(without_topics).order_by(self._outbox.c.id).limit(ROWS_MAX)
        else:
            limit = ROWS_MAX // len(shards)
            reads = union_all(*(self._oldest_of(shard, limit, without_topics) for shard in shards))
        return str(reads.compile(dialect=tx.dialect, compile_kwargs={"literal_binds": True}))

    def _oldest_of(self, shard: int, limit: int, without_topics: Collection[str]) -> Select[tuple[object, ...]]:
        outbox = self._outbox
        rows = (
            self._selected(without_topics)
            # A range of one shard and not `=`: then only the index (shard, id) has this order. With a constant shard
            # the primary key has it as well, and a walk along that reads the rows of all other shards.
            .where(outbox.c.shard.between(shard, shard))
            .order_by(outbox.c.shard, outbox.c.id)
            .limit(limit)
        )
        # SQLite takes a LIMIT inside a UNION only in a subquery.
        return select(rows.subquery())

    def _selected(self, without_topics: Collection[str]) -> Select[tuple[object, ...]]:
        outbox = self._outbox
        rows = select(
            *(outbox.c[name] for name in Pending._fields if name != "created_micros"),
            micros_of(outbox.c.created_at).label("created_micros"),
        )
        return rows.where(outbox.c.topic.not_in(sorted(without_topics))) if without_topics else rows
