"""Expiring holds past their time, for the reaper: batch after batch until there are no more."""

import time
from collections.abc import Sequence
from datetime import datetime

from inventory_api.domain.model import Reservation
from inventory_api.operations.halves import Halves
from inventory_api.operations.transitions import TURN_ALLOCATIONS
from inventory_api.store import reservations
from shop_common.batching.turns import slices
from shop_common.db.database import Database

GO_ON_SECONDS = 5.0
"""For so long the next batch begins where the last one ended."""

TURN_HOLDS = 100
"""Of one transaction: buyers wait for the items that it has locked, and for the interpreter while it computes."""


class Expiry:
    """For one thread at a time.

    A full batch is followed by the next, and where it ended that one begins: what has been expired stays in front of
    PostgreSQL's index until vacuum comes by, and a million of them would be walked through for each batch. Where it
    ended is no more than a hint. Without one, after a while, and when not enough is found, the search begins with the
    oldest of all.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._since: datetime | None = None
        self._until = 0.0

    def expire_due(self, max_count: int) -> int:
        """Expire up to `max_count` holds past their time, the oldest first; returns how many.

        They are found at once and expired in turns, each a transaction of its own, so that buyers come in between. One
        that can't be expired is set aside.
        """
        found = self._found(max_count)
        # Set before they are expired: should that fail, they are passed over until the hint is forgotten.
        self._since = found[-1].expires_at if len(found) == max_count else None
        halves = Halves(self._expire, id_of=lambda hold: hold.id, set_aside=self._set_aside)
        turns = slices(found, lambda hold: len(hold.allocations), TURN_ALLOCATIONS, count_max=TURN_HOLDS)
        return sum(map(halves.do, turns))

    def _expire(self, holds: Sequence[Reservation]) -> int:
        return self._database.transact(lambda tx: reservations.expire(tx, holds))

    def _set_aside(self, reservation_id: str) -> None:
        self._database.transact(lambda tx: reservations.set_aside(tx, reservation_id))

    def _found(self, max_count: int) -> Sequence[Reservation]:
        if self._since is not None and time.monotonic() < self._until:
            found = self._due(max_count, self._since)
            if len(found) == max_count:
                return found
        self._until = time.monotonic() + GO_ON_SECONDS
        return self._due(max_count)

    def _due(self, max_count: int, since: datetime | None = None) -> Sequence[Reservation]:
        return self._database.query(lambda tx: reservations.due(tx, max_count, since=since))
