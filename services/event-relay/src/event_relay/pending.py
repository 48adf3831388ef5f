"""The rows of an outbox that wait to be shipped: read in their order, deleted by what they are."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Delete,
    Executable,
    Select,
    Subquery,
    Table,
    Text,
    any_,
    cast,
    delete,
    func,
    literal,
    select,
    text,
    tuple_,
    union_all,
)

from shop_common.sql import Clock, Id, Statement, steady_plans

ROWS_MAX = 2000
"""Rows in one read, the same number of each shard: none waits for another's backlog, and memory has a bound."""

BACKLOG_COUNTED_MAX = 100_000


class Pending(NamedTuple):
    """A row as it is shipped. `headers` is a JSON object of headers that go before our own.

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
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits: `rows` counts to 100,000 and no further, `oldest_seconds` is 0 when nothing waits."""

    rows: int
    oldest_seconds: float


class PendingRows:
    """The waiting rows of one outbox."""

    def __init__(self, outbox: Table) -> None:
        self._outbox = outbox
        self._delete = {
            "sqlite": Statement(self._deleting, id=outbox.c.id.type, event_id=outbox.c.event_id.type),
            "postgresql": Statement(self._deleting_by_array, id=outbox.c.id.type, event_id=outbox.c.event_id.type),
        }
        self._reads: tuple[object, Executable] = (None, text(""))

    def oldest(self, tx: Connection, shards: Sequence[int], *, without_topics: Collection[str] = ()) -> list[Pending]:
        """The oldest rows of each shard, at most 2,000 together, in the order of their ids within a shard.

        Always from the very first: a row whose transaction was slow to commit has a lower id than rows that were
        read and shipped long before it could be seen.
        """
        if not shards:
            return []
        steady_plans(tx)
        wanted = (tuple(shards), frozenset(without_topics))
        if self._reads[0] != wanted:
            limit = ROWS_MAX // len(shards)
            self._reads = (wanted, union_all(*(self._oldest_of(shard, limit, wanted[1]) for shard in shards)))
        # All at once: a result that is walked through asks its cursor for each row.
        return list(map(Pending._make, tx.execute(self._reads[1]).all()))

    def delete(self, tx: Connection, rows: Sequence[Pending]) -> None:
        """Delete exactly these rows; those that are gone already are no fault."""
        steady_plans(tx)
        self._delete[tx.dialect.name](tx, [{"id": row.id, "event_id": row.event_id} for row in rows])

    def backlog(self, tx: Connection) -> Backlog:
        """How much waits, and since when."""
        steady_plans(tx)
        ids = self._outbox.c.id
        counted = tx.execute(
            select(func.count()).select_from(select(ids).order_by(ids).limit(BACKLOG_COUNTED_MAX).subquery())
        ).scalar_one()
        oldest = tx.execute(select(self._outbox.c.created_at, Clock()).order_by(ids).limit(1)).first()
        return Backlog(counted, (oldest[1] - oldest[0]).total_seconds() if oldest else 0.0)

    def _oldest_of(self, shard: int, limit: int, without_topics: Collection[str]) -> Select[tuple[object, ...]]:
        outbox = self._outbox
        # Written into the SQL: with parameters PostgreSQL would plan these sixteen selects anew each time.
        this = literal(shard, literal_execute=True)
        rows = (
            select(*(_text(outbox.c[name]) for name in Pending._fields))
            # A range of one shard and not `=`: then only the index (shard, id) has this order. With a constant shard
            # the primary key has it as well, and a walk along that reads the rows of all other shards.
            .where(outbox.c.shard.between(this, this))
            .order_by(outbox.c.shard, outbox.c.id)
            .limit(literal(limit, literal_execute=True))
        )
        if without_topics:
            rows = rows.where(outbox.c.topic.not_in(sorted(without_topics)))
        # SQLite takes a LIMIT inside a UNION only in a subquery.
        return select(rows.subquery())

    def _deleting(self, given: Subquery) -> Delete:
        # By the event's id as well: in a database that was restored, a row's id may stand for another event.
        outbox = self._outbox
        return delete(outbox).where(tuple_(outbox.c.id, outbox.c.event_id).in_(select(given.c.id, given.c.event_id)))

    def _deleting_by_array(self, given: Subquery) -> Delete:
        # An array is a bound of the index; of a subquery alone PostgreSQL may make a join with all of the table.
        ids = func.array(select(given.c.id).scalar_subquery(), type_=ARRAY(BigInteger))
        return self._deleting(given).where(self._outbox.c.id == any_(ids))


def _text(wanted: Column[Any]) -> ColumnElement[Any]:
    """The column, or for an id its text: the driver would make an object of it, of which we make a text again."""
    return cast(wanted, Text).label(wanted.name) if isinstance(wanted.type, Id) else wanted
