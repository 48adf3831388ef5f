"""Forgetting: what ended long ago is deleted in bounded batches. Items never are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, delete, select, update

from inventory_api.operations.halves import Halves
from inventory_api.store import reservations, tables
from shop_common.batching.turns import repeat
from shop_common.db.database import Database
from shop_common.db.sql import Id, Statement, among, clock, now

TURN_ROWS = 500
"""Of one transaction."""

_reservations = tables.stock_reservations


@dataclass(frozen=True, slots=True)
class PurgeRequest:
    """Forget what is older than this, at most so many of each kind."""

    older_than_seconds: float
    max_count: int


@dataclass(frozen=True, slots=True)
class Purged:
    """How much was forgotten."""

    keys: int
    reservations: int


class History:
    """What is behind us, in one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def purge(self, request: PurgeRequest) -> Purged:
        """Delete idempotency keys made, and reservations ended, longer ago than the age, by the database's clock.

        In turns, each a transaction of its own. What a version before `ended_at` has ended counts as ended when a purge
        first comes by. A reservation that can't be deleted is set aside.
        """
        most = request.max_count
        age = timedelta(seconds=request.older_than_seconds)
        before = self._database.query(now) - age
        self._in_turns(_write_down_ends, most)
        found = self._database.query(lambda tx: _ended(tx, before, most))
        halves = Halves(self._delete, id_of=str, set_aside=self._set_aside)
        gone = sum(halves.do(found[begin : begin + TURN_ROWS]) for begin in range(0, len(found), TURN_ROWS))
        keys = self._in_turns(lambda tx, limit: tables.idempotency_keys.purge(tx, before, limit), most)
        return Purged(keys, gone)

    def _in_turns(self, act: Callable[[Connection, int], int], most: int) -> int:
        return repeat(lambda limit: self._database.transact(lambda tx: act(tx, limit)), most=most, turn_max=TURN_ROWS)

    def _set_aside(self, reservation_id: str) -> None:
        self._database.transact(lambda tx: reservations.set_aside(tx, reservation_id))

    def _delete(self, ids: Sequence[str]) -> int:
        return self._database.transact(lambda tx: len(_delete(tx, [{"id": each} for each in ids])))


def _ended(tx: Connection, before: datetime, limit: int) -> Sequence[str]:
    return (
        tx.execute(
            select(_reservations.c.id)
            .where(tables.ENDED, _reservations.c.ended_at < before, _reservations.c.set_aside_at.is_(None))
            .order_by(_reservations.c.ended_at)
            .limit(limit)
        )
        .scalars()
        .all()
    )


def _write_down_ends(tx: Connection, limit: int) -> int:
    unknown = select(_reservations.c.id).where(tables.ENDED, _reservations.c.ended_at.is_(None)).limit(limit)
    written = update(_reservations).where(_reservations.c.id.in_(unknown)).values(ended_at=clock())
    return tx.execute(written).rowcount


_delete = Statement(
    lambda given: (
        delete(_reservations).where(among(_reservations.c.id, given.c.id), tables.ENDED).returning(_reservations.c.id)
    ),
    id=Id(),
)
