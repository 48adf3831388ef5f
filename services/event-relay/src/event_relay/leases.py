"""Assigns shards to relay processes by leases in the database of the outbox. That database's clock decides their end.

A process first takes a membership slot: a lease with a number below zero, so that a process without shards is counted,
too. The number of taken slots is the number of processes that share the shards. The rank of a process's slot
determines its share. A process with more shards than its share gives up the surplus. A process with fewer shards takes
free ones. All shares add up to the number of shards, so every shard gets an owner and then stays with it.
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

SLOTS = range(-SHARDS, 0)
"""Membership slots. There are as many slots as shards. A further process would have no shard, so it waits for a free
slot."""


SECONDS_MAX = 300
"""The longest lease. A lease that ends later than this from now was granted before the clock was set back.

Such a lease is void: its owner may be dead, and other relays would wait for its end. A live owner renews its leases
soon.
"""


@dataclass(frozen=True, slots=True)
class Held:
    """The shards that this process owns. `produce_until` and `ends` are by time.monotonic.

    Nothing is produced in the last third of a lease, so that the outstanding batch can be acknowledged or purged before
    the lease ends.
    """

    shards: tuple[int, ...]
    produce_until: float
    ends: float


class Leases:
    """The leases of one process in one database. `owner` is a name that no other process ever has."""

    def __init__(self, table: Table, owner: str, seconds: float) -> None:
        self._table = table
        self._owner = owner
        self._seconds = seconds
        self._take = Statement(lambda given: _taking(table, given), shard=SmallInteger())

    def hold(self, tx: Connection) -> Held:
        """Renew our leases, take or give up shards until we have our share, and return the shards that we own now.

        Nothing may be outstanding: the next owner of a shard that is given up starts at once.
        """
        # Read our clock before the database's, so that our lease ends for us no later than for others.
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
        if ours.isdisjoint(SLOTS):
            free_slots = [slot for slot in SLOTS if slot not in taken]
            ours |= self._taken(tx, free_slots[:1], lease)

        shards = sorted(shard for shard in ours if shard not in SLOTS)
        share = _share(ours, (taken | ours).intersection(SLOTS))
        if len(shards) > share:
            surplus = shards[share:]
            tx.execute(delete(self._table).where(self._table.c.owner == self._owner, self._table.c.shard.in_(surplus)))
            shards = shards[:share]
        elif len(shards) < share:
            free = [shard for shard in range(SHARDS) if shard not in taken]
            shards = sorted({*shards, *self._taken(tx, free[: share - len(shards)], lease)})
        return Held(tuple(shards), began + self._seconds * 2 / 3, began + self._seconds)

    def release(self, tx: Connection) -> None:
        """Give up all shards and the slot. Nothing may be outstanding."""
        tx.execute(delete(self._table).where(self._table.c.owner == self._owner))

    def _renewing(self) -> Executable:
        # This also renews an expired lease, as long as no other process has taken it.
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


def _share(ours: set[int], slots: set[int]) -> int:
    """Return our number of shards: an equal part. If there is a remainder, the first slots get one more shard each."""
    rank = next((rank for rank, slot in enumerate(sorted(slots)) if slot in ours), None)
    if rank is None:
        return 0
    return SHARDS // len(slots) + (rank < SHARDS % len(slots))


def _taking(table: Table, given: Subquery) -> Executable:
    # Without WHERE true, SQLite would parse ON CONFLICT as the condition of a join.
    rows = select(given.c.shard, bindparam("owner", type_=Text()), bindparam("until", type_=Timestamp())).where(true())
    wanted = insert(table).from_select(["shard", "owner", "expires_at"], rows)
    # A concurrent process waits until this transaction ends, and then finds a lease that has not expired.
    return wanted.on_conflict_do_update(
        index_elements=[table.c.shard],
        set_={"owner": wanted.excluded.owner, "expires_at": wanted.excluded.expires_at},
        where=_is_void(table),
    ).returning(table.c.shard)


def _is_void(table: Table) -> ColumnElement[bool]:
    ends = table.c.expires_at
    return or_(ends <= bindparam("at", type_=Timestamp()), ends > bindparam("latest", type_=Timestamp()))
