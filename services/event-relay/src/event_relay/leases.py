"""Which relay process ships which shards: leases in the outbox's own database, by that database's clock.

A process first takes a seat, a lease like any other under a number below zero, so that one without a shard is seen
too. The seats taken say how many processes share the shards, and one's place among them says how many are one's own:
who has more gives up the rest, who has fewer takes what is free. Shares add up to all shards, so this comes to rest.
"""

import time
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import (
    ColumnElement,
    Connection,
    Executable,
    SmallInteger,
    Subquery,
    Table,
    Text,
    bindparam,
    delete,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from shop_common.db.sql import Statement, Timestamp, now
from shop_common.events.outbox import SHARDS

SEATS = range(-SHARDS, 0)
"""More processes than shards would have nothing to do: they wait until a seat comes free."""


SECONDS_MAX = 300
"""No lease is longer. One that ends later than this from now was given before the clock was set back.

Its owner may be dead, and others would wait for it as long as the clock was set back. So it is void. An owner that
lives renews its leases soon.
"""


@dataclass(frozen=True, slots=True)
class Held:
    """Shards that are ours: `produce_until` and `ends` are moments of the monotonic clock.

    The last third is left for what was produced before it to be acknowledged or given up.
    """

    shards: tuple[int, ...]
    produce_until: float
    ends: float


class Leases:
    """One process's leases in one database, under a name that no other process ever has."""

    def __init__(self, table: Table, owner: str, seconds: float) -> None:
        self._table = table
        self._owner = owner
        self._seconds = seconds
        self._take = Statement(lambda given: _taking(table, given), shard=SmallInteger())

    def hold(self, tx: Connection) -> Held:
        """Renew what is ours, take or give up shards until we have our share, and say what we hold now.

        Nothing of a shard may be in flight: the next owner of one given up starts at once.
        """
        # Read before the database's clock is: we never believe in a lease for longer than the others do.
        began = time.monotonic()
        at = now(tx)
        lease = {
            "owner": self._owner,
            "at": at,
            "until": at + timedelta(seconds=self._seconds),
            "latest": at + timedelta(seconds=SECONDS_MAX),
        }

        ours = set(tx.execute(self._renewing(), {"me": self._owner, "until": lease["until"]}).scalars())
        taken = set(tx.execute(select(self._table.c.shard).where(~_is_void(self._table)), lease).scalars())
        if ours.isdisjoint(SEATS):
            free_seats = [seat for seat in SEATS if seat not in taken]
            ours |= self._taken(tx, free_seats[:1], lease)

        shards = sorted(shard for shard in ours if shard not in SEATS)
        share = _share(ours, (taken | ours).intersection(SEATS))
        if len(shards) > share:
            surplus = shards[share:]
            tx.execute(delete(self._table).where(self._table.c.owner == self._owner, self._table.c.shard.in_(surplus)))
            shards = shards[:share]
        elif len(shards) < share:
            free = [shard for shard in range(SHARDS) if shard not in taken]
            shards = sorted({*shards, *self._taken(tx, free[: share - len(shards)], lease)})
        return Held(tuple(shards), began + self._seconds * 2 / 3, began + self._seconds)

    def release(self, tx: Connection) -> None:
        """Give up everything, the seat too. Nothing may be in flight."""
        tx.execute(delete(self._table).where(self._table.c.owner == self._owner))

    def _renewing(self) -> Executable:
        # Also when it had expired, as long as nobody else has taken it.
        return (
            update(self._table)
            .where(self._table.c.owner == bindparam("me"))
            .values(expires_at=bindparam("until", type_=Timestamp()))
            .returning(self._table.c.shard)
        )

    def _taken(self, tx: Connection, numbers: list[int], lease: dict[str, object]) -> set[int]:
        if not numbers:
            return set()
        return {row.shard for row in self._take(tx, [{"shard": number} for number in numbers], **lease)}


def _share(ours: set[int], seats: set[int]) -> int:
    """How many shards are ours: as equal as can be, the first seats have one more where it doesn't come out even."""
    place = next((place for place, seat in enumerate(sorted(seats)) if seat in ours), None)
    if place is None:
        return 0
    return SHARDS // len(seats) + (place < SHARDS % len(seats))


def _taking(table: Table, given: Subquery) -> Executable:
    # WHERE true keeps SQLite from reading ON CONFLICT as a join's condition.
    rows = select(given.c.shard, bindparam("owner", type_=Text()), bindparam("until", type_=Timestamp())).where(true())
    wanted = insert(table).from_select(["shard", "owner", "expires_at"], rows)
    # Who comes second waits for the first one's row and then finds a lease that has not expired.
    return wanted.on_conflict_do_update(
        index_elements=[table.c.shard],
        set_={"owner": wanted.excluded.owner, "expires_at": wanted.excluded.expires_at},
        where=_is_void(table),
    ).returning(table.c.shard)


def _is_void(table: Table) -> ColumnElement[bool]:
    ends = table.c.expires_at
    return or_(ends <= bindparam("at", type_=Timestamp()), ends > bindparam("latest", type_=Timestamp()))
